/* source.h - what assemble and export share: the verbs behind a lay_source. */
#ifndef LAY_SOURCE_H
#define LAY_SOURCE_H

#include "error.h"

/* read fills n bytes; less only at the end (0) or right before an error, which the next call gives. */
typedef struct lay_source_ops {
    lay_code (*read)(lay_source *s, void *buf, size_t n, size_t *got, lay_error *err);
    lay_code (*size)(lay_source *s, int64_t *size, lay_error *err);
    lay_code (*seek)(lay_source *s, int64_t offset, lay_error *err);   /* NULL: cannot */
    void (*free)(lay_source *s);
} lay_source_ops;

/* Bytes read, but not taken by the descriptor yet. */
typedef struct lay_piece { uint8_t *p; size_t at, len; } lay_piece;
#define LAY_SOURCE_PIECES 4u

/* First member of every source. position is kept by source.c, as are the pieces of lay_source_copy. */
struct lay_source {
    const lay_source_ops *ops;
    int64_t position;       /* of the next byte the caller gets; ops->read is what the pieces hold further */
    lay_piece pieces[LAY_SOURCE_PIECES];
    unsigned first, kept;   /* the oldest piece; how many hold bytes */
};

#endif
