/* source.c - the verbs of every source: a position, and writing to a descriptor.
 *
 * Bytes that a descriptor did not take (a full pipe, a signal) stay here and come first in the next
 * call, whichever it is: none is lost, and the position is always that of the next byte given.
 * Every byte is read, passed (assemble hashes there, which takes longest) and given. A large read passes in
 * a thread of its own; a copy of more than a few pieces reads in one, passes in another and writes in the
 * caller's. They end with the call, as a fork could lose a thread that lives on; if no thread can be
 * started, the caller does all.
 */
#include "source/source.h"
#include "base/clock.h"

#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>

#define PIECE_SIZE (1u << 20)
#define AHEAD_AFTER (1 << 20)    /* a copy reads ahead when this much has been given */
#define AHEAD_FOR (4 << 20)      /* and more than this is asked for */
#define READ_PART (256u << 10)   /* bytes of a read that are passed at once, at least */
#define READ_ASIDE (1u << 20)    /* a read of this many bytes is worth a thread */

/* The caller's cores in two halves. Measured on a virtual machine of two cores, a copy of 1 GB: left to the
 * kernel, what reads and what passes mostly took turns (1.0 s of wall and of CPU), with a core for each they ran
 * side by side (0.78 s). So each has its half for as long as the call, and the caller's thread stays free. */
typedef struct halves { bool two; cpu_set_t near, far; } halves;

static void halve(halves *h)
{
    cpu_set_t all;
    int here = sched_getcpu(), count, seen = 0;
    h->two = here >= 0 && sched_getaffinity(0, sizeof all, &all) == 0 && (count = CPU_COUNT(&all)) > 1;
    if (!h->two)
        return;
    CPU_ZERO(&h->near);
    CPU_ZERO(&h->far);
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET((size_t)cpu, &all))
            CPU_SET((size_t)cpu, seen++ < count / 2 ? &h->near : &h->far);
    if (CPU_ISSET((size_t)here, &h->far)) {
        all = h->near;
        h->near = h->far;
        h->far = all;
    }
}

/* Signals are the caller's thread's to see. The half is given before the thread runs, as it may else wait for the caller's core. */
static bool start_thread(pthread_t *thread, void *(*run)(void *), void *arg, const halves *h, const cpu_set_t *half)
{
    sigset_t all, before;
    pthread_attr_t attr;
    int e = pthread_attr_init(&attr);
    if (e != 0)
        return false;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
#ifdef __GLIBC__
    e = h->two && pthread_attr_setaffinity_np(&attr, sizeof *half, half) == 0 ? pthread_create(thread, &attr, run, arg) : EINVAL;
#else
    (void)h;
    (void)half;
    e = EINVAL;
#endif
    if (e != 0)
        e = pthread_create(thread, NULL, run, arg);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attr);
    return e == 0;
}

static lay_piece *piece_at(lay_source *s, uint64_t number) { return &s->pieces[number % LAY_SOURCE_PIECES]; }

/* Nothing may be read, sought or ended past bytes that pass has not seen. */
static void pass_rest(lay_source *s)
{
    for (; s->passed < s->filled; s->passed++)
        if (s->ops->pass != NULL)
            s->ops->pass(s, piece_at(s, s->passed)->p, piece_at(s, s->passed)->len);
}

static lay_code end_of(lay_source *s, lay_error *err)
{
    return s->ops->end == NULL ? LAY_OK : s->ops->end(s, err);
}

/* ---- helping ----------------------------------------------------------------------------------------- */

struct lay_crew {
    pthread_mutex_t lock;            /* guards all here, and what each kind of call has besides */
    pthread_cond_t news;             /* for the thread that passes */
    uint64_t offered;
};
#define CREW { .lock = PTHREAD_MUTEX_INITIALIZER, .news = PTHREAD_COND_INITIALIZER }

void lay_source_offer(lay_source *s)
{
    lay_crew *c = s->crew;
    pthread_mutex_lock(&c->lock);
    c->offered++;
    pthread_cond_signal(&c->news);
    pthread_mutex_unlock(&c->lock);
}

