/* stand.c - a layer that was unpacked alone comes to stand on others: what its tar left open is settled.
 *
 * A directory without an entry takes its owner, xattrs, mode and times from the one that the layers below show there:
 * an overlay shows the topmost. Of a name, those layers are kept that it is looked for in; going down they only grow
 * fewer. An opaque mark at the top, which overlayfs does not look at, becomes marks of each name below.
 * Source: the kernel, fs/overlayfs (lookup)
 */
#include "place.h"
#include "text.h"
#include "tree.h"
#include "whiteout.h"

#include <fcntl.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>

typedef struct run { uint32_t from, n; const char *path; } run;
/* The layers where a prefix of the present path is looked for: of `active`, count from `first` on. settled: its last
 * component is what it has to be. */
typedef struct level { size_t end, first, count; bool settled; } level;

typedef struct stand {
    int root_fd;
    const int *lowers;
    const char *opaque;                       /* the xattr's name */
    run *runs; size_t nruns;
    level *levels; size_t depth, level_cap;
    size_t *active; size_t nactive, active_cap;
    lay_text path;                            /* of the levels */
} stand;

static bool is_opaque(const stand *s, int fd)
{
    char value;
    return fgetxattr(fd, s->opaque, &value, 1) == 1 && value == 'y';
}

static lay_code fail_at(const stand *s, int e, const char *what, lay_error *err)
{
    return lay_fail_os(err, e, s->path.p, what);
}

static lay_code add_active(stand *s, size_t lower, lay_error *err)
{
    if (s->nactive == s->active_cap) {
        size_t cap = s->active_cap * 2 + 256;
        size_t *grown = reallocarray(s->active, cap, sizeof *grown);
        if (!grown)
            return lay_fail_nomem(err);
        s->active = grown;
        s->active_cap = cap;
    }
    s->active[s->nactive++] = lower;
    return LAY_OK;
}

static lay_code add_level(stand *s, size_t end, lay_error *err)
{
    if (s->depth == s->level_cap) {
        size_t cap = s->level_cap * 2 + 32;
        level *grown = reallocarray(s->levels, cap, sizeof *grown);
        if (!grown)
            return lay_fail_nomem(err);
        s->levels = grown;
        s->level_cap = cap;
    }
    s->levels[s->depth++] = (level){ end, s->nactive, 0, false };
    return LAY_OK;
}

/* Down into the next component, which ends at s->path.len; own: of this layer. *below: the topmost below, or -1. */
static lay_code go_down(stand *s, int own, int *below, lay_error *err)
{
    level above = s->levels[s->depth - 1];
    bool alone = is_opaque(s, own);           /* what is in it below is hidden; what it is itself is not */
    *below = -1;
    if (add_level(s, s->path.len, err))
        return err->code;
    for (size_t i = 0; i < above.count; i++) {
        size_t lower = s->active[above.first + i];
        LAY_AUTO_FD int fd = lay_tree_open_dir(s->lowers[lower], s->path.p, s->path.len, 0);
        if (fd < 0 && errno == ENOENT)
            continue;
        if (fd < 0 && (errno == ENOTDIR || errno == ELOOP))
            break;                            /* a whiteout, or another thing that is none: what is below is hidden */
        if (fd < 0)
            return fail_at(s, errno, "cannot open the directory below", err);
        if (!alone && add_active(s, lower, err))
            return err->code;
        s->levels[s->depth - 1].count += !alone;
        bool last = alone || is_opaque(s, fd);
        if (*below < 0)
            *below = lay_steal_fd(&fd);
        if (last)
            break;
    }
    return LAY_OK;
}

/* The levels that this path shares with the one before stay, but where it has more to do. */
static void go_back(stand *s, const run *r)
{
    size_t same = 0;
    while (same < s->path.len && same < r->n && s->path.p[same] == r->path[same])
        same++;
    size_t keep = 1;
    for (; keep < s->depth; keep++) {
        const level *l = &s->levels[keep];
        size_t from = l[-1].end ? l[-1].end + 1 : 0;
        bool shared = l->end <= same && (l->end == r->n || r->path[l->end] == '/') && (l->end == s->path.len || s->path.p[l->end] == '/');
        if (!shared || (from >= r->from && !l->settled))
            break;
    }
    if (keep < s->depth)
        s->nactive = s->levels[keep].first;
    s->depth = keep;
    lay_text_cut(&s->path, s->levels[s->depth - 1].end);
}

