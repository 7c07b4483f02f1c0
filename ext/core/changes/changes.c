/* changes.c - how one tree differs from another: two roots enter, a list of changes leaves.
 *
 * Both trees are walked side by side in byte order. A directory comes before what is in it, and its
 * deletions come last; one that is only changed below is listed as modified.
 * Source: go-archive, changes.go, changes_linux.go, changes_unix.go.
 */
#include "tree/attributes.h"
#include "changes/changes.h"
#include "base/grow.h"

#include <fcntl.h>
#include <limits.h>
#include <string.h>

#define CAPABILITY_MAX 64   /* the kernel knows at most 24 bytes */
#define CONTENTS_SIZE (32u << 10)
#define GONE 255            /* lay_name.type: listed, but gone since */

/* ---- the list ---- */

size_t lay_changes_count(const lay_changes *c) { return c->count; }

int lay_changes_at(const lay_changes *c, size_t i, const char **path, size_t *path_len)
{
    size_t end = i + 1 < c->count ? c->at[i + 1] : c->text_len;
    *path = c->text + c->at[i] + 1;
    *path_len = end - c->at[i] - 2;
    return c->text[c->at[i]];
}

void lay_changes_free(lay_changes *c)
{
    if (c == NULL)
        return;
    free(c->text);
    free(c->at);
    free(c);
}

/* dir may be empty; name may be absent (n == 0): the directory itself. */
static lay_code changes_add(lay_changes *c, int kind, const char *dir, size_t dir_len, const char *name, size_t n, lay_error *err)
{
    size_t need;
    if (__builtin_add_overflow(c->text_len, dir_len, &need) || __builtin_add_overflow(need, n + 4, &need) || need > SIZE_MAX / 2)
        return lay_fail_nomem(err);
    if (lay_reserve(&c->text, &c->text_cap, need, 1, err))
        return err->code;
    if (lay_grow(&c->at, &c->cap, c->count, sizeof *c->at, err))
        return err->code;
    c->at[c->count++] = c->text_len;
    char *to = c->text + c->text_len;
    *to++ = (char)kind;
    if (dir_len > 0) {
        *to++ = '/';
        memcpy(to, dir, dir_len);
        to += dir_len;
    }
    if (n > 0) {
        *to++ = '/';
        memcpy(to, name, n);
        to += n;
    }
    *to++ = '\0';
    c->text_len = (size_t)(to - c->text);
    return LAY_OK;
}

/* ---- the way ---- */

lay_code lay_differ_open(lay_differ *d, lay_error *err)
{
    *d = (lay_differ){ .out = calloc(1, sizeof(lay_changes)) };
    return d->out == NULL ? lay_fail_nomem(err) : LAY_OK;
}

lay_code lay_differ_enter(lay_differ *d, const char *name, size_t n, bool recorded, lay_error *err)
{
    if (lay_grow(&d->lens, &d->cap, d->depth, sizeof *d->lens, err) || lay_text_push(&d->path, name, n, err))
        return err->code;
    d->lens[d->depth++] = d->path.len;
    if (recorded)
        d->told = d->depth;
    return LAY_OK;
}

void lay_differ_leave(lay_differ *d)
{
    d->depth--;
    lay_text_cut(&d->path, d->depth > 0 ? d->lens[d->depth - 1] : 0);
    if (d->told > d->depth)
        d->told = d->depth;
}

lay_code lay_differ_record(lay_differ *d, int kind, const char *name, size_t n, lay_error *err)
{
    for (; d->told < d->depth; d->told++)
        if (changes_add(d->out, LAY_CHANGE_MODIFY, d->path.p, d->lens[d->told], NULL, 0, err))
            return err->code;
    return changes_add(d->out, kind, d->path.p, d->path.len, name, n, err);
}

lay_code lay_differ_fail(lay_differ *d, int sys_errno, const char *name, const char *what, lay_error *err)
{
    if (name[0] != '\0' && lay_text_push(&d->path, name, strlen(name), err) != LAY_OK)
        return LAY_E_NOMEM;
    return lay_fail_os(err, sys_errno, d->path.len > 0 ? d->path.p : ".", what);
}

void lay_differ_free(lay_differ *d)
{
    lay_changes_free(d->out);
    free(d->path.p);
    free(d->lens);
    *d = (lay_differ){ 0 };
}

/* ---- the test ---- */

/* A file system, or a tar, may have kept whole seconds only. */
static bool same_time(struct timespec a, struct timespec b)
{
    return a.tv_sec == b.tv_sec && (a.tv_nsec == b.tv_nsec || a.tv_nsec == 0 || b.tv_nsec == 0);
}