/* Under the lock, which is free meanwhile: there is nothing to pass. *seen: the offers that came to their end. */
static void help_or_wait(lay_source *s, lay_crew *c, uint64_t *seen)
{
    uint64_t offered = c->offered;
    if (offered == *seen) {
        pthread_cond_wait(&c->news, &c->lock);
        return;
    }
    pthread_mutex_unlock(&c->lock);
    bool some = s->ops->help(s);
    pthread_mutex_lock(&c->lock);
    if (!some)
        *seen = offered;
}

/* ---- passing behind a large read ------------------------------------------------------------------- */

typedef struct behind {
    lay_source *s;
    const uint8_t *p;
    lay_crew crew;                   /* guards both below */
    size_t filled; bool over;
    pthread_t thread; bool running;
} behind;

static void *pass_behind(void *arg)
{
    behind *b = arg;
    size_t done = 0;
    uint64_t seen = 0;
    pthread_mutex_lock(&b->crew.lock);
    for (;;) {
        while (b->filled == done && !b->over)
            help_or_wait(b->s, &b->crew, &seen);
        size_t upto = b->filled;
        if (upto == done)
            break;
        pthread_mutex_unlock(&b->crew.lock);
        b->s->ops->pass(b->s, b->p + done, upto - done);
        done = upto;
        pthread_mutex_lock(&b->crew.lock);
    }
    pthread_mutex_unlock(&b->crew.lock);
    return NULL;
}

static void behind_tell(behind *b, size_t part, bool over)
{
    pthread_mutex_lock(&b->crew.lock);
    b->filled += part;
    b->over = over;
    pthread_cond_signal(&b->crew.news);
    pthread_mutex_unlock(&b->crew.lock);
}

static lay_code read_parts(lay_source *s, uint8_t *p, size_t n, size_t *got, lay_error *err)
{
    behind b = { .s = s, .p = p, .crew = CREW };
    if (s->ops->pass != NULL && n >= READ_ASIDE) {
        halves cores;
        halve(&cores);
        b.running = start_thread(&b.thread, pass_behind, &b, &cores, &cores.far);
        s->crew = b.running ? &b.crew : NULL;
    }
    size_t most = n / 16 < READ_PART ? READ_PART : n / 16 < PIECE_SIZE ? n / 16 : PIECE_SIZE;
    lay_code code = LAY_OK;
    bool whole = true;
    while (whole && *got < n) {
        size_t want = n - *got < most ? n - *got : most, part = 0;
        code = s->ops->read(s, p + *got, want, &part, err);
        if (code != LAY_OK)
            part = 0;
        if (b.running)
            behind_tell(&b, part, false);
        else if (part > 0 && s->ops->pass != NULL)
            s->ops->pass(s, p + *got, part);
        *got += part;
        whole = part == want;
    }
    if (b.running) {
        behind_tell(&b, 0, true);
        pthread_join(b.thread, NULL);
        s->crew = NULL;
    }
    if (code == LAY_OK || *got == 0)
        return code;
    lay_error_clear(err);            /* the good bytes first, the error at the next read */
    return LAY_OK;
}

lay_code lay_source_read(lay_source *s, void *buf, size_t n, size_t *got, lay_error *err)
{
    *got = 0;
    if (n == 0)
        return LAY_OK;
    pass_rest(s);
    if (s->written < s->filled) {
        lay_piece *piece = piece_at(s, s->written);
        size_t left = piece->len - piece->at;
        *got = left < n ? left : n;
        memcpy(buf, piece->p + piece->at, *got);
        piece->at += *got;
        s->written += piece->at == piece->len;
    } else {
        if (read_parts(s, buf, n, got, err) || (*got == 0 && end_of(s, err)))
            return err->code;
    }
    s->position += (int64_t)*got;
    return LAY_OK;
}

/* write(), which into a pipe does not wait (Linux 6.5): a signal that comes just before it would not be noticed until
 * the other end reads. *waits: it does wait, as for any other file. */
static ssize_t put_some(int fd, const void *p, size_t n, bool *waits)
{
    struct stat st;
    struct iovec v = { .iov_base = (void *)(uintptr_t)p, .iov_len = n };
    *waits = fstat(fd, &st) != 0 || !S_ISFIFO(st.st_mode);
    if (!*waits) {
        ssize_t put = pwritev2(fd, &v, 1, -1, RWF_NOWAIT);
        if (put >= 0 || (errno != EOPNOTSUPP && errno != EINVAL && errno != ENOSYS && errno != ESPIPE))
            return put;
        *waits = true;
    }
    return write(fd, p, n);
}

