/* stack.c - what is asked of layers stacked at once: the bytes of all that they show, and one file. */
#include "tree/trail.h"
#include "tree/whiteout.h"
#include "union/union.h"
#include "union/union_state.h"

#include <string.h>
#include <sys/xattr.h>

static lay_code open_stack(lay_union **out, const lay_shown *layers, size_t n, unsigned flags, lay_error *err)
{
    const lay_shown none = { -1, NULL };
    return lay_union_open_at(out, layers, n, &none, 0, flags & LAY_STACK_USERXATTR ? LAY_UNION_USERXATTR : 0, err);
}

static lay_code add_up(const lay_union *u, lay_union_walk *w, lay_inodes *inodes, int64_t *size, lay_error *err)
{
    lay_union_found found;
    while (lay_union_walk_next(w, &found, err) == LAY_OK && found.path != NULL) {
        struct stat st;
        bool seen = false;
        size_t unused = 0;
        const lay_lower *l = lay_union_layer(u, found.layer);
        if (l->ops->stat(l, found.in, found.name, &st) != 0) {
            if (!lay_tree_gone(errno))
                return lay_fail_os(err, errno, found.path, "cannot stat it");
            continue;
        }
        if (S_ISDIR(st.st_mode) || st.st_size == 0)
            continue;
        if (st.st_nlink > 1 && lay_inodes_add(inodes, st.st_dev, st.st_ino, &unused, &seen, err))
            return err->code;
        if (!seen && __builtin_add_overflow(*size, (int64_t)st.st_size, size))
            return lay_fail(err, LAY_E_LIMIT, "the tree's sizes add up to more than 2^63 bytes");
    }
    return err->code;
}

lay_code lay_stack_size(const lay_shown *layers, size_t n, unsigned flags, int64_t *size, lay_error *err)
{
    lay_union *u = NULL;
    lay_union_walk *w = NULL;
    lay_inodes inodes = { 0 };
    *size = 0;
    lay_code code = open_stack(&u, layers, n, flags, err);
    if (!code)
        code = lay_union_walk_open(&w, u, err);
    if (!code)
        code = add_up(u, w, &inodes, size, err);
    lay_union_walk_free(w);
    lay_union_free(u);
    lay_inodes_free(&inodes);
    return code;
}

/* Its bytes are elsewhere, if it has the mark. */
static lay_code require_data(int fd, const char *path, unsigned flags, lay_error *err)
{
    char value[8];
    const char *mark = flags & LAY_STACK_USERXATTR ? LAY_METACOPY_USER : LAY_METACOPY_TRUSTED;
    if (fgetxattr(fd, mark, value, sizeof value) < 0 && errno != ERANGE)
        return LAY_OK;
    lay_fail(err, LAY_E_UNSUPPORTED, "a file without its data (metacopy): only a mount can tell what is there");
    return lay_error_path(err, path, strlen(path));
}

lay_code lay_stack_open(const lay_shown *layers, size_t n, unsigned flags, const char *path, int *fd, lay_error *err)
{
    lay_union *u = NULL;
    size_t layer = 0, len = strlen(path), base = lay_path_base(path, len);
    lay_error_clear(err);
    if (lay_lower_require_directories(layers, n, "open a file of", err) || open_stack(&u, layers, n, flags, err))
        return err->code;
    int shown = lay_union_shows(u, path, len, &layer), e = errno;
    lay_union_free(u);
    LAY_AUTO_FD int dir = -1;
    LAY_AUTO_FD int got = -1;
    struct stat st;
    if (shown == 0) {
        dir = lay_tree_open_dir(layers[layer].fd, path, base ? base - 1 : 0, 0);
        got = dir < 0 ? -1 : lay_tree_open_regular(dir, path + base, &st);
        e = errno;
    }
    if (got < 0)
        return lay_fail_os(err, e, path, "cannot open the file");
    if (require_data(got, path, flags, err))
        return err->code;
    *fd = lay_steal_fd(&got);
    return LAY_OK;
}
