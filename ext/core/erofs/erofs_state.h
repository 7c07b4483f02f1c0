/* erofs_state.h - the records of the tree in memory, and what each of its parts asks of them.
 *
 * The parts, from the ground up: erofs_state (records and the table of names), erofs_xattrs (extended attributes),
 * erofs_names (where a name leads), erofs_tree (entries), erofs_settle (what is below). Each calls down only.
 */
#ifndef LAY_EROFS_STATE_H
#define LAY_EROFS_STATE_H

#include "base/nameset.h"
#include "erofs/erofs_node.h"
#include "tree/entry.h"

#include <limits.h>
#include <string.h>
#include <sys/stat.h>

#define LAY_EREC_GONE 1u         /* the name: something took its place, or that of a directory above */
#define LAY_EREC_LINK 2u         /* one more name of the inode of another record, which is in data */
#define LAY_EREC_IMPLIED 4u      /* a directory made for want of an entry */
#define LAY_EREC_OPAQUE 8u       /* marked: it hides what is below */
#define LAY_EREC_WHITEOUTS 16u   /* a directory that has had some */
#define LAY_EREC_SPARSE 32u
#define LAY_EREC_WIDE 64u        /* its size stands in the second record */
#define LAY_EREC_MIXED 128u      /* a directory whose names did not come in their order */

#define LAY_EREC_OWNERS 255u     /* so many owners have a number; that of all others is this, and the second record has theirs */

/* A name and, unless it is a LINK, its inode. */
typedef struct lay_erec {
    uint32_t text;               /* of its name in names: a byte, how long, and so many more */
    uint32_t parent;             /* once settled: the writer's note */
    uint32_t data;               /* of a file: the block of its bytes in the tar; of a symbolic link: its text in names; of a
                                    device: its number; of a directory: the last name that came, and once settled the first
                                    of its names in order */
    uint32_t size;               /* of a file or a link's text; of a directory, once settled: how many names */
    int64_t mtime;               /* nanoseconds since 1970, as far as moby lets them go */
    uint16_t mode;
    uint8_t owner, flags;
    uint32_t more;               /* of its second record; 0: it has none */
} lay_erec;

typedef struct lay_emore {
    int64_t size;                /* WIDE */
    uint64_t pieces;             /* the first */
    uint32_t npieces;
    uint32_t uid, gid;
    uint32_t names;              /* how many it has */
    uint32_t xattrs;             /* where they begin in xattrs, behind their length, in units of 4 bytes; 0: it has none */
} lay_emore;

/* One extended attribute, while those of an inode are set. row: of its prefix. */
typedef struct lay_eheld { const char *name; const uint8_t *value; uint32_t len; uint8_t name_len, row; } lay_eheld;

typedef struct lay_eowner { uint32_t uid, gid; } lay_eowner;

/* A directory on the way to another, and where its name ends in the path. */
typedef struct lay_estep { uint32_t end, number; } lay_estep;

/* Of the first `indexed` records, number + 1 of the one that has a name; 0: empty. */
typedef struct lay_etable { uint32_t *slots; size_t mask, used, indexed; } lay_etable;

/* What grows with the entries is of base/large. */
struct lay_etree {
    lay_limits limits;
    lay_erec *recs; size_t nrecs, recs_cap;
    lay_emore *more; size_t nmore, more_cap;          /* the first is none */
    lay_eowner owners[LAY_EREC_OWNERS]; unsigned nowners, owner;
    struct { char *p; size_t len, cap; } names;
    uint8_t *xattrs; size_t xattrs_len, xattrs_cap;
    uint32_t *piece_slots; size_t piece_mask, npieces_kept;       /* those in xattrs; 0: empty */
    lay_eheld *held; size_t nheld, held_cap, held_bytes;
    lay_text piece, acls[2];
    uint8_t capability[20];
    lay_epiece *pieces; size_t npieces, pieces_cap;
    lay_etable all, directories;                      /* of all names; of those of directories alone */
    lay_nameset key;                                  /* only for its hash */
    uint32_t *order;                                  /* all names, those of one directory together */
    lay_text clean, target, resolved, rest, next;     /* scratch */
    lay_text near; uint32_t near_at;                  /* the parent of the entry before, and the directory it is */
    lay_text way; lay_estep *steps; size_t nsteps, steps_cap;     /* a path that was entered, and the steps on it */
    lay_text linked; uint32_t linked_at;              /* a parent that leads through links, and the directory it leads to */
    bool near_known, linked_known;
    uint32_t sparse;                                  /* the present entry, if it takes pieces; 0: it does not */
    lay_taken taken;
};

static inline lay_erec *lay_erec_at(const lay_etree *t, uint32_t number) { return &t->recs[number]; }

lay_code lay_estate_init(lay_etree *t, lay_error *err);
void lay_estate_free(lay_etree *t);
void lay_estate_free_table(lay_etable *table);
/* Bytes behind those in names. */
lay_code lay_estate_text(lay_etree *t, const void *p, size_t n, lay_error *err);
/* A name in a directory; *number 0: there is none. */
lay_code lay_estate_find(lay_etree *t, uint32_t directory, const char *name, size_t n, uint32_t *number, lay_error *err);
/* The same where a directory is expected. */
lay_code lay_estate_find_directory(lay_etree *t, uint32_t directory, const char *name, size_t n, uint32_t *number, lay_error *err);
/* A new record at this name, empty; what had the name was dropped. */
lay_code lay_estate_add(lay_etree *t, uint32_t directory, const char *name, size_t n, uint32_t *number, lay_error *err);
/* The number goes, and all below it. */
void lay_estate_drop(lay_etree *t, uint32_t number);
/* The record of the inode that a name has. */
uint32_t lay_estate_inode(const lay_etree *t, uint32_t name);
/* The second record, made if there is none. */
lay_code lay_estate_more(lay_etree *t, uint32_t number, lay_emore **more, lay_error *err);
lay_code lay_estate_set_owner(lay_etree *t, uint32_t number, uint32_t uid, uint32_t gid, lay_error *err);
lay_eowner lay_estate_owner(const lay_etree *t, uint32_t number);
bool lay_estate_is_whiteout(const lay_etree *t, uint32_t number);
/* Directories that have no entry: counted, and made. */
lay_code lay_estate_imply(lay_etree *t, uint32_t directory, const char *name, size_t n, uint32_t *number, lay_error *err);
/* The path of a directory. */
lay_code lay_estate_path(const lay_etree *t, uint32_t directory, lay_text *path, lay_error *err);

#endif
