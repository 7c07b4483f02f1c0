/* copy.h - what lies at a name in one directory is made at that name in another: data, holes, owner, marks, mode, times. */
#ifndef LAY_COPY_H
#define LAY_COPY_H

#include "tree/attributes.h"
#include "tree/place.h"

/* What holds for all threads. */
typedef struct lay_copy_rules {
    unsigned flags;         /* LAY_CLONE_ */
    int no_reflink;         /* atomic: these file systems share no data */
    int stop;               /* atomic: end early, also inside of a file */
} lay_copy_rules;

/* One thread's. */
typedef struct lay_copier {
    lay_copy_rules *rules;
    lay_place place;
    lay_parent parent;      /* where the other name of an inode was last found */
    lay_text first;         /* that name */
    lay_attributes attributes;
    bool no_range;          /* copy_file_range is refused */
    uint8_t *buffer;
} lay_copier;

/* own_thread: it may take an umask of its own. */
lay_code lay_copier_init(lay_copier *c, lay_copy_rules *rules, bool own_thread, lay_error *err);
void lay_copier_free(lay_copier *c);

/* A thing to copy: what it is, and a descriptor of it if it is a regular file, else -1. */
typedef struct lay_found { int dir_fd; const char *name; int fd; struct stat st; } lay_found;

/* *there false: the name is gone, or is a directory now. The caller closes f->fd. */
lay_code lay_copy_find(lay_found *f, int dir_fd, const char *name, bool *there, lay_error *err);
/* *unsteady: it changed each time it was copied. *made false: it is a socket, or gone. */
lay_code lay_copy_make(lay_copier *c, lay_found *f, int to_fd, bool *made, bool *unsteady, lay_error *err);
/* The root of a copy: what is made in it gets what it asks for, until lay_copy_directory. */
lay_code lay_copy_prepare(int to_fd, lay_error *err);
/* to_fd, a directory with nothing left to make in it, gets what from_fd has, which was st. given: it was not made just
 * now with mkdir. */
lay_code lay_copy_directory(lay_copier *c, int from_fd, const struct stat *st, int to_fd, bool given, lay_error *err);

#endif
