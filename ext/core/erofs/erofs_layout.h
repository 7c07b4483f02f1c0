/* erofs_layout.h - where everything of an image lies: what erofs_layout.c finds out, and erofs_write.c makes bytes of. */
#ifndef LAY_EROFS_LAYOUT_H
#define LAY_EROFS_LAYOUT_H

#include "erofs/erofs_format.h"
#include "erofs/erofs_tree.h"

/* Offsets `at` are in the metadata, whose first byte is slot 0. */
typedef struct lay_edir {
    uint32_t node, parent;                  /* inodes */
    uint32_t size, dirs;                    /* bytes of its entries; directories in it */
    int64_t at;                             /* of its blocks; -1: they lie behind the inode */
} lay_edir;

/* A link or a file whose bytes lie in blocks of their own. */
typedef struct lay_eown { uint32_t node; int64_t size, at; } lay_eown;
typedef struct lay_eowns { lay_eown *list; size_t count, cap; } lay_eowns;

typedef struct lay_elayout {
    const lay_etree *t;
    int64_t tar_size, base;                 /* base: of the metadata, in the file */
    size_t inodes;                          /* how many; they lie as a walk comes to them first */
    lay_edir *dirs; size_t ndirs, dirs_cap; /* in the order of their inodes, as are the two below */
    lay_eowns links, files;
    int64_t inodes_end, files_size;         /* of the inodes; of the files so far */
    int64_t end, size;                      /* of the metadata; of the whole file */
    int64_t data;                           /* where in the image, or in what its blocks count, the tar begins */
    bool chunked;
} lay_elayout;

lay_code lay_elayout_make(lay_elayout *l, const lay_etree *t, int64_t tar_size, int64_t tables, lay_error *err);
void lay_elayout_free(lay_elayout *l);

/* The names of a directory in order, "." and ".." among them. */
typedef struct lay_enames {
    const lay_etree *t;
    const uint32_t *names; uint32_t count, next;
    uint32_t self, parent;                  /* inodes */
    uint32_t before_dot, before_dots;       /* so many of names come first */
    bool dot, dots;                         /* they have passed */
} lay_enames;
lay_enames lay_elayout_names(const lay_etree *t, uint32_t directory, uint32_t parent);
/* False: there are no more. */
bool lay_elayout_next(lay_enames *e, lay_ename *name);

/* How the bytes of a thing are found. */
typedef enum lay_eshape { LAY_E_PLAIN, LAY_E_TAIL, LAY_E_CHUNKS, LAY_E_OWN } lay_eshape;
/* Of what is no directory; asked of each once, in the order of the inodes. tables: what is left of these bytes. bits: of LAY_E_CHUNKS, log2 of the blocks of a chunk; count: how many chunks, else 0. */
lay_eshape lay_elayout_shape(const lay_enode *n, int64_t *tables, unsigned *bits, size_t *count);
/* Bytes of an inode with its extended attributes. */
static inline int64_t lay_elayout_inode(const lay_enode *n)
{
    return LAY_EROFS_INODE + (n->xattrs_len ? LAY_EROFS_XATTR_HEADER + (int64_t)n->xattrs_len : 0);
}

#endif
