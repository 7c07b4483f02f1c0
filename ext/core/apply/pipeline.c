/* pipeline.c - the life of sinks: opened, shown each span, ended, and the first of their failures told.
 *
 *   caller's thread                  a thread each
 *   room, fill ──► block ──► ring ──► sink, sink, sink
 */
#include "apply/pipeline.h"

#include "base/limit.h"

#include <pthread.h>
#include <signal.h>
#include <string.h>

typedef struct runner {
    lay_pipeline *pipeline;
    lay_sink *sink;
    unsigned reader;                      /* of the ring */
    pthread_t thread;
    bool running, opened, sated;
    lay_error err;
} runner;

struct lay_pipeline {
    bool threads;
    int64_t most;
    lay_ring *ring;                       /* NULL: in line, or not started yet */
    runner runners[LAY_RING_READERS]; unsigned count;   /* their order settles ties */
    uint8_t *block; size_t fill;          /* being filled */
    bool own_block;                       /* block is malloc'ed here, not the ring's */
    int64_t tar_size;                     /* bytes handed on */
    unsigned sated;                       /* atomic: sinks that need no more */
    lay_applied done;                     /* each sink writes fields of its own */
};

lay_code lay_pipeline_new(lay_pipeline **out, bool threads, int64_t most, lay_error *err)
{
    *out = calloc(1, sizeof **out);
    if (!*out)
        return lay_fail_nomem(err);
    (*out)->threads = threads;
    (*out)->most = most;
    return LAY_OK;
}

void lay_pipeline_add(lay_pipeline *p, lay_sink *s)
{
    p->runners[p->count] = (runner){ .pipeline = p, .sink = s, .reader = p->count, .err = { .offset = -1 } };
    p->count++;
}

bool lay_pipeline_sated(const lay_pipeline *p) { return __atomic_load_n(&p->sated, __ATOMIC_ACQUIRE) == p->count; }

/* ---- one sink -------------------------------------------------------------------------------------------------- */

static lay_code open_sink(runner *k)
{
    const lay_sink_ops *ops = k->sink->ops;
    bool first = !k->opened && ops->open;
    k->opened = true;
    return first ? ops->open(k->sink, k->pipeline->ring, &k->err) : LAY_OK;
}

static lay_code take_span(runner *k, const lay_span *span)
{
    const lay_sink_ops *ops = k->sink->ops;
    if (ops->take(k->sink, span, &k->err))
        return k->err.code;
    if (ops->sated && !k->sated && ops->sated(k->sink)) {
        k->sated = true;
        __atomic_add_fetch(&k->pipeline->sated, 1, __ATOMIC_RELEASE);
    }
    return LAY_OK;
}

static lay_code end_sink(runner *k) { return k->sink->ops->end(k->sink, &k->pipeline->done, &k->err); }

static void *run(void *arg)
{
    runner *k = arg;
    lay_ring *ring = k->pipeline->ring;
    lay_span span;
    int64_t reached = 0;
    lay_code code = open_sink(k);
    while (!code && lay_ring_take(ring, k->reader, &span)) {
        code = take_span(k, &span);
        reached = span.offset + (int64_t)span.n;
    }
    if (!code && !lay_ring_stopped(ring))
        code = end_sink(k);
    if (code)
        lay_ring_stop(ring, k->err.offset >= 0 ? k->err.offset : reached);
    lay_ring_done(ring, k->reader);
    return NULL;
}

/* ---- all of them ----------------------------------------------------------------------------------------------- */

static void join(lay_pipeline *p)
{
    for (runner *k = p->runners; k < p->runners + p->count; k++)
        if (k->running) {
            pthread_join(k->thread, NULL);
            k->running = false;
        }
}

/* Joins, and tells the failure that came first in the tar. *err: what is told when no sink failed. */
static lay_code fail_first(lay_pipeline *p, lay_error *err)
{
    uint64_t first = UINT64_MAX;              /* as which -1 comes behind all places */
    bool failed = false;
    join(p);
    for (const runner *k = p->runners; k < p->runners + p->count; k++)
        if (k->err.code && (!failed || (uint64_t)k->err.offset < first)) {
            failed = true;
            first = (uint64_t)k->err.offset;
            *err = k->err;
        }
    return err->code ? err->code : lay_fail(err, LAY_E_STATE, "the pipeline stopped without a reason");
}

static lay_code start_threads(lay_pipeline *p, lay_error *err)
{
    if (lay_ring_new(&p->ring, p->count, err))
        return err->code;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);     /* signals are the caller's threads' to see */
    lay_code code = LAY_OK;
    for (runner *k = p->runners; k < p->runners + p->count; k++) {
        int e = code ? 0 : pthread_create(&k->thread, NULL, run, k);
        if (e)
            code = lay_fail_os(err, e, NULL, "cannot start a thread");
        k->running = !code;
        if (code)
            lay_ring_done(p->ring, k->reader);
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (code)
        lay_ring_stop(p->ring, 0);
    return code;
}

/* Every sink sees the span before one that failed is believed: another's failure may come before it in the tar. */
static lay_code in_line(lay_pipeline *p, const uint8_t *bytes, size_t n, lay_error *err)
{
    lay_span span = { bytes, n, p->tar_size, 0 };
    bool failed = false;
    for (runner *k = p->runners; k < p->runners + p->count && !failed; k++)
        failed = open_sink(k);
    if (failed)
        return fail_first(p, err);
    for (runner *k = p->runners; k < p->runners + p->count && n; k++)
        failed |= take_span(k, &span) != LAY_OK;
    return failed ? fail_first(p, err) : LAY_OK;
}

