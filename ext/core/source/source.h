/* source.h - what assemble and export share: the verbs behind a lay_source. */
#ifndef LAY_SOURCE_H
#define LAY_SOURCE_H

#include "base/error.h"

/* source.c runs read and pass in threads of its own, each in one at a time, pass behind read: what both use is theirs to guard. */
typedef struct lay_source_ops {
    /* Fills n bytes; less only at the end (0) or right before an error, which every later call gives. */
    lay_code (*read)(lay_source *s, void *buf, size_t n, size_t *got, lay_error *err);
    lay_code (*size)(lay_source *s, int64_t *size, lay_error *err);
    lay_code (*seek)(lay_source *s, int64_t offset, lay_error *err);   /* NULL: cannot; all that was read has been passed */
    void (*free)(lay_source *s);
    /* Sees every byte that was read once, in order. NULL: nothing to see; end is NULL, too. */
    void (*pass)(lay_source *s, const void *p, size_t n);
    /* read gave 0 bytes, and all before were passed: an error here comes in place of the end, and by later reads. */
    lay_code (*end)(lay_source *s, lay_error *err);
    /* Does some of the work that read offers, beside it, in one other thread; false: there is none left. NULL: never offered. */
    bool (*help)(lay_source *s);
} lay_source_ops;

/* Bytes read, of which the descriptor took the first at. */
typedef struct lay_piece { uint8_t *p; size_t at, len; } lay_piece;
#define LAY_SOURCE_PIECES 8u

/* The threads of one call that pass, and meanwhile help. */
typedef struct lay_crew lay_crew;
/* From within read, while there is a crew: there is work for help. */
void lay_source_offer(lay_source *s);

/* First member of every source. position is kept by source.c, as are the pieces of lay_source_copy. */
struct lay_source {
    const lay_source_ops *ops;
    int64_t position;                   /* of the next byte the caller gets; ops->read is what the pieces hold further */
    lay_piece pieces[LAY_SOURCE_PIECES];
    lay_crew *crew;                     /* NULL: read is alone */
    uint64_t filled, passed, written;   /* how many pieces were, wholly: number n is in pieces[n % LAY_SOURCE_PIECES] */
};

#endif
