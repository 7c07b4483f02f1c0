/* lower.c - a lower layer that is a directory; and what every kind of them can be asked.
 *
 * Directories are opened as paths only: cheaper, and asked for no right to read them.
 */
#include "tree/lower.h"

#include "tree/attributes.h"
#include "tree/whiteout.h"

#include <fcntl.h>
#include <string.h>

static int open_below(lay_lower_dir in, const char *path, size_t n, int flags)
{
    if (n && !memchr(path, '/', n))
        return openat((int)in, path, O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC | flags);
    return lay_tree_open_dir((int)in, path, n, flags);
}

static lay_lower_dir directory_open(const lay_lower *l, lay_lower_dir in, const char *path, size_t n)
{
    (void)l;
    return open_below(in, path, n, O_PATH);
}

static lay_lower_dir listed_open(const lay_lower *l, lay_lower_dir in, const char *path, size_t n)
{
    (void)l;
    return open_below(in, path, n, O_RDONLY);
}

static void directory_close(const lay_lower *l, lay_lower_dir in)
{
    (void)l;
    int fd = (int)in;
    lay_close_owner(&fd);
}

static int directory_stat(const lay_lower *l, lay_lower_dir in, const char *name, struct stat *st)
{
    (void)l;
    return strcmp(name, ".") == 0 ? fstat((int)in, st) : fstatat((int)in, name, st, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT);
}

static lay_code directory_list(const lay_lower *l, lay_lower_dir in, lay_names *names, lay_error *err)
{
    (void)l;
    *names = (lay_names){ 0 };
    LAY_AUTO_FD int fd = openat((int)in, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return fd < 0 ? lay_fail_fd(err, errno, (int)in, "cannot read the layer below") : lay_names_read(names, fd, err);
}

static lay_code lent_list(const lay_lower *l, lay_lower_dir in, lay_names *names, lay_error *err)
{
    return in == l->root ? directory_list(l, in, names, err) : lay_names_read(names, (int)in, err);
}

static lay_code listed_list(const lay_lower *l, lay_lower_dir in, lay_names *names, lay_error *err)
{
    if (in == l->root)
        lseek((int)in, 0, SEEK_SET);
    return lay_names_read(names, (int)in, err);
}

static ssize_t directory_xattr(const lay_lower *l, lay_lower_dir in, const char *name, const char *xattr, void *buf, size_t size)
{
    (void)l;
    return lay_tree_getxattr((int)in, name, xattr, buf, size);
}

static ssize_t listed_xattr(const lay_lower *l, lay_lower_dir in, const char *name, const char *xattr, void *buf, size_t size)
{
    (void)l;
    const lay_bearer thing = { .fd = strcmp(name, ".") == 0 ? (int)in : -1, .dir_fd = (int)in, .name = name };
    return lay_attribute_get(&thing, xattr, buf, size);
}

static lay_lower_dir directory_file(const lay_lower *l, lay_lower_dir in, const char *name, mode_t mode, const lay_lower **of)
{
    *of = l;
    struct stat st;
    if (S_ISLNK(mode))
        return openat((int)in, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    return lay_tree_open_regular((int)in, name, &st);
}

static ssize_t directory_read(const lay_lower *l, lay_lower_dir file, mode_t mode, void *buf, size_t n, int64_t offset)
{
    (void)l;
    return S_ISLNK(mode) ? readlinkat((int)file, "", buf, n) : pread((int)file, buf, n, offset);
}

static const lay_lower_ops directory = { directory_open, directory_close, directory_stat, directory_list, directory_xattr, directory_file, directory_read, NULL };
static const lay_lower_ops listed = { listed_open, directory_close, directory_stat, listed_list, listed_xattr, directory_file, directory_read, NULL };
static const lay_lower_ops lent = { listed_open, directory_close, directory_stat, lent_list, listed_xattr, directory_file, directory_read, NULL };

lay_lower lay_lower_directory(int fd) { return (lay_lower){ .ops = &directory, .root = fd }; }
lay_lower lay_lower_listed(int fd) { return (lay_lower){ .ops = &listed, .root = fd }; }
lay_lower lay_lower_lent(int fd) { return (lay_lower){ .ops = &lent, .root = fd }; }

bool lay_lower_is_directory(const lay_lower *l) { return l->ops->close == directory_close; }

const char *lay_lower_damage(const lay_lower *l) { return l->ops->damage != NULL ? l->ops->damage(l) : NULL; }

lay_lower lay_lower_of(const lay_shown *shown)
{
    return shown->lower != NULL ? *shown->lower : lay_lower_directory(shown->fd);
}

int lay_lower_fd(const lay_shown *shown) { return shown->lower != NULL ? -1 : shown->fd; }

lay_code lay_lower_require_directories(const lay_shown *layers, size_t n, const char *what, lay_error *err)
{
    for (size_t i = 0; i < n; i++)
        if (layers[i].lower != NULL)
            return lay_fail(err, LAY_E_UNSUPPORTED, "cannot %s a layer that is no directory: mount it first", what);
    return LAY_OK;
}

void lay_lower_leave(const lay_lower *l, lay_lower_dir in)
{
    if (in >= 0 && in != l->root)
        l->ops->close(l, in);
}

bool lay_lower_is_opaque(const lay_lower *l, lay_lower_dir in, bool userxattr)
{
    char value;
    return l->ops->xattr(l, in, ".", lay_opaque_xattr(userxattr), &value, 1) == 1 && value == 'y';
}
