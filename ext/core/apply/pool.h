/* pool.h - a few threads that make regular files whose bytes lie whole in one span.
 *
 * One bounded queue; a thread that posts to a full queue does the job itself, so nothing blocks and one
 * thread alone is as right as many. Jobs run in any order: what must come after another is the
 * caller's to order, by lay_pool_drain. A job holds its span's slot and its directory until it is done.
 */
#ifndef LAY_POOL_H
#define LAY_POOL_H

#include "tree/dirs.h"
#include "tree/place.h"
#include "apply/ring.h"

typedef struct lay_job {
    lay_dir *dir;              /* retained for the job */
    const uint8_t *p; size_t n;
    int slot;                  /* held for the job; -1: none */
    lay_meta meta;             /* meta.xattrs: malloc'ed for the job in one piece, or NULL */
    int64_t offset;            /* of the entry in the tar */
    char name[256];
} lay_job;

typedef struct lay_pool lay_pool;

lay_code lay_pool_new(lay_pool **out, const lay_place *place, lay_ring *ring, int threads, lay_error *err);
/* Takes over what the job holds. False: an earlier job has failed, see lay_pool_drain. */
bool lay_pool_post(lay_pool *p, const lay_job *job);
/* Waits until all that was posted is done; the failure with the lowest offset, if any. */
lay_code lay_pool_drain(lay_pool *p, lay_error *err);
void lay_pool_free(lay_pool *p);

/* The same work at once, by the calling thread. Takes over what the job holds. */
lay_code lay_job_run(const lay_place *place, lay_ring *ring, lay_job *job, lay_error *err);

#endif
