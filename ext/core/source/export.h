/* export.h - what the two exports share: one thing on disk becomes header blocks and, of a file, a payload. */
#ifndef LAY_EXPORT_H
#define LAY_EXPORT_H

#include "tree/attributes.h"
#include "base/leftout.h"
#include "source/source.h"
#include "tar/tar.h"
#include "tree/lower.h"
#include "tree/trail.h"

/* What a tar of a plain directory is asked for besides. */
typedef struct lay_plain {
    bool on;                               /* user.* and capabilities too; what has gone, or changed, is a failure */
    int64_t newest, uid, gid;              /* as lay_directory_options has them */
    size_t prefix;                         /* bytes of each name that are none on the disk */
} lay_plain;

typedef struct lay_export {
    lay_source source;                     /* first */
    bool dry;                              /* only adding up: payloads stay unread */
    bool overlay;                          /* whiteouts and opaque marks become .wh. names */
    bool userxattr;
    bool keep;                             /* extended attributes, ACLs and nanoseconds too */
    bool skip_marks;                       /* names that begin with .wh. are left out, not refused */
    bool whole;                            /* no opaque marks */
    lay_plain plain;
    const lay_lower *of;                   /* the layer that the thing at hand lies in; NULL: in a directory */
    int opaque;                            /* of the directory at hand: it hides what is below, or not; -1: its mark says so */
    /* Makes the next entry by lay_export_entry or lay_export_head; *end: there is none. */
    lay_code (*next)(struct lay_export *x, bool *end, lay_error *err);
    /* The same export from its beginning, dry, over the same descriptors. */
    lay_code (*twin)(const struct lay_export *x, struct lay_export **out, lay_error *err);
    void (*done)(struct lay_export *x);    /* frees all but what follows */

    uint8_t *head; size_t head_at, head_len, head_cap;     /* blocks still to give */
    uint8_t *block; size_t block_cap;                      /* where one header is formatted */
    int file_fd; int64_t file_left; size_t padding;        /* payload still to give */
    const lay_lower *file_of; lay_lower_dir file; int64_t file_at;    /* where it is, if it is a layer's; NULL: in file_fd */
    lay_text name;                                         /* of the entry at hand, as in the tar */
    lay_text shown;                                        /* .wh. name */
    lay_inodes inodes; char *names; size_t names_len, names_cap;   /* first name of every inode with links */
    lay_attributes attributes;                             /* of the entry at hand */
    lay_left_out left, surveyed;                           /* so far; of the whole, by the last dry run */
    int64_t files_size;                                    /* of the things met so far, as lay_tree_size counts */
    bool ended;
    bool failed; lay_error failure;                        /* to be given by the next read */
} lay_export;

extern const lay_source_ops lay_export_ops;

/* flags: LAY_EXPORT_ */
void lay_export_init(lay_export *x, unsigned flags);
unsigned lay_export_flags(const lay_export *x);
/* Append a header to the output. */
lay_code lay_export_head(lay_export *x, const lay_tar_head *head, lay_error *err);
/* x->name with its last component behind ".wh.", in x->shown. */
lay_code lay_export_whiteout_name(lay_export *x, lay_error *err);
/* x->name would be a mark in the tar: LAY_OK if it is counted as left out, else LAY_E_BREAKOUT. */
lay_code lay_export_mark(lay_export *x, lay_error *err);
/* x->name is gone: add its whiteout, as moby does for a deletion. */
lay_code lay_export_deletion(lay_export *x, int64_t mtime, lay_error *err);
/* The thing base in a directory's descriptor, or in that place of x->of; its path in the tar is x->name; *st is what it is.
 * Nothing is made of what has vanished, of sockets, and of marks that are left out: then st_mode is 0. */
lay_code lay_export_entry(lay_export *x, lay_lower_dir in, const char *base, struct stat *st, lay_error *err);
/* Where an error says that a layer is damaged, it becomes LAY_E_MISMATCH, and says what is. Returns its code. */
lay_code lay_export_damaged(const lay_lower *l, lay_error *err);
/* What was told of x->name holds no longer: of a layer that is damage; elsewhere another process writes. */
lay_code lay_export_changed(const lay_export *x, lay_error *err, const char *what);
/* The same thing is no change but for what has no place in the tar: that is noted. */
lay_code lay_export_unchanged(lay_export *x, int dir_fd, const char *base, lay_error *err);

/* The directory last needed below a root, kept open: what comes by sorted paths mostly lies in the same one. */
typedef struct lay_near { int root_fd, fd; lay_text path; } lay_near;
lay_code lay_near_init(lay_near *n, int root_fd, lay_error *err);
/* It stays n's. No link leads to it, or it is ELOOP. -1 and errno, or an err that is not LAY_OK. */
int lay_near_open(lay_near *n, const char *path, size_t len, lay_error *err);
void lay_near_free(lay_near *n);

#endif
