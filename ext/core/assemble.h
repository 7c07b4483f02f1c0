/* assemble.h - the inside door of assemble: a caller that knows better where an entry's bytes are. */
#ifndef LAY_ASSEMBLE_H
#define LAY_ASSEMBLE_H

#include "error.h"

/* Where the payload of the n-th file line is: a root and a path below it, valid until the next call. */
typedef lay_code (*lay_locate)(void *context, uint64_t ordinal, const char *name, size_t len, int *root_fd, const char **path, size_t *path_len, lay_error *err);

lay_code lay_assemble_open_at(lay_source **out, int record_fd, lay_locate locate, void *context, const uint8_t *diff_id, lay_error *err);

/* The one way a recorded file is opened: a regular file of just this size below root, or LAY_E_MISMATCH
 * (gone: sys_errno is ENOENT or ENOTDIR; no file; another size) or LAY_E_OS. */
int lay_payload_open(int root_fd, const char *path, size_t n, const char *name, size_t name_len, int64_t size, lay_error *err);
/* name cleaned as dockerd's path getter does: relative to the root. False: it would leave it. buffer: realloc'ed. */
lay_code lay_payload_path(const char *name, size_t n, char **buffer, size_t *cap, size_t *len, lay_error *err);
lay_code lay_payload_differs(const char *name, size_t n, lay_error *err);

#endif
