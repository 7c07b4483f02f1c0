/* union_dir.c - which layers make up a directory of a union, and which of them shows a name. */
#include "tree/whiteout.h"
#include "union/union_state.h"

#include <limits.h>
#include <string.h>

#define XWHITEOUTS "a directory with whiteouts as extended attributes"
#define LIST_SIZE 1024      /* names of extended attributes; where there are more, each is asked for */

void lay_union_dir_free(lay_union_dir *d)
{
    if (d == NULL)
        return;
    int e = errno;
    for (size_t i = 0; i < d->nparts; i++)
        lay_union_part_close(d, i);
    lay_union_dir_forget(d);
    free(d->parts);
    free(d->xattrs);
    free(d);
    errno = e;
}

/* ---- a directory below ---- */

static bool listed(const char *list, ssize_t n, const char *xattr)
{
    for (const char *at = list; at < list + n; at += strlen(at) + 1)
        if (strcmp(at, xattr) == 0)
            return true;
    return false;
}

/* The marks of a layer's directory, and of the nearest the names of all its attributes. 0, or -1 and errno. */
static int read_marks(lay_union_dir *d, const lay_lower *l, lay_lower_dir in)
{
    bool user = d->of->userxattr, first = d->nparts == 0;
    const char *opaque = lay_opaque_xattr(user), *redirect = user ? LAY_REDIRECT_USER : LAY_REDIRECT_TRUSTED;
    char list[LIST_SIZE], value[8];
    ssize_t n = l->ops->xattr(l, in, ".", NULL, list, sizeof list);
    if (n < 0 && errno != ERANGE)
        return -1;
    if (first && (d->xattrs_len = n) > 0) {
        d->xattrs = malloc((size_t)n);
        if (d->xattrs == NULL)
            return -1;
        memcpy(d->xattrs, list, (size_t)n);
    }
    if (n < 0 || listed(list, n, opaque)) {
        ssize_t len = l->ops->xattr(l, in, ".", opaque, value, sizeof value);
        if (len < 0 && errno != ERANGE)
            return -1;
        d->opaque = len == 1 && value[0] == 'y';
        if (len == 1 && value[0] == 'x')
            d->refused = XWHITEOUTS;
    }
    if (n < 0 || listed(list, n, redirect)) {
        ssize_t len = l->ops->xattr(l, in, ".", redirect, value, sizeof value);
        if (len < 0 && errno != ERANGE)
            return -1;
        if (len != 0 || errno == 0)
            d->refused = "a redirected directory";
    }
    return 0;
}

int lay_union_root_marks(lay_union_dir *root)
{
    for (size_t i = 0; i < root->nparts; i++) {
        const lay_lower *l = lay_union_layer(root->of, root->parts[i].layer);
        char value[8];
        ssize_t n = l->ops->xattr(l, l->root, ".", lay_opaque_xattr(root->of->userxattr), value, sizeof value);
        if (n < 0 && errno != ERANGE)
            return -1;
        if (n == 1 && value[0] == 'x')
            root->refused = XWHITEOUTS;
    }
    return 0;
}

/* The child's directory in one layer of d. Where d has none open, the whole path leads there at once. */
static lay_lower_dir open_in(const lay_union_dir *d, size_t part, const lay_union_dir *child, size_t n)
{
    const lay_union_part *p = &d->parts[part];
    const lay_lower *l = lay_union_layer(d->of, p->layer);
    size_t above = p->in >= 0 ? child->path_len - n : 0;
    return l->ops->open(l, p->in >= 0 ? p->in : l->root, child->path + above, child->path_len - above);
}

/* One layer more, as far as there is none nearer that ends it. 1: no layer after it counts; -1 and errno. */
static int add_part(lay_union_dir *d, size_t part, lay_union_dir *child, size_t n)
{
    size_t layer = d->parts[part].layer;
    const lay_lower *l = lay_union_layer(d->of, layer);
    lay_lower_dir in = open_in(d, part, child, n);
    if (in < 0 && errno == ENOENT)
        return 0;
    if (in < 0 && errno != ENOTDIR && errno != ELOOP)
        return -1;
    if (in < 0 && child->nparts > 0)
        return child->opaque = true;
    if (in < 0) {                       /* a whiteout is nothing */
        int e = errno;
        lay_lower_dir above = lay_union_dir_part(d, part);
        int hidden = above < 0 ? -1 : lay_union_is_whiteout(l, above, child->path + child->path_len - n);
        if (hidden >= 0)
            errno = hidden > 0 ? ENOENT : e;
        return -1;
    }
    if (read_marks(child, l, in) < 0) {
        lay_lower_leave(l, in);
        return -1;
    }
    size_t at = child->nparts++;
    child->parts[at] = (lay_union_part){ layer, in };
    if (at >= LAY_UNION_FRESH)
        lay_union_part_close(child, at);
    return child->opaque;
}

