/* lowers.h - what the layers below show at one path: the question behind every whiteout. */
#ifndef LAY_LOWERS_H
#define LAY_LOWERS_H

#include "tree/tree.h"

typedef struct lay_lowers { int *fds; size_t count; bool userxattr; } lay_lowers;   /* nearest first */

lay_code lay_lowers_open(lay_lowers *l, const int *fds, size_t count, bool userxattr, lay_error *err);   /* duplicates them */
void lay_lowers_free(lay_lowers *l);
/* Is there anything at path (n bytes) in the tree they make together? 1 or 0; -1 and errno. */
int lay_lowers_show(const lay_lowers *l, const char *path, size_t n);

#endif
