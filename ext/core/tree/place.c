/* place.c - making one file, link, node or directory and giving it its owner, marks, mode and times. */
#include "tree/place.h"

#include "base/write_all.h"
#include "tree/attributes.h"
#include "tree/whiteout.h"

#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>

#define HOLE 4096u
#define XATTR_MOST (64u << 10)    /* the kernel's bound */

bool lay_place_private_umask(void)
{
    if (unshare(CLONE_FS) != 0)
        return false;
    umask(0);
    return true;
}

void lay_place_init(lay_place *p, bool userns)
{
    p->uid = geteuid();
    p->gid = getegid();
    p->private_umask = false;
    p->userns = userns;
    p->marks = false;
}

/* moby takes times outside of 1970 .. 2262-04-11T23:47:16.854775807Z as 1970. */
static struct timespec bounded(lay_time t)
{
    bool out = t.sec < 0 || t.sec > 9223372036 || (t.sec == 9223372036 && t.nsec > 854775807);
    return out ? (struct timespec){ 0, 0 } : (struct timespec){ t.sec, t.nsec };
}

lay_code lay_meta_of(lay_meta *m, const lay_tar_entry *e, lay_error *err)
{
    if (e->uid < 0 || e->gid < 0 || e->uid >= UINT32_MAX || e->gid >= UINT32_MAX) {
        lay_fail_at(err, LAY_E_TAR, e->offset, "archive/tar: invalid tar header: owner %lld:%lld is out of range", (long long)e->uid, (long long)e->gid);
        return lay_error_path(err, e->name, e->name_len);
    }
    lay_time access = e->mtime;
    if (e->has_atime && (e->atime.sec > access.sec || (e->atime.sec == access.sec && e->atime.nsec > access.nsec)))
        access = e->atime;
    *m = (lay_meta){ .mode = (mode_t)(e->mode & 07777), .uid = (uid_t)e->uid, .gid = (gid_t)e->gid,
                     .times = { bounded(access), bounded(e->mtime) }, .xattrs = e->xattrs, .nxattrs = e->nxattrs };
    for (size_t i = 0; i < e->nxattrs; i++)
        m->acl |= !strcmp(e->xattrs[i].name, LAY_ACL_ACCESS);
    return LAY_OK;
}

static bool owner_differs(const lay_place *p, const lay_meta *m)
{
    return m->inherits || m->uid != p->uid || m->gid != p->gid;
}

static bool mode_needs_setting(const lay_place *p, const lay_meta *m)
{
    return m->inherits || m->acl || !p->private_umask || m->mode & (S_ISUID | S_ISGID);
}

static lay_code chown_failed(const lay_place *p, int e, const lay_meta *m, lay_error *err)
{
    char what[160];
    snprintf(what, sizeof what, "failed to Lchown for UID %u, GID %u%s", m->uid, m->gid,
             p->userns && e == EINVAL ? " (try increasing the number of subordinate IDs in /etc/subuid and /etc/subgid)" : "");
    return lay_fail_os(err, e, NULL, what);
}

static int drop_xattr(int fd, const char *path, const char *name)
{
    int r = path ? lremovexattr(path, name) : fremovexattr(fd, name);
    return r == 0 || errno == ENODATA || errno == EOPNOTSUPP || errno == EPERM ? 0 : -1;
}

/* What is made in a directory with a default ACL has ACLs that no tar gave it. */
static lay_code drop_inherited(int fd, const char *path, const lay_meta *m, lay_error *err)
{
    if (m->inherits && (drop_xattr(fd, path, LAY_ACL_ACCESS) || drop_xattr(fd, path, LAY_ACL_DEFAULT)))
        return lay_fail_os(err, errno, NULL, "cannot remove an inherited ACL");
    return LAY_OK;
}

