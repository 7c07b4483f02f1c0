/* erofs_write.h - a tree laid out as an image: where each inode, directory and expanded file lies, and the bytes of that.
 *
 * All follows from the tree and the tar's size alone, and the header from these and the DiffID: the same layer gives the
 * same bytes. Inodes come in the order of a walk, names by bytes; behind them the directories' blocks, the long links, and
 * the files that no inode can show where the tar has them. The bytes are made as they are asked for, block by block, so that
 * an image takes memory for its directories alone, and not for what is in them.
 */
#ifndef LAY_EROFS_WRITE_H
#define LAY_EROFS_WRITE_H

#include "base/text.h"
#include "erofs/erofs_format.h"
#include "erofs/erofs_tree.h"

typedef struct lay_eimage lay_eimage;

/* The tree is borrowed until free. LAY_E_OS with EFBIG: more than the format's 2 TiB. tables: bytes that the tables of
 * sparse files may have together; the files beyond are expanded. */
lay_code lay_eimage_layout(lay_eimage **out, const lay_etree *t, int64_t tar_size, int64_t tables, lay_error *err);
/* Of a layer: a small tar makes no large image. */
#define LAY_EIMAGE_TABLES(tar_size) ((INT64_C(16) << 20) + (tar_size))
void lay_eimage_free(lay_eimage *m);

/* Bytes of the whole file; and where in it the metadata begins. */
int64_t lay_eimage_size(const lay_eimage *m);
int64_t lay_eimage_base(const lay_eimage *m);
/* The next bytes of the metadata, until the next call; *at: where in the file. *n 0: that was all. They follow each other. */
lay_code lay_eimage_next(lay_eimage *m, const uint8_t **p, size_t *n, int64_t *at, lay_error *err);
/* From the first byte again. */
void lay_eimage_rewind(lay_eimage *m);
/* Expanded file i: its inode, and where in the file its first byte is. False: there are no more. */
bool lay_eimage_expanded(const lay_eimage *m, size_t i, uint32_t *node, int64_t *at);
/* A path of the inode that the byte at `at` of the file is of, which lies in the metadata; of the root an empty one. */
lay_code lay_eimage_path_at(const lay_eimage *m, int64_t at, lay_text *path, lay_error *err);
lay_code lay_eimage_path(const lay_eimage *m, uint32_t node, lay_text *path, lay_error *err);
/* The tar that the inodes point into begins there, in what blocks count. */
void lay_eimage_move_data(lay_eimage *m, int64_t at);
/* All but the DiffID. */
void lay_eimage_super(const lay_eimage *m, lay_erofs_super *s);
void lay_eimage_header(const lay_eimage *m, const uint8_t diff_id[32], uint8_t *header);

#endif
