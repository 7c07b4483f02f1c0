/* erofs_scan.h - the tree of a tar that lies in a file, by its headers alone: payloads are passed over. */
#ifndef LAY_EROFS_SCAN_H
#define LAY_EROFS_SCAN_H

#include "erofs/erofs_tree.h"

/* An entry that a reader has just given goes into the tree, with the pieces of a sparse file. */
lay_code lay_etree_given(lay_etree *t, const lay_tar *tar, const lay_tar_entry *e, lay_error *err);

typedef struct lay_escan lay_escan;
/* Of size bytes from offset on. limits: as of lay_etree_new. fd is borrowed until free. */
lay_code lay_escan_open(lay_escan **out, int fd, int64_t offset, int64_t size, const lay_limits *limits, lay_error *err);
/* For about max_ms. *end: the tree is there, and its end has been told. */
lay_code lay_escan_run(lay_escan *s, int max_ms, bool *end, lay_error *err);
/* The tree, which is the caller's from then on. */
lay_etree *lay_escan_take(lay_escan *s);
void lay_escan_free(lay_escan *s);

#endif
