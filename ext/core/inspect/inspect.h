/* inspect.h - a layer's directory, walked once and compared with the tree that its tar makes.
 *
 * Iterator: a finished lay_expect and a descriptor enter, one problem after the other leaves. Nothing is written, opened
 * through a link, or looked at outside of the directory.
 */
#ifndef LAY_INSPECT_H
#define LAY_INSPECT_H

#include "inspect/expect.h"
#include "tree/lowers.h"

typedef struct lay_inspect_options {
    lay_expect *expect;           /* borrowed until free */
    int root_fd;                  /* borrowed until free */
    const lay_lowers *lowers;     /* borrowed until free */
    bool partial;                 /* not all of the tar is in expect: say nothing of added names */
    bool metadata;                /* compare more than presence and bytes */
    lay_xattr_scope scope;        /* FRESH: there may be more than what the tar, which was made of the directory, says */
    bool userxattr;
} lay_inspect_options;

typedef struct lay_inspect lay_inspect;
lay_code lay_inspect_open(lay_inspect **out, const lay_inspect_options *o, lay_error *err);
/* A little further: problem->kind NONE: nothing was found yet. *end: all is looked at. */
lay_code lay_inspect_step(lay_inspect *i, lay_problem *problem, bool *end, lay_error *err);
int64_t lay_inspect_bytes(const lay_inspect *i);      /* of files, read so far */
void lay_inspect_free(lay_inspect *i);

#endif
