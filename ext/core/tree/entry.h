/* entry.h - what an entry of a tar may ask for, whatever its tree is made of: its name and target, its numbers, its share of
 * what the whole tar may have. */
#ifndef LAY_ENTRY_H
#define LAY_ENTRY_H

#include "base/limit.h"
#include "base/text.h"
#include "tar/tar.h"
#include "tree/whiteout.h"

/* What came so far. implied: directories made for want of an entry; size: of files and links' texts; header_sizes: of all entries. */
typedef struct lay_taken { const lay_limits *limits; uint64_t entries, implied; int64_t size, header_sizes; } lay_taken;

/* Each adds one, or fails with LAY_E_LIMIT: an entry; a directory without one; a file of this size, or a link's text. */
lay_code lay_taken_entry(lay_taken *t, const lay_tar_entry *e, lay_error *err);
lay_code lay_taken_implied(lay_taken *t, lay_error *err);
lay_code lay_taken_size(lay_taken *t, int64_t size, lay_error *err);

/* Cleaned, and what its last component says; "." is the root, of which nothing is made. LAY_E_BREAKOUT. */
lay_code lay_entry_name(const lay_tar_entry *e, lay_text *clean, lay_wh *wh, lay_error *err);
static inline bool lay_entry_is_root(const lay_text *clean) { return clean->len == 1 && clean->p[0] == '.'; }
/* A hard link's target, cleaned. LAY_E_BREAKOUT. */
lay_code lay_entry_target(const lay_tar_entry *e, lay_text *clean, lay_error *err);
/* Where the last component begins; ENAMETOOLONG. A whiteout's is longer than the name it hides. */
lay_code lay_entry_base(const lay_text *clean, size_t *base, lay_error *err);
/* Of a device. */
lay_code lay_entry_device(const lay_tar_entry *e, dev_t *dev, lay_error *err);
/* A symbolic link must have a target. */
lay_code lay_entry_text(const lay_tar_entry *e, lay_error *err);

lay_code lay_entry_unhandled(const lay_tar_entry *e, lay_error *err);
/* The hard link cannot be made. */
lay_code lay_entry_link_failed(const lay_tar_entry *e, int sys_errno, lay_error *err);
/* Adds its place and its name to a failure that has none. Returns the failure's code. */
lay_code lay_entry_failed(const lay_tar_entry *e, lay_error *err);

#endif
