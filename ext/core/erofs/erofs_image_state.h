/* erofs_image_state.h - an image that is open for reading: its superblock, inodes, directories, attributes and bytes.
 *
 * Metadata are read through one mapping of the primary device, which is as long as `blocks` says; the file was seen to be
 * so long, and is not changed while it is open. Bytes of files are read with pread, as they may lie in other devices.
 * Whatever is read was made by others: every number is checked before it leads anywhere. What cannot be so is EUCLEAN,
 * and the image keeps the first sentence about it. Any thread may ask.
 *
 * The parts, from the ground up: erofs_image (bounds, inodes), erofs_xattr, erofs_extent, erofs_dir, erofs_lower, erofs_open;
 * beside them erofs_refuse and erofs_verify. Each calls down only.
 */
#ifndef LAY_EROFS_IMAGE_STATE_H
#define LAY_EROFS_IMAGE_STATE_H

#include "erofs/erofs_format.h"
#include "tree/lower.h"

#include <stdatomic.h>

#define LAY_EROFS_DEVICES_MOST 512              /* slots of other devices: more is no image of layers */

/* Where bytes of the unified space lie: blocks from uni on are those of fd from byte `from` on. */
typedef struct lay_erofs_device { int fd; uint64_t uni, blocks; int64_t from, size; } lay_erofs_device;

typedef struct lay_erofs_infix { uint8_t base; uint8_t len; const char *text; } lay_erofs_infix;

struct lay_erofs {
    lay_lower as;
    atomic_size_t held;
    int fd;
    int64_t size, limit;                        /* of the file; of that what the primary device is */
    const uint8_t *map;                         /* limit bytes */
    unsigned bits;                              /* log2 of a block's size */
    uint64_t blocks, root;
    int64_t meta, shared;                       /* bytes: where slot 0 is; where shared attributes are, 0: there are none */
    int64_t epoch; uint32_t nsec;               /* the time of compact inodes */
    uint32_t incompat;
    dev_t dev;                                  /* no other image or file system has it */
    lay_erofs_device *devices; size_t ndevices; /* the primary one is the first */
    lay_erofs_infix *infixes; size_t ninfixes;  /* long prefixes; their text is in infix_text */
    uint8_t *infix_text;
    atomic_llong seen;                          /* bytes of the mapping, since it was let go last */
    atomic_int damaged;                         /* 0: not; 1: being written; 2: the sentence is there */
    char damage[LAY_ERROR_TEXT];
};

typedef struct lay_einode {
    uint64_t nid;
    int64_t at, size, mtime, body;              /* where it is; body: where its attributes end */
    uint32_t mode, uid, gid, nlink, nsec, layout, start;   /* start: a block, a device, or a chunk's format */
    uint32_t xattrs;                            /* bytes behind it */
} lay_einode;

/* ---- erofs_image.c: 0, or -1 and errno ---- */

/* Keeps the sentence, and where it is, as far as it is the first; -1, and errno is EUCLEAN. */
int lay_erofs_bad(const lay_erofs *e, int64_t at, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* n bytes of the primary device, or NULL. */
const uint8_t *lay_erofs_at(const lay_erofs *e, int64_t at, uint64_t n, const char *what);
/* So many bytes of it were read, or will be at once: what was read is let go now and then, so that a walk of a large image
 * takes little memory. It stays in the kernel's cache. */
void lay_erofs_let_go(const lay_erofs *e, int64_t n);
int lay_erofs_inode(const lay_erofs *e, uint64_t nid, lay_einode *out);
void lay_erofs_stat(const lay_erofs *e, const lay_einode *i, struct stat *st);

/* ---- erofs_xattr.c ---- */

typedef struct lay_exattr {
    const char *prefix, *infix, *name;          /* the parts of its name; the last two have no NUL */
    size_t infix_len, name_len;
    const uint8_t *value; size_t len;
} lay_exattr;
typedef struct lay_exattrs { const lay_erofs *e; int64_t at, end; int64_t ids; uint32_t shared; } lay_exattrs;
int lay_exattrs_begin(lay_exattrs *x, const lay_erofs *e, const lay_einode *i);
/* 1: there is one; 0: that was all. */
int lay_exattrs_next(lay_exattrs *x, lay_exattr *out);
/* As lay_lower_ops.xattr. Overlay's opaque mark is told as one of both kinds: an image has no kind. */
ssize_t lay_erofs_xattr(const lay_erofs *e, const lay_einode *i, const char *xattr, void *buf, size_t size);

/* ---- erofs_extent.c ---- */

typedef struct lay_eextent { int64_t at, n; const lay_erofs_device *device; int64_t from; } lay_eextent;   /* device NULL: a hole */
/* What a file has at an offset below its size: that piece, as far as it goes on in one device. */
int lay_erofs_extent(const lay_erofs *e, const lay_einode *i, int64_t offset, lay_eextent *out);
/* As pread. */
ssize_t lay_erofs_pread(const lay_erofs *e, const lay_einode *i, void *buf, size_t n, int64_t offset);
/* A link's text, and its length; buf has room for 4,096 bytes. */
ssize_t lay_erofs_readlink(const lay_erofs *e, const lay_einode *i, void *buf);

/* ---- erofs_dir.c ---- */

typedef struct lay_edirent { uint64_t nid; const char *name; size_t len; uint8_t type; } lay_edirent;
/* One directory block: its entries, checked. */
typedef struct lay_eblock { const uint8_t *p; size_t size, count; int64_t at; } lay_eblock;
int64_t lay_erofs_dir_blocks(const lay_erofs *e, const lay_einode *dir);
int lay_erofs_dir_block(const lay_erofs *e, const lay_einode *dir, int64_t number, lay_eblock *out);
int lay_erofs_dirent(const lay_erofs *e, const lay_eblock *b, size_t i, lay_edirent *out);
/* ENOENT: it has no such name; ".", ".." are names. */
int lay_erofs_look(const lay_erofs *e, const lay_einode *dir, const char *name, size_t n, lay_edirent *out);
lay_code lay_erofs_list(const lay_erofs *e, const lay_einode *dir, lay_names *names, lay_error *err);
/* At a path below a directory, n bytes, through no link; its parent must know it as its own. */
int lay_erofs_walk(const lay_erofs *e, uint64_t from, const char *path, size_t n, lay_einode *out);
uint8_t lay_erofs_dtype(uint8_t type);

/* ---- erofs_lower.c ---- */

extern const lay_lower_ops lay_erofs_lower_ops;

#endif
