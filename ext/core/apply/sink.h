/* sink.h - what takes the bytes of a tar: what a pipeline asks of it, and the sinks there are.
 *
 * One thread opens a sink, gives it every span in order and ends it: its own, or the caller's where there is no ring.
 * What fails sets err->offset to where in the tar, or leaves -1: then the failure comes behind all that have a place.
 */
#ifndef LAY_SINK_H
#define LAY_SINK_H

#include "apply/ring.h"
#include "apply/unpack.h"
#include "base/digest.h"
#include "erofs/erofs_write.h"
#include "tarsplit/split.h"

typedef struct lay_sink lay_sink;

typedef struct lay_sink_ops {
    lay_code (*open)(lay_sink *s, lay_ring *ring, lay_error *err);       /* NULL: nothing to open. ring NULL: there is none */
    lay_code (*take)(lay_sink *s, const lay_span *span, lay_error *err);
    lay_code (*end)(lay_sink *s, lay_applied *out, lay_error *err);      /* the tar is complete; sets its own fields of out only */
    bool (*sated)(const lay_sink *s);                                    /* it needs no more; NULL: never */
    void (*free)(lay_sink *s);                                           /* what it holds, not the struct itself; NULL: it holds nothing */
} lay_sink_ops;

/* Each of those below begins with one. */
struct lay_sink { const lay_sink_ops *ops; };

/* SHA-256 of all bytes. */
typedef struct lay_digest_sink { lay_sink sink; lay_sha256 sha; } lay_digest_sink;
void lay_sink_digest(lay_digest_sink *s);

/* The tar-split record. A tar whose names come again is read again, from again_fd: the plain tar, from again_offset on,
 * or (again_offset < 0) an empty file, where the sink keeps the bytes. Each descriptor may be -1. */
typedef struct lay_split_sink { lay_sink sink; lay_split *split; int record_fd, again_fd; int64_t again_offset; } lay_split_sink;
/* s says what it is given; its descriptors become duplicates. Whatever the outcome, ops->free has to follow. */
lay_code lay_sink_split(lay_split_sink *s, bool gzip, const lay_limits *limits, lay_error *err);

/* A tree. As above; unpack is there once it is open. stops: sated when the archive has ended. */
typedef struct lay_unpack_sink { lay_sink sink; lay_unpack_options options; bool stops; lay_unpack *unpack; } lay_unpack_sink;
lay_code lay_sink_unpack(lay_unpack_sink *s, lay_error *err);

/* An image: the tar goes into fd as it comes, and behind it the metadata of the tree it makes on these lowers. All is
 * there at the end, but the header, which says the DiffID: for lay_eimage_seal. */
typedef struct lay_erofs_sink {
    lay_sink sink;
    int fd;
    bool present;                            /* the tar is in fd already */
    int64_t size;                            /* of the tar so far */
    lay_lowers lowers;
    lay_tar *tar;
    lay_etree *tree;
    lay_eimage *image;                       /* at the end */
    lay_text unsettled, left_out;            /* what out points to then */
} lay_erofs_sink;
/* As above, with fd and present: fd becomes a duplicate; the lowers' roots are opened once more. */
lay_code lay_sink_erofs(lay_erofs_sink *s, const lay_shown *lowers, size_t n, const lay_limits *limits, lay_error *err);

#endif
