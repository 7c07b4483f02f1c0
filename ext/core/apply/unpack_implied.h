/* unpack_implied.h - directories that the tar has no entry for. */
#ifndef LAY_UNPACK_IMPLIED_H
#define LAY_UNPACK_IMPLIED_H

#include "apply/unpack_state.h"

/* Components of path (n bytes) that begin at `from` or behind it were made for want of an entry. */
lay_code lay_unpack_implied_made(lay_unpack *u, const char *path, size_t n, size_t from, lay_error *err);
/* Merged: parents that were there before belong to this layer now, as directories without an entry. What is no
 * directory there is in the way of one: it goes. */
lay_code lay_unpack_claim(lay_unpack *u, const char *path, size_t n, lay_error *err);
/* At the end: u->unsettled, without those that have an entry by now. */
lay_code lay_unpack_implied_left(lay_unpack *u, lay_error *err);

#endif
