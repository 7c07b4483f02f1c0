/* union.h - layers stacked, shown as the one directory that merging them would make.
 *
 * A run of layers enters, nearest first, and perhaps what it stands on. What is shown:
 *   a name        as the nearest layer has it
 *   a directory   mode, owner, times and attributes of the nearest; names of all layers down to an opaque one, or to a
 *                 whiteout or another thing of that name: then it is opaque
 *   a whiteout    if anything below the run has its name, and nothing in the run cuts that off
 * A mark of a renamed directory, and whiteouts that are attributes, need what only a mount can do: LAY_E_UNSUPPORTED.
 * A file without its data (metacopy) is shown as it lies there: a caller that reads files looks for the mark.
 *
 * It is used as a layer (lay_union_lower: the upper of lay_changes_over; on nothing, a whole tree), by directories
 * (union_state.h), or as a walk:
 *
 *     lay_union *u; lay_union_walk *w; lay_union_found f;
 *     lay_union_open_at(&u, layers, n, below, m, 0, err)
 *     lay_union_walk_open(&w, u, err)
 *     while (!lay_union_walk_next(w, &f, err) && f.path != NULL)
 *         fstatat((int)f.in, f.name, &st, AT_SYMLINK_NOFOLLOW);        in a layer that is a directory
 */
#ifndef LAY_UNION_H
#define LAY_UNION_H

#include "tree/lowers.h"

#define LAY_UNION_USERXATTR 1u      /* the marks are user.overlay. */
#define LAY_UNION_OVER_MARKS 2u     /* a whiteout also stays if what is below is a whiteout: for a directory that takes the
                                     * run's place while what it stands on may be merged into it later */
#define LAY_UNION_KEEP 4u           /* open_at: opens the descriptors once more, for a handle that outlives them */
#define LAY_UNION_UNREAD 8u         /* open_at: the roots' names are not read yet; then one thread alone may use the union */
#define LAY_UNION_WHOLE 16u         /* the walk refuses a file without its data, which may lie in a layer that does not show it */

typedef struct lay_union lay_union;

/* layers and below are borrowed. below NULL: every whiteout stays; no layers in it: none does. Reads the roots' names. */
lay_code lay_union_open(lay_union **out, const lay_lower *layers, size_t n, const lay_lowers *below, unsigned flags, lay_error *err);
/* The same of layers as they are handed in, directories open for reading; borrowed likewise, but with KEEP. */
lay_code lay_union_open_at(lay_union **out, const lay_shown *layers, size_t n, const lay_shown *below, size_t nbelow, unsigned flags, lay_error *err);
void lay_union_free(lay_union *u);
/* The run as one layer, as long as u is. A directory that was opened is one thread's, but for the root. */
lay_lower lay_union_lower(const lay_union *u);

/* Which layer shows what is at path (n bytes; none: the root), through no link; -1 and errno: ENOENT, of a whiteout too. */
int lay_union_shows(const lay_union *u, const char *path, size_t n, size_t *layer);

/* ---- all of it, in the order of a tar: names by byte order, a directory before what is in it ---- */

typedef struct lay_union_found {
    const char *path; size_t path_len;      /* from the root, NUL-terminated, until the next call; NULL: that was all */
    const char *name;                       /* the last part of it */
    size_t depth;                           /* 1: it lies in the root */
    size_t layer;                           /* which layer of the run shows it */
    lay_lower_dir in;                       /* the directory of that layer in which it lies, until the next call */
    uint8_t type;                           /* DT_; DT_WHT: a whiteout */
    bool opaque;                            /* a directory that hides what is below the run */
} lay_union_found;

typedef struct lay_union_walk lay_union_walk;
lay_code lay_union_walk_open(lay_union_walk **out, const lay_union *u, lay_error *err);
/* What vanishes meanwhile is left out. */
lay_code lay_union_walk_next(lay_union_walk *w, lay_union_found *found, lay_error *err);
/* Not into the directory that was given last. */
void lay_union_walk_pass(lay_union_walk *w);
void lay_union_walk_free(lay_union_walk *w);

#endif
