/* tar_state.h - the reader's inside, shared by the four files that are the reader; each calls those after it only:
 * tar_read.c (the state machine and its verbs), tar_head.c (blocks and extensions become an entry), tar_sparse.c (maps),
 * tar_pax.c (records, and what a refusal says). */
#ifndef LAY_TAR_STATE_H
#define LAY_TAR_STATE_H

#include "base/limit.h"
#include "tar/tar.h"
#include "base/text.h"

#include <string.h>

typedef enum state {
    IN_HEADER,        /* gathering a header block */
    AT_HEADER,        /* it is whole: look at it */
    IN_EXTENSION,     /* payload of x, g, L, K */
    AT_EXTENSION,
    IN_EXTENSION_PAD,
    IN_GNU_SPARSE,    /* further map blocks of an old GNU sparse file */
    IN_PAX_MAP,       /* map at the start of a PAX 1.0 sparse file's data */
    AT_ENTRY,
    IN_DATA,
    AT_DONE,
    IN_PADDING,
    IN_SECOND_ZERO,
    AT_SECOND_ZERO,
    AT_END,
    IN_TRAILER,
    IN_ERROR
} state;

/* A PAX record: both strings end with a NUL inside the extension buffer. */
typedef struct record { char *key; char *value; size_t len; } record;

struct lay_tar {
    const uint8_t *p; size_t n;              /* the window */
    int64_t offset;                          /* bytes consumed */
    const lay_limits *limits;
    int64_t headers, global_headers, names;  /* bytes so far: before this entry; of the whole tar */
    state state;
    uint8_t block[LAY_TAR_BLOCK]; size_t have;
    int64_t left;                            /* bytes of the present part still to come */
    size_t pad;                              /* padding after it */

    char ext_type;                           /* of the extension being read */
    lay_text ext;                                /* its payload */
    lay_text pax;                                /* payload of the last x header */
    record *records; size_t nrecords, records_cap;
    lay_text long_name, long_link;
    bool has_pax, has_long_name, has_long_link, pending;
    bool repeated;                           /* one of these came again */

    lay_text name, link, map;
    lay_xattr *xattrs; size_t xattrs_cap;
    lay_sparse_run *runs; size_t nruns, runs_cap;
    size_t run; int64_t run_pos;             /* where in the sparse map the payload is */
    size_t map_lines, map_want;              /* PAX 1.0: newlines seen, newlines the map has */
    int64_t data_pos;
    uint64_t ordinal;
    lay_tar_entry entry;
    bool ended;
    lay_error failure;                       /* sticky */
};

#define LAY_TAR_INVALID "archive/tar: invalid tar header: "

/* tar_pax.c */
/* LAY_E_TAR at this offset, with the entry's name where it is known. */
lay_code lay_tar_invalid(lay_tar *t, int64_t offset, const char *why, lay_error *err);
/* Cut t->pax into records, in place: '=' and the final newline become NULs. */
lay_code lay_tar_cut_pax(lay_tar *t, int64_t at, lay_error *err);
const record *lay_tar_record(const lay_tar *t, const char *key);      /* the last one with this key, or NULL */
static inline bool lay_tar_given(const record *r) { return r && r->len; }     /* an empty value keeps the block's */

/* tar_head.c: t->block is a whole header; t->ext a whole extension. Both set the next state. */
lay_code lay_tar_at_header(lay_tar *t, lay_error *err);
lay_code lay_tar_at_extension(lay_tar *t, lay_error *err);
void lay_tar_complete(lay_tar *t);                                    /* the entry is whole: give it */
lay_code lay_tar_within(lay_tar *t, lay_error *err);                  /* is it within the limits? Counts it */

/* tar_sparse.c */
/* The entries of one map block of an old GNU sparse file; *more: another block follows. */
lay_code lay_sparse_gnu(lay_tar *t, const uint8_t *b, size_t entries, bool *more, int64_t at, lay_error *err);
/* Does the PAX data say the file is sparse? Then e->sparse, and *map_in_data when the map is yet to come. */
lay_code lay_sparse_pax(lay_tar *t, bool *map_in_data, int64_t at, lay_error *err);
/* t->block is one more block of a PAX 1.0 map. */
lay_code lay_sparse_pax_block(lay_tar *t, bool *whole, int64_t at, lay_error *err);
/* The map is whole: in order, inside the file, and as long as the stored bytes. */
lay_code lay_sparse_check(lay_tar *t, int64_t at, lay_error *err);

static inline bool lay_tar_is_zero(const uint8_t *b)
{
    uint64_t w[LAY_TAR_BLOCK / 8], any = 0;
    memcpy(w, b, sizeof w);
    for (size_t i = 0; i < LAY_TAR_BLOCK / 8; i++)
        any |= w[i];
    return any == 0;
}

static inline bool lay_tar_type_has_data(char type) { return type < '1' || type > '6'; }

#endif
