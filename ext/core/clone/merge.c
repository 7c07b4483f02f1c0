/* merge.c - layers stacked enter, one directory that shows the same leaves.
 *
 * The union says which layer shows a name. Directories are made anew; everything else gets one more name, which keeps its
 * inode, so that even open files stay what they are. A directory's own owner, mode and times come when all in it is made.
 */
#include "clone/twins.h"

#include "base/clock.h"
#include "base/grow.h"
#include "tree/whiteout.h"
#include "union/union.h"
#include "union/union_state.h"

#include <dirent.h>
#include <fcntl.h>
#include <string.h>
#include <sys/xattr.h>

#define LOOK 64u              /* names between two looks at the time */

/* A directory on the way: the layer that it is like, and what it was there before its names were read. */
typedef struct level { size_t layer, path_len; bool opaque; struct stat st; } level;

struct lay_merge {
    lay_copy_rules rules;
    lay_copier copier;
    lay_twins twins;
    lay_union *stacked;
    lay_union_walk *walk;
    lay_trail to;
    lay_text path;            /* of the directory that the trail stands in */
    level *levels; size_t depth, cap;
    bool ended;
};

static lay_code push(lay_merge *m, const level *l, lay_error *err)
{
    if (lay_grow(&m->levels, &m->cap, m->depth, sizeof *m->levels, err))
        return err->code;
    m->levels[m->depth++] = *l;
    return LAY_OK;
}

static lay_code fail_at(lay_merge *m, const char *name, const char *what, lay_error *err)
{
    int e = errno;
    return lay_text_push(&m->path, name, strlen(name), err) ? err->code : lay_fail_os(err, e, m->path.p, what);
}

/* A directory of this name, which is entered. */
static lay_code begin_directory(lay_merge *m, const lay_union_found *f, lay_error *err)
{
    level l = { .layer = f->layer, .opaque = f->opaque };
    if (fstatat((int)f->in, f->name, &l.st, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT) != 0)
        return fail_at(m, f->name, "cannot look at the directory", err);
    if (mkdirat(lay_trail_fd(&m->to), f->name, 0700) != 0 || lay_trail_down(&m->to, f->name) != 0)
        return fail_at(m, f->name, "cannot make the directory", err);
    if (lay_text_push(&m->path, f->name, strlen(f->name), err))
        return err->code;
    l.path_len = m->path.len;
    return push(m, &l, err);
}

static lay_code add_name(lay_merge *m, const lay_union_found *f, lay_error *err)
{
    bool unsteady;
    int to = lay_trail_fd(&m->to);
    if (linkat((int)f->in, f->name, to, f->name, 0) == 0 || lay_tree_gone(errno))
        return LAY_OK;
    if (errno != EXDEV && errno != EMLINK && errno != EPERM)
        return fail_at(m, f->name, "cannot link it", err);
    if (lay_copy_name(&m->copier, &m->twins, (int)f->in, f->name, to, f->path, f->path_len, &unsteady, err) == LAY_OK)
        return LAY_OK;
    err->path[0] = '\0';
    return lay_error_path(err, f->path, f->path_len);
}

static lay_code mark_opaque(const lay_merge *m, int fd, bool opaque, lay_error *err)
{
    const char *mark = lay_opaque_xattr((m->rules.flags & LAY_CLONE_USERXATTR) != 0);
    bool has = lay_attributes_has(&m->copier.attributes, mark);
    if (opaque ? fsetxattr(fd, mark, "y", 1, 0) != 0 : has && fremovexattr(fd, mark) != 0)
        return lay_fail_os(err, errno, NULL, "cannot set the opaque mark");
    return LAY_OK;
}