int64_t lay_write_some(int fd, const void *p, size_t n, int max_ms)
{
    bool waits;
    ssize_t put = put_some(fd, p, n, &waits);
    if (put >= 0 || (errno != EAGAIN && errno != EWOULDBLOCK))
        return put;
    struct pollfd ready = { .fd = fd, .events = POLLOUT };
    poll(&ready, 1, max_ms);
    return 0;
}

/* Write what is left of a piece. *more false: go back to the caller, as the descriptor is slow or a signal
 * came (whose handler must run before we block again). */
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
        bool waits;
        ssize_t put = put_some(fd, piece->p + piece->at, want, &waits);
        if (put >= 0) {
            piece->at += (size_t)put;
            s->position += put;
            *written += put;
            *more = !waits || piece->at == piece->len;
        } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
            struct pollfd p = { .fd = fd, .events = POLLOUT };
            int64_t left = deadline < 0 ? 1000 : deadline - lay_now_ms();
            *more = left > 0 && poll(&p, 1, left > 1000 ? 1000 : (int)left) > 0;
        } else if (errno == EINTR) {
            *more = false;
        } else {
            return lay_fail_fd(err, errno, fd, "write the tar");
        }
    }
    return LAY_OK;
}

/* ---- reading on and passing while a piece is being written ---------------------------------------- */

typedef struct ahead {
    lay_source *s;
    lay_crew crew;              /* guards the counts of s and all below */
    pthread_cond_t filled, freed;
    bool stop, over;            /* over: nothing more will be filled */
    lay_error failure;
} ahead;

/* The bytes of a piece come from the source; at its end the piece stays empty. */
static lay_code fill(lay_source *s, lay_piece *piece, size_t n, lay_error *err)
{
    piece->at = piece->len = 0;
    if (piece->p == NULL && (piece->p = malloc(PIECE_SIZE)) == NULL)
        return lay_fail_nomem(err);
    lay_code code = s->ops->read(s, piece->p, n, &piece->len, err);
    if (code != LAY_OK)
        piece->len = 0;
    return code;
}

/* A piece is free again when it was both passed and written, whichever came last. */
static bool has_room(const lay_source *s)
{
    uint64_t oldest = s->ops->pass != NULL && s->passed < s->written ? s->passed : s->written;
    return s->filled - oldest < LAY_SOURCE_PIECES;
}

static void *read_on(void *arg)
{
    ahead *a = arg;
    lay_source *s = a->s;
    pthread_mutex_lock(&a->crew.lock);
    while (!a->over) {
        while (!has_room(s) && !a->stop)
            pthread_cond_wait(&a->freed, &a->crew.lock);
        if (a->stop)
            break;
        lay_piece *piece = piece_at(s, s->filled);
        pthread_mutex_unlock(&a->crew.lock);
        lay_code code = fill(s, piece, PIECE_SIZE, &a->failure);
        pthread_mutex_lock(&a->crew.lock);
        a->over = code != LAY_OK || piece->len == 0;
        s->filled += piece->len > 0;
        pthread_cond_signal(&a->filled);
        pthread_cond_signal(&a->crew.news);
    }
    pthread_mutex_unlock(&a->crew.lock);
    return NULL;
}

static void *pass_on(void *arg)
{
    ahead *a = arg;
    lay_source *s = a->s;
    uint64_t seen = 0;
    pthread_mutex_lock(&a->crew.lock);
    for (;;) {
        while (s->passed == s->filled && !a->over && !a->stop)
            help_or_wait(s, &a->crew, &seen);
        if (a->stop || s->passed == s->filled)
            break;
        lay_piece *piece = piece_at(s, s->passed);
        pthread_mutex_unlock(&a->crew.lock);
        s->ops->pass(s, piece->p, piece->len);
        pthread_mutex_lock(&a->crew.lock);
        s->passed++;
        pthread_cond_signal(&a->freed);
    }
    pthread_mutex_unlock(&a->crew.lock);
    return NULL;
}

