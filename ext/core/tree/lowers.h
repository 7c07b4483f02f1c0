/* lowers.h - the layers below, together: what they show at one path, the question behind every whiteout. */
#ifndef LAY_LOWERS_H
#define LAY_LOWERS_H

#include "tree/lower.h"

typedef struct lay_lowers { lay_lower *list; size_t count; bool userxattr, kept; } lay_lowers;   /* nearest first */

/* The layers stay the caller's. */
lay_code lay_lowers_open(lay_lowers *l, const lay_shown *layers, size_t count, bool userxattr, lay_error *err);
/* Opens their roots once more, for a handle that outlives what the caller has. */
lay_code lay_lowers_keep(lay_lowers *l, lay_error *err);
void lay_lowers_free(lay_lowers *l);
/* Is there anything at path (n bytes) in the tree they make together? 1 or 0; -1 and errno. */
int lay_lowers_show(const lay_lowers *l, const char *path, size_t n);

#endif
