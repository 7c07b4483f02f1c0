/* switch.c - MNT_EXPIRE asks who uses a mount; MOVE_MOUNT_BENEATH and umount2 put another one in its place. */
#include "mount/switch.h"

#include "base/error.h"
#include "mount/calls.h"

#include <sys/mount.h>
#include <time.h>

/* A look-up under way is a use, too: what ends within this time is tried again. */
#define PATIENCE_NS 1000000

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void pause_a_little(void)
{
    nanosleep(&(struct timespec){ .tv_nsec = 20000 }, NULL);
}

int lay_can_switch(void)
{
    /* Flags are looked at before descriptors. */
    if (syscall(SYS_move_mount, -1, "", -1, "", FROM_EMPTY_PATH | TO_EMPTY_PATH | BENEATH) == 0 || errno != EBADF)
        return 0;
    LAY_AUTO_FD int context = lay_open_context("overlay");
    return context >= 0 && lay_option(context, "lowerdir+", "/");
}

/* Any use of a mount takes the mark away that MNT_EXPIRE leaves; a second MNT_EXPIRE with the mark there unmounts. */
static void clear_mark(const char *path)
{
    int fd = open(path, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd >= 0)
        close(fd);
}

lay_code lay_mount_is_used(const char *path, int *inside, lay_error *err)
{
    for (int64_t until = now_ns() + PATIENCE_NS;; pause_a_little()) {
        clear_mark(path);
        int e = umount2(path, MNT_EXPIRE | UMOUNT_NOFOLLOW) < 0 ? errno : 0;
        clear_mark(path);
        *inside = e == EBUSY;
        if (e == EAGAIN)
            return LAY_OK;
        if (e != EBUSY)
            return lay_fail_os(err, e ? e : ESTALE, path, NULL);
        if (now_ns() > until)
            return LAY_OK;
    }
}

lay_code lay_switch_mount(const char *path, int mount, int lazy, int *old, int *done, int *busy, lay_error *err)
{
    *busy = *done = 0;
    *old = -1;
    LAY_AUTO_FD int clone = (int)syscall(
        SYS_open_tree, AT_FDCWD, path, CLONE_OF_A_MOUNT | CLOSES_ON_EXEC | AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT);
    if (clone < 0 || lay_move_mount(mount, path, FROM_EMPTY_PATH | BENEATH) < 0)
        return lay_fail_os(err, errno, path, NULL);
    for (int64_t until = now_ns() + PATIENCE_NS;; pause_a_little()) {
        if (umount2(path, UMOUNT_NOFOLLOW | (lazy ? MNT_DETACH : 0)) == 0) {
            *old = lay_steal_fd(&clone);
            *done = 1;
            return LAY_OK;
        }
        if (errno != EBUSY)
            return lay_fail_os(err, errno, path, NULL);
        if (now_ns() > until) {
            *busy = 1;
            return LAY_OK;
        }
    }
}

lay_code lay_stop_writes(int mount, int *busy, lay_error *err)
{
    LAY_AUTO_FD int context = (int)syscall(SYS_fspick, mount, "", FS_CLOEXEC | PICK_EMPTY_PATH);
    if (context < 0 || !lay_flag(context, "ro"))
        return lay_fail_os(err, errno, NULL, NULL);
    for (int64_t until = now_ns() + PATIENCE_NS;; pause_a_little()) {
        *busy = syscall(SYS_fsconfig, context, CMD_RECONFIGURE, NULL, NULL, 0) < 0;
        if (!*busy)
            return LAY_OK;
        if (errno != EBUSY)
            return lay_fail_os(err, errno, NULL, NULL);
        if (now_ns() > until)
            return LAY_OK;
    }
}
