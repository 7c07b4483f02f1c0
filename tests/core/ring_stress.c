/* ring_stress.c - the ring under a thread sanitizer: one writer, two readers, one late holder.
 *
 * argv[1] rounds. Each round draws from its number how spans are cut, lent and held, and whether a
 * reader stops the ring. Every reader checks each byte against its offset and that it got all bytes
 * up to the lowest stop. Prints the sentence that failed and exits 1.
 */
#include "apply/ring.h"

#include <stdio.h>
#include <string.h>

#define LENGTH (3 << 20)
#define LATE 64

static uint8_t bytes[LENGTH];   /* what is sent; constant once main has filled it */

typedef struct late {   /* spans held beyond their turn, dropped by a thread of its own */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    lay_span spans[LATE];
    unsigned count;
    bool over;
} late;

typedef struct round_state {
    lay_ring *ring;
    late late;
    uint32_t seed;
    int64_t stop_at[LAY_RING_READERS];   /* -1: runs to the end */
} round_state;

typedef struct reader_state {
    round_state *round;
    unsigned number;
    int64_t seen;      /* bytes, in order from 0 */
} reader_state;

static _Noreturn void failed(const char *what, long a, long b)
{
    fprintf(stderr, "%s: %ld, %ld\n", what, a, b);
    _exit(1);
}

static uint32_t draw(uint32_t *seed)
{
    *seed = *seed * 1664525u + 1013904223u;
    return *seed >> 8;
}

static void check_bytes(const lay_span *s)
{
    if (memcmp(s->p, bytes + s->offset, s->n) != 0)
        failed("a span differs from what was sent: offset, length", (long)s->offset, (long)s->n);
}

static void *drop_late(void *p)
{
    round_state *round = p;
    late *l = &round->late;
    pthread_mutex_lock(&l->lock);
    while (l->count > 0 || !l->over) {
        if (l->count == 0) {
            pthread_cond_wait(&l->changed, &l->lock);
            continue;
        }
        lay_span s = l->spans[--l->count];
        pthread_mutex_unlock(&l->lock);
        check_bytes(&s);
        lay_ring_drop(round->ring, s.slot);
        pthread_mutex_lock(&l->lock);
    }
    pthread_mutex_unlock(&l->lock);
    return NULL;
}

static void *read_all(void *p)
{
    reader_state *me = p;
    round_state *round = me->round;
    uint32_t seed = round->seed + me->number;
    int64_t stop = round->stop_at[me->number];
    lay_span s;
    while (lay_ring_take(round->ring, me->number, &s)) {
        if (s.offset != me->seen)
            failed("a span is out of order: offset, expected", (long)s.offset, (long)me->seen);
        check_bytes(&s);
        me->seen += (int64_t)s.n;
        if (draw(&seed) % 4 == 0) {
            late *l = &round->late;
            pthread_mutex_lock(&l->lock);
            if (l->count < LATE) {
                lay_ring_hold(round->ring, s.slot);
                l->spans[l->count++] = s;
                pthread_cond_signal(&l->changed);
            }
            pthread_mutex_unlock(&l->lock);
        }
        if (stop >= 0 && me->seen > stop) {
            lay_ring_stop(round->ring, stop);
            lay_ring_done(round->ring, me->number);
        }
    }
    return NULL;
}

static void write_all(round_state *round)
{
    uint32_t seed = round->seed ^ 0x5eedu;
    lay_error err = { .code = LAY_OK };
    for (size_t at = 0; at < LENGTH;) {
        size_t n = 1 + draw(&seed) % (1u << (draw(&seed) % 18));
        if (n > LENGTH - at)
            n = LENGTH - at;
        if (draw(&seed) % 2) {
            if (!lay_ring_lend(round->ring, bytes + at, n))
                break;
        } else {
            uint8_t *block = lay_ring_block(round->ring, &err);
            if (!block)
                break;
            memcpy(block, bytes + at, n);
            lay_ring_push(round->ring, n);
        }
        at += n;
    }
    lay_ring_close(round->ring);
}

static void run_round(uint32_t number)
{
    round_state round = { .seed = number * 2654435761u, .stop_at = { -1, -1, -1 } };
    uint32_t seed = round.seed;
    for (unsigned i = 0; i < LAY_RING_READERS; i++)
        if (draw(&seed) % 3 == 0)
            round.stop_at[i] = (int64_t)(draw(&seed) % LENGTH);
    lay_error err = { .code = LAY_OK };
    if (lay_ring_new(&round.ring, LAY_RING_READERS, &err) != LAY_OK)
        failed("no ring", (long)err.code, err.sys_errno);
    pthread_mutex_init(&round.late.lock, NULL);
    pthread_cond_init(&round.late.changed, NULL);
    pthread_t readers[LAY_RING_READERS], dropper;
    reader_state states[LAY_RING_READERS];
    pthread_create(&dropper, NULL, drop_late, &round);
    for (unsigned i = 0; i < LAY_RING_READERS; i++) {
        states[i] = (reader_state){ .round = &round, .number = i };
        pthread_create(&readers[i], NULL, read_all, &states[i]);
    }
    write_all(&round);
    int64_t promised = LENGTH;
    for (unsigned i = 0; i < LAY_RING_READERS; i++) {
        pthread_join(readers[i], NULL);
        if (round.stop_at[i] >= 0 && round.stop_at[i] < promised)
            promised = round.stop_at[i];
    }
    pthread_mutex_lock(&round.late.lock);
    round.late.over = true;
    pthread_cond_signal(&round.late.changed);
    pthread_mutex_unlock(&round.late.lock);
    pthread_join(dropper, NULL);
    for (unsigned i = 0; i < LAY_RING_READERS; i++)
        if (states[i].seen < promised)
            failed("a reader ended before the lowest stop: seen, promised", (long)states[i].seen, (long)promised);
    lay_ring_free(round.ring);
    pthread_cond_destroy(&round.late.changed);
    pthread_mutex_destroy(&round.late.lock);
}

int main(int argc, char **argv)
{
    long rounds = argc > 1 ? strtol(argv[1], NULL, 10) : 100;
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (uint8_t)(i * 31 + i / 257);
    for (long i = 0; i < rounds; i++)
        run_round((uint32_t)i);
    return 0;
}
