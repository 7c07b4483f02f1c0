/* tree.c - opening, listing and asking beneath one descriptor: a root and a relative path enter, a
 * descriptor, a stat or a sorted list of names leaves.
 *
 * The kernel resolves (openat2) where it can; where it has no openat2, or a path is longer than the
 * kernel takes, or has more links than it follows, the same is done here component by component.
 * Source: moby resolves under chroot, go-archive under os.Root; both meanings are those of tree.h.
 */
#include "tree/tree.h"

#include "base/grow.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/xattr.h>

/* Older build hosts have neither the header nor the number. */
#ifndef SYS_openat2
#define SYS_openat2 437
#endif
#ifndef SYS_getxattrat
#define SYS_getxattrat 464
#define SYS_listxattrat 465
#endif
#define NO_XDEV 0x01u
#define NO_MAGICLINKS 0x02u
#define NO_SYMLINKS 0x04u
#define BENEATH 0x08u
#define IN_ROOT 0x10u

#define MAX_LINKS 255         /* go-archive's limit; the kernel's is 40 */
#define RETRIES 32            /* a rename elsewhere makes the kernel say EAGAIN for ".." */

struct how { uint64_t flags, mode, resolve; };
struct xattr_args { uint64_t value; uint32_t size, flags; };

static int openat2_fd(int dir_fd, const char *path, int flags, uint64_t resolve)
{
    struct how how = { .flags = (uint64_t)(unsigned)flags, .resolve = resolve };
    long fd = -1;
    for (int i = 0; i < RETRIES; i++) {
        fd = syscall(SYS_openat2, dir_fd, path, &how, sizeof how);
        if (fd >= 0 || (errno != EAGAIN && errno != EINTR))
            break;
    }
    return (int)fd;
}

/* EPERM is what container sandboxes answer for system calls they do not know. */
static bool no_openat2(int e) { return e == ENOSYS || e == EPERM; }

size_t lay_path_clean(const char *name, size_t n, char *out)
{
    bool rooted = n > 0 && name[0] == '/';
    size_t w = 0, fixed = 0;    /* out[0..fixed) is "/" or "../.." and cannot be taken back */
    if (rooted)
        out[w++] = '/', fixed = 1;
    for (size_t r = 0; r < n;) {
        const char *part = name + r;
        const char *slash = memchr(part, '/', n - r);
        size_t len = slash ? (size_t)(slash - part) : n - r;
        r += len + 1;
        if (len == 0 || (len == 1 && part[0] == '.'))
            continue;
        bool up = len == 2 && part[0] == '.' && part[1] == '.';
        if (up && w > fixed) {
            while (w > fixed && out[w - 1] != '/')
                w--;
            if (w > fixed)
                w--;
            continue;
        }
        if (up && rooted)
            continue;
        if (w > 0 && out[w - 1] != '/')
            out[w++] = '/';
        memmove(out + w, part, len);
        w += len;
        if (up)
            fixed = w;
    }
    if (w == 0)
        out[w++] = '.';
    out[w] = '\0';
    return w;
}

lay_code lay_path_relative(lay_text *out, const char *name, size_t n, lay_error *err)
{
    while (n && *name == '/') {
        name++;
        n--;
    }
    if (lay_text_room(out, n + 2, err))
        return err->code;
    lay_text_cut(out, lay_path_clean(name, n, out->p));
    return LAY_OK;
}

bool lay_path_leaves(const lay_text *t)
{
    return t->len >= 2 && t->p[0] == '.' && t->p[1] == '.' && (t->len == 2 || t->p[2] == '/');
}

size_t lay_path_base(const char *path, size_t n)
{
    const char *slash = memrchr(path, '/', n);
    return slash ? (size_t)(slash - path) + 1 : 0;
}

