/* payload.c - a recorded file's bytes in a tree: the one way they are opened, read whole and refused.
 * Source: tar-split, tar/asm/assemble.go; moby, layer.go.
 */
#include "tree/payload.h"

#include "base/digest.h"

#include <string.h>

void lay_hand_free(lay_hand *hand)
{
    lay_parent_free(&hand->parent);
    free(hand->path.p);
    *hand = (lay_hand)LAY_HAND_NONE;
}

lay_code lay_payload_differs(const char *name, size_t n, lay_error *err)
{
    lay_fail(err, LAY_E_MISMATCH, "file integrity checksum failed for \"%.*s\"", (int)(n < 400 ? n : 400), name);
    return lay_error_path(err, name, n);
}

lay_code lay_payload_path(lay_text *path, const char *name, size_t n, lay_error *err)
{
    if (lay_path_relative(path, name, n, err))
        return err->code;
    if (!lay_path_leaves(path))
        return LAY_OK;
    lay_fail(err, LAY_E_MISMATCH, "the record names a file outside of the layer");
    return lay_error_path(err, name, n);
}

int lay_payload_open(int root_fd, lay_parent *parent, const char *path, size_t n, const char *name, size_t name_len, int64_t size, lay_error *err)
{
    struct stat st;
    int fd = lay_tree_open_file(root_fd, parent, path, n, &st);
    if (fd < 0) {
        int e = errno;
        bool gone = e == ENOENT || e == ENOTDIR || e == ELOOP || e == EINVAL || e == EXDEV || e == EISDIR || e == ENXIO;
        if (gone)
            lay_fail(err, LAY_E_MISMATCH, "cannot open \"%.*s\" of the layer: %s", (int)(name_len < 300 ? name_len : 300), name,
                     e == ENOENT || e == ENOTDIR ? "it is gone" : "it is not a regular file");
        else if (e == ENOMEM)
            lay_fail_nomem(err);              /* says nothing about the file */
        else
            lay_fail_os(err, e, NULL, "cannot open a file of the layer");
        lay_error_path(err, name, name_len);
        err->sys_errno = e;
        return -1;
    }
    if (st.st_size != size) {
        close(fd);
        lay_payload_differs(name, name_len, err);
        return -1;
    }
    return fd;
}

lay_code lay_payload_part(int fd, uint8_t *to, size_t n, int64_t at, const char *name, size_t name_len, size_t *got, lay_error *err)
{
    ssize_t r;
    do
        r = pread(fd, to, n, at);
    while (r < 0 && errno == EINTR);
    if (r < 0) {
        lay_fail_os(err, errno, NULL, "cannot read a file of the layer");
        return lay_error_path(err, name, name_len);
    }
    *got = (size_t)r;
    return LAY_OK;
}

lay_code lay_payload_read(int root_fd, lay_hand *hand, const lay_payload *file, uint8_t *to, lay_error *err)
{
    if (lay_payload_path(&hand->path, file->name, file->name_len, err))
        return err->code;
    LAY_AUTO_FD int fd = lay_payload_open(root_fd, &hand->parent, hand->path.p, hand->path.len, file->name, file->name_len, file->size, err);
    if (fd < 0)
        return err->code;
    size_t size = (size_t)file->size, have = 0, part = 1;
    while (have < size && part > 0) {
        if (lay_payload_part(fd, to + have, size - have, (int64_t)have, file->name, file->name_len, &part, err))
            return err->code;
        have += part;
    }
    bool same = have == size && file->has_crc && lay_crc64_add(0, to, size) == file->crc;
    return same ? LAY_OK : lay_payload_differs(file->name, file->name_len, err);
}
