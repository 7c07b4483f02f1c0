/* dirs.h - the open directories of a tree that is being unpacked: counted, shared with the pool's
 * threads, and a bounded number of them remembered by path.
 *
 * A lay_dir stays open while anybody retains it. The table belongs to one thread; retain and release
 * may be called from any.
 */
#ifndef LAY_DIRS_H
#define LAY_DIRS_H

#include "base/error.h"

typedef struct lay_dir {
    int fd;
    unsigned refs;        /* atomic */
    bool inherits;        /* setgid or a default ACL: what is made in it does not get just what it asks for */
    bool marked;          /* said to have whiteouts */
    uint64_t hash;
    size_t path_len;
    char path[];          /* relative to the root, resolved, "" for the root; NUL-terminated */
} lay_dir;

#define LAY_DIRS_KEPT 64

typedef struct lay_dirs { lay_dir *kept[LAY_DIRS_KEPT]; } lay_dirs;

/* Takes fd over, also when it fails. The caller holds the result and releases it. */
lay_dir *lay_dir_new(int fd, const char *path, size_t n, bool inherits);
lay_dir *lay_dir_retain(lay_dir *d);
void lay_dir_release(lay_dir *d);

/* A retained directory, or NULL when it is not remembered. */
lay_dir *lay_dirs_find(lay_dirs *dirs, const char *path, size_t n);
void lay_dirs_remember(lay_dirs *dirs, lay_dir *d);
/* Forget all: after a directory was moved or removed, or when descriptors run out. */
void lay_dirs_forget(lay_dirs *dirs);

#endif