/* What openat2 does with NO_SYMLINKS, one component after the other. */
static int open_stepwise(int dir_fd, const char *part, int flags)
{
    LAY_AUTO_FD int at = -1;
    for (;;) {
        const char *slash = strchr(part, '/');
        if (slash == NULL)
            return openat(at < 0 ? dir_fd : at, part, flags | O_CLOEXEC);
        char name[PATH_MAX];
        size_t len = (size_t)(slash - part);
        memcpy(name, part, len);
        name[len] = '\0';
        int next = openat(at < 0 ? dir_fd : at, name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (next < 0) {
            struct stat st;
            if (errno == ENOTDIR && fstatat(at < 0 ? dir_fd : at, name, &st, AT_SYMLINK_NOFOLLOW) == 0)
                errno = S_ISLNK(st.st_mode) ? ELOOP : ENOTDIR;
            return -1;
        }
        lay_close_owner(&at);
        at = next;
        part = slash + 1;
    }
}

/* The end of the last whole component in the first PATH_MAX - 1 bytes; 0: there is none. */
static size_t chunk_end(const char *path)
{
    const char *slash = memrchr(path, '/', PATH_MAX);
    return slash ? (size_t)(slash - path) : 0;
}

/* Open path without following any link, in chunks the kernel takes. flags has O_NOFOLLOW. */
static int open_below(int root_fd, const char *path, size_t n, int flags)
{
    const uint64_t resolve = BENEATH | NO_SYMLINKS | NO_MAGICLINKS;
    LAY_AUTO_FD int at = -1;
    char part[PATH_MAX];
    for (;;) {
        bool last = n < PATH_MAX;
        size_t len = last ? n : chunk_end(path);
        if (len == 0) {
            errno = last ? ENOENT : ENAMETOOLONG;
            return -1;
        }
        memcpy(part, path, len);
        part[len] = '\0';
        int dir_fd = at < 0 ? root_fd : at;
        /* a link where a chunk happens to end is a link in the middle: ELOOP, so no O_NOFOLLOW there */
        int fd = openat2_fd(dir_fd, part, last ? flags | O_CLOEXEC : O_PATH | O_DIRECTORY | O_CLOEXEC, resolve);
        if (fd < 0 && (no_openat2(errno) || errno == EAGAIN)) {
            fd = open_stepwise(dir_fd, part, last ? flags : O_PATH | O_DIRECTORY | O_NOFOLLOW);
            struct stat st;
            if (fd < 0 && !last && errno == ENOTDIR && fstatat(dir_fd, part, &st, AT_SYMLINK_NOFOLLOW) == 0)
                errno = S_ISLNK(st.st_mode) ? ELOOP : ENOTDIR;
        }
        if (last || fd < 0)
            return fd;
        lay_close_owner(&at);
        at = fd;
        path += len + 1;
        n -= len + 1;
    }
}

int lay_tree_open_dir(int root_fd, const char *path, size_t n, int flags)
{
    flags |= O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
    return n == 0 ? openat(root_fd, ".", flags) : open_below(root_fd, path, n, flags);
}

int lay_tree_open_sub(int dir_fd, const char *name, bool *crossed)
{
    const int flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
    int fd = openat2_fd(dir_fd, name, flags, BENEATH | NO_SYMLINKS | NO_MAGICLINKS | NO_XDEV);
    *crossed = fd < 0 && errno == EXDEV;
    if (fd < 0 && (no_openat2(errno) || errno == EAGAIN || errno == EXDEV))
        fd = openat(dir_fd, name, flags);
    return fd;
}

/* A path being followed as if root were "/": what is behind us is real (no links), what is ahead may
 * grow by link targets. ".." goes back by the text and opens again from the root, so that a process
 * that moves a directory meanwhile cannot lead us out. */
typedef struct follow { int root_fd, at; char *real; size_t real_len, real_cap; char *todo; size_t next; } follow;

static int follow_reopen(follow *f)
{
    int fd = lay_tree_open_dir(f->root_fd, f->real, f->real_len, O_PATH);
    if (fd < 0)
        return -1;
    lay_close_owner(&f->at);
    f->at = fd;
    return 0;
}

static int follow_append(follow *f, const char *name, size_t len)
{
    if (!lay_reserved(&f->real, &f->real_cap, f->real_len + len + 2, 1))
        return -1;
    if (f->real_len > 0)
        f->real[f->real_len++] = '/';
    memcpy(f->real + f->real_len, name, len);
    f->real_len += len;
    f->real[f->real_len] = '\0';
    return 0;
}

static int follow_link(follow *f, int link_fd)
{
    char target[PATH_MAX];
    ssize_t len = readlinkat(link_fd, "", target, sizeof target);
    if (len < 0)
        return -1;
    if (len == 0 || (size_t)len == sizeof target) {
        errno = len == 0 ? ENOENT : ENAMETOOLONG;
        return -1;
    }
    size_t rest = strlen(f->todo + f->next);
    char *todo = malloc((size_t)len + rest + 2);
    if (todo == NULL)
        return -1;
    memcpy(todo, target, (size_t)len);
    todo[len] = '/';
    memcpy(todo + len + 1, f->todo + f->next, rest + 1);
    free(f->todo);
    f->todo = todo;
    f->next = 0;
    if (target[0] != '/')
        return 0;
    f->real_len = 0;
    return follow_reopen(f);
}

static int follow_step(follow *f, unsigned *links)
{
    const char *part = f->todo + f->next;
    size_t len = strcspn(part, "/");
    f->next += len;
    if (len == 1 && part[0] == '.')
        return 0;
    if (len == 2 && part[0] == '.' && part[1] == '.') {
        const char *slash = f->real_len > 0 ? memrchr(f->real, '/', f->real_len) : NULL;
        f->real_len = slash ? (size_t)(slash - f->real) : 0;
        return follow_reopen(f);
    }
    char name[PATH_MAX];
    if (len >= sizeof name) {
        errno = ENAMETOOLONG;
        return -1;
    }
    memcpy(name, part, len);
    name[len] = '\0';
    LAY_AUTO_FD int fd = openat(f->at, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) < 0)
        return -1;
    if (S_ISLNK(st.st_mode)) {
        if (++*links > MAX_LINKS) {
            errno = ELOOP;
            return -1;
        }
        return follow_link(f, fd);
    }
    if (!S_ISDIR(st.st_mode)) {
        errno = ENOTDIR;
        return -1;
    }
    if (follow_append(f, name, len) < 0)
        return -1;
    lay_close_owner(&f->at);
    f->at = lay_steal_fd(&fd);
    return 0;
}

