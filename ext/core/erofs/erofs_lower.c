/* erofs_lower.c - an image as a layer below: its places are the numbers of inodes, and asking opens nothing. */
#include "erofs/erofs_image_state.h"

#include <limits.h>
#include <string.h>

/* Of a place: it holds the image, as its holder may outlive who opened it. */
#define HOLDS ((lay_lower_dir)1 << 62)

static uint64_t nid_of(lay_lower_dir in) { return (uint64_t)(in & ~HOLDS); }

static lay_lower_dir image_open(const lay_lower *l, lay_lower_dir in, const char *path, size_t n)
{
    lay_einode i;
    if (lay_erofs_walk(l->layer, nid_of(in), path, n, &i) < 0)
        return -1;
    if (!S_ISDIR(i.mode)) {
        errno = S_ISLNK(i.mode) ? ELOOP : ENOTDIR;
        return -1;
    }
    if (n > 0 || (in & HOLDS) != 0)
        return (lay_lower_dir)i.nid;
    lay_erofs_hold(l->layer);
    return (lay_lower_dir)i.nid | HOLDS;
}

static void image_close(const lay_lower *l, lay_lower_dir in)
{
    if ((in & HOLDS) != 0)
        lay_erofs_free((lay_erofs *)(uintptr_t)l->layer);
}

/* A name in a place, or itself. */
static int image_inode(const lay_lower *l, lay_lower_dir in, const char *name, lay_einode *i)
{
    size_t n = strlen(name);
    if (n > NAME_MAX) {
        errno = ENAMETOOLONG;
        return -1;
    }
    return lay_erofs_walk(l->layer, nid_of(in), name, n == 1 && name[0] == '.' ? 0 : n, i);
}

static int image_stat(const lay_lower *l, lay_lower_dir in, const char *name, struct stat *st)
{
    lay_einode i;
    if (image_inode(l, in, name, &i) < 0)
        return -1;
    lay_erofs_stat(l->layer, &i, st);
    return 0;
}

static lay_code image_list(const lay_lower *l, lay_lower_dir in, lay_names *names, lay_error *err)
{
    lay_einode i;
    *names = (lay_names){ 0 };
    if (lay_erofs_inode(l->layer, nid_of(in), &i) < 0)
        return lay_fail_os(err, errno, NULL, "cannot read a directory of the layer");
    return lay_erofs_list(l->layer, &i, names, err);
}

static ssize_t image_xattr(const lay_lower *l, lay_lower_dir in, const char *name, const char *xattr, void *buf, size_t size)
{
    lay_einode i;
    return image_inode(l, in, name, &i) < 0 ? -1 : lay_erofs_xattr(l->layer, &i, xattr, buf, size);
}

static lay_lower_dir image_file(const lay_lower *l, lay_lower_dir in, const char *name, mode_t mode, const lay_lower **of)
{
    lay_einode i;
    *of = l;
    if (image_inode(l, in, name, &i) < 0)
        return -1;
    if ((i.mode & S_IFMT) != (mode & S_IFMT)) {
        errno = EINVAL;
        return -1;
    }
    return (lay_lower_dir)i.nid;
}

static ssize_t image_read(const lay_lower *l, lay_lower_dir file, mode_t mode, void *buf, size_t n, int64_t offset)
{
    lay_einode i;
    char text[PATH_MAX];
    if (lay_erofs_inode(l->layer, nid_of(file), &i) < 0)
        return -1;
    if (!S_ISLNK(mode))
        return lay_erofs_pread(l->layer, &i, buf, n, offset);
    ssize_t len = lay_erofs_readlink(l->layer, &i, text);
    if (len > 0)
        memcpy(buf, text, (size_t)len < n ? (size_t)len : n);
    return len < 0 || (size_t)len < n ? len : (ssize_t)n;
}

static const char *image_damage(const lay_lower *l)
{
    const lay_erofs *e = l->layer;
    return atomic_load(&e->damaged) == 2 ? e->damage : NULL;
}

const lay_lower_ops lay_erofs_lower_ops = { image_open, image_close, image_stat, image_list, image_xattr, image_file, image_read, image_damage };

const lay_lower *lay_erofs_lower(const lay_erofs *e) { return &e->as; }
