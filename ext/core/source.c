/* source.c - the verbs of every source: a position, and writing to a descriptor.
 *
 * Bytes that a descriptor did not take (a full pipe, a signal) stay here and come first in the next
 * call, whichever it is: none is lost, and the position is always that of the next byte given.
 */
#include "source.h"

#include <poll.h>
#include <string.h>
#include <time.h>

#define COPY_SIZE (1u << 20)

lay_code lay_source_read(lay_source *s, void *buf, size_t n, size_t *got, lay_error *err)
{
    *got = 0;
    if (n == 0)
        return LAY_OK;
    size_t kept = s->copy_len - s->copy_at;
    if (kept > 0) {
        *got = kept < n ? kept : n;
        memcpy(buf, s->copy_buffer + s->copy_at, *got);
        s->copy_at += *got;
    } else {
        lay_code code = s->ops->read(s, buf, n, got, err);
        if (code != LAY_OK) {
            *got = 0;
            return code;
        }
    }
    s->position += (int64_t)*got;
    return LAY_OK;
}

static int64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* Write what is kept. *more false: go back to the caller, as the descriptor is slow or a signal came
 * (whose handler may want to be heard before we block again). */
static lay_code copy_flush(lay_source *s, int fd, int64_t deadline, int64_t *written, bool *more, lay_error *err)
{
    *more = true;
    while (*more && s->copy_at < s->copy_len) {
        ssize_t put = write(fd, s->copy_buffer + s->copy_at, s->copy_len - s->copy_at);
        if (put >= 0) {
            s->copy_at += (size_t)put;
            s->position += put;
            *written += put;
            *more = s->copy_at == s->copy_len;
        } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
            struct pollfd p = { .fd = fd, .events = POLLOUT };
            int64_t left = deadline < 0 ? 1000 : deadline - now_ms();
            *more = left > 0 && poll(&p, 1, left > 1000 ? 1000 : (int)left) > 0;
        } else if (errno == EINTR) {
            *more = false;
        } else {
            return lay_fail_os(err, errno, NULL, "write the tar");
        }
    }
    return LAY_OK;
}

/* max_bytes, max_ms: negative for no limit. */
lay_code lay_source_copy(lay_source *s, int fd, int64_t max_bytes, int max_ms, int64_t *written, int *end, lay_error *err)
{
    *written = 0;
    *end = 0;
    if (s->copy_buffer == NULL && (s->copy_buffer = malloc(COPY_SIZE)) == NULL)
        return lay_fail_nomem(err);
    int64_t deadline = max_ms < 0 ? -1 : now_ms() + max_ms;
    for (;;) {
        bool more;
        lay_code code = copy_flush(s, fd, deadline, written, &more, err);
        if (code != LAY_OK || !more)
            return code;
        int64_t left = max_bytes < 0 ? COPY_SIZE : max_bytes - *written;
        if (left <= 0 || (deadline >= 0 && *written > 0 && now_ms() >= deadline))
            return LAY_OK;
        s->copy_at = s->copy_len = 0;
        code = s->ops->read(s, s->copy_buffer, left < COPY_SIZE ? (size_t)left : COPY_SIZE, &s->copy_len, err);
        if (code != LAY_OK)
            s->copy_len = 0;
        if (code != LAY_OK || s->copy_len == 0) {
            *end = code == LAY_OK;
            return code;
        }
    }
}

lay_code lay_source_size(lay_source *s, int64_t *size, lay_error *err)
{
    return s->ops->size(s, size, err);
}

lay_code lay_source_seek(lay_source *s, int64_t offset, lay_error *err)
{
    if (s->ops->seek == NULL)
        return lay_fail(err, LAY_E_UNSUPPORTED, "a tar made from a tree cannot be sought in");
    if (offset < 0)
        return lay_fail_os(err, EINVAL, NULL, "seek in the tar");
    lay_code code = s->ops->seek(s, offset, err);
    if (code == LAY_OK) {
        s->position = offset;
        s->copy_at = s->copy_len = 0;
    }
    return code;
}

int64_t lay_source_tell(const lay_source *s) { return s->position; }

void lay_source_free(lay_source *s)
{
    if (s == NULL)
        return;
    free(s->copy_buffer);
    s->copy_buffer = NULL;
    s->ops->free(s);
}
