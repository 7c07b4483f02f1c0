/* erofs_store.h - an image is written into the file that has its tar: metadata and expanded files, and the header last. */
#ifndef LAY_EROFS_STORE_H
#define LAY_EROFS_STORE_H

#include "erofs/erofs_write.h"

/* All behind the tar of fd, which is cut off there before. Of a file with holes only what is none is written. */
lay_code lay_eimage_store(lay_eimage *m, const lay_etree *t, int fd, int64_t tar_size, lay_error *err);
/* From now on it is an image. */
lay_code lay_eimage_seal(const lay_eimage *m, int fd, const uint8_t diff_id[32], lay_error *err);

#endif
