/* split.h - tar-split lines: recording them and reading them back.
 *
 *   {"type":2,"payload":"<base64 framing>","position":0}
 *   {"type":1,"name":"a/f","size":5,"payload":"<base64 of the CRC-64, 8 bytes big-endian>","position":1}
 *   {"type":1,"name_raw":"<base64>", ... }     name is not UTF-8
 *
 * The record holds what the tree does not have as segments, so that dockerd, which knows only
 * these lines, returns the same bytes: payloads of links, whiteouts and sparse files right away;
 * payloads of names that come again by a second pass with a plan (exact.c).
 * Source: tar-split, archive/../tar/asm and tar/storage.
 */
#ifndef LAY_SPLIT_H
#define LAY_SPLIT_H

#include "base/digest.h"
#include "tar/tar.h"

/* What a second pass does with one entry. */
#define LAY_PLAN_INLINE 1u   /* payload as segments, size 0 in the line */
#define LAY_PLAN_UNNAMED 2u  /* no line: the header joins the framing around it */
typedef struct lay_plan { const uint8_t *marks; uint64_t count; } lay_plan;   /* one byte of LAY_PLAN_ an ordinal */

typedef struct lay_split lay_split;

/* record_fd is an empty file, borrowed until free. plan may be NULL. gzip: blocked gzip, each member with a seek field. */
lay_code lay_split_open(lay_split **out, int record_fd, bool gzip, const lay_plan *plan, lay_error *err);
void lay_split_limit(lay_split *s, const lay_limits *limits);   /* before anything is added; borrowed until free */
lay_code lay_split_add(lay_split *s, const void *p, size_t n, lay_error *err);
/* The stream has ended: writes what is left. */
lay_code lay_split_end(lay_split *s, lay_error *err);
bool lay_split_ended(const lay_split *s);      /* the end-of-archive marker has passed */
/* There is no tree beside this record: watch for names that lead through what is no directory, too. */
lay_code lay_split_alone(lay_split *s, lay_error *err);
/* Places in the tree that came more than once (maybe, see nameset.h), or, alone, lie below what is no
 * directory: a second pass is needed if any. */
bool lay_split_has_repeats(const lay_split *s);
bool lay_split_repeats(const lay_split *s, const char *clean_name, size_t n);
/* Of a cleaned name, and of the place in the tree that it stands for; equal ones are (as good as) the same. */
uint64_t lay_split_name_hash(const lay_split *s, const char *clean_name, size_t n);
uint64_t lay_split_place_hash(const lay_split *s, const char *clean_name, size_t n);
/* Alone: does it lie below a place that some entry makes what is no directory? */
bool lay_split_is_below_file(const lay_split *s, const char *clean_name, size_t n);
uint64_t lay_split_entries(const lay_split *s);
void lay_split_free(lay_split *s);

/* ---- reading ---- */

typedef struct lay_split_line {
    bool is_file;
    const uint8_t *p; size_t n;            /* segment: framing bytes */
    const char *name; size_t name_len;     /* file: as recorded, NUL-terminated */
    int64_t size; uint64_t crc;            /* file; has_crc false when payload is null or not 8 bytes */
    bool has_crc;
    int64_t tar_offset;                    /* where its bytes begin in the tar */
    uint64_t index;                        /* 0, 1, 2 ... over all lines */
} lay_split_line;

typedef struct lay_split_reader lay_split_reader;
/* Reads record_fd by pread from 0 (duplicated); gzip or JSON lines. */
lay_code lay_split_reader_open(lay_split_reader **out, int record_fd, lay_error *err);
/* *line is valid until the next call; *end 1 after the last. Lines of no known type are passed over.
 * A file whose framing header is a link, directory or node has no payload: size is given as 0. */
lay_code lay_split_reader_next(lay_split_reader *r, lay_split_line *line, bool *end, lay_error *err);
/* Go to the last restart point at or before tar offset (>= 0); the next line begins there. The way to a point is read
 * once before it serves: the lines are those that reading from the start gives. */
lay_code lay_split_reader_rewind(lay_split_reader *r, int64_t tar_offset, lay_error *err);
/* The tar's whole length, as the first seek field claims it, else counted. Reading to the end is LAY_E_SPLIT where the
 * claim is wrong. Needs a rewind after it. */
lay_code lay_split_reader_size(lay_split_reader *r, int64_t *size, lay_error *err);
void lay_split_reader_free(lay_split_reader *r);

#endif
