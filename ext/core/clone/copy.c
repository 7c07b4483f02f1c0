/* copy.c - one thing of a tree enters, the same thing somewhere else leaves.
 *
 * A regular file shares its data (FICLONE) where the file system can; that is of one moment by itself. Where it cannot,
 * the extents that have data are copied, and a file that another process changed meanwhile is copied again.
 * The source is read without a trace: its access times stay, where that is allowed.
 */
#include "clone/copy.h"

#include "base/write_all.h"

#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/xattr.h>

#define BUFFER (128u << 10)
#define RANGE (64 << 20)      /* of one copy_file_range: between two, the call may end */
#define BY_HAND (64 << 10)    /* so little is read and written sooner than the kernel copies it */
#define AGAIN 5               /* copies more of a file that changes */
#define LOOKS 100             /* at a name that is another thing each time */

lay_code lay_copier_init(lay_copier *c, lay_copy_rules *rules, bool own_thread, lay_error *err)
{
    *c = (lay_copier){ .rules = rules, .parent = LAY_PARENT_NONE };
    lay_place_init(&c->place, false);
    c->place.marks = true;
    c->place.private_umask = own_thread && lay_place_private_umask();
    c->buffer = malloc(BUFFER);
    return c->buffer ? LAY_OK : lay_fail_nomem(err);
}

void lay_copier_free(lay_copier *c)
{
    lay_attributes_free(&c->attributes);
    lay_parent_free(&c->parent);
    free(c->first.p);
    free(c->buffer);
    c->buffer = NULL;
}

static bool stopped(const lay_copier *c) { return __atomic_load_n(&c->rules->stop, __ATOMIC_RELAXED); }

/* ---- finding ---- */

static int open_file(int dir_fd, const char *name)
{
    const int flags = O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC;
    int fd = openat(dir_fd, name, flags | O_NOATIME);
    return fd < 0 && errno == EPERM ? openat(dir_fd, name, flags) : fd;
}

lay_code lay_copy_find(lay_found *f, int dir_fd, const char *name, bool *there, lay_error *err)
{
    *f = (lay_found){ .dir_fd = dir_fd, .name = name, .fd = -1 };
    for (unsigned i = 0; i < LOOKS; i++) {
        *there = false;
        /* asked first: opening a device or a fifo already does something to it */
        if (fstatat(dir_fd, name, &f->st, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT) != 0)
            return lay_tree_gone(errno) ? LAY_OK : lay_fail_os(err, errno, name, "cannot look at it");
        *there = !S_ISDIR(f->st.st_mode);
        if (!S_ISREG(f->st.st_mode))
            return LAY_OK;
        f->fd = open_file(dir_fd, name);
        if (f->fd >= 0 && fstat(f->fd, &f->st) == 0 && S_ISREG(f->st.st_mode))
            return LAY_OK;
        int e = f->fd >= 0 || errno == ENXIO ? ENOENT : errno;      /* another thing by now: look again */
        lay_close_owner(&f->fd);
        f->fd = -1;
        if (!lay_tree_gone(e))
            return lay_fail_os(err, e, name, "cannot open it");
    }
    *there = false;
    return lay_fail(err, LAY_E_MISMATCH, "it is another kind of thing each time it is looked at");
}

/* ---- data ---- */

static ssize_t copy_by_hand(lay_copier *c, int from, int to, int64_t at, size_t n)
{
    ssize_t got = pread(from, c->buffer, n < BUFFER ? n : BUFFER, at);
    int e = got > 0 ? lay_write_all(to, c->buffer, (size_t)got, at) : 0;
    if (e == 0)
        return got;
    errno = e;
    return -1;
}

static bool range_is_refused(int e)
{
    return e == EXDEV || e == EINVAL || e == EOPNOTSUPP || e == ENOSYS || e == EPERM || e == ETXTBSY;
}