/* Of the next n bytes of the tar, those that it may still have; *cut: not all. */
static size_t allowed(const lay_pipeline *p, size_t n, bool *cut)
{
    int64_t left = p->most - p->tar_size;
    *cut = p->most > 0 && (int64_t)n > left;
    return *cut ? (size_t)left : n;
}

/* All up to the limit was handed on; what is wrong in there comes first. */
static lay_code too_long(lay_pipeline *p, lay_error *err)
{
    lay_fail_limit(err, p->most, "max_tar_size", p->most, "bytes", "the tar is too large");
    if (p->ring)
        lay_ring_stop(p->ring, p->most);
    return fail_first(p, err);
}

/* ---- bytes ----------------------------------------------------------------------------------------------------- */

/* A free block of the ring, waiting for it. */
static lay_code ring_block(lay_pipeline *p, uint8_t **block, lay_error *err)
{
    *block = lay_ring_block(p->ring, err);
    return *block ? LAY_OK : err->code ? err->code : fail_first(p, err);
}

/* The block is full (or the tar is over, or a lent span comes): hand it on. */
static lay_code publish(lay_pipeline *p, lay_error *err)
{
    bool cut;
    size_t n = allowed(p, p->fill, &cut);
    if (!p->fill)
        return LAY_OK;
    if (p->threads && !p->ring) {             /* more than one block: it is worth threads */
        uint8_t *to;
        if (start_threads(p, err) || ring_block(p, &to, err))
            return err->code;
        memcpy(to, p->block, n);
        free(p->block);
        p->own_block = false;
        p->block = to;
    }
    if (p->ring) {
        lay_ring_push(p->ring, n);
        p->block = NULL;
    } else if (in_line(p, p->block, n, err)) {
        return err->code;
    }
    p->tar_size += (int64_t)n;
    p->fill = 0;
    return cut ? too_long(p, err) : LAY_OK;
}

lay_code lay_pipeline_room(lay_pipeline *p, uint8_t **to, size_t *n, lay_error *err)
{
    if (p->fill == LAY_RING_BLOCK && publish(p, err))
        return err->code;
    if (!p->block && p->ring) {
        if (ring_block(p, &p->block, err))
            return err->code;
    } else if (!p->block) {
        p->block = malloc(LAY_RING_BLOCK);
        p->own_block = true;
        if (!p->block)
            return lay_fail_nomem(err);
    }
    *to = p->block + p->fill;
    *n = LAY_RING_BLOCK - p->fill;
    return LAY_OK;
}

void lay_pipeline_fill(lay_pipeline *p, size_t n) { p->fill += n; }

lay_code lay_pipeline_lend(lay_pipeline *p, const uint8_t *bytes, size_t n, size_t *taken, lay_error *err)
{
    *taken = 0;
    if (publish(p, err))
        return err->code;
    while (*taken < n && !lay_pipeline_sated(p)) {
        bool cut;
        size_t left = n - *taken, part = allowed(p, left < LAY_RING_BLOCK ? left : LAY_RING_BLOCK, &cut);
        if (p->ring ? !lay_ring_lend(p->ring, bytes + *taken, part) : in_line(p, bytes + *taken, part, err) != LAY_OK)
            return p->ring ? fail_first(p, err) : err->code;
        p->tar_size += (int64_t)part;
        *taken += part;
        if (cut)
            return too_long(p, err);
    }
    return LAY_OK;
}

/* ---- the end --------------------------------------------------------------------------------------------------- */

static lay_code end_in_line(lay_pipeline *p, lay_error *err)
{
    bool cut, failed = false;
    size_t n = allowed(p, p->fill, &cut);
    if (in_line(p, p->block, n, err))
        return err->code;
    p->tar_size += (int64_t)n;
    p->fill = 0;
    if (cut)
        return too_long(p, err);
    for (runner *k = p->runners; k < p->runners + p->count && !failed; k++)
        failed = end_sink(k) != LAY_OK;
    return failed ? fail_first(p, err) : LAY_OK;
}

lay_code lay_pipeline_end(lay_pipeline *p, lay_applied *out, lay_error *err)
{
    if (p->ring) {
        if (publish(p, err))
            return err->code;
        lay_ring_close(p->ring);
        join(p);
        if (lay_ring_stopped(p->ring))
            return fail_first(p, err);
    } else if (end_in_line(p, err)) {         /* one block at most, or no threads: here and now */
        return err->code;
    }
    *out = p->done;
    out->tar_size = p->tar_size;
    return LAY_OK;
}

void lay_pipeline_free(lay_pipeline *p)
{
    if (!p)
        return;
    if (p->ring) {
        lay_ring_stop(p->ring, 0);
        lay_ring_close(p->ring);
    }
    join(p);
    for (runner *k = p->runners; k < p->runners + p->count; k++)
        if (k->sink->ops->free)
            k->sink->ops->free(k->sink);
    lay_ring_free(p->ring);                   /* behind the sinks, which may hold slots */
    if (p->own_block)
        free(p->block);
    free(p);
}
