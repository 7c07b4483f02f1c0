/* unpack.h - sink: a layer tar becomes a tree, beneath one root.
 *
 * What a later entry replaces is kept aside (renamed into a scratch directory) until free, and written
 * down, so that exact.c can still give those bytes to the record.
 * Source: go-archive, archive.go Unpack and diff.go UnpackLayer; moby, overlay2.
 */
#ifndef LAY_UNPACK_H
#define LAY_UNPACK_H

#include "apply/ring.h"
#include "apply/unpack_replaced.h"

typedef struct lay_unpack_options {
    int root_fd;             /* borrowed until free */
    int scratch_fd;          /* where replaced files are kept; -1: they are removed */
    bool merged;             /* root is what the layers below show: whiteouts delete it, and nothing of this tar */
    bool own_links;          /* with merged: names lead through links of this tar alone */
    unsigned flags;          /* LAY_APPLY_ */
    int threads;             /* of the pool; 0: none, and then the caller's thread is not ours to change */
    lay_ring *ring;          /* whose slots the spans are; NULL: none */
    const lay_limits *limits;   /* borrowed until free; NULL: lay_limits_default */
} lay_unpack_options;

lay_code lay_unpack_open(lay_unpack **out, const lay_unpack_options *o, lay_error *err);
/* After an error only free may follow. err->offset: where; err->path: which entry. */
lay_code lay_unpack_add(lay_unpack *u, const lay_span *span, lay_error *err);
/* The stream has ended: waits for all files, sets the times of directories, tells what is the tree's to tell. */
lay_code lay_unpack_end(lay_unpack *u, lay_applied *out, lay_error *err);
bool lay_unpack_ended(const lay_unpack *u);          /* the end-of-archive marker has passed */
/* Removes the scratch directory and all else. */
void lay_unpack_free(lay_unpack *u);

#endif