static lay_code set_xattrs(const lay_place *p, int fd, const char *path, const lay_meta *m, lay_error *err)
{
    if (drop_inherited(fd, path, m, err))
        return err->code;
    for (size_t i = 0; i < m->nxattrs; i++) {
        const lay_xattr *x = &m->xattrs[i];
        if (!p->marks && lay_attribute_is_overlays(x->name))
            continue;
        int r = path ? lsetxattr(path, x->name, x->value, x->len, 0) : fsetxattr(fd, x->name, x->value, x->len, 0);
        if (r != 0 && errno != EPERM) {           /* EPERM: user.* on a link or node, trusted.* without the right */
            int e = errno;
            char what[300];
            snprintf(what, sizeof what, "cannot set xattr %.200s", x->name);
            return lay_fail_os(err, e, NULL, what);
        }
    }
    return LAY_OK;
}

/* There is no setxattrat before 6.13; a path through our own descriptor does not follow its last part. */
static lay_code set_xattrs_at(const lay_place *p, int dir_fd, const char *name, const lay_meta *m, lay_error *err)
{
    char path[64 + 256];
    if (!m->nxattrs && !m->inherits)
        return LAY_OK;
    snprintf(path, sizeof path, "/proc/self/fd/%d/%s", dir_fd, name);
    return set_xattrs(p, -1, path, m, err);
}

int lay_place_create(const lay_place *p, int dir_fd, const char *name, const lay_meta *m)
{
    mode_t mode = mode_needs_setting(p, m) ? (m->mode & 0700) | 0200 : m->mode & 01777;
    int fd;
    do
        fd = openat(dir_fd, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC | O_NOCTTY, mode);
    while (fd < 0 && errno == EINTR);
    return fd;
}

static bool block_is_zero(const uint8_t *p)
{
    uint64_t first;
    memcpy(&first, p, sizeof first);
    return first == 0 && memcmp(p, p + 8, HOLE - 8) == 0;
}

static int write_run(int fd, const uint8_t *p, size_t n, int64_t offset, int64_t *end)
{
    int e = lay_write_all(fd, p, n, offset);
    if (!e && n && *end < offset + (int64_t)n)
        *end = offset + (int64_t)n;
    return e;
}

int lay_place_write(int fd, const uint8_t *p, size_t n, int64_t offset, int64_t *written_end)
{
    size_t to_first = (size_t)(-offset & (HOLE - 1));
    if (n < to_first + HOLE)
        return write_run(fd, p, n, offset, written_end);
    const uint8_t *run = p, *end = p + n;
    int64_t base = offset;
    const uint8_t *q = p + to_first;
    while (q < end && (size_t)(end - q) >= HOLE) {
        if (!block_is_zero(q)) {
            q += HOLE;
            continue;
        }
        int e = write_run(fd, run, (size_t)(q - run), base + (run - p), written_end);
        if (e)
            return e;
        while ((size_t)(end - q) >= HOLE && block_is_zero(q))
            q += HOLE;
        run = q;
    }
    return write_run(fd, run, (size_t)(end - run), base + (run - p), written_end);
}

lay_code lay_place_finish(const lay_place *p, int fd, int64_t end, int64_t size, const lay_meta *m, lay_error *err)
{
    if (end < size && ftruncate(fd, size) != 0)
        return lay_fail_os(err, errno, NULL, "cannot set the size");
    if (owner_differs(p, m) && fchown(fd, m->uid, m->gid) != 0)
        return chown_failed(p, errno, m, err);
    if ((m->nxattrs || m->inherits) && set_xattrs(p, fd, NULL, m, err))
        return err->code;
    if (mode_needs_setting(p, m) && fchmod(fd, m->mode) != 0)
        return lay_fail_os(err, errno, NULL, "cannot set the mode");
    if (futimens(fd, m->times) != 0)
        return lay_fail_os(err, errno, NULL, "cannot set the times");
    return LAY_OK;
}

static lay_code set_times_at(int dir_fd, const char *name, const lay_meta *m, lay_error *err)
{
    if (utimensat(dir_fd, name, m->times, AT_SYMLINK_NOFOLLOW) != 0 && errno != ENOSYS)
        return lay_fail_os(err, errno, NULL, "cannot set the times");
    return LAY_OK;
}

