#include "mount/mount.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/quota.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>
#include <linux/fs.h>
#include <linux/dqblk_xfs.h>

/* The new mount calls have the same numbers on every architecture; old C libraries lack their names. */
#ifndef SYS_move_mount
#define SYS_move_mount 429
#endif
#ifndef SYS_fsopen
#define SYS_fsopen 430
#define SYS_fsconfig 431
#define SYS_fsmount 432
#endif
enum {
    SET_FLAG = 0, SET_STRING = 1, CMD_CREATE = 6,      /* fsconfig */
    FS_CLOEXEC = 1, FROM_EMPTY_PATH = 4                /* fsopen and fsmount; move_mount */
};

static int set_string(int fs, const char *key, const char *value)
{
    return syscall(SYS_fsconfig, fs, SET_STRING, key, value, 0) < 0 ? -errno : 0;
}

/* What the kernel has to say about a failure: "e overlay: ..." lines, the last one counts. */
static void read_log(int fs, char *log, size_t log_size)
{
    char line[256];
    ssize_t n;
    while ((n = read(fs, line, sizeof line - 1)) > 0) {
        line[n] = '\0';
        while (n > 0 && line[n - 1] == '\n')
            line[--n] = '\0';
        if (log_size)
            snprintf(log, log_size, "%s", n > 2 && line[1] == ' ' ? line + 2 : line);
    }
}

static int configure(int fs, const lay_overlay *o)
{
    int e = set_string(fs, "source", "overlay");
    for (size_t i = 0; !e && i < o->n_off; i++)
        e = set_string(fs, o->off[i], "off");
    if (!e && o->userxattr && syscall(SYS_fsconfig, fs, SET_FLAG, "userxattr", NULL, 0) < 0)
        e = -errno;
    if (!e && o->follow)
        e = set_string(fs, "metacopy", "on");
    if (!e && o->follow)
        e = set_string(fs, "redirect_dir", "follow");
    for (size_t i = 0; !e && i < o->n_lowers; i++) {
        e = set_string(fs, "lowerdir+", o->lowers[i]);
        if (e == -EINVAL && i == 0)
            e = -ENOSYS;               /* a kernel before 6.8: the caller has another way */
    }
    if (!e && o->upper)
        e = set_string(fs, "upperdir", o->upper);
    if (!e && o->upper)
        e = set_string(fs, "workdir", o->work);
    if (!e && o->context)
        e = set_string(fs, "context", o->context);
    if (!e && syscall(SYS_fsconfig, fs, CMD_CREATE, NULL, NULL, 0) < 0)
        e = -errno;
    return e;
}

static int mount_new(const lay_overlay *o, char *log, size_t log_size)
{
    int fs = (int)syscall(SYS_fsopen, "overlay", FS_CLOEXEC);
    if (fs < 0)
        return -errno;
    int e = configure(fs, o);
    int made = -1;
    if (!e) {
        made = (int)syscall(SYS_fsmount, fs, FS_CLOEXEC, 0);
        if (made < 0)
            e = -errno;
    }
    if (e)
        read_log(fs, log, log_size);
    close(fs);
    if (made >= 0) {
        if (syscall(SYS_move_mount, made, "", AT_FDCWD, o->target, FROM_EMPTY_PATH) < 0)
            e = -errno;
        close(made);
    }
    return e;
}

static int mount_here(const lay_overlay *o, char *log, size_t log_size)
{
    if (!o->data)
        return mount_new(o, log, log_size);
    return mount("overlay", o->target, "overlay", 0, o->data) < 0 ? -errno : 0;
}

typedef struct { const lay_overlay *o; char *log; size_t log_size; int result; } errand;

static void *run_in_home(void *argument)
{
    errand *a = argument;
    if (unshare(CLONE_FS) < 0 || chdir(a->o->home) < 0)
        a->result = -errno;
    else
        a->result = mount_here(a->o, a->log, a->log_size);
    return NULL;
}

int lay_mount_overlay(const lay_overlay *o, char *log, size_t log_size)
{
    if (log_size)
        log[0] = '\0';
    if (!o->home)
        return mount_here(o, log, log_size);
    errand a = { o, log, log_size, -ECANCELED };
    pthread_t thread;
    int e = pthread_create(&thread, NULL, run_in_home, &a);
    if (e)
        return -e;
    pthread_join(thread, NULL);
    return a.result;
}

int lay_umount(const char *path, int flags)
{
    return umount2(path, flags) < 0 ? -errno : 0;
}

int lay_syncfs(int fd)
{
    return syncfs(fd) < 0 ? -errno : 0;
}

/* The magic number of the file system at path, or a negative errno. */
long lay_fs_magic(const char *path)
{
    struct statfs s;
    int r;
    do
        r = statfs(path, &s);
    while (r < 0 && errno == EINTR);
    return r < 0 ? -errno : (long)(s.f_type & 0xffffffffL);
}

/* 1: every entry of the directory comes with its type; 0: not; or a negative errno. */
int lay_dirents_typed(const char *path)
{
    DIR *d = opendir(path);
    if (!d)
        return -errno;
    int typed = 1;
    for (struct dirent *e; (e = readdir(d));)
        if (e->d_type == DT_UNKNOWN)
            typed = 0;
    closedir(d);
    return typed;
}

static int with_fsxattr(const char *dir, unsigned long request, struct fsxattr *x)
{
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return -errno;
    int e = ioctl(fd, request, x) < 0 ? -errno : 0;
    close(fd);
    return e;
}

int lay_quota_get_project(const char *dir, unsigned *project)
{
    struct fsxattr x = { 0 };
    int e = with_fsxattr(dir, FS_IOC_FSGETXATTR, &x);
    if (!e)
        *project = x.fsx_projid;
    return e;
}

int lay_quota_set_project(const char *dir, unsigned project)
{
    struct fsxattr x = { 0 };
    int e = with_fsxattr(dir, FS_IOC_FSGETXATTR, &x);
    if (e)
        return e;
    x.fsx_projid = project;
    x.fsx_xflags |= FS_XFLAG_PROJINHERIT;
    return with_fsxattr(dir, FS_IOC_FSSETXATTR, &x);
}

#ifndef PRJQUOTA
#define PRJQUOTA 2
#endif

static int quota_call(int command, const char *device, unsigned id, void *address)
{
    return syscall(SYS_quotactl, QCMD(command, PRJQUOTA), device, id, address) < 0 ? -errno : 0;
}

int lay_quota_set_limit(const char *device, unsigned project, unsigned long long bytes)
{
    struct fs_disk_quota d;
    memset(&d, 0, sizeof d);
    d.d_version = FS_DQUOT_VERSION;
    d.d_id = project;
    d.d_flags = FS_PROJ_QUOTA;
    d.d_fieldmask = FS_DQ_BHARD | FS_DQ_BSOFT;
    d.d_blk_hardlimit = d.d_blk_softlimit = bytes / 512;
    return quota_call(Q_XSETQLIM, device, project, &d);
}

/* 1: project quotas are counted and enforced on the device; 0: not; or a negative errno. */
int lay_quota_state(const char *device)
{
    struct fs_quota_stat s;
    memset(&s, 0, sizeof s);
    int e = quota_call(Q_XGETQSTAT, device, 0, &s);
    if (e)
        return e;
    return (s.qs_flags & FS_QUOTA_PDQ_ACCT) && (s.qs_flags & FS_QUOTA_PDQ_ENFD);
}
