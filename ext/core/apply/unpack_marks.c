/* unpack_marks.c - whiteouts and opaque marks: what is below goes from sight, and nothing of this layer.
 *
 * Where a layer is unpacked alone they become overlay's own marks. Where it is unpacked over what is below they delete,
 * and it is remembered what a whiteout took away: a name in it is refused, as where the mark lies on the disk.
 */
#include "apply/unpack_marks.h"

#include "tree/tree.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>

#define HIDDEN 0x2545f4914f6cdd1du
#define GONE 0x9e3779b97f4a7c15u

/* How often the directory of this hash went. Kept as so many names in the set, so the first that is not there tells. */
static uint64_t times_gone(const lay_unpack *u, uint64_t hash)
{
    uint64_t has = 0, has_not = 1;
    while (lay_nameset_has(&u->seen, hash + GONE * has_not)) {
        has = has_not;
        has_not *= 2;
    }
    while (has + 1 < has_not) {
        uint64_t mid = has + (has_not - has) / 2;
        if (lay_nameset_has(&u->seen, hash + GONE * mid))
            has = mid;
        else
            has_not = mid;
    }
    return has;
}

/* By what a hidden name is known: it, and how often something went that it lies in. */
static uint64_t hidden_as(const lay_unpack *u, const char *path, size_t n)
{
    uint64_t gone = 0;
    for (size_t i = 1; u->gone_below && i <= n; i++)
        if (i == n || path[i] == '/')
            gone += times_gone(u, lay_nameset_hash(&u->seen, path, i));
    return HIDDEN + gone;
}

bool lay_unpack_is_hidden(const lay_unpack *u, const char *path, size_t n)
{
    return lay_unpack_is(u, path, n, hidden_as(u, path, n));
}

lay_code lay_unpack_hide(lay_unpack *u, const char *path, size_t n, lay_error *err)
{
    return lay_unpack_note(u, path, n, hidden_as(u, path, n), err);
}

lay_code lay_unpack_forget(lay_unpack *u, lay_error *err)
{
    bool ignored;
    uint64_t hash = lay_nameset_hash(&u->seen, u->path.p, u->path.len);
    u->gone_below = true;
    return u->merged ? lay_nameset_add(&u->seen, hash + GONE * (times_gone(u, hash) + 1), &ignored, err) : LAY_OK;
}

static lay_code mark(int fd, const char *path, const char *name, const char *value, lay_error *err)
{
    char what[LAY_ERROR_TEXT];
    if (fd >= 0 && fsetxattr(fd, name, value, strlen(value), 0) == 0)
        return LAY_OK;
    snprintf(what, sizeof what, "fsetxattr('%.300s', %s%s%s)", path, name, value[0] ? "=" : "", value);
    return lay_fail_os(err, errno, NULL, what);
}

static lay_code set_opaque(lay_unpack *u, lay_error *err)
{
    u->opaque |= u->dir->path_len == 0;
    return mark(u->dir->fd, u->dir->path, lay_opaque_xattr(u->userxattr), "y", err);
}

/* A whiteout lies in u->dir: where no other layer has that directory, overlayfs would list it. */
lay_code lay_unpack_expect_whiteouts(lay_unpack *u, lay_error *err)
{
    if (u->dir->marked || !u->dir->path_len)
        return LAY_OK;
    if (mark(u->dir->fd, u->dir->path, lay_origin_xattr(u->userxattr), "", err)) {
        if (err->sys_errno != EOPNOTSUPP)
            return err->code;
        lay_error_clear(err);
    }
    u->dir->marked = true;
    return LAY_OK;
}

/* u->path becomes the name that .wh.NAME hides. */
static lay_code hidden_path(lay_unpack *u, const char *name, lay_error *err)
{
    lay_text_cut(&u->path, lay_path_base(u->path.p, u->path.len));
    return lay_text_add(&u->path, name, strlen(name), err);
}

static lay_code whiteout_failed(const lay_unpack *u, int e, lay_error *err)
{
    char what[LAY_ERROR_TEXT];
    snprintf(what, sizeof what, "failed to mknod('%.300s', S_IFCHR, 0)", u->path.p);
    return lay_fail_os(err, e, NULL, what);
}

/* u->base is .wh.NAME: NAME becomes a 0:0 device. */
static lay_code whiteout(lay_unpack *u, const lay_tar_entry *e, lay_error *err)
{
    const char *name = u->base + LAY_WH_PREFIX_LEN;
    bool seen;
    if (hidden_path(u, name, err) || lay_unpack_seen(u, u->path.p, u->path.len, &seen, err) || (seen && lay_unpack_drain(u, err)))
        return err->code;
    lay_meta meta;
    if (lay_meta_of(&meta, e, err))
        return err->code;
    if (mknodat(u->dir->fd, name, S_IFCHR, makedev(0, 0)) != 0) {
        int failed = errno;
        struct stat st;
        bool again = failed == EEXIST && fstatat(u->dir->fd, name, &st, AT_SYMLINK_NOFOLLOW) == 0 && lay_stat_is_whiteout(st.st_mode, st.st_rdev);
        if (!again)
            return whiteout_failed(u, failed, err);
    }
    if (lay_unpack_expect_whiteouts(u, err))
        return err->code;
    if ((meta.uid || meta.gid) && fchownat(u->dir->fd, name, meta.uid, meta.gid, AT_SYMLINK_NOFOLLOW) != 0)
        return lay_fail_os(err, errno, NULL, "cannot set the whiteout's owner");
    return LAY_OK;
}

