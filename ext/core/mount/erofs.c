/* erofs.c - fsopen("erofs") and mount(2), and LOOP_CONFIGURE for files that the kernel does not mount themselves. */
#include "mount/erofs.h"

#include "base/error.h"
#include "mount/calls.h"

#include <linux/loop.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>

enum { BLOCK = 512, NAME_ROOM = 256, ATTEMPTS = 64 };
enum { READ_ONLY_MOUNT = 1 };             /* fsmount */

/* ---- loop devices ---- */

/* Another process took the number, or removed it, since it was given to us. */
static bool is_taken(int e)
{
    return e == EBUSY || e == ENXIO || e == ENODEV || e == ENOENT;
}

lay_code lay_loop_attach(const lay_erofs_file *file, int *device, unsigned *number, lay_error *err)
{
    LAY_AUTO_FD int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
    if (control < 0)
        return lay_fail_os(err, errno, "/dev/loop-control", NULL);
    struct loop_config c = {
        .fd = (uint32_t)file->fd,
        .block_size = BLOCK,
        .info = { .lo_flags = LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR },
    };
    snprintf((char *)c.info.lo_file_name, sizeof c.info.lo_file_name, "%s", file->path);
    char path[32] = "";
    int e = EBUSY;
    for (int i = 0; i < ATTEMPTS && is_taken(e); i++) {
        int n = ioctl(control, LOOP_CTL_GET_FREE);
        if (n < 0)
            return lay_fail_os(err, errno, "/dev/loop-control", NULL);
        snprintf(path, sizeof path, "/dev/loop%d", n);
        LAY_AUTO_FD int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd >= 0 && ioctl(fd, LOOP_CONFIGURE, &c) == 0) {
            *device = lay_steal_fd(&fd);
            *number = (unsigned)n;
            return LAY_OK;
        }
        e = errno;
    }
    return lay_fail_os(err, e, path, NULL);
}

/* ---- what the kernel is told ---- */

typedef struct {
    int device;                           /* a loop device, open until the mount stands; else -1 */
    char name[NAME_ROOM];
} told;

static bool leads_to(const char *path, const struct stat *s)
{
    struct stat found;
    return path[0] == '/' && strlen(path) < NAME_ROOM && lstat(path, &found) == 0 && found.st_dev == s->st_dev && found.st_ino == s->st_ino;
}

static lay_code tell(const lay_erofs_file *file, int loop, told *out, lay_error *err)
{
    struct stat s;
    unsigned number;
    out->device = -1;
    if (fstat(file->fd, &s) < 0)
        return lay_fail_os(err, errno, file->path, NULL);
    if (!S_ISREG(s.st_mode))
        return lay_fail_os(err, S_ISDIR(s.st_mode) ? EISDIR : ENOTBLK, file->path, NULL);
    if (loop) {
        if (lay_loop_attach(file, &out->device, &number, err))
            return err->code;
        snprintf(out->name, sizeof out->name, "/dev/loop%u", number);
    } else if (leads_to(file->path, &s)) {
        snprintf(out->name, sizeof out->name, "%s", file->path);
    } else {
        snprintf(out->name, sizeof out->name, "/proc/self/fd/%d", file->fd);
    }
    return LAY_OK;
}

/* ---- mounts ---- */

/* The kernel explains in lines "e erofs: ...": the last one counts. */
static lay_code fail_with_log(lay_error *err, int sys_errno, const char *path, int context)
{
    char line[256];
    lay_fail_os(err, sys_errno, path, NULL);
    for (ssize_t n; (n = read(context, line, sizeof line - 1)) > 0;) {
        while (n > 0 && line[n - 1] == '\n')
            n--;
        line[n] = '\0';
        if (n > 2 && line[0] == 'e' && line[1] == ' ')
            snprintf(err->text, sizeof err->text, "%s", line + 2);
    }
    return err->code;
}

static lay_code mount_new(const lay_erofs_mount *m, const told *files, int *detached, lay_error *err)
{
    const char *path = m->files[0].path;
    LAY_AUTO_FD int context = lay_open_context("erofs");
    if (context < 0)
        return lay_fail_os(err, errno, path, NULL);
    bool set = lay_option(context, "source", files[0].name) && lay_flag(context, "ro");
    set = set && (!m->directio || lay_flag(context, "directio"));
    for (size_t i = 1; set && i < m->n_files; i++)
        set = lay_option(context, "device", files[i].name);
    bool made = set && lay_create_context(context);
    LAY_AUTO_FD int mounted = made ? (int)syscall(SYS_fsmount, context, FS_CLOEXEC, READ_ONLY_MOUNT) : -1;
    if (mounted < 0)
        return fail_with_log(err, errno, path, context);
    if (detached)
        *detached = lay_steal_fd(&mounted);
    else if (lay_move_mount(mounted, m->target, FROM_EMPTY_PATH) < 0)
        return lay_fail_os(err, errno, m->target, NULL);
    return LAY_OK;
}

/* By one call, with all options in one text. */
static lay_code mount_old(const lay_erofs_mount *m, const told *files, lay_error *err)
{
    size_t room = m->n_files * (NAME_ROOM + sizeof ",device=") + sizeof "directio";
    LAY_AUTO_FREE char *text = malloc(room);
    if (!text)
        return lay_fail_nomem(err);
    size_t size = (size_t)snprintf(text, room, "%s", m->directio ? "directio" : "");
    for (size_t i = 1; i < m->n_files; i++)
        size += (size_t)snprintf(text + size, room - size, "%sdevice=%s", size ? "," : "", files[i].name);
    return mount(files[0].name, m->target, "erofs", MS_RDONLY, text) < 0 ? lay_fail_os(err, errno, m->files[0].path, NULL) : LAY_OK;
}

static lay_code mount_told(const lay_erofs_mount *m, const told *files, int *detached, lay_error *err)
{
    lay_code code = mount_new(m, files, detached, err);
    return code == LAY_E_OS && err->sys_errno == ENOSYS && !detached ? mount_old(m, files, err) : code;
}

static lay_code mount_files(const lay_erofs_mount *m, int *detached, lay_error *err)
{
    LAY_AUTO_FREE told *files = calloc(m->n_files, sizeof *files);
    if (!files)
        return lay_fail_nomem(err);
    size_t n = 0;
    lay_code code = LAY_OK;
    while (!code && n < m->n_files) {
        code = tell(&m->files[n], m->loop, &files[n], err);
        n++;
    }
    if (!code)
        code = mount_told(m, files, detached, err);
    for (size_t i = 0; i < n; i++)
        lay_close_owner(&files[i].device);
    return code;
}

lay_code lay_mount_erofs(const lay_erofs_mount *m, lay_error *err)
{
    return mount_files(m, NULL, err);
}

lay_code lay_make_erofs(const lay_erofs_mount *m, int *detached, lay_error *err)
{
    return mount_files(m, detached, err);
}
