/* pipeline.h - the bytes of one tar, shown to a few sinks at once.
 *
 * The first block waits: a tar that ends in it is worked on in the caller's thread, and no other starts. With more, each
 * sink has a thread and the ring between. On a failure the ring stops at its place, the other sinks run on up to there,
 * and the failure with the lowest offset is told, of equal ones that of the sink added first: the same tar gives the same error.
 */
#ifndef LAY_PIPELINE_H
#define LAY_PIPELINE_H

#include "apply/sink.h"

typedef struct lay_pipeline lay_pipeline;

/* threads 0: everything in the caller's. most: bytes that the tar may have; 0: any number. */
lay_code lay_pipeline_new(lay_pipeline **out, bool threads, int64_t most, lay_error *err);
/* Before any byte. The sink stays where it is until free, which frees what it holds. */
void lay_pipeline_add(lay_pipeline *p, lay_sink *s);
/* Room for the next bytes of the tar; and: n of them are there. */
lay_code lay_pipeline_room(lay_pipeline *p, uint8_t **to, size_t *n, lay_error *err);
void lay_pipeline_fill(lay_pipeline *p, size_t n);
/* The next n bytes as they lie, which must stay until free. *taken: fewer when all sinks are sated before. */
lay_code lay_pipeline_lend(lay_pipeline *p, const uint8_t *bytes, size_t n, size_t *taken, lay_error *err);
/* No sink wants more. */
bool lay_pipeline_sated(const lay_pipeline *p);
/* The tar is complete: ends every sink, joins every thread. */
lay_code lay_pipeline_end(lay_pipeline *p, lay_applied *out, lay_error *err);
/* Stops and joins what still runs. */
void lay_pipeline_free(lay_pipeline *p);

#endif