bool lay_stats_differ(const struct stat *a, const struct stat *b)
{
    return a->st_mode != b->st_mode || a->st_uid != b->st_uid || a->st_gid != b->st_gid || a->st_rdev != b->st_rdev
        || (!S_ISDIR(a->st_mode) && (a->st_size != b->st_size || !same_time(a->st_mtim, b->st_mtim)));
}

int lay_capabilities_differ(const lay_thing *a, const lay_thing *b)
{
    uint8_t u[CAPABILITY_MAX], v[CAPABILITY_MAX];
    ssize_t n = a->layer->ops->xattr(a->layer, a->in, a->name, LAY_CAPABILITY, u, sizeof u);
    ssize_t m = n < 0 ? -1 : b->layer->ops->xattr(b->layer, b->in, b->name, LAY_CAPABILITY, v, sizeof v);
    return m < 0 ? -1 : n != m || memcmp(u, v, (size_t)n) != 0;
}

/* What is read of a thing: a file, or a link. */
typedef struct content { const lay_lower *layer; lay_lower_dir file; mode_t mode; } content;

static int content_open(content *c, const lay_thing *of)
{
    c->mode = of->st->st_mode;
    c->file = of->layer->ops->file(of->layer, of->in, of->name, c->mode, &c->layer);
    return c->file < 0 ? -1 : 0;
}

static void content_close(const content *c) { c->layer->ops->close(c->layer, c->file); }

/* As many bytes as there are, but for the end; -1 and errno. */
static ssize_t read_full(const content *c, char *to, size_t n, int64_t offset)
{
    size_t have = 0;
    for (ssize_t r = 1; have < n && r != 0; have += r > 0 ? (size_t)r : 0) {
        r = c->layer->ops->read(c->layer, c->file, c->mode, to + have, n - have, offset + (int64_t)have);
        if (r < 0 && errno != EINTR)
            return -1;
    }
    return (ssize_t)have;
}

static int bytes_differ(const content *a, const content *b)
{
    char p[CONTENTS_SIZE], q[CONTENTS_SIZE];
    ssize_t n, m;
    int64_t offset = 0;
    do {
        n = read_full(a, p, sizeof p, offset);
        m = n < 0 ? -1 : read_full(b, q, sizeof q, offset);
        if (m < 0)
            return -1;
        offset += n;
    } while (n == m && n > 0 && memcmp(p, q, (size_t)n) == 0);
    return n != m || n > 0;
}

static int targets_differ(const content *a, const content *b)
{
    char p[PATH_MAX], q[PATH_MAX];
    ssize_t n = a->layer->ops->read(a->layer, a->file, a->mode, p, sizeof p, 0);
    ssize_t m = n < 0 ? -1 : b->layer->ops->read(b->layer, b->file, b->mode, q, sizeof q, 0);
    return m < 0 ? -1 : n != m || memcmp(p, q, (size_t)n) != 0;
}

static int contents_differ(const lay_thing *a, const lay_thing *b)
{
    mode_t mode = a->st->st_mode;
    if (mode != b->st->st_mode || a->st->st_uid != b->st->st_uid || a->st->st_gid != b->st->st_gid || a->st->st_rdev != b->st->st_rdev)
        return 1;
    if (!S_ISREG(mode) && !S_ISLNK(mode))
        return 0;
    if (a->st->st_size != b->st->st_size)
        return 1;
    if ((S_ISREG(mode) && a->st->st_size == 0) || (a->st->st_ino == b->st->st_ino && a->st->st_dev == b->st->st_dev))
        return 0;
    content one, other;
    int differ = -1;
    if (content_open(&one, a) < 0)
        return -1;
    if (content_open(&other, b) == 0) {
        differ = S_ISREG(mode) ? bytes_differ(&one, &other) : targets_differ(&one, &other);
        content_close(&other);
    }
    content_close(&one);
    return differ;
}

int lay_things_differ(bool contents, const lay_thing *a, const lay_thing *b)
{
    int differ = contents ? contents_differ(a, b) : lay_stats_differ(a->st, b->st);
    return differ != 0 ? differ : lay_capabilities_differ(a, b);
}

/* ---- two trees ---- */

typedef struct pair { lay_names fresh, old; size_t next, old_next; bool has_old; } pair;   /* one directory in both */
typedef struct pairs {
    lay_differ differ;
    bool attributes, touched;              /* what differs in attributes alone, or in its ctime, is told too */
    bool contents;                         /* what differs in its times alone is not */
    lay_attributes mine, other;
    lay_trail fresh, old;
    pair *list; size_t depth, cap;
} pairs;

static const char *name_at(const lay_names *names, size_t i) { return names->text + names->list[i].at; }

