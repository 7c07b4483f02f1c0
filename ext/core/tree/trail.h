/* trail.h - walking a tree of any depth with a handful of descriptors and no recursion.
 *
 * A trail is the way from a root down to one directory. Only its last few directories stay open; going
 * up further opens ".." and makes sure, by device and inode, that it is the directory it came from.
 */
#ifndef LAY_TRAIL_H
#define LAY_TRAIL_H

#include "tree/tree.h"

#define LAY_TRAIL_KEEP 4

typedef struct lay_node { dev_t dev; ino_t ino; } lay_node;
typedef struct lay_trail {
    int root_fd;
    int keep[LAY_TRAIL_KEEP];   /* keep[d % LAY_TRAIL_KEEP] is depth d, for the last few d; the last is always open */
    lay_node *nodes; size_t cap;
    size_t depth;               /* of the directory it stands in; the root is 0 */
    bool one_fs;                /* going down into a mount is EBUSY */
} lay_trail;

#define LAY_TRAIL_NONE { .root_fd = -1, .keep = { -1, -1, -1, -1 } }

/* root_fd is duplicated. 0, or -1 and errno, here and below; a trail is to be freed also after failing. */
int lay_trail_open(lay_trail *t, int root_fd, bool one_fs);
int lay_trail_fd(const lay_trail *t);
/* Down into a child; on failure it stays where it is. */
int lay_trail_down(lay_trail *t, const char *name);
/* Up; path (n bytes) is that of the directory gone up to. 1: another process moved or removed it;
 * then only further up is possible, as far as the root, which is always there. */
int lay_trail_up(lay_trail *t, const char *path, size_t n);
void lay_trail_free(lay_trail *t);

/* Inodes seen, each with a number of the caller's. */
typedef struct lay_inode { dev_t dev; ino_t ino; size_t value; bool used; } lay_inode;
typedef struct lay_inodes { lay_inode *slots; size_t mask, count; } lay_inodes;
/* *value is taken over when the inode is new (*seen false), else given. */
lay_code lay_inodes_add(lay_inodes *s, dev_t dev, ino_t ino, size_t *value, bool *seen, lay_error *err);
void lay_inodes_free(lay_inodes *s);

#endif
