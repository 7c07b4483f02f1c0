/* mount.h - the mount calls, project quotas, and what else a driver asks a file system.
 *
 * Paths and option texts enter; mounts and answers leave. Each function closes every descriptor that it opens.
 * A failure is LAY_E_OS, with the kernel's errno and the path that was given.
 */
#ifndef LAY_MOUNT_H
#define LAY_MOUNT_H

#include "lay.h"

typedef struct lay_overlay {
    const char *home;             /* relative paths start here; NULL: all paths are absolute */
    const char *target;           /* where to mount */
    const char *const *lowers;    /* nearest first */
    size_t n_lowers;
    const char *upper;            /* NULL: read-only */
    const char *work;
    const char *context;          /* SELinux label, or NULL */
    const char *const *off;       /* options that are given as "off" */
    size_t n_off;
    int userxattr;
    int is_volatile;              /* what is written is never synced */
    int is_apart;                 /* its layers lie on several file systems: its files have its own device all the same */
    int follow;                   /* metacopy=on, redirect_dir=follow */
    const char *data;             /* option text of mount(2): if set, it is used and the rest is not */
} lay_overlay;

/* With a home, a short-lived thread mounts: it leaves the process's shared directory by unshare(CLONE_FS), so its chdir
 * is invisible outside. ENOSYS: this kernel has no "lowerdir+" (before 6.8) or no new mount calls.
 * The error's text is the kernel's own reason, if it gave one. */
lay_code lay_mount_overlay(const lay_overlay *o, lay_error *err);
/* The same, attached nowhere: detached is its descriptor. The data of mount(2) is not used. */
lay_code lay_make_overlay(const lay_overlay *o, int *detached, lay_error *err);
lay_code lay_umount(const char *path, int flags, lay_error *err);
/* used: an overlay, attached or not, has this directory as its upper. Not for a user namespace, where the kernel takes
 * no file handles and so has no index: the answer is 0 there. */
lay_code lay_upper_in_use(const char *upper, int *used, lay_error *err);

/* Write back everything of the file system that holds the directory (syncfs). */
lay_code lay_sync_filesystem(const char *directory, lay_error *err);
/* The magic number of the file system at path: statfs(2)'s f_type. */
lay_code lay_fs_magic(const char *path, unsigned *magic, lay_error *err);
/* typed: every entry of the directory is listed with its type. */
lay_code lay_dirents_typed(const char *path, int *typed, lay_error *err);

/* ---- project quotas ---- */

lay_code lay_quota_get_project(const char *directory, unsigned *project, lay_error *err);
/* What is made in the directory later inherits the project. */
lay_code lay_quota_set_project(const char *directory, unsigned project, lay_error *err);
/* Sets the hard and the soft limit of the project, rounded down to 512 bytes. */
lay_code lay_quota_set_limit(const char *device, unsigned project, uint64_t bytes, lay_error *err);
/* on: project quotas are counted and enforced on the device. */
lay_code lay_quota_state(const char *device, int *on, lay_error *err);

#endif
