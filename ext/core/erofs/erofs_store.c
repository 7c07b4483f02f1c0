/* erofs_store.c - metadata from its maker into a file, pieces of files from the file's own tar. */
#include "erofs/erofs_store.h"

#include "base/write_all.h"

#include "erofs/erofs_format.h"

#define COPIED (256u << 10)

static lay_code cannot(int fd, int failed, lay_error *err) { return lay_fail_fd(err, failed, fd, "cannot write the layer's image"); }

static lay_code copy_piece(int fd, int64_t from, int64_t to, int64_t n, uint8_t *buffer, lay_error *err)
{
    while (n) {
        ssize_t got = pread(fd, buffer, n < COPIED ? (size_t)n : COPIED, from);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return lay_fail_fd(err, got ? errno : EIO, fd, "cannot read the layer's tar");
        int failed = lay_write_all(fd, buffer, (size_t)got, to);
        if (failed)
            return cannot(fd, failed, err);
        from += got;
        to += got;
        n -= got;
    }
    return LAY_OK;
}

static lay_code store_files(const lay_eimage *m, const lay_etree *t, int fd, lay_error *err)
{
    LAY_AUTO_FREE uint8_t *buffer = NULL;
    uint32_t node;
    int64_t at;
    for (size_t i = 0; lay_eimage_expanded(m, i, &node, &at); i++) {
        lay_enode n;
        if (!buffer && !(buffer = malloc(COPIED)))
            return lay_fail_nomem(err);
        lay_etree_node(t, node, &n);
        for (uint32_t k = 0; k < n.npieces; k++) {
            const lay_epiece *p = &n.pieces[k];
            if (copy_piece(fd, LAY_EROFS_HEADER + p->tar_offset, at + p->file_offset, p->n, buffer, err))
                return err->code;
        }
    }
    return LAY_OK;
}

lay_code lay_eimage_store(lay_eimage *m, const lay_etree *t, int fd, int64_t tar_size, lay_error *err)
{
    const uint8_t *p;
    size_t n;
    int64_t at;
    if (ftruncate(fd, LAY_EROFS_HEADER + tar_size) != 0)
        return cannot(fd, errno, err);
    lay_eimage_rewind(m);
    for (;;) {
        if (lay_eimage_next(m, &p, &n, &at, err))
            return err->code;
        if (!n)
            break;
        int failed = lay_write_all(fd, p, n, at);
        if (failed)
            return cannot(fd, failed, err);
    }
    if (store_files(m, t, fd, err))
        return err->code;
    return ftruncate(fd, lay_eimage_size(m)) == 0 ? LAY_OK : cannot(fd, errno, err);
}

lay_code lay_eimage_seal(const lay_eimage *m, int fd, const uint8_t diff_id[32], lay_error *err)
{
    uint8_t header[LAY_EROFS_HEADER];
    lay_eimage_header(m, diff_id, header);
    int failed = lay_write_all(fd, header, sizeof header, 0);
    return failed ? cannot(fd, failed, err) : LAY_OK;
}
