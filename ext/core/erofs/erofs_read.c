/* erofs_read.c - what is asked of an open image by path, or by the number of an inode. */
#include "erofs/erofs_image_state.h"

#include <string.h>

static lay_code fail(const lay_erofs *e, const char *path, size_t n, const char *what, lay_error *err)
{
    if (errno == ENOMEM)
        return lay_fail_nomem(err);
    const char *damage = errno == EUCLEAN ? lay_lower_damage(&e->as) : NULL;
    lay_fail_os(err, errno, NULL, what);
    if (damage != NULL)
        lay_fail(err, LAY_E_MISMATCH, "%s", damage);
    return lay_error_path(err, path, n);
}

int64_t lay_erofs_tar_bytes(const lay_erofs *e) { return lay_erofs_tar_size(e->map + LAY_EROFS_SUPER + LAY_EROFS_AT_NAME); }

lay_code lay_erofs_find(const lay_erofs *e, const char *path, size_t n, lay_erofs_thing *out, lay_error *err)
{
    lay_einode i;
    struct stat st;
    lay_error_clear(err);
    if (lay_erofs_walk(e, e->root, path, n, &i) < 0)
        return fail(e, path, n, "cannot find it in the layer", err);
    lay_erofs_stat(e, &i, &st);
    *out = (lay_erofs_thing){
        .ino = i.nid, .rdev = st.st_rdev, .size = i.size, .mtime_sec = i.mtime, .mode = i.mode, .uid = i.uid, .gid = i.gid, .nlink = i.nlink,
        .mtime_nsec = i.nsec,
    };
    return LAY_OK;
}

/* The next extent that is no hole, from an offset on. 1: there is none. */
static int next_data(const lay_erofs *e, const lay_einode *i, int64_t offset, lay_eextent *x)
{
    for (; offset < i->size; offset += x->n) {
        if (lay_erofs_extent(e, i, offset, x) < 0)
            return -1;
        if (x->device != NULL)
            return 0;
    }
    return 1;
}

lay_code lay_erofs_next_piece(const lay_erofs *e, uint64_t ino, int64_t offset, lay_erofs_piece *out, lay_error *err)
{
    lay_einode i;
    lay_eextent x, more;
    lay_error_clear(err);
    *out = (lay_erofs_piece){ .offset = offset };
    int none = lay_erofs_inode(e, ino, &i) < 0 ? -1 : next_data(e, &i, offset, &x);
    if (none < 0)
        return fail(e, "", 0, "cannot tell where a file's bytes are", err);
    if (none > 0)
        return LAY_OK;
    *out = (lay_erofs_piece){ .offset = x.at, .n = x.n, .at = x.from, .device = x.device->fd == e->fd ? 0 : (unsigned)(x.device - e->devices) };
    while (out->offset + out->n < i.size) {                 /* as far as the next ones follow on the disk */
        if (lay_erofs_extent(e, &i, out->offset + out->n, &more) < 0)
            return fail(e, "", 0, "cannot tell where a file's bytes are", err);
        if (more.device != x.device || more.from != out->at + out->n)
            break;
        out->n += more.n;
    }
    return LAY_OK;
}

lay_code lay_erofs_read(const lay_erofs *e, uint64_t ino, void *buf, size_t n, int64_t offset, size_t *got, lay_error *err)
{
    lay_einode i;
    lay_error_clear(err);
    ssize_t r = lay_erofs_inode(e, ino, &i);
    if (r == 0 && offset >= 0 && S_ISDIR(i.mode)) {
        errno = EISDIR;
        r = -1;
    } else if (r == 0 && !(offset >= 0 ? S_ISREG(i.mode) : S_ISLNK(i.mode))) {
        errno = EINVAL;
        r = -1;
    } else if (r == 0)
        r = offset >= 0 ? lay_erofs_pread(e, &i, buf, n, offset) : lay_erofs_readlink(e, &i, buf);
    *got = r > 0 ? (size_t)r : 0;
    return r < 0 ? fail(e, "", 0, "cannot read it", err) : LAY_OK;
}

lay_code lay_erofs_names(const lay_erofs *e, uint64_t ino, char **text, size_t *count, lay_error *err)
{
    lay_einode i;
    lay_names names = { 0 };
    lay_error_clear(err);
    int r = lay_erofs_inode(e, ino, &i);
    if (r == 0 && !S_ISDIR(i.mode)) {
        errno = ENOTDIR;
        r = -1;
    }
    if (r < 0)
        return fail(e, "", 0, "cannot list it", err);
    if (lay_erofs_list(e, &i, &names, err)) {
        errno = err->sys_errno;
        return err->code == LAY_E_OS ? fail(e, "", 0, "cannot list it", err) : err->code;
    }
    *text = lay_steal(names.text);
    *count = names.count;
    lay_names_free(&names);
    return LAY_OK;
}

lay_code lay_erofs_attribute(const lay_erofs *e, uint64_t ino, const char *name, void *buf, size_t n, size_t *got, lay_error *err)
{
    lay_einode i;
    lay_error_clear(err);
    *got = 0;
    ssize_t r = lay_erofs_inode(e, ino, &i);
    if (r == 0)
        r = lay_erofs_xattr(e, &i, name, buf, n);
    if (r < 0 || (r == 0 && name != NULL && errno == ENODATA))
        return fail(e, "", 0, "cannot read the extended attribute", err);
    *got = (size_t)r;
    return LAY_OK;
}