/* 0 or an errno; ends early where the file does. */
static int copy_extent(lay_copier *c, int from, int to, int64_t at, int64_t end)
{
    while (at < end && !stopped(c)) {
        size_t n = end - at < RANGE ? (size_t)(end - at) : RANGE;
        off_t in = at, out = at;
        ssize_t got = c->no_range || n <= BY_HAND ? copy_by_hand(c, from, to, at, n) : copy_file_range(from, &in, to, &out, n, 0);
        if (got < 0 && !c->no_range && n > BY_HAND && range_is_refused(errno))
            c->no_range = true;
        else if (got < 0 && errno != EINTR)
            return errno;
        else if (got == 0)
            return 0;
        else if (got > 0)
            at += got;
    }
    return 0;
}

/* *end: where the data ends that was written. 0 or an errno. */
static int copy_data(lay_copier *c, int from, int to, const struct stat *st, int64_t *end)
{
    int64_t size = st->st_size, at = 0;
    *end = 0;
    while (at < size && !stopped(c)) {
        int64_t data = lseek(from, at, SEEK_DATA);
        if (data < 0 && errno == ENXIO)
            break;
        int64_t hole = data < 0 ? -1 : lseek(from, data, SEEK_HOLE);
        if (data < 0)
            data = at;          /* it does not tell its holes */
        if (hole < 0 || hole > size)
            hole = size;
        int e = data < hole ? copy_extent(c, from, to, data, hole) : 0;
        if (e)
            return e;
        *end = hole;
        at = hole;
    }
    return 0;
}

static bool has_changed(const struct stat *a, const struct stat *b)
{
    return a->st_size != b->st_size || a->st_mtim.tv_sec != b->st_mtim.tv_sec || a->st_mtim.tv_nsec != b->st_mtim.tv_nsec
        || a->st_ctim.tv_sec != b->st_ctim.tv_sec || a->st_ctim.tv_nsec != b->st_ctim.tv_nsec;
}

/* The data of f->fd, which is not empty, into the empty file `to`. */
static lay_code copy_file(lay_copier *c, lay_found *f, int to, bool *unsteady, lay_error *err)
{
    for (unsigned i = 0;; i++) {
        int64_t end;
        struct stat after;
        int e = copy_data(c, f->fd, to, &f->st, &end);
        if (e)
            return lay_fail_os(err, e, f->name, "cannot copy the file");
        if ((end < f->st.st_size && ftruncate(to, f->st.st_size) != 0) || fstat(f->fd, &after) != 0)
            return lay_fail_os(err, errno, f->name, "cannot copy the file");
        if (!has_changed(&f->st, &after) || stopped(c))
            return LAY_OK;
        if (i == AGAIN) {
            *unsteady = true;
            return LAY_OK;
        }
        f->st = after;
        if (ftruncate(to, 0) != 0)
            return lay_fail_os(err, errno, f->name, "cannot copy the file");
    }
}

static lay_code give_data(lay_copier *c, lay_found *f, int to, bool *unsteady, lay_error *err)
{
    if (f->st.st_size == 0)
        return LAY_OK;
    if (!__atomic_load_n(&c->rules->no_reflink, __ATOMIC_RELAXED)) {
        if (ioctl(to, FICLONE, f->fd) == 0)
            return LAY_OK;
        if (errno == EOPNOTSUPP || errno == EXDEV || errno == ENOTTY)
            __atomic_store_n(&c->rules->no_reflink, 1, __ATOMIC_RELAXED);
        else if (errno != EINVAL && errno != ETXTBSY)       /* this one file cannot: of another kind of storage, a swap file */
            return lay_fail_os(err, errno, f->name, "cannot share the file's data");
    }
    return copy_file(c, f, to, unsteady, err);
}

/* ---- making ---- */

static lay_code read_meta(lay_copier *c, lay_meta *m, const lay_bearer *thing, const struct stat *st, lay_error *err)
{
    lay_attributes *a = &c->attributes;
    *m = (lay_meta){ .mode = st->st_mode & 07777, .uid = st->st_uid, .gid = st->st_gid, .times = { st->st_atim, st->st_mtim } };
    if (lay_attributes_list(a, thing, err))
        return err->code;
    if (a->len == 0)
        return LAY_OK;
    if (lay_attributes_read_all(a, thing, (c->rules->flags & LAY_CLONE_USERXATTR) != 0, err))
        return err->code;
    m->xattrs = a->xattrs;
    m->nxattrs = a->count;
    for (size_t i = 0; i < a->count; i++)
        m->acl |= strcmp(a->xattrs[i].name, LAY_ACL_ACCESS) == 0;
    return LAY_OK;
}