static lay_code set_owner_at(const lay_place *p, int dir_fd, const char *name, const lay_meta *m, lay_error *err)
{
    return fchownat(dir_fd, name, m->uid, m->gid, AT_SYMLINK_NOFOLLOW) != 0 ? chown_failed(p, errno, m, err) : LAY_OK;
}

lay_code lay_place_symlink(const lay_place *p, int dir_fd, const char *name, const char *target, const lay_meta *m, lay_error *err)
{
    if (symlinkat(target, dir_fd, name) != 0)
        return lay_fail_os(err, errno, NULL, "cannot make the symbolic link");
    if ((owner_differs(p, m) && set_owner_at(p, dir_fd, name, m, err)) || set_xattrs_at(p, dir_fd, name, m, err))
        return err->code;
    return set_times_at(dir_fd, name, m, err);
}

/* fchmodat follows links before Linux 6.6; what is no link can be opened as a path and changed through it. */
static lay_code set_mode_at(int dir_fd, const char *name, mode_t mode, lay_error *err)
{
    LAY_AUTO_FD int fd = openat(dir_fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) != 0)
        return lay_fail_os(err, errno, NULL, "cannot set the mode");
    if (S_ISLNK(st.st_mode))
        return LAY_OK;
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    return chmod(path, mode) != 0 ? lay_fail_os(err, errno, NULL, "cannot set the mode") : LAY_OK;
}

lay_code lay_place_node(const lay_place *p, int dir_fd, const char *name, mode_t type, dev_t dev, const lay_meta *m, bool *made, lay_error *err)
{
    *made = false;
    if (mknodat(dir_fd, name, type | (m->mode & 01777), dev) != 0) {
        if (p->userns && errno == EPERM)
            return LAY_OK;
        return lay_fail_os(err, errno, NULL, type == S_IFIFO ? "cannot make the fifo" : "cannot make the device node");
    }
    *made = true;
    if ((owner_differs(p, m) && set_owner_at(p, dir_fd, name, m, err)) || set_xattrs_at(p, dir_fd, name, m, err)
        || (mode_needs_setting(p, m) && set_mode_at(dir_fd, name, m->mode, err)))
        return err->code;
    return set_times_at(dir_fd, name, m, err);
}

/* Xattrs that follow from who made the directory, and where, are not a tar's to take away. */
static bool stays(const char *name)
{
    return lay_attribute_is_overlays(name) || (lay_begins(name, "security.") && strcmp(name, LAY_CAPABILITY) != 0);
}

/* The names of fd's xattrs, one behind the other, each with its NUL; *names NULL: none. */
static lay_code list_xattrs(int fd, char **names, size_t *n, lay_error *err)
{
    *names = NULL;
    for (;;) {
        ssize_t need = flistxattr(fd, NULL, 0);
        if (need == 0 || (need < 0 && errno == EOPNOTSUPP))
            return LAY_OK;
        char *list = need < 0 ? NULL : malloc((size_t)need);
        if (need >= 0 && !list)
            return lay_fail_nomem(err);
        ssize_t got = need < 0 ? -1 : flistxattr(fd, list, (size_t)need);
        if (got >= 0) {
            *names = list;
            *n = (size_t)got;
            return LAY_OK;
        }
        int e = errno;
        free(list);
        if (e != ERANGE)
            return lay_fail_os(err, e, NULL, "cannot list xattrs");
    }
}

/* Remove the xattrs that m has not. */
static lay_code keep_xattrs_of(int fd, const lay_meta *m, lay_error *err)
{
    LAY_AUTO_FREE char *names = NULL;
    size_t n = 0;
    if (list_xattrs(fd, &names, &n, err) || !names)
        return err->code;
    for (const char *name = names; name < names + n; name += strlen(name) + 1) {
        bool keep = stays(name);
        for (size_t i = 0; i < m->nxattrs && !keep; i++)
            keep = !strcmp(m->xattrs[i].name, name);
        if (!keep && drop_xattr(fd, NULL, name) != 0)
            return lay_fail_os(err, errno, NULL, "cannot remove an xattr");
    }
    return LAY_OK;
}