static int open_following(int root_fd, const char *path, size_t n)
{
    follow f = { .root_fd = root_fd, .at = openat(root_fd, ".", O_PATH | O_DIRECTORY | O_CLOEXEC) };
    f.todo = strndup(path, n);
    unsigned links = 0;
    int r = f.at < 0 || f.todo == NULL ? -1 : 0;
    while (r == 0) {
        f.next += strspn(f.todo + f.next, "/");
        if (f.todo[f.next] == '\0')
            break;
        r = follow_step(&f, &links);
    }
    lay_free_owner(&f.real);
    lay_free_owner(&f.todo);
    if (r < 0)
        lay_close_owner(&f.at);
    return r < 0 ? -1 : f.at;
}

/* The directory path names below root, its links followed as if root were "/". */
static int open_in_root(int root_fd, const char *path, size_t n)
{
    int fd;
    if (n == 0)
        return openat(root_fd, ".", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (n < PATH_MAX) {
        char part[PATH_MAX];
        memcpy(part, path, n);
        part[n] = '\0';
        fd = openat2_fd(root_fd, part, O_PATH | O_DIRECTORY | O_CLOEXEC, IN_ROOT | NO_MAGICLINKS);
        if (fd >= 0 || !(no_openat2(errno) || errno == ELOOP || errno == EAGAIN || errno == ENAMETOOLONG))
            return fd;
    } else {
        /* a chunk's directory is no root to climb back to, so chunks only serve a path without links */
        fd = open_below(root_fd, path, n, O_PATH | O_DIRECTORY | O_NOFOLLOW);
        if (fd >= 0 || (errno != ELOOP && errno != ENOTDIR))
            return fd;
    }
    return open_following(root_fd, path, n);
}

int lay_tree_open_regular(int dir_fd, const char *name, struct stat *st)
{
    /* asked first: opening a device or a fifo already does something to it */
    if (fstatat(dir_fd, name, st, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT) < 0)
        return -1;
    if (!S_ISREG(st->st_mode)) {
        errno = S_ISLNK(st->st_mode) ? ELOOP : EINVAL;
        return -1;
    }
    LAY_AUTO_FD int fd = openat(dir_fd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
    if (fd < 0 || fstat(fd, st) < 0)
        return -1;
    if (!S_ISREG(st->st_mode)) {
        errno = EINVAL;
        return -1;
    }
    return lay_steal_fd(&fd);
}

int lay_parent_open(lay_parent *p, int root_fd, const char *path, size_t n, const char **base)
{
    const char *slash = memrchr(path, '/', n);
    size_t len = slash ? (size_t)(slash - path) : 0;
    *base = slash ? slash + 1 : path;
    if (p->fd >= 0 && p->len == len && (len == 0 || memcmp(p->path, path, len) == 0))
        return p->fd;
    lay_parent_close(p);
    if (!lay_reserved(&p->path, &p->cap, len + 1, 1))
        return -1;
    memcpy(p->path, path, len);
    p->len = len;
    p->fd = open_in_root(root_fd, path, len);
    return p->fd;
}

void lay_parent_close(lay_parent *p)
{
    lay_close_owner(&p->fd);
    p->fd = -1;
}

void lay_parent_free(lay_parent *p)
{
    lay_parent_close(p);
    free(p->path);
    *p = (lay_parent)LAY_PARENT_NONE;
}

int lay_tree_open_file(int root_fd, lay_parent *parent, const char *path, size_t n, struct stat *st)
{
    const char *base;
    int dir_fd = lay_parent_open(parent, root_fd, path, n, &base);
    return dir_fd < 0 ? -1 : lay_tree_open_regular(dir_fd, base, st);
}

int lay_tree_stat(int root_fd, const char *path, size_t n, struct stat *st)
{
    if (n == 0)
        return fstat(root_fd, st);
    if (n <= NAME_MAX && memchr(path, '/', n) == NULL)
        return fstatat(root_fd, path, st, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT);
    LAY_AUTO_FD int fd = open_below(root_fd, path, n, O_PATH | O_NOFOLLOW);
    return fd < 0 ? -1 : fstat(fd, st);
}

const lay_dent *lay_dents_next(lay_dents *d, int dir_fd)
{
    if (d->len == 0)
        d->at = 0;
    for (;;) {
        if (d->at >= d->len) {
            d->len = syscall(SYS_getdents64, dir_fd, d->room, sizeof d->room);
            d->at = 0;
            if (d->len <= 0) {
                errno = d->len < 0 ? errno : 0;
                d->len = 0;
                return NULL;
            }
        }
        const lay_dent *next = (const void *)((const char *)d->room + d->at);
        d->at += next->reclen;
        if (strcmp(next->name, ".") != 0 && strcmp(next->name, "..") != 0)
            return next;
    }
}

static int by_bytes(const void *a, const void *b, void *text)
{
    const lay_name *x = a, *y = b;
    const char *base = text;
    size_t n = x->len < y->len ? x->len : y->len;
    int r = memcmp(base + x->at, base + y->at, n);
    return r != 0 ? r : (x->len > y->len) - (x->len < y->len);
}

static lay_code names_add(lay_names *out, size_t *list_cap, size_t *text_len, size_t *text_cap,
                          const lay_dent *d, lay_error *err)
{
    size_t len = strlen(d->name);
    if (*text_len + len + 1 > UINT32_MAX || len > UINT16_MAX)
        return lay_fail(err, LAY_E_LIMIT, "the names of one directory take more than 4 GiB");
    if (lay_reserve(&out->text, text_cap, *text_len + len + 1, 1, err) || lay_grow(&out->list, list_cap, out->count, sizeof *out->list, err))
        return err->code;
    out->list[out->count++] = (lay_name){ .at = (uint32_t)*text_len, .len = (uint16_t)len, .type = d->type, .ino = d->ino };
    memcpy(out->text + *text_len, d->name, len + 1);
    *text_len += len + 1;
    return LAY_OK;
}

lay_code lay_names_read(lay_names *out, int dir_fd, lay_error *err)
{
    lay_dents dents;
    size_t list_cap = 0, text_len = 0, text_cap = 0;
    lay_code code = LAY_OK;
    *out = (lay_names){ 0 };
    dents.len = 0;
    for (const lay_dent *d; code == LAY_OK && (d = lay_dents_next(&dents, dir_fd)) != NULL;)
        code = names_add(out, &list_cap, &text_len, &text_cap, d, err);
    out->gone = code == LAY_OK && errno == ENOENT;
    if (code == LAY_OK && errno != 0 && !out->gone)
        code = lay_fail_fd(err, errno, dir_fd, "cannot read the directory");
    if (code != LAY_OK) {
        lay_names_free(out);
        return code;
    }
    if (out->count < 2)
        return LAY_OK;
    qsort_r(out->list, out->count, sizeof *out->list, by_bytes, out->text);
    size_t kept = 1;        /* a name that is removed and made anew meanwhile may be listed twice */
    for (size_t i = 1; i < out->count; i++)
        if (by_bytes(&out->list[i], &out->list[kept - 1], out->text) != 0)
            out->list[kept++] = out->list[i];
    out->count = kept;
    return LAY_OK;
}

void lay_names_free(lay_names *names)
{
    free(names->list);
    free(names->text);
    *names = (lay_names){ 0 };
}

bool lay_tree_gone(int sys_errno)
{
    return sys_errno == ENOENT || sys_errno == ENOTDIR || sys_errno == ELOOP;
}

/* As getxattr, or with no xattr as listxattr. */
static ssize_t ask_xattrs(int dir_fd, const char *name, const char *xattr, void *buf, size_t size)
{
    struct xattr_args args = { .value = (uint64_t)(uintptr_t)buf, .size = (uint32_t)size };
    ssize_t r = xattr ? syscall(SYS_getxattrat, dir_fd, name, AT_SYMLINK_NOFOLLOW, xattr, &args, sizeof args)
                      : syscall(SYS_listxattrat, dir_fd, name, AT_SYMLINK_NOFOLLOW, buf, size);
    if (r >= 0 || !no_openat2(errno))
        return r;
    /* before Linux 6.13: one call through /proc, where it is mounted */
    char path[NAME_MAX + PATH_MAX];
    snprintf(path, sizeof path, "/proc/self/fd/%d/%s", dir_fd, name);
    r = xattr ? lgetxattr(path, xattr, buf, size) : llistxattr(path, buf, size);
    if (r >= 0 || (errno != ENOENT && errno != ENOTDIR))
        return r;
    struct stat st;
    if (fstatat(dir_fd, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return -1;
    if (!S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode)) {
        errno = EOPNOTSUPP;
        return -1;
    }
    LAY_AUTO_FD int fd = openat(dir_fd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
    return fd < 0 ? -1 : xattr ? fgetxattr(fd, xattr, buf, size) : flistxattr(fd, buf, size);
}

ssize_t lay_tree_getxattr(int dir_fd, const char *name, const char *xattr, void *buf, size_t size)
{
    ssize_t r = ask_xattrs(dir_fd, name, xattr, buf, size);
    if (r >= 0)
        errno = 0;
    return r < 0 && (errno == ENODATA || errno == EOPNOTSUPP) ? 0 : r;
}

int lay_tree_hasxattr(int dir_fd, const char *name, const char *xattr)
{
    char value[64];
    ssize_t n = lay_tree_getxattr(dir_fd, name, xattr, value, sizeof value);
    if (n < 0)
        return errno == ERANGE ? 1 : -1;
    return n > 0 || errno == 0;
}