/* Write pieces as they come until the end, the limit, the deadline, or a descriptor that takes no more. */
static lay_code write_on(ahead *a, int fd, int64_t limit, int64_t deadline, int64_t *written, int *end, lay_error *err)
{
    lay_source *s = a->s;
    while (limit - *written >= (int64_t)PIECE_SIZE) {
        pthread_mutex_lock(&a->crew.lock);
        while (s->written == s->filled && !a->over)
            pthread_cond_wait(&a->filled, &a->crew.lock);
        bool some = s->written < s->filled;
        pthread_mutex_unlock(&a->crew.lock);
        if (!some) {
            *end = a->failure.code == LAY_OK;
            if (!*end)
                *err = a->failure;
            return a->failure.code;
        }
        bool more;
        lay_piece *piece = piece_at(s, s->written);
        lay_code code = write_piece(s, piece, fd, limit, deadline, written, &more, err);
        pthread_mutex_lock(&a->crew.lock);
        if (piece->at == piece->len) {
            s->written++;
            pthread_cond_signal(&a->freed);
        }
        pthread_mutex_unlock(&a->crew.lock);
        if (code != LAY_OK || !more || (deadline >= 0 && lay_now_ms() >= deadline))
            return code;
    }
    return LAY_OK;
}

static void stop(ahead *a)
{
    pthread_mutex_lock(&a->crew.lock);
    a->stop = true;
    pthread_cond_signal(&a->crew.news);
    pthread_cond_signal(&a->freed);
    pthread_mutex_unlock(&a->crew.lock);
}

/* *alone: there are no threads for it, and nothing was done. */
static lay_code copy_ahead(lay_source *s, int fd, int64_t limit, int64_t deadline, int64_t *written, int *end, bool *alone, lay_error *err)
{
    ahead a = { .s = s, .crew = CREW, .filled = PTHREAD_COND_INITIALIZER, .freed = PTHREAD_COND_INITIALIZER };
    pthread_t reader, passer;
    lay_code code = LAY_OK;
    bool passing = s->ops->pass != NULL;
    halves cores = { .two = false };
    if (passing)
        halve(&cores);
    if (passing && !start_thread(&passer, pass_on, &a, &cores, &cores.far)) {
        *alone = true;
        return LAY_OK;
    }
    s->crew = passing ? &a.crew : NULL;
    if (start_thread(&reader, read_on, &a, &cores, &cores.near)) {
        code = write_on(&a, fd, limit, deadline, written, end, err);
        stop(&a);
        pthread_join(reader, NULL);
    } else {
        *alone = true;
        stop(&a);
    }
    if (passing)
        pthread_join(passer, NULL);
    s->crew = NULL;
    /* What was read but not yet written or passed stays; the source repeats its failure. */
    return code;
}

/* max_bytes, max_ms: negative for no limit. */
lay_code lay_source_copy(lay_source *s, int fd, int64_t max_bytes, int max_ms, int64_t *written, int *end, lay_error *err)
{
    *written = 0;
    *end = 0;
    int64_t deadline = max_ms < 0 ? -1 : lay_now_ms() + max_ms, limit = max_bytes < 0 ? INT64_MAX : max_bytes;
    bool alone = false;
    lay_code code = LAY_OK;
    while (!*end) {
        while (s->written < s->filled) {
            bool more;
            lay_piece *piece = piece_at(s, s->written);
            code = write_piece(s, piece, fd, limit, deadline, written, &more, err);
            s->written += piece->at == piece->len;
            if (code != LAY_OK || !more)
                return code;
        }
        int64_t left = limit - *written;
        if (left <= 0 || (deadline >= 0 && *written > 0 && lay_now_ms() >= deadline))
            return LAY_OK;
        if (!alone && s->position >= AHEAD_AFTER && left > AHEAD_FOR) {
            code = copy_ahead(s, fd, limit, deadline, written, end, &alone, err);
            if (!alone && !*end)
                return code;
        } else {
            pass_rest(s);
            lay_piece *piece = piece_at(s, s->filled);
            if (fill(s, piece, left < (int64_t)PIECE_SIZE ? (size_t)left : PIECE_SIZE, err))
                return err->code;
            *end = piece->len == 0;
            s->filled += piece->len > 0;
            pass_rest(s);
        }
    }
    pass_rest(s);
    code = end_of(s, err);
    *end = code == LAY_OK;
    return code;
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
    pass_rest(s);
    if (s->ops->seek(s, offset, err))
        return err->code;
    s->position = offset;
    s->written = s->passed = s->filled;
    return LAY_OK;
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
