/* payload.h - a recorded file's bytes in a tree: the one way they are opened, read whole and refused. */
#ifndef LAY_PAYLOAD_H
#define LAY_PAYLOAD_H

#include "tree/tree.h"

/* What the record says of a file. name: as recorded. */
typedef struct lay_payload { const char *name; size_t name_len; int64_t size; bool has_crc; uint64_t crc; } lay_payload;

/* What one thread keeps from file to file. */
typedef struct lay_hand { lay_parent parent; lay_text path; } lay_hand;
#define LAY_HAND_NONE { LAY_PARENT_NONE, { NULL, 0, 0 } }
void lay_hand_free(lay_hand *hand);

/* A regular file of just this size below root, or -1: LAY_E_MISMATCH (gone: sys_errno is ENOENT or ENOTDIR;
 * no file; another size) or LAY_E_OS. parent: as in lay_tree_open_file. */
int lay_payload_open(int root_fd, lay_parent *parent, const char *path, size_t n, const char *name, size_t name_len, int64_t size, lay_error *err);
/* Its bytes to `to`, which has room for them, if they are what was recorded. */
lay_code lay_payload_read(int root_fd, lay_hand *hand, const lay_payload *file, uint8_t *to, lay_error *err);
/* name cleaned as dockerd's path getter does: relative to the root. LAY_E_MISMATCH: it would leave it. */
lay_code lay_payload_path(lay_text *path, const char *name, size_t n, lay_error *err);
/* pread, whatever signals come; 0 bytes at the file's end. */
lay_code lay_payload_part(int fd, uint8_t *to, size_t n, int64_t at, const char *name, size_t name_len, size_t *got, lay_error *err);
lay_code lay_payload_differs(const char *name, size_t n, lay_error *err);

#endif
