/* erofs_walk.h - the names of a settled tree, as inodes lie in an image: what a directory has comes behind its own name. */
#ifndef LAY_EROFS_WALK_H
#define LAY_EROFS_WALK_H

#include "base/text.h"
#include "erofs/erofs_tree.h"

typedef struct lay_evisit { const uint32_t *names; uint32_t count, next, node; } lay_evisit;

/* Starts as { .t }; free of its stack ends it. */
typedef struct lay_ewalk {
    const lay_etree *t;
    lay_evisit *stack; size_t depth, cap;
} lay_ewalk;

/* From the root, which is not given. */
lay_code lay_ewalk_begin(lay_ewalk *w, lay_error *err);
/* The next name, and the inode of the directory that has it. *more false: there was none. */
lay_code lay_ewalk_next(lay_ewalk *w, lay_ename *name, uint32_t *parent, bool *more, lay_error *err);
/* The path of the name that came last. */
lay_code lay_ewalk_path(const lay_ewalk *w, lay_text *path, lay_error *err);

#endif
