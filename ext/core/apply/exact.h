/* exact.h - the second pass over a record: it makes tars exact that moby cannot return.
 *
 * The first pass records every payload as "read it from the tree". That is wrong for a file whose name
 * comes again, that a later entry replaces, or that was reached through a symbolic link. When there was
 * any such entry, the record is written anew: those payloads become segments, and of several lines with
 * one name only the last stays, so that dockerd, which refuses repeated names, can use the record too.
 */
#ifndef LAY_EXACT_H
#define LAY_EXACT_H

#include "tarsplit/split.h"
#include "apply/unpack.h"

/* The tar once more, where there is no tree to take it from. */
typedef struct lay_again { int fd; int64_t offset; const uint8_t *p; size_t n; } lay_again;   /* fd, or else p */

typedef struct lay_exact {
    int record_fd;              /* of the first pass, complete; rewritten in place */
    int scratch_fd;             /* with a tree: a directory for a temporary file */
    bool gzip;
    const lay_split *first;     /* the recorder of the first pass */
    lay_unpack *tree;           /* NULL: take the bytes from again */
    lay_again again;
    const uint8_t *diff_id;
    int64_t tar_size;
    const lay_limits *limits;   /* those of the first pass */
} lay_exact;

lay_code lay_exact_rewrite(const lay_exact *x, lay_error *err);

#endif
