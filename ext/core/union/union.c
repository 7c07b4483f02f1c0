/* union.c - a union opens, and answers as one layer. */
#include "tree/attributes.h"
#include "tree/whiteout.h"
#include "union/union.h"
#include "union/union_state.h"

#include <dirent.h>
#include <fcntl.h>
#include <string.h>

static lay_union_dir *dir_of(lay_lower_dir in) { return (lay_union_dir *)(uintptr_t)in; }
static lay_lower_dir place_of(const lay_union_dir *d) { return d == NULL ? -1 : (lay_lower_dir)(uintptr_t)d; }

/* ---- opening ---- */

static lay_code open_root(lay_union *u, bool listed, lay_error *err)
{
    u->root = lay_union_dir_new(u, 0, u->count);
    if (u->root == NULL)
        return lay_fail_nomem(err);
    for (size_t i = 0; i < u->count; i++)
        u->root->parts[i] = (lay_union_part){ i, u->layers[i].root };
    u->root->nparts = u->root->spare = u->count;
    u->root->xattrs_len = -1;
    if (lay_union_root_marks(u->root) < 0)
        return lay_fail_os(err, errno, ".", "cannot read the marks of a layer's root");
    return listed ? lay_union_dir_read(u->root, err) : LAY_OK;
}

static lay_union *union_new(const lay_lower *layers, size_t n, const lay_lowers *below, unsigned flags, lay_error *err)
{
    lay_union *u = calloc(1, sizeof *u);
    lay_error_clear(err);
    if (u == NULL) {
        lay_fail_nomem(err);
        return NULL;
    }
    u->layers = layers;
    u->count = n;
    u->below = below;
    u->userxattr = (flags & LAY_UNION_USERXATTR) != 0;
    u->over_marks = (flags & LAY_UNION_OVER_MARKS) != 0;
    u->whole = (flags & LAY_UNION_WHOLE) != 0;
    return u;
}

lay_code lay_union_open(lay_union **out, const lay_lower *layers, size_t n, const lay_lowers *below, unsigned flags, lay_error *err)
{
    lay_union *u = union_new(layers, n, below, flags, err);
    if (u == NULL)
        return err->code;
    if (open_root(u, true, err))
        lay_union_free(u);
    else
        *out = u;
    return err->code;
}

/* Each root once more, for KEEP. */
static lay_code keep_root(lay_lower *own, const lay_shown *layer, lay_error *err)
{
    own->root = own->ops->open(own, own->root, "", 0);
    if (own->root >= 0)
        return LAY_OK;
    int fd = lay_lower_fd(layer), e = errno;
    return fd >= 0 ? lay_fail_fd(err, e, fd, "cannot open the directory") : lay_fail_os(err, e, NULL, "cannot open the layer");
}

static lay_code open_layers(lay_union *u, const lay_shown *layers, size_t n, bool keep, lay_error *err)
{
    u->own = calloc(n + 1, sizeof *u->own);
    if (u->own == NULL)
        return lay_fail_nomem(err);
    u->kept = keep;
    for (; u->count < n; u->count++) {
        const lay_shown *layer = &layers[u->count];
        u->own[u->count] = layer->lower != NULL ? *layer->lower : lay_lower_lent(layer->fd);
        if (keep && keep_root(&u->own[u->count], layer, err))
            return err->code;
    }
    u->layers = u->own;
    return LAY_OK;
}

static lay_code open_below(lay_union *u, const lay_shown *layers, size_t n, bool keep, lay_error *err)
{
    u->below = &u->own_below;
    return lay_lowers_open(&u->own_below, layers, n, u->userxattr, err) || (keep && lay_lowers_keep(&u->own_below, err)) ? err->code : LAY_OK;
}

lay_code lay_union_open_at(lay_union **out, const lay_shown *layers, size_t n, const lay_shown *below, size_t nbelow, unsigned flags, lay_error *err)
{
    bool keep = (flags & LAY_UNION_KEEP) != 0;
    lay_union *u = union_new(NULL, 0, NULL, flags, err);
    if (u == NULL)
        return err->code;
    if (open_layers(u, layers, n, keep, err) || (below != NULL && open_below(u, below, nbelow, keep, err)) || open_root(u, (flags & LAY_UNION_UNREAD) == 0, err))
        lay_union_free(u);
    else
        *out = u;
    return err->code;
}

void lay_union_free(lay_union *u)
{
    if (u == NULL)
        return;
    lay_union_dir_free(u->root);
    for (size_t i = 0; u->kept && i < u->count; i++)
        u->own[i].ops->close(&u->own[i], u->own[i].root);
    lay_lowers_free(&u->own_below);
    free(u->own);
    free(u);
}

/* ---- one path ---- */

static int shows(lay_union_dir *d, const char *name, size_t *layer)
{
    size_t part;
    if (lay_union_dir_find(d, name, &part) < 0)
        return -1;
    *layer = d->parts[part].layer;
    lay_lower_dir in = lay_union_dir_part(d, part);
    int hidden = in < 0 ? -1 : lay_union_is_whiteout(lay_union_layer(d->of, *layer), in, name);
    if (hidden > 0)
        errno = ENOENT;
    return hidden == 0 ? 0 : -1;
}

int lay_union_shows(const lay_union *u, const char *path, size_t n, size_t *layer)
{
    const char *slash = memrchr(path, '/', n);
    size_t above = slash != NULL ? (size_t)(slash - path) : 0;
    *layer = 0;
    if (n == 0 && u->count > 0)
        return 0;
    errno = ENOENT;
    lay_union_dir *d = n == 0 ? NULL : above > 0 ? lay_union_dir_open(u->root, path, above) : u->root;
    int found = d == NULL ? -1 : shows(d, slash != NULL ? slash + 1 : path, layer);
    if (d != u->root)
        lay_union_dir_free(d);
    return found;
}

