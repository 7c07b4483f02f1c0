/* ring.c - one writer's spans shown to a few readers, each at its own pace.
 *
 * Spans are numbered from 0; span s lives in slot s % SLOTS, so order needs no list and a slot that is
 * held late holds up only the writer. One mutex guards every field not said to be the writer's own; it
 * is taken about once a MiB, so its cost is nothing beside the work on the bytes.
 */
#include "apply/ring.h"

#include <string.h>

#define NEVER_STOPPED INT64_MAX

typedef struct slot {
    const uint8_t *p; size_t n;   /* what is published */
    int64_t offset;
    unsigned holds;               /* readers' claims beyond their turn */
    uint8_t *block;               /* the writer's own until it closes the ring: memory, made at first use */
} slot;

typedef struct reader {
    uint64_t taken;   /* spans given to it */
    uint64_t left;    /* spans it has left behind: taken, or one less */
    bool done;
} reader;

struct lay_ring {
    pthread_mutex_t lock;
    pthread_cond_t room;    /* the writer waits: a slot may have become free, or the ring stopped */
    pthread_cond_t more;    /* readers wait: a span was published, or none will be */
    slot slots[LAY_RING_SLOTS];
    reader readers[LAY_RING_READERS];
    unsigned nreaders;      /* never changes */
    unsigned width;         /* so many slots are in use at once */
    uint64_t published;     /* spans */
    int64_t length;         /* bytes in them: offset of the next */
    int64_t stop_at;        /* NEVER_STOPPED, or the lowest offset any thread stopped at */
    bool closed;
};

lay_code lay_ring_new(lay_ring **out, unsigned readers, lay_error *err)
{
    if (readers == 0 || readers > LAY_RING_READERS)
        return lay_fail(err, LAY_E_STATE, "a ring has 1 to %d readers, not %u", LAY_RING_READERS, readers);
    lay_ring *r = calloc(1, sizeof *r);
    if (!r)
        return lay_fail_nomem(err);
    r->nreaders = readers;
    r->width = LAY_RING_SLOTS;
    r->stop_at = NEVER_STOPPED;
    pthread_mutex_init(&r->lock, NULL);       /* without attributes these do not fail */
    pthread_cond_init(&r->room, NULL);
    pthread_cond_init(&r->more, NULL);
    *out = r;
    return LAY_OK;
}

/* With the lock held: may the next span's slot be written? A reader that is done stands nowhere. */
static bool slot_is_free(const lay_ring *r)
{
    for (unsigned i = 0; i < r->nreaders; i++)
        if (!r->readers[i].done && r->published - r->readers[i].left >= r->width)
            return false;
    return r->slots[r->published % LAY_RING_SLOTS].holds == 0;
}

/* With the lock held: waits for the next slot; NULL when stopped. */
static slot *next_slot(lay_ring *r)
{
    while (r->stop_at == NEVER_STOPPED && !slot_is_free(r))
        pthread_cond_wait(&r->room, &r->lock);
    return r->stop_at == NEVER_STOPPED ? &r->slots[r->published % LAY_RING_SLOTS] : NULL;
}

/* With the lock held. */
static void publish(lay_ring *r, slot *s, const uint8_t *p, size_t n)
{
    s->p = p;
    s->n = n;
    s->offset = r->length;
    r->length += (int64_t)n;
    r->published++;
    pthread_cond_broadcast(&r->more);
}

void lay_ring_narrow(lay_ring *r, unsigned width)
{
    pthread_mutex_lock(&r->lock);
    r->width = width;
    pthread_mutex_unlock(&r->lock);
}

/* With the lock held: the block of a slot that all have passed, for one that has none. */
static void reuse_block(lay_ring *r, slot *s)
{
    slot *passed = r->published < r->width ? s : &r->slots[(r->published - r->width) % LAY_RING_SLOTS];
    if (s->block || passed->holds)
        return;
    s->block = passed->block;
    if (passed != s)
        passed->block = NULL;
}

uint8_t *lay_ring_block(lay_ring *r, lay_error *err)
{
    pthread_mutex_lock(&r->lock);
    slot *s = next_slot(r);
    if (s)
        reuse_block(r, s);
    pthread_mutex_unlock(&r->lock);
    if (!s)
        return NULL;
    if (!s->block && !(s->block = malloc(LAY_RING_BLOCK)))
        lay_fail_nomem(err);
    return s->block;
}