/* The first entry of a name, or nentries. */
static size_t entry_of(const lay_union_dir *d, const char *name, size_t n)
{
    size_t low = 0, high = d->nshown;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        const lay_union_entry *e = &d->entries[d->shown[mid]];
        int r = memcmp(e->name, name, e->len < n ? e->len : n);
        r = r != 0 ? r : (e->len > n) - (e->len < n);
        if (r == 0)
            return d->shown[mid];
        *(r < 0 ? &low : &high) = r < 0 ? mid + 1 : mid;
    }
    return d->nentries;
}

lay_union_dir *lay_union_dir_down(lay_union_dir *d, const char *name, size_t n)
{
    size_t above = d->path_len + (d->path_len > 0);
    lay_union_dir *child = lay_union_dir_new(d->of, above + n, d->nparts);
    if (child == NULL)
        return NULL;
    memcpy(child->path, d->path, d->path_len);
    memset(child->path + d->path_len, '/', above - d->path_len);
    memcpy(child->path + above, name, n);
    int last = 0;
    size_t i = entry_of(d, name, n);          /* of which layers have the name, as far as it is known */
    for (bool more = i < d->nentries; more && last == 0; more = ++i < d->nentries && d->entries[i].again)
        last = add_part(d, d->entries[i].part, child, n);
    for (size_t part = d->nlisted; part < d->nparts && last == 0; part++)
        last = add_part(d, part, child, n);
    child->spare = child->nparts;
    child->cut = d->cut || child->opaque;
    if (last >= 0 && child->nparts > 0)
        return child;
    if (last >= 0)
        errno = ENOENT;
    lay_union_dir_free(child);
    return NULL;
}

/* The directory itself once more. */
static lay_union_dir *again(const lay_union_dir *d)
{
    lay_union_dir *copy = lay_union_dir_new(d->of, d->path_len, d->nparts);
    if (copy == NULL)
        return NULL;
    memcpy(copy->path, d->path, d->path_len);
    for (size_t i = 0; i < d->nparts; i++)
        copy->parts[i] = (lay_union_part){ d->parts[i].layer, d == d->of->root ? d->parts[i].in : -1 };
    copy->nparts = copy->spare = d->nparts;
    copy->opaque = d->opaque;
    copy->cut = d->cut;
    copy->refused = d->refused;
    copy->xattrs_len = -1;
    return copy;
}

lay_union_dir *lay_union_dir_open(lay_union_dir *d, const char *path, size_t n)
{
    if (n == 0)
        return again(d);
    lay_union_dir *at = d;
    for (const char *end = path + n; path <= end;) {
        const char *slash = memchr(path, '/', (size_t)(end - path));
        size_t len = (size_t)((slash != NULL ? slash : end) - path);
        lay_union_dir *next = NULL;
        if (len <= NAME_MAX)
            next = lay_union_dir_down(at, path, len);
        else
            errno = ENAMETOOLONG;
        if (at != d)
            lay_union_dir_free(at);
        if (next == NULL)
            return NULL;
        at = next;
        path += len + 1;
    }
    return at;
}

/* ---- one name ---- */

/* What shows it can only be known from all names, where a whiteout of nothing is no name. */
static int know_names(lay_union_dir *d)
{
    lay_error err;
    if (d->listed || d->of->below == NULL || lay_union_dir_read(d, &err) == LAY_OK)
        return 0;
    errno = err.code == LAY_E_OS ? err.sys_errno : err.code == LAY_E_NOMEM ? ENOMEM : EOPNOTSUPP;
    return -1;
}

int lay_union_dir_find(lay_union_dir *d, const char *name, size_t *part)
{
    if (know_names(d) < 0)
        return -1;
    size_t i = entry_of(d, name, strlen(name));
    if (i < d->nentries) {
        *part = d->entries[i].part;
        return 0;
    }
    for (*part = d->nlisted; *part < d->nparts; ++*part) {
        const lay_lower *l = lay_union_layer(d->of, d->parts[*part].layer);
        lay_lower_dir in = lay_union_dir_part(d, *part);
        struct stat st;
        if (in >= 0 && l->ops->stat(l, in, name, &st) == 0)
            return 0;
        if (in < 0 ? !lay_tree_gone(errno) : errno != ENOENT)
            return -1;
    }
    errno = ENOENT;
    return -1;
}
