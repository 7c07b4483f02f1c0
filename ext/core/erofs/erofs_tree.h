/* erofs_tree.h - the tree that a layer's tar makes, in memory, from which an image is written.
 *
 * Entries in order enter; inodes and names leave. Every decision and every error is that of the unpacker (apply/unpack.h)
 * on a directory of its own, outside of any user namespace.
 * Memory: 32 bytes an entry and the last component of its name; where the names of a directory are not in their order, a slot
 * of a table until the end. What is rare (extended attributes, more names than one, sizes from 4 GiB on, holes) costs a second
 * record.
 */
#ifndef LAY_EROFS_TREE_H
#define LAY_EROFS_TREE_H

#include "erofs/erofs_node.h"
#include "tar/tar.h"
#include "tree/lowers.h"

lay_code lay_etree_new(lay_etree **out, const lay_limits *limits, lay_error *err);     /* limits: copied; NULL: lay_limits_default */
/* The next entry, global headers too. payload: the tar offset of its first stored byte, as lay_tar_offset has it when the
 * entry comes. After an error only free may follow; err->offset and err->path say where. */
lay_code lay_etree_entry(lay_etree *t, const lay_tar_entry *e, int64_t payload, lay_error *err);
/* Of the present entry, if it is sparse: n stored bytes that lie at tar_offset, in order. */
lay_code lay_etree_piece(lay_etree *t, int64_t file_offset, int64_t tar_offset, int64_t n, lay_error *err);
/* The tar is complete: sets size, entries, left_out, first_left_out and unsettled of out. unsettled_len is not 0 if the
 * tree depends on what is below. */
lay_code lay_etree_end(lay_etree *t, lay_applied *out, lay_error *err);
/* After the end, always: the tree comes to stand on these (NULL or none: on nothing), and can be looked at. */
lay_code lay_etree_settle(lay_etree *t, const lay_lowers *lowers, lay_error *err);
void lay_etree_free(lay_etree *t);

/* ---- for the writer, once it is settled ---- */

/* Numbers are below this: of the root, then in the order of the tar. */
uint32_t lay_etree_count(const lay_etree *t);
/* False: there is no inode of this number (an entry that is gone, or one more name of another). */
bool lay_etree_node(const lay_etree *t, uint32_t number, lay_enode *out);
/* A number of the writer's own for an inode, kept where the record of its directory was; 0 until it is set. */
uint32_t lay_etree_note(const lay_etree *t, uint32_t number);
void lay_etree_set_note(const lay_etree *t, uint32_t number, uint32_t note);
/* What a directory has, by name in byte order: numbers of names; "." and ".." are not among them. */
const uint32_t *lay_etree_children(const lay_etree *t, uint32_t directory, uint32_t *count);
/* The name, whose bytes are not NUL-terminated. */
void lay_etree_name(const lay_etree *t, uint32_t name, lay_ename *out);

#endif
