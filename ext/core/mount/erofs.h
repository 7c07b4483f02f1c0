/* erofs.h - a file as an EROFS mount: of the file itself, or of a loop device where the kernel takes block devices only.
 *
 * Open files enter, mounts leave. Each function closes every descriptor that it opens, but the one it gives. A failure is
 * LAY_E_OS with the kernel's errno; its text is the kernel's own reason, if it gave one.
 */
#ifndef LAY_EROFS_MOUNT_H
#define LAY_EROFS_MOUNT_H

#include "lay.h"

typedef struct lay_erofs_file {
    int fd;                           /* open for reading */
    const char *path;                 /* names it in errors, and in the mount table if it leads there */
} lay_erofs_file;

typedef struct lay_erofs_mount {
    const lay_erofs_file *files;      /* the image, then the files of its device table in their order */
    size_t n_files;
    const char *target;               /* a directory */
    int loop;                         /* every file by a loop device */
    int directio;                     /* read past the page cache of the files */
} lay_erofs_mount;

/* Mount an image, read-only. ENOTBLK: not a regular file; or the kernel mounts no file of this file system itself, and
 * a loop device can do it. */
lay_code lay_mount_erofs(const lay_erofs_mount *m, lay_error *err);
/* The same, attached nowhere: detached is its descriptor. */
lay_code lay_make_erofs(const lay_erofs_mount *m, int *detached, lay_error *err);

/* Give a file a loop device: read-only, of 512-byte blocks, gone with its last use. device is its descriptor. */
lay_code lay_loop_attach(const lay_erofs_file *file, int *device, unsigned *number, lay_error *err);

#endif