/* Of a name in the directory fd: it goes, or (a directory of this layer) is still to be emptied. */
static lay_code empty_name(lay_unpack *u, int fd, const char *name, const lay_text *path, lay_text *todo, lay_error *err)
{
    const lay_meta plain = { .mode = 0755, .uid = u->place.uid, .gid = u->place.gid };
    struct stat st;
    if (!lay_unpack_is(u, path->p, path->len, 0)) {
        u->removals++;
        return lay_tree_remove(fd, name, err);
    }
    if (fstatat(fd, name, &st, AT_SYMLINK_NOFOLLOW) != 0 || !S_ISDIR(st.st_mode))
        return LAY_OK;
    if (!lay_unpack_is(u, path->p, path->len, LAY_NAME_ENTRY) && lay_place_directory(&u->place, fd, name, false, &plain, err))
        return err->code;                     /* all it had came from below */
    return lay_text_add(todo, path->p, path->len + 1, err);
}

static lay_code empty_directory(lay_unpack *u, lay_text *path, lay_text *todo, lay_error *err)
{
    lay_names names;
    size_t parent = path->len;
    LAY_AUTO_FD int fd = lay_tree_open_dir(u->root_fd, path->p, path->len, 0);
    if (fd < 0)
        return lay_fail_os(err, errno, path->p, "cannot empty the opaque directory");
    if (lay_names_read(&names, fd, err))
        return err->code;
    for (size_t i = 0; i < names.count && !err->code; i++) {
        const char *name = names.text + names.list[i].at;
        lay_text_cut(path, parent);
        if (!(parent && lay_text_add(path, "/", 1, err)) && !lay_text_add(path, name, names.list[i].len, err))
            empty_name(u, fd, name, path, todo, err);
    }
    lay_names_free(&names);
    return err->code;
}

/* Merged: all below the directory goes that this layer has not unpacked. */
static lay_code empty_merged(lay_unpack *u, lay_error *err)
{
    LAY_AUTO_FREE lay_text todo = { 0 }, path = { 0 };      /* todo: a stack of NUL-terminated paths */
    if (lay_unpack_drain(u, err) || lay_text_add(&todo, u->dir->path, u->dir->path_len + 1, err))
        return err->code;
    lay_code code = LAY_OK;
    while (!code && todo.len) {
        size_t top = todo.len - 1;
        while (top && todo.p[top - 1])
            top--;
        code = lay_text_set(&path, todo.p + top, todo.len - 1 - top, err);
        todo.len = top;
        if (!code)
            code = empty_directory(u, &path, &todo, err);
    }
    lay_dirs_forget(&u->dirs);
    return code;
}

/* Merged: u->base is .wh.NAME: NAME goes. */
static lay_code delete_merged(lay_unpack *u, const lay_tar_entry *e, lay_error *err)
{
    const char *name = u->base + LAY_WH_PREFIX_LEN;
    struct stat st;
    lay_meta meta;
    if (lay_unpack_drain(u, err) || hidden_path(u, name, err) || lay_meta_of(&meta, e, err))
        return err->code;
    if (lay_unpack_is(u, u->path.p, u->path.len, 0) && fstatat(u->dir->fd, name, &st, AT_SYMLINK_NOFOLLOW) == 0)
        return whiteout_failed(u, EEXIST, err);           /* of this layer, where a whiteout would be */
    u->removals++;
    if (lay_tree_remove(u->dir->fd, name, err) || lay_unpack_hide(u, u->path.p, u->path.len, err))
        return err->code;
    lay_dirs_forget(&u->dirs);
    return LAY_OK;
}

lay_code lay_unpack_opaque(lay_unpack *u, lay_error *err)
{
    return u->merged ? empty_merged(u, err) : set_opaque(u, err);
}

lay_code lay_unpack_whiteout(lay_unpack *u, const lay_tar_entry *e, lay_error *err)
{
    return u->merged ? delete_merged(u, e, err) : whiteout(u, e, err);
}

/* Nothing below shows in a directory that stands where a whiteout, or another thing that is none, stood. */
lay_code lay_unpack_mark_reborn(lay_unpack *u, lay_error *err)
{
    LAY_AUTO_FD int fd = openat(u->dir->fd, u->base, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    return mark(fd, u->path.p, lay_opaque_xattr(u->userxattr), "y", err);
}
