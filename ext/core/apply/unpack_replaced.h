/* unpack_replaced.h - what a later entry replaces, and where the bytes of an entry are now. */
#ifndef LAY_UNPACK_REPLACED_H
#define LAY_UNPACK_REPLACED_H

#include "tar/tar.h"

#include <stdbool.h>

typedef struct lay_unpack lay_unpack;

/* The place u->dir/u->base must be free for the entry. *kept: a directory is there and stays for a directory. */
lay_code lay_unpack_make_way(lay_unpack *u, const lay_tar_entry *e, bool *kept, lay_error *err);
/* u->path is where entry `ordinal` really went. */
lay_code lay_unpack_note_alias(lay_unpack *u, uint64_t ordinal, lay_error *err);
void lay_unpack_free_replaced(lay_unpack *u);

/* Some entry was replaced, or reached through a symbolic link. */
bool lay_unpack_irregular(const lay_unpack *u);
typedef struct lay_where { int root_fd; const char *path; size_t path_len; bool plain; } lay_where;
/* Where the payload of a regular file lies: entry `ordinal` with this cleaned name. plain: where a reader
 * that looks its name up in the tree finds it. path is valid until the next call. */
lay_code lay_unpack_locate(lay_unpack *u, uint64_t ordinal, const char *clean, size_t n, lay_where *where, lay_error *err);

#endif
