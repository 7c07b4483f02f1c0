/* lower.h - one layer below, through functions: a directory today, another way of keeping a layer tomorrow.
 *
 * Those who look at lowers (changes, inspect, stand) ask for names, stats and extended attributes; only who compares
 * contents asks for a file's bytes. Opening a directory gives a place to ask in: a descriptor where the layer is a
 * directory, a number of the layer's own where it is a file. Any thread may ask; a layer holds nothing that changes.
 */
#ifndef LAY_LOWER_H
#define LAY_LOWER_H

#include "tree/tree.h"

typedef int64_t lay_lower_dir;          /* an open directory of a lower; -1: none */

typedef struct lay_lower_ops {
    /* The directory at path (n bytes; none: `in` once more) below `in`, for close; -1 and errno: ENOENT, or ENOTDIR or ELOOP
     * where another thing or a link is. No function here follows a link. */
    lay_lower_dir (*open)(const lay_lower *l, lay_lower_dir in, const char *path, size_t n);
    void (*close)(const lay_lower *l, lay_lower_dir in);      /* leaves errno as it is */
    /* Of a name, or of "." itself. 0, or -1 and errno. */
    int (*stat)(const lay_lower *l, lay_lower_dir in, const char *name, struct stat *st);
    /* Names sorted by bytes, with their DT_ types; none on failure. */
    lay_code (*list)(const lay_lower *l, lay_lower_dir in, lay_names *names, lay_error *err);
    /* One value, as lay_tree_getxattr gives it; of xattr NULL: the names of all, each with its NUL. */
    ssize_t (*xattr)(const lay_lower *l, lay_lower_dir in, const char *name, const char *xattr, void *buf, size_t size);
    /* A regular file or a link, by its type in mode, opened; -1 and errno. *of: the layer to read and close it with. */
    lay_lower_dir (*file)(const lay_lower *l, lay_lower_dir in, const char *name, mode_t mode, const lay_lower **of);
    /* Bytes of a file from an offset on, as pread gives them, or a link's text from its start; -1 and errno. */
    ssize_t (*read)(const lay_lower *l, lay_lower_dir file, mode_t mode, void *buf, size_t n, int64_t offset);
    /* As lay_lower_damage; NULL: it has none to tell. */
    const char *(*damage)(const lay_lower *l);
} lay_lower_ops;

struct lay_lower {
    const lay_lower_ops *ops;
    const void *layer;                  /* the functions' own */
    lay_lower_dir root;
};

/* A layer as it is handed in. */
lay_lower lay_lower_of(const lay_shown *shown);
/* Its directory's descriptor; -1, if it is none. */
int lay_lower_fd(const lay_shown *shown);
/* Are its places descriptors of directories? */
bool lay_lower_is_directory(const lay_lower *l);
/* LAY_E_UNSUPPORTED, if one of n layers is no directory. */
lay_code lay_lower_require_directories(const lay_shown *layers, size_t n, const char *what, lay_error *err);
/* A layer that is the directory fd, which is borrowed. */
lay_lower lay_lower_directory(int fd);
/* The same where every directory that is opened is listed, too, and but once: fewer and cheaper calls for each. fd is
 * open for reading. */
lay_lower lay_lower_listed(int fd);
/* The same, but fd is not moved by reading its names. */
lay_lower lay_lower_lent(int fd);
/* Closes what open gave; neither the root nor -1. */
void lay_lower_leave(const lay_lower *l, lay_lower_dir in);
/* Does this directory hide what the layers under it have in it? A mark that cannot be read is none. */
bool lay_lower_is_opaque(const lay_lower *l, lay_lower_dir in, bool userxattr);

#endif
