/* changes_spots.h - the directories that a comparison looks into, and the threads that do it.
 *
 * A spot is one directory. A thread reads it and notes what differs in it and which directories are in it, in
 * the order of the names; any free thread reads those. At the end one thread reports what was noted in the order of a walk: the same list, and of several errors the same one, however the
 * threads fell.
 */
#ifndef LAY_CHANGES_SPOTS_H
#define LAY_CHANGES_SPOTS_H

#include "changes/changes.h"

#define LAY_SPOT_THREADS 4u   /* at most, with the caller's */
#define LAY_SPOT_SAME 3       /* lay_spot.kind: the directory itself does not differ */
#define LAY_SPOT_GONE 4       /* it was listed, but is no longer a directory */

typedef struct lay_spot lay_spot;
struct lay_spot {
    lay_spot *parent;         /* NULL: the root */
    size_t index;             /* in parent's dirs */
    size_t depth, path_len;
    int kind;                 /* LAY_CHANGE_ or LAY_SPOT_ */
    bool cut;                 /* this, and the lowers, are the looker's own: see changes_overlay.c */
    unsigned *lowers; size_t nlowers;
    char *noted; size_t noted_len, noted_cap;
    lay_spot **dirs; size_t ndirs, dirs_cap;
    size_t noted_at, dirs_at; /* how far it has been told */
    size_t name_len;
    char name[];              /* NUL-terminated */
};

/* NULL: no memory. */
lay_spot *lay_spot_root(void);
/* With all below it and above it; NULL is fine. */
void lay_spot_free(lay_spot *root);
/* A change of a name in it; a directory in it that is to be looked into. */
lay_code lay_spot_note(lay_spot *s, int kind, const char *name, size_t n, lay_error *err);
lay_code lay_spot_note_dir(lay_spot *s, const char *name, size_t n, lay_error *err);
/* Its path from the root, "" for the root itself. */
lay_code lay_spot_path(const lay_spot *s, lay_text *path, lay_error *err);

/* Looks into one spot; err is clear. Runs in several threads, each with a reader of its own. */
typedef lay_code (*lay_spot_look)(void *reader, lay_spot *s, lay_error *err);
/* Looks into the root and all that is noted; with up to n readers, n threads. They end before it returns. */
lay_code lay_spot_walk(lay_spot *root, lay_spot_look look, void *const *readers, unsigned n, lay_error *err);
/* Records all that was noted, and frees what is told. */
lay_code lay_spot_tell(lay_spot *root, lay_differ *d, lay_error *err);

#endif
