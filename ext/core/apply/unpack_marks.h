/* unpack_marks.h - whiteouts and opaque marks. */
#ifndef LAY_UNPACK_MARKS_H
#define LAY_UNPACK_MARKS_H

#include "apply/unpack_state.h"

/* An opaque mark of u->dir; u->base is the name of a whiteout in it. */
lay_code lay_unpack_opaque(lay_unpack *u, lay_error *err);
lay_code lay_unpack_whiteout(lay_unpack *u, const lay_tar_entry *e, lay_error *err);
/* There is a whiteout in u->dir, of this entry or of an earlier one. */
lay_code lay_unpack_expect_whiteouts(lay_unpack *u, lay_error *err);
/* u->dir/u->base is a directory that stands where a whiteout, or another thing that is none, stood. */
lay_code lay_unpack_mark_reborn(lay_unpack *u, lay_error *err);
/* Merged: a whiteout took it away, and nothing went since that it lies in. */
bool lay_unpack_is_hidden(const lay_unpack *u, const char *path, size_t n);
lay_code lay_unpack_hide(lay_unpack *u, const char *path, size_t n, lay_error *err);
/* The directory u->path goes. */
lay_code lay_unpack_forget(lay_unpack *u, lay_error *err);

#endif