/* All names of the directory are there: it becomes like its layer's, and the trail goes up. */
static lay_code end_directory(lay_merge *m, lay_error *err)
{
    const level *l = &m->levels[--m->depth];
    const char *path = l->path_len > 0 ? m->path.p : "";
    int root = (int)lay_union_layer(m->stacked, l->layer)->root, to = lay_trail_fd(&m->to);
    LAY_AUTO_FD int from = lay_tree_open_dir(root, path, l->path_len, O_NOATIME);
    if (from < 0 && errno == EPERM)
        from = lay_tree_open_dir(root, path, l->path_len, 0);
    if (from < 0)
        return lay_fail_os(err, errno, l->path_len ? path : ".", "cannot open the directory");
    if (lay_copy_directory(&m->copier, from, &l->st, to, m->depth == 0, err) || (m->depth > 0 && mark_opaque(m, to, l->opaque, err)))
        return lay_error_path(err, l->path_len ? path : ".", l->path_len ? l->path_len : 1);
    if (m->depth == 0)
        return LAY_OK;
    lay_text_cut(&m->path, m->levels[m->depth - 1].path_len);
    if (lay_trail_up(&m->to, m->path.len ? m->path.p : "", m->path.len) != 0)
        return lay_fail_os(err, errno, m->path.len ? m->path.p : ".", "cannot go back to the directory");
    return LAY_OK;
}

static lay_code step(lay_merge *m, lay_error *err)
{
    lay_union_found f;
    if (lay_union_walk_next(m->walk, &f, err))
        return err->code;
    while (m->depth > (f.path ? f.depth : 0))
        if (end_directory(m, err))
            return err->code;
    m->ended = f.path == NULL;
    if (m->ended)
        return LAY_OK;
    return f.type == DT_DIR ? begin_directory(m, &f, err) : add_name(m, &f, err);
}

lay_code lay_merge_run(lay_merge *m, int max_ms, int *end, lay_error *err)
{
    int64_t deadline = lay_now_ms() + max_ms;
    lay_error_clear(err);
    for (unsigned i = 1; !m->ended && (i % LOOK != 0 || lay_now_ms() <= deadline); i++)
        if (step(m, err))
            return err->code;
    *end = m->ended;
    return LAY_OK;
}

static lay_code start(lay_merge *m, const lay_shown *layers, size_t n, const lay_shown *below, size_t nbelow, int to_fd, unsigned flags, lay_error *err)
{
    level root = { 0 };
    unsigned how = LAY_UNION_WHOLE | (flags & LAY_MERGE_USERXATTR ? LAY_UNION_USERXATTR : 0) | (flags & LAY_MERGE_OVER_MARKS ? LAY_UNION_OVER_MARKS : 0);
    if (n == 0)
        return lay_fail(err, LAY_E_STATE, "nothing to merge");
    if (lay_lower_require_directories(layers, n, "merge", err))
        return err->code;
    if (fstat(layers->fd, &root.st) != 0)
        return lay_fail_fd(err, errno, layers->fd, "cannot look at the directory");
    if (lay_trail_open(&m->to, to_fd, false) != 0)
        return lay_fail_fd(err, errno, to_fd, "cannot open the directory");
    m->twins.root_fd = m->to.root_fd;
    if (lay_copy_prepare(lay_trail_fd(&m->to), err) || lay_copier_init(&m->copier, &m->rules, false, err)
        || lay_union_open_at(&m->stacked, layers, n, below, nbelow, how, err)
        || lay_union_walk_open(&m->walk, m->stacked, err))
        return err->code;
    return push(m, &root, err);
}

lay_code lay_merge_open(lay_merge **out, const lay_shown *layers, size_t n, const lay_shown *below, size_t nbelow, int to_fd, unsigned flags, lay_error *err)
{
    lay_error_clear(err);
    lay_merge *m = calloc(1, sizeof *m);
    if (m == NULL)
        return lay_fail_nomem(err);
    m->rules.flags = flags & LAY_MERGE_USERXATTR ? LAY_CLONE_USERXATTR : 0;
    m->to = (lay_trail)LAY_TRAIL_NONE;
    m->copier.parent = (lay_parent)LAY_PARENT_NONE;
    lay_twins_init(&m->twins, -1);
    if (start(m, layers, n, below, nbelow, to_fd, flags, err)) {
        lay_merge_free(m);
        return err->code;
    }
    *out = m;
    return LAY_OK;
}

void lay_merge_free(lay_merge *m)
{
    if (m == NULL)
        return;
    lay_union_walk_free(m->walk);
    lay_union_free(m->stacked);
    lay_trail_free(&m->to);
    lay_copier_free(&m->copier);
    lay_twins_free(&m->twins);
    free(m->path.p);
    free(m->levels);
    free(m);
}
