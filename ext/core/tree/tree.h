/* tree.h - everything done to a directory tree, always beneath one descriptor, by descriptors only.
 *
 * A path here is relative, without empty, "." or ".." components, n bytes, NUL-terminated, of any length.
 * No function follows a symbolic link unless it says so; none leaves the root.
 */
#ifndef LAY_TREE_H
#define LAY_TREE_H

#include "base/text.h"

#include <sys/stat.h>

/* Clean a name lexically as Go's path.Clean does ("a//b/./c/../d/" -> "a/b/d", "" -> "."); leading '/'
 * is kept. out has room for n + 2 bytes. Returns the length. */
size_t lay_path_clean(const char *name, size_t n, char *out);
/* The same without leading '/': "." is the root itself, a name that begins with ".." leaves it. */
lay_code lay_path_relative(lay_text *out, const char *name, size_t n, lay_error *err);
bool lay_path_leaves(const lay_text *relative);
/* Where the last component of a path begins. */
size_t lay_path_base(const char *path, size_t n);

/* Open a directory below root_fd (path of 0 bytes: root itself again): O_RDONLY|O_DIRECTORY|O_CLOEXEC
 * plus flags. -1 and errno on failure; ELOOP when a component is a symbolic link (ENOTDIR for the last). */
int lay_tree_open_dir(int root_fd, const char *path, size_t n, int flags);
/* Open a regular file for reading, never a link, a fifo or a device (ELOOP, EINVAL): none of these is
 * opened even to be looked at. *st: what it is, once it is open. */
int lay_tree_open_regular(int dir_fd, const char *name, struct stat *st);
/* The parent of the path last asked for, kept open: files of one directory mostly come together, and
 * resolving is the dear part of an open. Links are followed as if root were "/". The descriptor
 * stays the holder's; *base is the last component, inside path. -1 and errno on failure. */
typedef struct lay_parent { int fd; char *path; size_t len, cap; } lay_parent;
#define LAY_PARENT_NONE { -1, NULL, 0, 0 }
int lay_parent_open(lay_parent *p, int root_fd, const char *path, size_t n, const char **base);
void lay_parent_close(lay_parent *p);   /* forget it, as the tree has changed */
/* lay_tree_open_regular of a path; links in its parents are followed as if root were "/". */
int lay_tree_open_file(int root_fd, lay_parent *parent, const char *path, size_t n, struct stat *st);
void lay_parent_free(lay_parent *p);
/* Open a directory that is a child of dir_fd, for reading; never a link. *crossed: it is seen to be a
 * mount point (where the kernel cannot say so, st_dev still does unless it is a bind mount). */
int lay_tree_open_sub(int dir_fd, const char *name, bool *crossed);
/* lstat of a path below root; 0 or -1 and errno. */
int lay_tree_stat(int root_fd, const char *path, size_t n, struct stat *st);

/* What such an errno says: the name is gone since it was listed, or is another kind of thing now. */
bool lay_tree_gone(int sys_errno);

/* The names of an open directory, one by one in the order that it has them, without "." and "..". Starts with len 0. */
typedef struct lay_dent { uint64_t ino; int64_t off; uint16_t reclen; uint8_t type; char name[]; } lay_dent;
#define LAY_DENTS_SIZE 32768
typedef struct lay_dents { long len, at; uint64_t room[LAY_DENTS_SIZE / 8]; } lay_dents;
/* The next one; NULL: that was the last, and errno is 0, or it failed, and errno says why. */
const lay_dent *lay_dents_next(lay_dents *d, int dir_fd);

/* Names of an open directory without "." and "..", sorted by bytes. fd is left at its end. */
typedef struct lay_name { uint32_t at; uint16_t len; uint8_t type; uint64_t ino; } lay_name;   /* type: DT_ */
/* text + at: NUL-terminated. gone: the directory was removed since it was opened, which is no error */
typedef struct lay_names { lay_name *list; size_t count; char *text; bool gone; } lay_names;
lay_code lay_names_read(lay_names *out, int dir_fd, lay_error *err);
void lay_names_free(lay_names *names);

/* An xattr of a name in dir_fd, no link followed: bytes into buf; 0 when absent or not supported (errno says ENODATA or
 * EOPNOTSUPP then, and 0 when it is there but empty); -1 and errno. xattr NULL: the names of all, each with its NUL. */
ssize_t lay_tree_getxattr(int dir_fd, const char *name, const char *xattr, void *buf, size_t size);
/* Is it there, even if empty? 1 or 0; -1 and errno. */
int lay_tree_hasxattr(int dir_fd, const char *name, const char *xattr);

#endif
