/* source.c - the verbs of every source: a position, and writing to a descriptor.
 *
 * Bytes that a descriptor did not take (a full pipe, a signal) stay here and come first in the next
 * call, whichever it is: none is lost, and the position is always that of the next byte given.
 * A copy of more than one piece reads on in a thread of its own, which ends with the call.
 */
#include "source.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <time.h>

#define PIECE_SIZE (1u << 20)

lay_code lay_source_read(lay_source *s, void *buf, size_t n, size_t *got, lay_error *err)
{
    *got = 0;
    if (n == 0)
        return LAY_OK;
    if (s->kept > 0) {
        lay_piece *piece = &s->pieces[s->first];
        size_t left = piece->len - piece->at;
        *got = left < n ? left : n;
        memcpy(buf, piece->p + piece->at, *got);
        piece->at += *got;
        if (piece->at == piece->len) {
            s->first = (s->first + 1) % LAY_SOURCE_PIECES;
            s->kept--;
        }
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

/* Write what is left of a piece. *more false: go back to the caller, as the descriptor is slow or a signal
 * came (whose handler may want to be heard before we block again). */
static lay_code write_piece(lay_source *s, lay_piece *piece, int fd, int64_t limit, int64_t deadline, int64_t *written, bool *more, lay_error *err)
{
    *more = true;
    while (*more && piece->at < piece->len) {
        size_t want = piece->len - piece->at;
        if (limit - *written < (int64_t)want)
            want = (size_t)(limit - *written);
        if (want == 0) {
            *more = false;
            break;
        }
        ssize_t put = write(fd, piece->p + piece->at, want);
        if (put >= 0) {
            piece->at += (size_t)put;
            s->position += put;
            *written += put;
            *more = piece->at == piece->len;
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

/* ---- reading on while a piece is being written ---------------------------------------------------- */

typedef struct ahead {
    lay_source *s;
    pthread_mutex_t lock;       /* guards s->first, s->kept and all below */
    pthread_cond_t filled, freed;
    bool stop, over;            /* over: nothing more will be filled */
    lay_error failure;
} ahead;

static lay_code room_in(lay_piece *piece, lay_error *err)
{
    if (piece->p == NULL && (piece->p = malloc(PIECE_SIZE)) == NULL)
        return lay_fail_nomem(err);
    piece->at = piece->len = 0;
    return LAY_OK;
}

/* The bytes of a piece come from the source; at its end the piece stays empty. */
static lay_code fill(lay_source *s, lay_piece *piece, size_t n, lay_error *err)
{
    lay_code code = room_in(piece, err);
    if (code == LAY_OK)
        code = s->ops->read(s, piece->p, n, &piece->len, err);
    if (code != LAY_OK)
        piece->len = 0;
    return code;
}

static void *read_on(void *arg)
{
    ahead *a = arg;
    lay_source *s = a->s;
    pthread_mutex_lock(&a->lock);
    while (!a->over) {
        while (s->kept == LAY_SOURCE_PIECES && !a->stop)
            pthread_cond_wait(&a->freed, &a->lock);
        if (a->stop)
            break;
        lay_piece *piece = &s->pieces[(s->first + s->kept) % LAY_SOURCE_PIECES];
        pthread_mutex_unlock(&a->lock);
        lay_code code = fill(s, piece, PIECE_SIZE, &a->failure);
        pthread_mutex_lock(&a->lock);
        a->over = code != LAY_OK || piece->len == 0;
        s->kept += piece->len > 0;
        pthread_cond_signal(&a->filled);
    }
    pthread_mutex_unlock(&a->lock);
    return NULL;
}

/* Write pieces as they come until the end, the limit, the deadline, or a descriptor that takes no more. */
static lay_code write_on(ahead *a, int fd, int64_t limit, int64_t deadline, int64_t *written, int *end, lay_error *err)
{
    lay_source *s = a->s;
    while (limit - *written >= (int64_t)PIECE_SIZE) {
        pthread_mutex_lock(&a->lock);
        while (s->kept == 0 && !a->over)
            pthread_cond_wait(&a->filled, &a->lock);
        bool some = s->kept > 0;
        pthread_mutex_unlock(&a->lock);
        if (!some) {
            *end = a->failure.code == LAY_OK;
            if (!*end)
                *err = a->failure;
            return a->failure.code;
        }
        bool more;
        lay_code code = write_piece(s, &s->pieces[s->first], fd, limit, deadline, written, &more, err);
        pthread_mutex_lock(&a->lock);
        if (s->pieces[s->first].at == s->pieces[s->first].len) {
            s->first = (s->first + 1) % LAY_SOURCE_PIECES;
            s->kept--;
            pthread_cond_signal(&a->freed);
        }
        pthread_mutex_unlock(&a->lock);
        if (code != LAY_OK || !more || (deadline >= 0 && now_ms() >= deadline))
            return code;
    }
    return LAY_OK;
}

static lay_code copy_ahead(lay_source *s, int fd, int64_t limit, int64_t deadline, int64_t *written, int *end, lay_error *err)
{
    ahead a = { .s = s, .lock = PTHREAD_MUTEX_INITIALIZER, .filled = PTHREAD_COND_INITIALIZER, .freed = PTHREAD_COND_INITIALIZER };
    pthread_t thread;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);     /* signals are the caller's thread's to see */
    int e = pthread_create(&thread, NULL, read_on, &a);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (e != 0)
        return lay_fail_os(err, e, NULL, "cannot start a thread");
    lay_code code = write_on(&a, fd, limit, deadline, written, end, err);
    pthread_mutex_lock(&a.lock);
    a.stop = true;
    pthread_cond_signal(&a.freed);
    pthread_mutex_unlock(&a.lock);
    pthread_join(thread, NULL);
    /* What it read and nobody wrote stays; what it failed at, the source says again. */
    return code;
}

/* max_bytes, max_ms: negative for no limit. */
lay_code lay_source_copy(lay_source *s, int fd, int64_t max_bytes, int max_ms, int64_t *written, int *end, lay_error *err)
{
    *written = 0;
    *end = 0;
    int64_t deadline = max_ms < 0 ? -1 : now_ms() + max_ms, limit = max_bytes < 0 ? INT64_MAX : max_bytes;
    for (;;) {
        while (s->kept > 0) {
            bool more;
            lay_piece *piece = &s->pieces[s->first];
            lay_code code = write_piece(s, piece, fd, limit, deadline, written, &more, err);
            if (piece->at == piece->len) {
                s->first = (s->first + 1) % LAY_SOURCE_PIECES;
                s->kept--;
            }
            if (code != LAY_OK || !more)
                return code;
        }
        int64_t left = limit - *written;
        if (left <= 0 || (deadline >= 0 && *written > 0 && now_ms() >= deadline))
            return LAY_OK;
        if (s->position >= (int64_t)PIECE_SIZE && left > (int64_t)(LAY_SOURCE_PIECES * PIECE_SIZE))
            return copy_ahead(s, fd, limit, deadline, written, end, err);
        lay_piece *piece = &s->pieces[s->first];
        lay_code code = fill(s, piece, left < (int64_t)PIECE_SIZE ? (size_t)left : PIECE_SIZE, err);
        if (code != LAY_OK || piece->len == 0) {
            *end = code == LAY_OK;
            return code;
        }
        s->kept = 1;
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
        s->kept = 0;
    }
    return code;
}

int64_t lay_source_tell(const lay_source *s) { return s->position; }

void lay_source_free(lay_source *s)
{
    if (s == NULL)
        return;
    for (unsigned i = 0; i < LAY_SOURCE_PIECES; i++)
        free(s->pieces[i].p);
    s->ops->free(s);
}