static int name_order(const lay_names *a, size_t i, const lay_names *b, size_t j)
{
    size_t n = a->list[i].len, m = b->list[j].len;
    int r = memcmp(name_at(a, i), name_at(b, j), n < m ? n : m);
    return r != 0 ? r : (n > m) - (n < m);
}

/* The trails stand in the directory already. */
static lay_code pairs_read(pairs *p, bool has_old, lay_error *err)
{
    if (lay_grow(&p->list, &p->cap, p->depth, sizeof *p->list, err))
        return err->code;
    pair *here = &p->list[p->depth++];
    *here = (pair){ .has_old = has_old };
    if (!lay_names_read(&here->fresh, lay_trail_fd(&p->fresh), err) && (!has_old || !lay_names_read(&here->old, lay_trail_fd(&p->old), err)))
        return LAY_OK;
    return p->differ.path.len > 0 ? lay_error_path(err, p->differ.path.p, p->differ.path.len) : err->code;
}

static lay_code pairs_enter(pairs *p, const lay_name *name, bool both, bool recorded, lay_error *err)
{
    const char *text = p->list[p->depth - 1].fresh.text + name->at;
    if (lay_trail_down(&p->fresh, text) < 0)   /* a tree in use: gone since it was listed */
        return lay_tree_gone(errno) ? LAY_OK : lay_differ_fail(&p->differ, errno, text, "cannot open the directory", err);
    if (both && lay_trail_down(&p->old, text) < 0) {
        if (!lay_tree_gone(errno))
            return lay_differ_fail(&p->differ, errno, text, "cannot open the directory", err);
        both = false;
    }
    if (lay_differ_enter(&p->differ, text, name->len, recorded, err))
        return err->code;
    return pairs_read(p, both, err);
}

static bool same_attributes(const lay_attributes *a, const lay_attributes *b)
{
    bool same = a->count == b->count;
    for (size_t i = 0; same && i < a->count; i++)
        same = strcmp(a->xattrs[i].name, b->xattrs[i].name) == 0 && a->xattrs[i].len == b->xattrs[i].len
            && (a->xattrs[i].len == 0 || memcmp(a->xattrs[i].value, b->xattrs[i].value, a->xattrs[i].len) == 0);
    return same;
}

/* What moby does not compare: the other attributes, the time of a directory, and what a whole second hides. */
static lay_code attributes_differ(pairs *p, const char *text, const struct stat *st, const struct stat *old, bool *differ, lay_error *err)
{
    const lay_bearer a = { .fd = -1, .dir_fd = lay_trail_fd(&p->fresh), .name = text };
    const lay_bearer b = { .fd = -1, .dir_fd = lay_trail_fd(&p->old), .name = text };
    *differ = st->st_mtim.tv_sec != old->st_mtim.tv_sec || st->st_mtim.tv_nsec != old->st_mtim.tv_nsec;
    if (*differ)
        return LAY_OK;
    if (lay_attributes_list(&p->mine, &a, err) || lay_attributes_list(&p->other, &b, err)
        || lay_attributes_read(&p->mine, &a, false, err) || lay_attributes_read(&p->other, &b, false, err)) {
        if (err->code != LAY_E_OS || !lay_tree_gone(err->sys_errno))
            return err->code;
        lay_error_clear(err);
        return LAY_OK;
    }
    *differ = !same_attributes(&p->mine, &p->other);
    return LAY_OK;
}

/* The next name of the new tree. */
static lay_code pairs_next(pairs *p, lay_error *err)
{
    pair *here = &p->list[p->depth - 1];
    size_t i = here->next++;
    lay_name *name = &here->fresh.list[i];
    const char *text = name_at(&here->fresh, i);
    struct stat st, old_st;
    if (fstatat(lay_trail_fd(&p->fresh), text, &st, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT) < 0) {
        name->type = GONE;
        return errno == ENOENT ? LAY_OK : lay_differ_fail(&p->differ, errno, text, "cannot stat it", err);
    }
    while (here->old_next < here->old.count && name_order(&here->old, here->old_next, &here->fresh, i) < 0)
        here->old_next++;
    bool was = here->old_next < here->old.count && name_order(&here->old, here->old_next, &here->fresh, i) == 0;
    if (was && fstatat(lay_trail_fd(&p->old), text, &old_st, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT) < 0) {
        if (errno != ENOENT)
            return lay_differ_fail(&p->differ, errno, text, "cannot stat the old one", err);
        was = false;
    }
    bool differs = true;
    if (was) {
        if (st.st_ino == old_st.st_ino && st.st_dev == old_st.st_dev)
            return LAY_OK;
        const lay_lower fresh = lay_lower_directory(lay_trail_fd(&p->fresh)), old = lay_lower_directory(lay_trail_fd(&p->old));
        const lay_thing a = { &fresh, fresh.root, text, &st }, b = { &old, old.root, text, &old_st };
        int differ = lay_things_differ(p->contents, &a, &b);
        if (differ < 0 && lay_tree_gone(errno)) {
            name->type = GONE;
            return LAY_OK;
        }
        if (differ < 0)
            return lay_differ_fail(&p->differ, errno, text, "cannot compare it", err);
        differs = differ > 0
            || (p->touched && (st.st_ctim.tv_sec != old_st.st_ctim.tv_sec || st.st_ctim.tv_nsec != old_st.st_ctim.tv_nsec));
        if (!differs && p->attributes) {
            bool besides = false;
            if (attributes_differ(p, text, &st, &old_st, &besides, err)
                || (besides && lay_differ_record(&p->differ, LAY_CHANGE_ATTRIBUTES, text, name->len, err)))
                return err->code;
        }
    }
    if (differs && lay_differ_record(&p->differ, was ? LAY_CHANGE_MODIFY : LAY_CHANGE_ADD, text, name->len, err))
        return err->code;
    return S_ISDIR(st.st_mode) ? pairs_enter(p, name, was && S_ISDIR(old_st.st_mode), differs, err) : LAY_OK;
}

