/* erofs_names.h - from the cleaned name of an entry to its directory in the tree. */
#ifndef LAY_EROFS_NAMES_H
#define LAY_EROFS_NAMES_H

#include "erofs/erofs_state.h"

/* The directory of a cleaned name, made with its parents if it is missing; *base: where the last component begins. */
lay_code lay_enames_enter(lay_etree *t, const lay_text *clean, uint32_t *directory, size_t *base, lay_error *err);

#endif