void lay_ring_push(lay_ring *r, size_t n)
{
    if (n == 0)
        return;
    pthread_mutex_lock(&r->lock);
    /* The block was free when it was given, and only this thread could have filled it since. */
    slot *s = &r->slots[r->published % LAY_RING_SLOTS];
    if (r->stop_at == NEVER_STOPPED)
        publish(r, s, s->block, n);
    pthread_mutex_unlock(&r->lock);
}

bool lay_ring_lend(lay_ring *r, const void *p, size_t n)
{
    pthread_mutex_lock(&r->lock);
    slot *s = next_slot(r);
    if (s && n > 0)
        publish(r, s, p, n);
    pthread_mutex_unlock(&r->lock);
    return s != NULL;
}

void lay_ring_close(lay_ring *r)
{
    pthread_mutex_lock(&r->lock);
    r->closed = true;
    pthread_cond_broadcast(&r->more);
    pthread_mutex_unlock(&r->lock);
}

/* With the lock held: nothing more is written. Blocks that all have passed go now: what readers do at the end takes memory, too. */
static void free_passed(lay_ring *r)
{
    for (unsigned i = 0; i < r->nreaders; i++)
        if (!r->readers[i].done && r->readers[i].left < r->published)
            return;
    for (slot *s = r->slots; s < r->slots + LAY_RING_SLOTS; s++)
        if (!s->holds) {
            free(s->block);
            s->block = NULL;
        }
}

bool lay_ring_take(lay_ring *r, unsigned reader_number, lay_span *span)
{
    reader *me = &r->readers[reader_number];
    bool given = false;
    pthread_mutex_lock(&r->lock);
    if (me->left < me->taken) {
        me->left = me->taken;
        pthread_cond_signal(&r->room);
    }
    while (!me->done && me->taken == r->published && !r->closed && r->stop_at == NEVER_STOPPED)
        pthread_cond_wait(&r->more, &r->lock);
    if (!me->done && me->taken < r->published) {
        unsigned at = (unsigned)(me->taken % LAY_RING_SLOTS);
        const slot *s = &r->slots[at];
        /* A span that only straddles the stop is given whole: what its reader finds beyond loses. */
        if (s->offset < r->stop_at) {
            *span = (lay_span){ .p = s->p, .n = s->n, .offset = s->offset, .slot = at };
            me->taken++;
            given = true;
        }
    }
    if (!given && r->closed)
        free_passed(r);
    pthread_mutex_unlock(&r->lock);
    return given;
}

void lay_ring_done(lay_ring *r, unsigned reader_number)
{
    pthread_mutex_lock(&r->lock);
    r->readers[reader_number].done = true;
    pthread_cond_signal(&r->room);
    pthread_mutex_unlock(&r->lock);
}

void lay_ring_hold(lay_ring *r, unsigned at)
{
    pthread_mutex_lock(&r->lock);
    r->slots[at].holds++;
    pthread_mutex_unlock(&r->lock);
}

void lay_ring_drop(lay_ring *r, unsigned at)
{
    pthread_mutex_lock(&r->lock);
    if (--r->slots[at].holds == 0)
        pthread_cond_signal(&r->room);
    pthread_mutex_unlock(&r->lock);
}

void lay_ring_stop(lay_ring *r, int64_t at_offset)
{
    pthread_mutex_lock(&r->lock);
    if (at_offset < r->stop_at)
        r->stop_at = at_offset;
    pthread_cond_broadcast(&r->room);
    pthread_cond_broadcast(&r->more);
    pthread_mutex_unlock(&r->lock);
}

bool lay_ring_stopped(lay_ring *r)
{
    pthread_mutex_lock(&r->lock);
    bool stopped = r->stop_at != NEVER_STOPPED;
    pthread_mutex_unlock(&r->lock);
    return stopped;
}

void lay_ring_free(lay_ring *r)
{
    if (!r)
        return;
    for (unsigned i = 0; i < LAY_RING_SLOTS; i++)
        free(r->slots[i].block);
    pthread_cond_destroy(&r->more);
    pthread_cond_destroy(&r->room);
    pthread_mutex_destroy(&r->lock);
    free(r);
}
