/* assemble.h - the inside door of assemble: a caller that knows better where an entry's bytes are. */
#ifndef LAY_ASSEMBLE_H
#define LAY_ASSEMBLE_H

#include "base/error.h"

/* Where the payload of the n-th file line is: a root and a path below it, valid until the next call. */
typedef lay_code (*lay_locate)(void *context, uint64_t ordinal, const char *name, size_t len, int *root_fd, const char **path, size_t *path_len, lay_error *err);

lay_code lay_assemble_open_at(lay_source **out, int record_fd, lay_locate locate, void *context, const uint8_t *diff_id, lay_error *err);

#endif