static lay_code pairs_deleted(pairs *p, lay_error *err)
{
    pair *here = &p->list[p->depth - 1];
    for (size_t i = 0, j = 0; i < here->old.count; i++) {
        while (j < here->fresh.count && name_order(&here->fresh, j, &here->old, i) < 0)
            j++;
        bool is = j < here->fresh.count && here->fresh.list[j].type != GONE && name_order(&here->fresh, j, &here->old, i) == 0;
        if (!is && lay_differ_record(&p->differ, LAY_CHANGE_DELETE, name_at(&here->old, i), here->old.list[i].len, err))
            return err->code;
    }
    return LAY_OK;
}

/* What only the old tree has, then up. Of a directory that is gone meanwhile nothing more is said. */
static lay_code pairs_leave(pairs *p, lay_error *err)
{
    bool lost = p->list[p->depth - 1].fresh.gone;
    for (;;) {
        pair *here = &p->list[p->depth - 1];
        lay_code code = lost ? LAY_OK : pairs_deleted(p, err);
        bool both = here->has_old;
        lay_names_free(&here->fresh);
        lay_names_free(&here->old);
        p->depth--;
        if (p->depth == 0 || code != LAY_OK)
            return code;
        lay_differ_leave(&p->differ);
        const lay_text *path = &p->differ.path;
        int fresh = lay_trail_up(&p->fresh, path->p, path->len);
        int old = both && fresh >= 0 ? lay_trail_up(&p->old, path->p, path->len) : 0;
        if (fresh < 0 || old < 0)
            return lay_differ_fail(&p->differ, errno, "", "cannot go back to the directory", err);
        lost = fresh > 0 || old > 0;
        if (!lost)
            return LAY_OK;
    }
}

static lay_code pairs_run(pairs *p, int new_fd, int old_fd, lay_error *err)
{
    if (lay_differ_open(&p->differ, err))
        return err->code;
    if (lay_trail_open(&p->fresh, new_fd, false) < 0)
        return lay_fail_fd(err, errno, new_fd, "cannot open the directory");
    if (old_fd >= 0 && lay_trail_open(&p->old, old_fd, false) < 0)
        return lay_fail_fd(err, errno, old_fd, "cannot open the directory");
    lay_code code = pairs_read(p, old_fd >= 0, err);
    while (code == LAY_OK && p->depth > 0) {
        const pair *here = &p->list[p->depth - 1];
        code = here->next < here->fresh.count ? pairs_next(p, err) : pairs_leave(p, err);
    }
    return code;
}

lay_code lay_changes_trees(lay_changes **out, int new_fd, int old_fd, unsigned flags, lay_error *err)
{
    lay_error_clear(err);
    pairs p = { .fresh = LAY_TRAIL_NONE, .old = LAY_TRAIL_NONE, .attributes = (flags & LAY_CHANGES_ATTRIBUTES) != 0,
                .touched = (flags & LAY_CHANGES_TOUCHED) != 0, .contents = (flags & LAY_CHANGES_CONTENTS) != 0 };
    lay_code code = pairs_run(&p, new_fd, old_fd, err);
    if (code == LAY_OK)
        *out = lay_steal(p.differ.out);
    while (p.depth > 0) {
        p.depth--;
        lay_names_free(&p.list[p.depth].fresh);
        lay_names_free(&p.list[p.depth].old);
    }
    free(p.list);
    lay_attributes_free(&p.mine);
    lay_attributes_free(&p.other);
    lay_trail_free(&p.fresh);
    lay_trail_free(&p.old);
    lay_differ_free(&p.differ);
    return code;
}
