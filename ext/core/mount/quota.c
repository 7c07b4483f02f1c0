/* quota.c - project quotas as XFS has them: ids by ioctl on a directory, limits by quotactl on its device. */
#include "mount/mount.h"

#include "base/error.h"

#include <fcntl.h>
#include <linux/dqblk_xfs.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/quota.h>
#include <sys/syscall.h>

#ifndef PRJQUOTA
#define PRJQUOTA 2
#endif

static lay_code with_fsxattr(const char *directory, unsigned long request, struct fsxattr *x, lay_error *err)
{
    LAY_AUTO_FD int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0 || ioctl(fd, request, x) < 0)
        return lay_fail_os(err, errno, directory, NULL);
    return LAY_OK;
}

static lay_code quota_call(int command, const char *device, unsigned id, void *address, lay_error *err)
{
    if (syscall(SYS_quotactl, QCMD(command, PRJQUOTA), device, id, address) < 0)
        return lay_fail_os(err, errno, device, NULL);
    return LAY_OK;
}

lay_code lay_quota_get_project(const char *directory, unsigned *project, lay_error *err)
{
    struct fsxattr x = { 0 };
    if (with_fsxattr(directory, FS_IOC_FSGETXATTR, &x, err))
        return err->code;
    *project = x.fsx_projid;
    return LAY_OK;
}

lay_code lay_quota_set_project(const char *directory, unsigned project, lay_error *err)
{
    struct fsxattr x = { 0 };
    if (with_fsxattr(directory, FS_IOC_FSGETXATTR, &x, err))
        return err->code;
    x.fsx_projid = project;
    x.fsx_xflags |= FS_XFLAG_PROJINHERIT;
    return with_fsxattr(directory, FS_IOC_FSSETXATTR, &x, err);
}

lay_code lay_quota_set_limit(const char *device, unsigned project, uint64_t bytes, lay_error *err)
{
    struct fs_disk_quota d = {
        .d_version = FS_DQUOT_VERSION, .d_id = project, .d_flags = FS_PROJ_QUOTA, .d_fieldmask = FS_DQ_BHARD | FS_DQ_BSOFT,
        .d_blk_hardlimit = bytes / 512, .d_blk_softlimit = bytes / 512,
    };
    return quota_call(Q_XSETQLIM, device, project, &d, err);
}

lay_code lay_quota_state(const char *device, int *on, lay_error *err)
{
    struct fs_quota_stat s = { 0 };
    if (quota_call(Q_XGETQSTAT, device, 0, &s, err))
        return err->code;
    *on = (s.qs_flags & FS_QUOTA_PDQ_ACCT) && (s.qs_flags & FS_QUOTA_PDQ_ENFD);
    return LAY_OK;
}