static lay_code make_file(lay_copier *c, lay_found *f, int to_fd, const lay_meta *m, bool *unsteady, lay_error *err)
{
    LAY_AUTO_FD int to = lay_place_create(&c->place, to_fd, f->name, m);
    if (to < 0)
        return lay_fail_os(err, errno, f->name, "cannot make the file");
    struct stat first = f->st;
    if (give_data(c, f, to, unsteady, err))
        return err->code;
    if (!has_changed(&first, &f->st))
        return lay_place_finish(&c->place, to, 0, 0, m, err);
    lay_meta last;                      /* it was copied again: not as it was made */
    lay_bearer thing = { .fd = f->fd };
    if (read_meta(c, &last, &thing, &f->st, err))
        return err->code;
    last.inherits = true;
    return lay_place_finish(&c->place, to, 0, 0, &last, err);
}

static lay_code make_symlink(lay_copier *c, lay_found *f, int to_fd, const lay_meta *m, bool *made, lay_error *err)
{
    char target[PATH_MAX];
    ssize_t n = readlinkat(f->dir_fd, f->name, target, sizeof target);
    if (n < 0 || (size_t)n == sizeof target)
        return n < 0 && (lay_tree_gone(errno) || errno == EINVAL) ? LAY_OK
            : lay_fail_os(err, n < 0 ? errno : ENAMETOOLONG, f->name, "cannot read the link");
    target[n] = '\0';
    *made = true;
    return lay_place_symlink(&c->place, to_fd, f->name, target, m, err);
}

lay_code lay_copy_make(lay_copier *c, lay_found *f, int to_fd, bool *made, bool *unsteady, lay_error *err)
{
    lay_meta m;
    lay_bearer thing = { .fd = f->fd, .dir_fd = f->dir_fd, .name = f->name };
    mode_t kind = f->st.st_mode & S_IFMT;
    *made = *unsteady = false;
    if (kind == S_IFSOCK)
        return LAY_OK;
    lay_code code = read_meta(c, &m, &thing, &f->st, err);
    if (code == LAY_E_OS && f->fd < 0 && lay_tree_gone(err->sys_errno)) {
        lay_error_clear(err);
        return LAY_OK;
    }
    if (code == LAY_OK && kind == S_IFREG) {
        *made = true;
        code = make_file(c, f, to_fd, &m, unsteady, err);
    } else if (code == LAY_OK && kind == S_IFLNK) {
        code = make_symlink(c, f, to_fd, &m, made, err);
    } else if (code == LAY_OK) {
        code = lay_place_node(&c->place, to_fd, f->name, kind, f->st.st_rdev, &m, made, err);
    }
    return code ? lay_error_path(err, f->name, strlen(f->name)) : LAY_OK;
}

lay_code lay_copy_prepare(int to_fd, lay_error *err)
{
    if (fremovexattr(to_fd, LAY_ACL_DEFAULT) != 0 && errno != ENODATA && errno != EOPNOTSUPP)
        return lay_fail_fd(err, errno, to_fd, "cannot remove the directory's ACL");
    return fchmod(to_fd, 0700) != 0 ? lay_fail_fd(err, errno, to_fd, "cannot set the directory's mode") : LAY_OK;
}

lay_code lay_copy_directory(lay_copier *c, int from_fd, const struct stat *st, int to_fd, bool given, lay_error *err)
{
    lay_meta m;
    lay_bearer thing = { .fd = from_fd };
    lay_place place = c->place;
    place.private_umask = false;        /* so that the mode is set */
    if (read_meta(c, &m, &thing, st, err))
        return err->code;
    m.inherits = given;
    return lay_place_finish(&place, to_fd, 0, 0, &m, err);
}
