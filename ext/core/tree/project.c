/* project.c - a whole tree goes over to another project of the file system's quotas.
 *
 * What can be opened is asked by ioctl; of links, devices and the like, which nothing opens, the kernel can be told since
 * Linux 6.17: before that they stay where they are, and only a long link has a block.
 */
#include "tree/sweep.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#ifndef SYS_file_getattr
#define SYS_file_getattr 468
#define SYS_file_setattr 469
#endif

typedef struct moving {
    lay_sweep sweep;          /* first */
    uint32_t project;
    bool unknown;             /* the kernel has no file_setattr */
} moving;

typedef struct attributes { uint64_t xflags; uint32_t extsize, nextents, project, cowextsize; } attributes;   /* struct file_attr */

/* 0 or an errno. What belongs to no project hands none on. */
static int move_open(int fd, uint32_t project)
{
    struct fsxattr x = { 0 };
    if (ioctl(fd, FS_IOC_FSGETXATTR, &x) < 0)
        return errno;
    uint32_t flags = project == 0 ? x.fsx_xflags & ~(uint32_t)FS_XFLAG_PROJINHERIT : x.fsx_xflags;
    if (x.fsx_projid == project && x.fsx_xflags == flags)
        return 0;
    x.fsx_projid = project;
    x.fsx_xflags = flags;
    return ioctl(fd, FS_IOC_FSSETXATTR, &x) < 0 ? errno : 0;
}

static int move_closed(moving *m, int fd, const char *name)
{
    attributes a = { 0 };
    if (m->unknown || syscall(SYS_file_getattr, fd, name, &a, sizeof a, AT_SYMLINK_NOFOLLOW) < 0) {
        m->unknown = m->unknown || errno == ENOSYS;
        return m->unknown || errno == EOPNOTSUPP || errno == ENOTTY ? 0 : errno;
    }
    if (a.project == m->project)
        return 0;
    a.project = m->project;
    return syscall(SYS_file_setattr, fd, name, &a, sizeof a, AT_SYMLINK_NOFOLLOW) < 0 && errno != EOPNOTSUPP && errno != ENOTTY ? errno : 0;
}

static lay_code move_one(lay_sweep *s, int fd, const char *name, uint8_t type, lay_error *err)
{
    moving *m = (moving *)s;
    struct stat st;
    if (type == DT_UNKNOWN && fstatat(fd, name, &st, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT) == 0)
        type = S_ISDIR(st.st_mode) ? DT_DIR : S_ISREG(st.st_mode) ? DT_REG : DT_LNK;
    int e;
    if (type == DT_DIR || type == DT_REG) {
        LAY_AUTO_FD int file = openat(fd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
        e = file < 0 ? errno : move_open(file, m->project);
    } else {
        e = move_closed(m, fd, name);
    }
    if (e != 0)
        return e == ENOENT ? LAY_OK : lay_sweep_fail(s, e, name, "cannot set its project", err);
    return type == DT_DIR ? lay_sweep_wait(s, name, err) : LAY_OK;
}

lay_code lay_tree_set_project(int root_fd, unsigned project, lay_error *err)
{
    moving m = { .sweep = { .trail = LAY_TRAIL_NONE, .one = move_one }, .project = project };
    lay_error_clear(err);
    if (lay_sweep_over(&m.sweep, root_fd, err))
        return err->code;
    int e = move_open(root_fd, project);              /* last: it tells that all is done */
    return e ? lay_fail_fd(err, e, root_fd, "cannot set its project") : LAY_OK;
}