static lay_code settle_run(stand *s, const run *r, lay_error *err)
{
    go_back(s, r);
    while (s->levels[s->depth - 1].count && s->path.len < r->n) {
        size_t from = s->path.len ? s->path.len + 1 : 0, to = from;
        while (to < r->n && r->path[to] != '/')
            to++;
        if ((from && lay_text_add(&s->path, "/", 1, err)) || lay_text_add(&s->path, r->path + from, to - from, err))
            return err->code;
        LAY_AUTO_FD int own = lay_tree_open_dir(s->root_fd, s->path.p, s->path.len, 0);
        if (own < 0 && (errno == ENOENT || errno == ENOTDIR || errno == ELOOP)) {
            lay_text_cut(&s->path, s->levels[s->depth - 1].end);
            return LAY_OK;                    /* a later entry took its place */
        }
        if (own < 0)
            return fail_at(s, errno, "cannot open the directory", err);
        LAY_AUTO_FD int below = -1;
        if (go_down(s, own, &below, err))
            return err->code;
        s->levels[s->depth - 1].settled = from >= r->from;
        if (from >= r->from && below >= 0 && lay_place_as(own, below, err)) {
            lay_error_path(err, s->path.p, s->path.len);
            return err->code;
        }
    }
    return LAY_OK;
}

/* ---- an opaque mark at the top ------------------------------------------------------------------------------ */

static lay_code hide_name(const stand *s, const char *name, lay_error *err)
{
    struct stat st;
    if (mknodat(s->root_fd, name, S_IFCHR, makedev(0, 0)) == 0)
        return LAY_OK;
    if (errno != EEXIST || fstatat(s->root_fd, name, &st, AT_SYMLINK_NOFOLLOW) != 0)
        return lay_fail_os(err, errno, name, "cannot make a whiteout");
    if (!S_ISDIR(st.st_mode))
        return LAY_OK;
    LAY_AUTO_FD int fd = openat(s->root_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    return fd < 0 || fsetxattr(fd, s->opaque, "y", 1, 0) != 0 ? lay_fail_os(err, errno, name, "cannot mark the directory opaque") : LAY_OK;
}

static lay_code hide_all(const stand *s, size_t n, lay_error *err)
{
    lay_code code = LAY_OK;
    for (size_t i = 0; i < n && !code; i++) {
        lay_names names = { 0 };
        LAY_AUTO_FD int fd = openat(s->lowers[i], ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        code = fd < 0 ? lay_fail_os(err, errno, NULL, "cannot read the layer below") : lay_names_read(&names, fd, err);
        for (size_t k = 0; k < names.count && !code; k++)
            code = hide_name(s, names.text + names.list[k].at, err);
        lay_names_free(&names);
    }
    return code;
}

/* ---- all of it ------------------------------------------------------------------------------------------------ */

static int by_path(const void *a, const void *b)
{
    const run *x = a, *y = b;
    return strcmp(x->path, y->path);
}

static lay_code read_runs(stand *s, const char *p, size_t size, bool *opaque, lay_error *err)
{
    uint32_t head[2];
    for (size_t at = 0, cap = 0; at < size; at += sizeof head + head[1] + 1) {
        if (size - at < sizeof head + 1)
            return lay_fail(err, LAY_E_STATE, "what is to be settled is cut");
        memcpy(head, p + at, sizeof head);
        if (head[1] >= size - at - sizeof head)
            return lay_fail(err, LAY_E_STATE, "what is to be settled is cut");
        if (!head[1]) {
            *opaque = true;
            continue;
        }
        if (s->nruns == cap) {
            cap = cap * 2 + 64;
            run *grown = reallocarray(s->runs, cap, sizeof *grown);
            if (!grown)
                return lay_fail_nomem(err);
            s->runs = grown;
        }
        s->runs[s->nruns++] = (run){ head[0], head[1], p + at + sizeof head };
    }
    return LAY_OK;
}

static lay_code settle(stand *s, const char *p, size_t size, size_t n, lay_error *err)
{
    bool opaque = false;
    if (read_runs(s, p, size, &opaque, err) || lay_text_set(&s->path, "", 0, err) || add_level(s, 0, err))
        return err->code;
    if (opaque)
        return hide_all(s, n, err);           /* and so nothing is below that could show */
    for (size_t i = 0; i < n; i++)
        if (add_active(s, i, err))
            return err->code;
    s->levels[0].count = n;
    if (s->nruns)
        qsort(s->runs, s->nruns, sizeof *s->runs, by_path);
    for (size_t i = 0; i < s->nruns; i++)
        if (settle_run(s, &s->runs[i], err))
            return err->code;
    return LAY_OK;
}

lay_code lay_stand_on(int root_fd, const void *unsettled, size_t size, const int *lower_fds, size_t n, unsigned flags, lay_error *err)
{
    stand s = { .root_fd = root_fd, .lowers = lower_fds, .opaque = lay_opaque_xattr(flags & LAY_APPLY_USERNS) };
    lay_error_clear(err);
    settle(&s, unsettled, size, n, err);
    free(s.runs);
    free(s.levels);
    free(s.active);
    free(s.path.p);
    return err->code;
}
