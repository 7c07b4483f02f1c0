/* expect.h - the tree that a layer's tar makes, in memory: its entries in order enter, names with what they must be leave.
 *
 * A name (lay_want) refers to a thing, as a directory's entry does to an inode: hard links share one. What a later
 * entry replaces goes, and names that lead through a link of their own layer go where unpacking took them.
 * Memory: a name's last component once, and two fixed records an entry.
 */
#ifndef LAY_EXPECT_H
#define LAY_EXPECT_H

#include "base/text.h"
#include "inspect/xattrs.h"

#define LAY_MADE_IMPLIED 1u    /* a directory made for want of an entry: nothing is recorded of it */
#define LAY_MADE_OPAQUE 2u     /* a directory that hides what lower layers have in it */
#define LAY_MADE_INLINE 4u     /* crc: of bytes that came with the framing; none else reads the file */
#define LAY_MADE_CHANGED 8u    /* its bytes were told to differ */
#define LAY_MADE_MET 16u       /* a name of it was looked at */
#define LAY_MADE_REBORN 32u    /* a directory that stands where what is none stood, and so hides as much */
#define LAY_MADE_HIDES (LAY_MADE_OPAQUE | LAY_MADE_REBORN)

typedef struct lay_made {
    uint64_t crc, xattrs;       /* of a file's bytes, holes too; of its extended attributes, see xattrs.h */
    int64_t size, mtime_sec;    /* of a link: the length of its text */
    uint64_t text;              /* where a link's text begins */
    uint64_t met;               /* device and inode of the first name looked at, folded into one */
    int32_t mtime_nsec;
    uint32_t uid, gid, names;   /* names: how many it has */
    uint32_t major, minor;      /* of a node */
    uint32_t parts;             /* of the sum in xattrs, one for each of them; see expect.c */
    uint16_t mode;
    uint8_t kind, flags;
} lay_made;

#define LAY_WANT_GONE 1u        /* something later took its place, or its directory's */
#define LAY_WANT_DERIVED 2u     /* a whiteout that has no entry of its own: lay_expect_hide() */
#define LAY_WANT_SEEN 4u        /* it was found on the disk */
#define LAY_WANT_TOLD 8u        /* it was told to be missing */

typedef struct lay_want {
    uint64_t name;
    uint32_t parent, first, next, thing;    /* first: of what is in it; next: in the same directory */
    uint16_t name_len, flags;
} lay_want;

#define LAY_ROOT 0u             /* the want that is the layer's directory */
#define LAY_NO_WANT UINT32_MAX

typedef struct lay_expect lay_expect;

/* Of scope FRESH, times are as they were on the disk: unpacking did not bound them. */
lay_code lay_expect_new(lay_expect **out, lay_xattr_scope scope, lay_error *err);
void lay_expect_free(lay_expect *x);

/* Unpacking sets this time, which is within moby's bounds; else 0. */
bool lay_made_keeps(lay_time t);

/* The next entry of the tar. *want: its name; LAY_NO_WANT: it makes nothing that has a name. LAY_E_SPLIT: no such entry
 * can have been unpacked, and the tree is as before. */
lay_code lay_expect_entry(lay_expect *x, const lay_tar_entry *e, uint32_t *want, lay_error *err);

/* The layer hides all that is below, which a mark at the top cannot say: a name of a layer below is hidden by itself. */
lay_code lay_expect_hide(lay_expect *x, const char *name, size_t n, lay_error *err);

lay_want *lay_expect_want(lay_expect *x, uint32_t want);
lay_made *lay_expect_made(lay_expect *x, uint32_t want);
const char *lay_expect_name(const lay_expect *x, uint32_t want);     /* its last component; not NUL-terminated */
const char *lay_expect_text(const lay_expect *x, const lay_made *link);
/* A name in a directory; LAY_NO_WANT: none must be there. */
uint32_t lay_expect_find(const lay_expect *x, uint32_t directory, const char *name, size_t n);
/* Where it lies in the layer: "usr/lib/x". */
lay_code lay_expect_path(const lay_expect *x, uint32_t want, lay_text *path, lay_error *err);
/* The digest of extended attributes is keyed: by this. */
const lay_nameset *lay_expect_key(const lay_expect *x);

#endif
