/* twins.h - names that share an inode share one in the copy, too, whichever thread comes to which of them first. */
#ifndef LAY_TWINS_H
#define LAY_TWINS_H

#include "clone/copy.h"
#include "tree/trail.h"

#include <pthread.h>

/* An inode with several names: where its first copy is. */
typedef enum lay_twin_state { LAY_TWIN_ABSENT, LAY_TWIN_IN_WORK, LAY_TWIN_THERE } lay_twin_state;
typedef struct lay_twin { lay_twin_state state; char *path; size_t len; } lay_twin;

typedef struct lay_twins {
    int root_fd;                /* of the copy; borrowed */
    pthread_mutex_t lock;       /* guards all below */
    pthread_cond_t made;
    bool stop;
    lay_inodes inodes; lay_twin *list; size_t count, cap;
} lay_twins;

void lay_twins_init(lay_twins *t, int root_fd);
void lay_twins_free(lay_twins *t);
/* Ends every wait. */
void lay_twins_stop(lay_twins *t);

/* The thing at name in from_fd is made, or linked to its other name, at name in to_fd, which is path (n bytes) of the copy.
 * What is gone is left out. *unsteady as lay_copy_make has it. */
lay_code lay_copy_name(lay_copier *c, lay_twins *t, int from_fd, const char *name, int to_fd, const char *path, size_t n, bool *unsteady, lay_error *err);

#endif
