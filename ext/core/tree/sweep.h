/* sweep.h - the walk over a whole tree, in no order, that asks a function of its user's for each name. */
#ifndef LAY_SWEEP_H
#define LAY_SWEEP_H

#include "tree/trail.h"

typedef struct lay_sweep lay_sweep;

struct lay_sweep_frame { size_t first, path_len; unsigned tries; };   /* first: of its names in at[] */

/* First member of what a user needs besides. Begins as { .trail = LAY_TRAIL_NONE, .one = ... }. */
struct lay_sweep {
    lay_trail trail;
    lay_text path;                                 /* of the directory it stands in, for errors */
    size_t prefix;                                 /* bytes of path that lie above the trail's root */
    char *text; size_t text_len, text_cap;         /* names of directories still to visit */
    size_t *at; size_t count, cap;
    struct lay_sweep_frame *frames; size_t depth, frame_cap;
    bool removing;
    /* A name in the open directory fd; type is the kernel's DT_, perhaps unknown. A directory is gone into only if
     * this calls lay_sweep_wait. */
    lay_code (*one)(lay_sweep *s, int fd, const char *name, uint8_t type, lay_error *err);
};

lay_code lay_sweep_wait(lay_sweep *s, const char *name, lay_error *err);
/* A system call failed for a name in the directory at hand. */
lay_code lay_sweep_fail(lay_sweep *s, int sys_errno, const char *name, const char *what, lay_error *err);
/* All names below root_fd, which is asked for no name itself. Frees what s holds. */
lay_code lay_sweep_over(lay_sweep *s, int root_fd, lay_error *err);

#endif
