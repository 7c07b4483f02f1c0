/* blocks.c - what trees take of the disk: directories and files enter, bytes leave, each inode once over all of them.
 *
 * Or what removing them all would free: a file that has names elsewhere, too, stays.
 */
#include "base/grow.h"
#include "tree/sweep.h"

#include <fcntl.h>

struct lay_blocks {
    lay_sweep sweep;                     /* first */
    bool freed;
    lay_inodes inodes;                   /* of files with several names; with freed, where in left */
    uint64_t *left; size_t count, cap;   /* names of each that were not met yet */
    int64_t bytes;
};

lay_code lay_blocks_open(lay_blocks **out, int freed, lay_error *err)
{
    lay_error_clear(err);
    *out = calloc(1, sizeof **out);
    if (*out == NULL)
        return lay_fail_nomem(err);
    (*out)->freed = freed != 0;
    return LAY_OK;
}

/* *counted: this is the name by which a file of several is counted. */
static lay_code meet(lay_blocks *b, const struct stat *st, bool *counted, lay_error *err)
{
    bool seen;
    size_t at = b->count;
    if (lay_inodes_add(&b->inodes, st->st_dev, st->st_ino, &at, &seen, err))
        return err->code;
    *counted = !seen;
    if (!b->freed)
        return LAY_OK;
    if (!seen) {
        if (lay_grow(&b->left, &b->cap, b->count, sizeof *b->left, err))
            return err->code;
        b->left[b->count++] = st->st_nlink;
    }
    *counted = --b->left[at] == 0;
    return LAY_OK;
}

static lay_code count(lay_blocks *b, const struct stat *st, lay_error *err)
{
    bool counted = true;
    int64_t bytes;
    if (!S_ISDIR(st->st_mode) && st->st_nlink > 1 && meet(b, st, &counted, err))
        return err->code;
    if (counted && (__builtin_mul_overflow((int64_t)st->st_blocks, 512, &bytes) || __builtin_add_overflow(b->bytes, bytes, &b->bytes)))
        return lay_fail(err, LAY_E_LIMIT, "the trees take more than 2^63 bytes");
    return LAY_OK;
}

static lay_code count_one(lay_sweep *s, int fd, const char *name, uint8_t type, lay_error *err)
{
    struct stat st;
    (void)type;
    if (fstatat(fd, name, &st, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT) < 0)
        return errno == ENOENT ? LAY_OK : lay_sweep_fail(s, errno, name, "cannot stat it", err);
    if (count((lay_blocks *)s, &st, err))
        return err->code;
    return S_ISDIR(st.st_mode) ? lay_sweep_wait(s, name, err) : LAY_OK;
}

lay_code lay_blocks_add(lay_blocks *b, int root_fd, int64_t *bytes, lay_error *err)
{
    struct stat st;
    lay_error_clear(err);
    b->bytes = 0;
    b->sweep = (lay_sweep){ .trail = LAY_TRAIL_NONE, .one = count_one };
    if (fstat(root_fd, &st) < 0)
        return lay_fail_fd(err, errno, root_fd, "cannot stat it");
    if (count(b, &st, err) || (S_ISDIR(st.st_mode) && lay_sweep_over(&b->sweep, root_fd, err)))
        return err->code;
    *bytes = b->bytes;
    return LAY_OK;
}

void lay_blocks_free(lay_blocks *b)
{
    if (b == NULL)
        return;
    lay_inodes_free(&b->inodes);
    free(b->left);
    free(b);
}
