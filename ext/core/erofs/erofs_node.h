/* erofs_node.h - an inode and a name as the tree in memory gives them to who writes an image. */
#ifndef LAY_EROFS_NODE_H
#define LAY_EROFS_NODE_H

#include <stdbool.h>
#include <stdint.h>

typedef struct lay_etree lay_etree;

#define LAY_ETREE_ROOT 0u

typedef struct lay_epiece { int64_t file_offset, tar_offset, n; } lay_epiece;

typedef struct lay_enode {
    uint32_t mode;               /* type and 07777 */
    uint32_t uid, gid, nlink;
    uint32_t rdev;               /* of a device, as the format has it; 0: char 0:0 is a whiteout */
    uint32_t mtime_nsec;
    int64_t mtime_sec;
    int64_t size;                /* of a file, expanded; of a link's text; else 0 */
    int64_t data;                /* of a file: the tar offset of its bytes, a multiple of 512; -1: it has none, or pieces */
    const char *text;            /* of a symbolic link: size bytes */
    const lay_epiece *pieces;    /* of a sparse file: what is not a hole, in order, none empty, none beside the one before */
    uint32_t npieces;
    bool sparse;
    const uint8_t *xattrs;       /* as the format has entries of extended attributes, each padded to 4 bytes, by name */
    uint32_t xattrs_len;
} lay_enode;

/* A name: its bytes, not NUL-terminated; the number of its inode, and the mode of that. */
typedef struct lay_ename { const char *text; uint32_t len, node, mode; } lay_ename;

#endif
