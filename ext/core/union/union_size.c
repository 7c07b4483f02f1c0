/* union_size.c - the bytes of what layers stacked show. */
#include "tree/trail.h"
#include "union/union.h"

#include <fcntl.h>

static lay_code add_up(lay_union_walk *w, lay_inodes *inodes, int64_t *size, lay_error *err)
{
    lay_union_found found;
    while (lay_union_walk_next(w, &found, err) == LAY_OK && found.path != NULL) {
        struct stat st;
        bool seen = false;
        size_t unused = 0;
        if (fstatat((int)found.in, found.name, &st, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT) != 0) {
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

lay_code lay_stack_size(const int *fds, size_t n, unsigned flags, int64_t *size, lay_error *err)
{
    lay_union *u = NULL;
    lay_union_walk *w = NULL;
    lay_inodes inodes = { 0 };
    const int none = -1;
    *size = 0;
    unsigned marks = flags & LAY_STACK_USERXATTR ? LAY_UNION_USERXATTR : 0;
    lay_code code = lay_union_open_at(&u, fds, n, &none, 0, marks, err);
    if (!code)
        code = lay_union_walk_open(&w, u, err);
    if (!code)
        code = add_up(w, &inodes, size, err);
    lay_union_walk_free(w);
    lay_union_free(u);
    lay_inodes_free(&inodes);
    return code;
}