/* ---- as a layer ---- */

static lay_lower_dir union_open(const lay_lower *l, lay_lower_dir in, const char *path, size_t n)
{
    (void)l;
    return place_of(lay_union_dir_open(dir_of(in), path, n));
}

static void union_close(const lay_lower *l, lay_lower_dir in)
{
    (void)l;
    lay_union_dir_free(dir_of(in));
}

/* The layer that shows this, "." too, and its directory; NULL and errno. */
static const lay_lower *shown_by(lay_union_dir *d, const char *name, lay_lower_dir *in)
{
    size_t part = 0;
    if (strcmp(name, ".") != 0 && lay_union_dir_find(d, name, &part) < 0)
        return NULL;
    *in = lay_union_dir_part(d, part);
    return *in < 0 ? NULL : lay_union_layer(d->of, d->parts[part].layer);
}

static int union_stat(const lay_lower *l, lay_lower_dir in, const char *name, struct stat *st)
{
    (void)l;
    lay_union_dir *d = dir_of(in);
    if (d->nparts == 0 && strcmp(name, ".") == 0) {
        *st = (struct stat){ .st_mode = S_IFDIR | 0755, .st_nlink = 1 };
        return 0;
    }
    lay_lower_dir there;
    const lay_lower *by = shown_by(d, name, &there);
    return by == NULL ? -1 : by->ops->stat(by, there, name, st);
}

static lay_code union_list(const lay_lower *l, lay_lower_dir in, lay_names *names, lay_error *err)
{
    (void)l;
    lay_union_dir *d = dir_of(in);
    *names = (lay_names){ 0 };
    if (lay_union_dir_read(d, err))
        return err->code;
    size_t size = 0;
    for (size_t i = 0; i < d->nshown; i++)
        size += d->entries[d->shown[i]].len + 1u;
    if (size > UINT32_MAX)
        return lay_fail(err, LAY_E_LIMIT, "the directory has too many names");
    names->gone = d->gone;
    names->list = calloc(d->nshown + 1, sizeof *names->list);
    names->text = malloc(size + 1);
    if (names->list == NULL || names->text == NULL) {
        lay_names_free(names);
        return lay_fail_nomem(err);
    }
    uint32_t at = 0;
    for (; names->count < d->nshown; names->count++) {
        const lay_union_entry *e = &d->entries[d->shown[names->count]];
        names->list[names->count] = (lay_name){ .at = at, .len = e->len, .type = e->type == DT_WHT ? DT_CHR : e->type, .ino = e->ino };
        memcpy(names->text + at, e->name, e->len + 1u);
        at += e->len + 1u;
    }
    return LAY_OK;
}

/* ---- attributes ---- */

/* n bytes more of an answer; size 0: only how long it is. */
static bool put(void *buf, size_t size, size_t *have, const void *p, size_t n)
{
    if (size > 0 && *have + n > size) {
        errno = ERANGE;
        return false;
    }
    if (size > 0)
        memcpy((char *)buf + *have, p, n);
    *have += n;
    return true;
}

/* The nearest's, where opaque is said as the union has it. */
static ssize_t names_of(const lay_union_dir *d, const char *list, size_t n, void *buf, size_t size)
{
    const char *opaque = lay_opaque_xattr(d->of->userxattr);
    size_t have = 0;
    for (const char *at = list; at < list + n; at += strlen(at) + 1)
        if (strcmp(at, opaque) != 0 && !put(buf, size, &have, at, strlen(at) + 1))
            return -1;
    if (d->opaque && !put(buf, size, &have, opaque, strlen(opaque) + 1))
        return -1;
    errno = 0;
    return (ssize_t)have;
}

static ssize_t union_xattr(const lay_lower *l, lay_lower_dir in, const char *name, const char *xattr, void *buf, size_t size)
{
    (void)l;
    lay_union_dir *d = dir_of(in);
    bool itself = strcmp(name, ".") == 0;
    if (itself && xattr == NULL && d->xattrs_len >= 0)
        return names_of(d, d->xattrs, (size_t)d->xattrs_len, buf, size);
    if (itself && xattr != NULL && strcmp(xattr, lay_opaque_xattr(d->of->userxattr)) == 0) {
        size_t have = 0;
        errno = ENODATA;
        if (!d->opaque)
            return 0;
        errno = 0;
        return put(buf, size, &have, "y", 1) ? 1 : -1;
    }
    if (itself && d->nparts == 0) {
        errno = ENODATA;
        return 0;
    }
    lay_lower_dir there;
    const lay_lower *by = shown_by(d, name, &there);
    return by == NULL ? -1 : by->ops->xattr(by, there, name, xattr, buf, size);
}

static lay_lower_dir union_file(const lay_lower *l, lay_lower_dir in, const char *name, mode_t mode, const lay_lower **of)
{
    (void)l;
    lay_lower_dir there;
    const lay_lower *by = shown_by(dir_of(in), name, &there);
    return by == NULL ? -1 : by->ops->file(by, there, name, mode, of);
}

lay_lower lay_union_lower(const lay_union *u)
{
    static const lay_lower_ops ops = { union_open, union_close, union_stat, union_list, union_xattr, union_file, NULL, NULL };
    return (lay_lower){ .ops = &ops, .layer = u, .root = place_of(u->root) };
}
