/* range.c - the tar that lies in a file as it is.
 *
 * Source: a range of a regular file, read where it lies; the DiffID is checked when all was read from the first byte to
 * the end. A file that ends too soon gives what it has, and then the same error.
 */
#include "source/proof.h"
#include "source/source.h"

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>


typedef struct range {
    lay_source base;
    int fd;
    int64_t begin, size, at;         /* at: in the tar, of the next byte to read */
    lay_proof proof;                 /* pass's and end's, which read leaves alone */
    bool cut;                        /* the file ends inside the tar */
    lay_error failure;
} range;

static lay_code range_read(lay_source *s, void *buf, size_t n, size_t *got, lay_error *err)
{
    range *r = (range *)s;
    *got = 0;
    if (r->failure.code) {
        *err = r->failure;
        return err->code;
    }
    while (*got < n && r->at < r->size && !r->cut) {
        size_t want = n - *got;
        if (r->size - r->at < (int64_t)want)
            want = (size_t)(r->size - r->at);
        ssize_t part = pread(r->fd, (char *)buf + *got, want, r->begin + r->at);
        if (part < 0 && errno == EINTR)
            continue;
        if (part < 0) {
            lay_fail_fd(&r->failure, errno, r->fd, "read the tar");
            if (*got)
                return LAY_OK;           /* the good bytes first, the error at the next read */
            *err = r->failure;
            return err->code;
        }
        r->cut = part == 0;
        *got += (size_t)part;
        r->at += part;
    }
    return LAY_OK;
}

static void range_pass(lay_source *s, const void *p, size_t n) { lay_proof_add(&((range *)s)->proof, p, n); }

static lay_code range_end(lay_source *s, lay_error *err)
{
    range *r = (range *)s;
    lay_code code = lay_proof_end(&r->proof, err);
    if (!code && r->cut)
        code = r->proof.wanted ? lay_proof_fail(&r->proof, err) : lay_fail_at(err, LAY_E_MISMATCH, r->at, "the file ends inside the tar");
    if (code)
        r->failure = *err;
    return code;
}

static lay_code range_size(lay_source *s, int64_t *size, lay_error *err)
{
    (void)err;
    *size = ((range *)s)->size;
    return LAY_OK;
}

static lay_code range_seek(lay_source *s, int64_t offset, lay_error *err)
{
    (void)err;
    range *r = (range *)s;
    if (offset == r->at && !r->failure.code)
        return LAY_OK;
    lay_error_clear(&r->failure);
    r->cut = false;
    r->at = offset;
    if (offset == 0)
        lay_proof_start(&r->proof);
    else
        lay_proof_give_up(&r->proof);
    return LAY_OK;
}

static void range_free(lay_source *s)
{
    range *r = (range *)s;
    if (r->fd >= 0)
        close(r->fd);
    free(r);
}

static const lay_source_ops ops = { .read = range_read, .size = range_size, .seek = range_seek, .free = range_free,
                                    .pass = range_pass, .end = range_end };

int lay_range_lies(const lay_source *s, int *fd, int64_t *offset, int64_t *left, const uint8_t **diff_id)
{
    if (s->ops != &ops)
        return 0;
    const range *r = (const range *)s;
    *fd = r->fd;
    *offset = r->begin + s->position;
    *left = r->size > s->position ? r->size - s->position : 0;
    *diff_id = r->proof.wanted && s->position == 0 ? r->proof.diff_id : NULL;
    return 1;
}

lay_code lay_range_open(lay_source **out, int fd, int64_t offset, int64_t size, const uint8_t *diff_id, lay_error *err)
{
    lay_error_clear(err);
    range *r = calloc(1, sizeof *r);
    if (!r)
        return lay_fail_nomem(err);
    r->base.ops = &ops;
    r->begin = offset;
    r->size = size;
    r->failure.offset = -1;
    lay_proof_init(&r->proof, diff_id);
    r->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (r->fd < 0) {
        lay_fail_os(err, errno, NULL, "cannot keep a descriptor");
        range_free(&r->base);
        return err->code;
    }
    *out = &r->base;
    return LAY_OK;
}
