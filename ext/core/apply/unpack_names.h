/* unpack_names.h - from the name of an entry to an open parent directory beneath the root. */
#ifndef LAY_UNPACK_NAMES_H
#define LAY_UNPACK_NAMES_H

#include "apply/unpack_state.h"

/* Parent and base of a cleaned name: u->dir (made if it is missing), u->base, and the resolved path in
 * u->path. *aliased: the name goes through a symbolic link, so its path is another one. */
lay_code lay_unpack_find(lay_unpack *u, const lay_text *clean, bool *aliased, lay_error *err);

#endif