lay_code lay_place_as(int to, const lay_lower *lower, lay_lower_dir from, lay_error *err)
{
    struct stat st;
    if (lower->ops->stat(lower, from, ".", &st) != 0)
        return lay_fail_os(err, errno, NULL, "cannot look at the directory below");
    if (fchown(to, st.st_uid, st.st_gid) != 0)
        return lay_fail_os(err, errno, NULL, "cannot set the directory's owner");
    LAY_AUTO_FREE char *names = malloc(2 * XATTR_MOST);
    if (!names)
        return lay_fail_nomem(err);
    char *value = names + XATTR_MOST;
    ssize_t n = lower->ops->xattr(lower, from, ".", NULL, names, XATTR_MOST);
    if (n < 0)
        return lay_fail_os(err, errno, NULL, "cannot list xattrs");
    for (const char *name = names; name < names + n; name += strlen(name) + 1) {
        ssize_t len = lay_attribute_is_overlays(name) ? -1 : lower->ops->xattr(lower, from, ".", name, value, XATTR_MOST);
        if (len < 0 || (len == 0 && errno != 0))
            continue;
        if (fsetxattr(to, name, value, (size_t)len, 0) != 0 && errno != EPERM && errno != EOPNOTSUPP)
            return lay_fail_os(err, errno, NULL, "cannot copy an xattr of the directory below");
    }
    struct timespec times[2] = { st.st_atim, st.st_mtim };
    if (fchmod(to, st.st_mode & 07777) != 0)
        return lay_fail_os(err, errno, NULL, "cannot set the directory's mode");
    return futimens(to, times) != 0 ? lay_fail_os(err, errno, NULL, "cannot set the directory's times") : LAY_OK;
}

lay_code lay_place_directory(const lay_place *p, int dir_fd, const char *name, bool is_new, const lay_meta *m, lay_error *err)
{
    bool owner = !is_new || owner_differs(p, m), mode = !is_new || mode_needs_setting(p, m);
    if (owner && set_owner_at(p, dir_fd, name, m, err))
        return err->code;
    if (!m->nxattrs && !mode)
        return LAY_OK;                        /* what is inherited needs the mode set, too */
    LAY_AUTO_FD int fd = openat(dir_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return lay_fail_os(err, errno, NULL, "cannot open the directory");
    if ((!is_new && keep_xattrs_of(fd, m, err)) || set_xattrs(p, fd, NULL, m, err))
        return err->code;
    return mode && fchmod(fd, m->mode) != 0 ? lay_fail_os(err, errno, NULL, "cannot set the mode") : LAY_OK;
}

lay_code lay_place_link_meta(const lay_place *p, int dir_fd, const char *name, const lay_meta *m, bool *whiteout, lay_error *err)
{
    struct stat st;
    if (fstatat(dir_fd, name, &st, AT_SYMLINK_NOFOLLOW) != 0)
        return lay_fail_os(err, errno, NULL, "cannot look at the hard link");
    *whiteout = lay_stat_is_whiteout(st.st_mode, st.st_rdev);
    if (*whiteout)
        return LAY_OK;
    bool owner = st.st_uid != m->uid || st.st_gid != m->gid;
    lay_meta given = *m;
    given.inherits = false;                   /* a file that was there inherits nothing by one more name */
    if ((owner && set_owner_at(p, dir_fd, name, m, err)) || set_xattrs_at(p, dir_fd, name, &given, err))
        return err->code;
    if (S_ISLNK(st.st_mode))
        return LAY_OK;
    if ((owner || m->acl || (st.st_mode & 07777) != m->mode) && set_mode_at(dir_fd, name, m->mode, err))
        return err->code;
    return set_times_at(dir_fd, name, m, err);
}
