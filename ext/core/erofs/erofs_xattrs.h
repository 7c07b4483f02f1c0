/* erofs_xattrs.h - the extended attributes of an inode, as they lie behind it in an image. */
#ifndef LAY_EROFS_XATTRS_H
#define LAY_EROFS_XATTRS_H

#include "erofs/erofs_state.h"
#include "tree/place.h"

/* What an inode had before: nothing (it is NEW, or it is as if), or it keeps that (ADDED: one more name of it came), or a
 * directory keeps what no tar can take away (KEPT). */
typedef enum lay_exattrs_had { LAY_EXATTRS_NEW, LAY_EXATTRS_ADDED, LAY_EXATTRS_KEPT } lay_exattrs_had;

/* The inode, whose mode is set, gets those of m, or fails as lay_place_ does. chowned: a capability goes before. */
lay_code lay_exattrs_set(lay_etree *t, uint32_t number, const lay_meta *m, lay_exattrs_had had, bool chowned, lay_error *err);
/* A directory gets the marks that its flags say. */
lay_code lay_exattrs_mark(lay_etree *t, uint32_t number, lay_error *err);
/* Those of an inode, and their bytes. */
const uint8_t *lay_exattrs_at(const lay_etree *t, uint32_t number, uint32_t *len);

#endif
