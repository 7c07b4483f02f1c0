/* mount.c - overlays by the new mount calls or by mount(2), and a few questions to a file system. */
#include "mount/mount.h"

#include "base/error.h"
#include "mount/calls.h"

#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/vfs.h>

static bool configure(int context, const lay_overlay *o)
{
    if (!lay_option(context, "source", "overlay"))
        return false;
    for (size_t i = 0; i < o->n_off; i++)
        if (!lay_option(context, o->off[i], "off"))
            return false;
    if (o->userxattr && !lay_flag(context, "userxattr"))
        return false;
    if (o->is_volatile && !lay_flag(context, "volatile"))
        return false;
    if (o->is_apart && !lay_option(context, "xino", "auto"))
        return false;
    if (o->follow && !(lay_option(context, "metacopy", "on") && lay_option(context, "redirect_dir", "follow")))
        return false;
    for (size_t i = 0; i < o->n_lowers; i++)
        if (!lay_option(context, "lowerdir+", o->lowers[i])) {
            if (i == 0 && errno == EINVAL)
                errno = ENOSYS;
            return false;
        }
    if (o->upper && !(lay_option(context, "upperdir", o->upper) && lay_option(context, "workdir", o->work)))
        return false;
    return lay_option(context, "context", o->context) && lay_create_context(context);
}

/* The kernel explains in lines "e overlay: ...": the last one counts. */
static lay_code fail_with_log(lay_error *err, int sys_errno, const char *target, int context)
{
    char line[256];
    lay_fail_os(err, sys_errno, target, NULL);
    for (ssize_t n; (n = read(context, line, sizeof line - 1)) > 0;) {
        while (n > 0 && line[n - 1] == '\n')
            n--;
        line[n] = '\0';
        snprintf(err->text, sizeof err->text, "%s", n > 2 && line[1] == ' ' ? line + 2 : line);
    }
    return err->code;
}

/* detached: takes the mount, which is then attached nowhere; NULL: it is attached at the target. */
static lay_code mount_new(const lay_overlay *o, int *detached, lay_error *err)
{
    LAY_AUTO_FD int context = lay_open_context("overlay");
    if (context < 0)
        return lay_fail_os(err, errno, o->target, NULL);
    LAY_AUTO_FD int made = configure(context, o) ? lay_take_mount(context) : -1;
    if (made < 0)
        return fail_with_log(err, errno, o->target, context);
    if (detached)
        *detached = lay_steal_fd(&made);
    else if (lay_move_mount(made, o->target, FROM_EMPTY_PATH) < 0)
        return lay_fail_os(err, errno, o->target, NULL);
    return LAY_OK;
}

static lay_code mount_here(const lay_overlay *o, int *detached, lay_error *err)
{
    if (!o->data)
        return mount_new(o, detached, err);
    return mount("overlay", o->target, "overlay", 0, o->data) < 0 ? lay_fail_os(err, errno, o->target, NULL) : LAY_OK;
}

typedef struct { const lay_overlay *o; int *detached; lay_error *err; lay_code code; } errand;

static void *run_in_home(void *argument)
{
    errand *a = argument;
    if (unshare(CLONE_FS) < 0 || chdir(a->o->home) < 0)
        a->code = lay_fail_os(a->err, errno, a->o->home, NULL);
    else
        a->code = mount_here(a->o, a->detached, a->err);
    return NULL;
}

static lay_code from_home(const lay_overlay *o, int *detached, lay_error *err)
{
    if (!o->home)
        return mount_here(o, detached, err);
    errand a = { .o = o, .detached = detached, .err = err };
    pthread_t thread;
    int e = pthread_create(&thread, NULL, run_in_home, &a);
    if (e)
        return lay_fail_os(err, e, o->home, NULL);
    pthread_join(thread, NULL);
    return a.code;
}

lay_code lay_mount_overlay(const lay_overlay *o, lay_error *err)
{
    return from_home(o, NULL, err);
}

lay_code lay_make_overlay(const lay_overlay *o, int *detached, lay_error *err)
{
    return from_home(o, detached, err);
}

lay_code lay_umount(const char *path, int flags, lay_error *err)
{
    return umount2(path, flags) < 0 ? lay_fail_os(err, errno, path, NULL) : LAY_OK;
}

/* ---- is an upper in use ---- */

/* A file system in memory that is mounted nowhere and ends with its descriptor, with two directories in it. */
static int open_scratch(void)
{
    LAY_AUTO_FD int context = lay_open_context("tmpfs");
    if (context < 0 || !lay_create_context(context))
        return -1;
    LAY_AUTO_FD int made = lay_take_mount(context);
    if (made < 0 || mkdirat(made, "u", 0700) < 0 || mkdirat(made, "w", 0700) < 0)
        return -1;
    return lay_steal_fd(&made);
}

/* An overlay with index=on refuses a lower that another overlay writes to, attached or not. Nothing is written there. */
lay_code lay_upper_in_use(const char *upper, int *used, lay_error *err)
{
    LAY_AUTO_FD int directory = open(upper, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    LAY_AUTO_FD int scratch = directory < 0 ? -1 : open_scratch();
    LAY_AUTO_FD int context = scratch < 0 ? -1 : lay_open_context("overlay");
    if (context < 0)
        return lay_fail_os(err, errno, upper, NULL);
    char lowerdir[64], upperdir[64], workdir[64];
    snprintf(lowerdir, sizeof lowerdir, "/proc/self/fd/%d", directory);
    snprintf(upperdir, sizeof upperdir, "/proc/self/fd/%d/u", scratch);
    snprintf(workdir, sizeof workdir, "/proc/self/fd/%d/w", scratch);
    bool made = lay_option(context, "index", "on") && lay_option(context, "lowerdir", lowerdir) && lay_option(context, "upperdir", upperdir)
        && lay_option(context, "workdir", workdir) && lay_create_context(context);
    if (!made && errno != EBUSY)
        return lay_fail_os(err, errno, upper, NULL);
    *used = !made;
    return LAY_OK;
}

/* ---- what a file system is asked ---- */

lay_code lay_sync_filesystem(const char *directory, lay_error *err)
{
    LAY_AUTO_FD int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return fd < 0 || syncfs(fd) < 0 ? lay_fail_os(err, errno, directory, NULL) : LAY_OK;
}

lay_code lay_fs_magic(const char *path, unsigned *magic, lay_error *err)
{
    struct statfs s;
    int r;
    do
        r = statfs(path, &s);
    while (r < 0 && errno == EINTR);
    if (r < 0)
        return lay_fail_os(err, errno, path, NULL);
    *magic = (unsigned)s.f_type;
    return LAY_OK;
}

lay_code lay_dirents_typed(const char *path, int *typed, lay_error *err)
{
    DIR *d = opendir(path);
    if (!d)
        return lay_fail_os(err, errno, path, NULL);
    *typed = 1;
    for (struct dirent *e; (e = readdir(d));)
        if (e->d_type == DT_UNKNOWN)
            *typed = 0;
    closedir(d);
    return LAY_OK;
}
