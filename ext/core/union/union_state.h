/* union_state.h - what a union is made of, and its directories: the layers that make each up, and what it shows.
 *
 * It has a few of its layers' directories open; the others are opened by path when they are asked. So any number of
 * layers takes a bounded number of descriptors.
 */
#ifndef LAY_UNION_STATE_H
#define LAY_UNION_STATE_H

#include "tree/lowers.h"

#define LAY_UNION_KEPT 16u          /* directories of layers that stay open in one of these */
#define LAY_UNION_FRESH 48u         /* until its names are read, as reading them opens each once more */

typedef struct lay_union lay_union;
typedef struct lay_union_part { size_t layer; lay_lower_dir in; } lay_union_part;     /* in -1: not open */

/* One layer's entry; all of one name follow each other, nearest first, and all but the first say `again`. */
typedef struct lay_union_entry {
    const char *name;               /* NUL-terminated */
    ino_t ino;
    uint32_t part;                  /* of the directory's parts */
    uint16_t len;
    uint8_t type;                   /* DT_; of the first also DT_WHT */
    bool again;
} lay_union_entry;

typedef struct lay_union_dir lay_union_dir;
struct lay_union_dir {
    const lay_union *of;
    lay_union_part *parts; size_t nparts;         /* nearest first; none: a union of nothing */
    bool opaque;                                  /* it hides what is below the run */
    bool cut;                                     /* it, or a directory on the way to it, does */
    bool listed, gone;                            /* names were read; it was removed since it was opened */
    size_t nlisted;                               /* the names of so many parts */
    const char *refused;                          /* why only a mount can tell its names; NULL: no such mark */
    lay_union_entry *entries; size_t nentries;
    uint32_t *shown; size_t nshown;               /* the first entry of every name that is shown, in byte order */
    lay_names *lists;                             /* what the names are written in, one a part */
    size_t spare;                                 /* the part beyond the kept ones that is open, or nparts */
    char *xattrs; ssize_t xattrs_len;             /* names of the nearest's extended attributes; -1: too many to be kept */
    size_t path_len;
    char path[];                                  /* from the root, NUL-terminated */
};

struct lay_union {
    const lay_lower *layers; size_t count;
    const lay_lowers *below;
    bool userxattr, over_marks, whole;
    lay_union_dir *root;
    lay_lower *own; bool kept;                    /* of open_at */
    lay_lowers own_below;
};

lay_union_dir *lay_union_root(const lay_union *u);
size_t lay_union_count(const lay_union *u);
const lay_lower *lay_union_layer(const lay_union *u, size_t layer);

/* A directory below it; path of no bytes: itself once more. NULL and errno: as lay_lower_ops.open. */
lay_union_dir *lay_union_dir_open(lay_union_dir *d, const char *path, size_t n);
/* Of one name, n bytes. */
lay_union_dir *lay_union_dir_down(lay_union_dir *d, const char *name, size_t n);
void lay_union_dir_free(lay_union_dir *d);
/* Closes what it has open; what is asked next opens it anew. */
void lay_union_dir_rest(lay_union_dir *d);
/* A part's directory, as long as no other part is asked for; -1 and errno. */
lay_lower_dir lay_union_dir_part(lay_union_dir *d, size_t part);
/* Takes its names, once. first: those of the nearest so many parts only; then no more is judged of whiteouts. */
lay_code lay_union_dir_read(lay_union_dir *d, lay_error *err);
lay_code lay_union_dir_read_first(lay_union_dir *d, size_t first, lay_error *err);
/* Which part shows a name; -1 and errno. A whiteout that is shown counts as something. */
int lay_union_dir_find(lay_union_dir *d, const char *name, size_t *part);

/* A device is a whiteout, or it is not; 1 or 0, -1 and errno. */
int lay_union_is_whiteout(const lay_lower *l, lay_lower_dir in, const char *name);

/* ---- among the files of this folder ---- */

/* With room for its path and for nparts; NULL and errno. */
lay_union_dir *lay_union_dir_new(const lay_union *u, size_t path_len, size_t nparts);
/* Of a root only what makes it impossible to tell its names counts. 0, or -1 and errno. */
int lay_union_root_marks(lay_union_dir *root);
void lay_union_part_close(lay_union_dir *d, size_t part);
/* All but those that stay open. */
void lay_union_parts_close(lay_union_dir *d, size_t stay);
/* Its names, as if they had not been read. */
void lay_union_dir_forget(lay_union_dir *d);

#endif
