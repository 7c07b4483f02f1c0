/* tar.h - the tar grammar, an entry, and the reader's and writer's verbs.
 *
 *   tar     = { entry } zero zero trailing          each zero, and every header, is a block of 512 bytes
 *   entry   = { extension } header payload padding
 *   extension = 'x' header, PAX records, padding | 'L' or 'K' header, GNU long name or link, padding
 *   global  = 'g' header, PAX records               counts as an entry of its own, without payload
 *   payload = stored bytes; of a sparse file: (map) and the pieces that are not holes
 *
 * The law of the reader: the RAW and DATA spans, in order, are the bytes fed.
 * Source: Go's archive/tar as tar-split carries it (reader.go, strconv.go, format.go).
 */
#ifndef LAY_TAR_H
#define LAY_TAR_H

#include "base/error.h"

#define LAY_TAR_BLOCK 512
#define LAY_TAR_MAX_EXTENSION (1 << 20)      /* bytes of one PAX payload that is written here */

typedef enum lay_tar_event {
    LAY_TAR_BAD = -1, /* err is set; sticky */
    LAY_TAR_NEED = 0, /* window spent; lend the next */
    LAY_TAR_RAW,      /* span: framing, a sparse map, padding, end blocks, whatever trails */
    LAY_TAR_ENTRY,    /* entry: one header, complete; valid until the next RAW or ENTRY after its DONE */
    LAY_TAR_DATA,     /* span: payload of that entry, pointing into the window; goes to file_offset */
    LAY_TAR_DONE,     /* that payload is complete (comes for every entry, also without payload) */
    LAY_TAR_END       /* end-of-archive marker has passed; only RAW follows */
} lay_tar_event;

typedef struct lay_time { int64_t sec; int32_t nsec; } lay_time;
typedef struct lay_xattr { const char *name; const uint8_t *value; size_t len; } lay_xattr;   /* name without SCHILY.xattr. */
typedef struct lay_sparse_run { int64_t offset, length; } lay_sparse_run;

typedef struct lay_tar_entry {
    const char *name; size_t name_len;   /* as Go parses it, not cleaned; NUL-terminated, no NUL inside */
    const char *link; size_t link_len;
    char type;             /* '0' file (also NUL and old style), '1' link, '2' symlink, '3' char, '4' block,
                              '5' directory, '6' fifo, 'g' global header; others as they stand */
    bool sparse;           /* payload is stored in pieces; DATA says where each goes */
    int64_t size;          /* the size field after PAX; of a sparse file the real (expanded) size */
    int64_t stored;        /* payload bytes in the stream (0 for types that have none), without a sparse map */
    int64_t mode;          /* the field; permission, setuid, setgid, sticky bits are & 07777 */
    int64_t uid, gid;
    lay_time mtime, atime; /* atime.sec = mtime's and has_atime false where absent */
    bool has_atime;
    int64_t dev_major, dev_minor;
    const lay_xattr *xattrs; size_t nxattrs;
    const char *doubt;     /* why other readers of tars see another entry here; NULL: they do not */
    int64_t offset;        /* of the entry's first byte (its first extension) in the stream */
    uint64_t ordinal;      /* 0, 1, 2 ... over all entries, global headers included */
} lay_tar_entry;

typedef struct lay_tar_item {
    const uint8_t *p; size_t n;     /* RAW, DATA */
    int64_t file_offset;            /* DATA: where these bytes go in the expanded file */
    const lay_tar_entry *entry;     /* ENTRY, DATA, DONE */
} lay_tar_item;

typedef struct lay_tar lay_tar;

lay_tar *lay_tar_new(void);                                  /* NULL: out of memory; limits are lay_limits_default */
void lay_tar_limit(lay_tar *t, const lay_limits *limits);    /* before anything is fed; borrowed until free */
void lay_tar_feed(lay_tar *t, const void *p, size_t n);      /* only after NEED (or at the start) */
lay_tar_event lay_tar_next(lay_tar *t, lay_tar_item *item, lay_error *err);
/* The stream ends here: LAY_OK, or LAY_E_TRUNCATED / LAY_E_TAR. Only after NEED. */
lay_code lay_tar_eof(lay_tar *t, lay_error *err);
/* The payload that is due, a sparse file's too, is not in the stream: go on behind it, without counting it. Only
 * after NEED; false: none is due. Where a sparse map should come first, the ENTRY follows now. */
bool lay_tar_omit(lay_tar *t);
/* After an ENTRY: its payload and the padding are passed over, as if they had been fed. Where in the tar it goes on: what is left
 * of the window is used up to there, and what is fed next comes from there. */
int64_t lay_tar_pass(lay_tar *t);
/* The pieces of the present entry, which is sparse: its payload is their bytes, in order. */
const lay_sparse_run *lay_tar_runs(const lay_tar *t, size_t *count);
int64_t lay_tar_offset(const lay_tar *t);                    /* bytes consumed */
bool lay_tar_ended(const lay_tar *t);                        /* END has been given */
void lay_tar_free(lay_tar *t);

/* Is this block a header with a right checksum, or all zero? (To tell a tar from a compressed stream.) */
bool lay_tar_is_header(const uint8_t block[LAY_TAR_BLOCK]);

/* ---- writer: what Go's archive/tar writes for moby ("PAX but USTAR if possible") -------------- */

typedef struct lay_tar_head {
    const char *name; size_t name_len;   /* directories end with '/' */
    const char *link; size_t link_len;
    char type;
    uint32_t mode;
    int64_t uid, gid, size;
    int64_t mtime;                       /* whole seconds */
    int32_t mtime_nsec;                  /* 0, or a PAX record has them */
    uint32_t dev_major, dev_minor;
    const uint8_t *capability; size_t capability_len;   /* security.capability, or NULL */
    const lay_xattr *xattrs; size_t nxattrs;            /* by name, in byte order; with them no capability */
} lay_tar_head;

/* Formats head into header blocks at *out (malloc'ed, grown as needed: *cap), *len bytes. */
lay_code lay_tar_format(const lay_tar_head *head, uint8_t **out, size_t *cap, size_t *len, lay_error *err);
static inline size_t lay_tar_padding(int64_t size) { return (size_t)(-size & (LAY_TAR_BLOCK - 1)); }
#define LAY_TAR_END_BLOCKS 1024

#endif
