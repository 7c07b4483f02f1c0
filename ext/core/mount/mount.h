/* mount.h - the mount calls, and a few others that Python does not have.
 *
 * Paths and option texts come in; 0 or a negative errno goes out. Every function is whole by itself: a
 * descriptor it opens it also closes.
 *
 * The work that needs a directory of its own (relative option texts) runs in a short-lived thread that
 * has left the process's shared directory with unshare(CLONE_FS), so nobody else sees a chdir.
 */
#ifndef LAY_MOUNT_H
#define LAY_MOUNT_H

#include <stddef.h>

typedef struct {
    const char *home;             /* relative paths start here; NULL: all paths are absolute */
    const char *target;           /* where to mount */
    const char *const *lowers;    /* nearest first */
    size_t n_lowers;
    const char *upper;            /* NULL: read-only */
    const char *work;
    const char *context;          /* SELinux label, or NULL */
    const char *const *off;       /* options to be given as "off" */
    size_t n_off;
    int userxattr;
    int follow;                   /* metacopy=on, redirect_dir=follow */
    const char *data;             /* option text of mount(2): set, it is used and the rest is not */
} lay_overlay;

int lay_mount_overlay(const lay_overlay *o, char *log, size_t log_size);
int lay_umount(const char *path, int flags);
int lay_syncfs(int fd);
long lay_fs_magic(const char *path);
int lay_dirents_typed(const char *path);
int lay_quota_get_project(const char *dir, unsigned *project);
int lay_quota_set_project(const char *dir, unsigned project);
int lay_quota_set_limit(const char *device, unsigned project, unsigned long long bytes);
int lay_quota_state(const char *device);

#endif
