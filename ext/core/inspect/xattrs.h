/* xattrs.h - the extended attributes that one thing must have, or has, as one number that is the same if they are.
 *
 * What is compared is what unpacking sets and a file system returns. An ACL's entries that are also the mode's are
 * left out, as they follow it. The number is a sum of keyed hashes: it says that something differs, not what.
 */
#ifndef LAY_XATTRS_H
#define LAY_XATTRS_H

#include "base/nameset.h"
#include "tree/attributes.h"

typedef enum lay_made_kind {
    LAY_MADE_NONE, LAY_MADE_FILE, LAY_MADE_DIRECTORY, LAY_MADE_SYMLINK, LAY_MADE_CHARACTER, LAY_MADE_BLOCK,
    LAY_MADE_FIFO, LAY_MADE_WHITEOUT
} lay_made_kind;

typedef struct lay_xattr_part { uint64_t name, sum; } lay_xattr_part;   /* a hash of its name; what it adds */
/* Which of them are compared. */
typedef enum lay_xattr_scope {
    LAY_XATTRS_ALL,
    LAY_XATTRS_USERNS,          /* but those that only the initial user namespace may set */
    LAY_XATTRS_FRESH,           /* those alone that a fresh tar has: capabilities, of no namespace */
} lay_xattr_scope;

/* One part for each, malloc'ed; NULL: none. */
lay_code lay_xattrs_of_entry(const lay_nameset *key, const lay_tar_entry *e, lay_made_kind kind, lay_xattr_scope scope, lay_xattr_part **parts, size_t *n, lay_error *err);

/* Marks of overlayfs found beside them. */
#define LAY_MARK_OPAQUE_TRUSTED 1u
#define LAY_MARK_OPAQUE_USER 2u
#define LAY_MARK_WHITEOUT 4u
#define LAY_MARK_OTHER 8u       /* it leads elsewhere, or holds a part only: in no layer that came as a tar */

/* Of one thing on the disk: their sum, its LAY_MARK_s, and the mode that goes in, as a tar of this scope has it. */
typedef struct lay_found_xattrs { uint64_t sum; unsigned marks; mode_t mode; } lay_found_xattrs;

/* Of dir_fd/name, no link followed. */
lay_code lay_xattrs_of_file(const lay_nameset *key, lay_attributes *room, int dir_fd, const char *name, lay_made_kind kind, lay_xattr_scope scope, lay_found_xattrs *found, lay_error *err);

#endif
