/* ring.h - one writer, several readers, bounded, can be stopped. Knows nothing of tars.
 *
 * The writer fills slots (blocks of its own, or lent spans) in order; each reader sees every span in
 * order. A slot is free again when the slowest reader has passed it and none holds it: a reader may
 * hold a span past its turn (files still being written from it) and let go from any thread.
 *
 * Stopping: the ring stops *at* a byte offset. The writer publishes no more; readers run on up to that
 * offset and then see the end. The lowest offset wins, so the same input gives the same error however
 * the threads fell. Source of the shape: pigz's pools (a bound is the back-pressure).
 */
#ifndef LAY_RING_H
#define LAY_RING_H

#include "base/error.h"

#include <pthread.h>

#define LAY_RING_BLOCK (1u << 20)
#define LAY_RING_SLOTS 8
#define LAY_RING_READERS 3

typedef struct lay_span {
    const uint8_t *p; size_t n;
    int64_t offset;        /* of p[0] in the stream */
    unsigned slot;         /* for hold and drop */
} lay_span;

typedef struct lay_ring lay_ring;

lay_code lay_ring_new(lay_ring **out, unsigned readers, lay_error *err);
/* Writer: the next free block to fill, waiting for it; NULL when stopped (or out of memory: err is set). */
uint8_t *lay_ring_block(lay_ring *r, lay_error *err);
/* Writer: publish n bytes of the block just given (n <= LAY_RING_BLOCK), or a lent span. */
void lay_ring_push(lay_ring *r, size_t n);
bool lay_ring_lend(lay_ring *r, const void *p, size_t n);   /* waits for a slot; false when stopped */
void lay_ring_close(lay_ring *r);                            /* writer: no more will come */
/* Reader: the next span, waiting; false at the end (closed, or stopped at or before its offset). The
 * previous span is left behind by asking for the next. */
bool lay_ring_take(lay_ring *r, unsigned reader, lay_span *span);
/* Any thread: no more than so many slots are to be in use, to save memory; 1 to LAY_RING_SLOTS. */
void lay_ring_narrow(lay_ring *r, unsigned width);
/* Reader: I will take no more. */
void lay_ring_done(lay_ring *r, unsigned reader);
void lay_ring_hold(lay_ring *r, unsigned slot);              /* by a reader that has the span */
void lay_ring_drop(lay_ring *r, unsigned slot);              /* from any thread */
void lay_ring_stop(lay_ring *r, int64_t at_offset);          /* from any thread */
bool lay_ring_stopped(lay_ring *r);
void lay_ring_free(lay_ring *r);                             /* when no thread uses it */

#endif
