/* unpack_names.c - from the name of an entry to an open parent directory beneath the root.
 *
 * Parents are opened with links forbidden; where a link is met, walk_links() follows it by hand, as if the
 * root were "/". Parents that have no entry of their own are made.
 */
#include "apply/unpack_names.h"

#include "apply/unpack_implied.h"

#include "tree/tree.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>

#define LINKS_MAX 255

static bool hands_down(int fd)
{
    struct stat st;
    return fstat(fd, &st) == 0 && (st.st_mode & S_ISGID || fgetxattr(fd, "system.posix_acl_default", NULL, 0) > 0);
}

/* Follow the links of a parent by hand. A relative link that climbs out is refused, unless an absolute
 * one came before it: that one says the tar thinks of the root as "/". Missing parts stay as they are.
 * *tail: so many bytes at the end of parent hold no link, and stand at the end of resolved, too. */
static lay_code walk_links(lay_unpack *u, const char *parent, size_t n, lay_text *resolved, size_t *tail, lay_error *err)
{
    LAY_AUTO_FREE lay_text rest = { 0 };
    *tail = n;
    unsigned links = 0;
    int64_t steps = 0;
    bool absolute = false;
    char target[PATH_MAX];
    if (lay_text_set(resolved, "", 0, err) || lay_text_set(&rest, parent, n, err))
        return err->code;
    for (size_t at = 0; at < rest.len;) {
        size_t end = at;
        while (end < rest.len && rest.p[end] != '/')
            end++;
        const char *part = rest.p + at;
        size_t len = end - at, before = resolved->len;
        at = end + 1;
        if (len == 0 || (len == 1 && part[0] == '.'))
            continue;
        if (lay_is_over(++steps, u->limits->depth))
            return lay_fail_limit(err, -1, "max_depth", u->limits->depth, "components", "a name is too deep, with the links it leads through");
        if (len == 2 && part[0] == '.' && part[1] == '.') {
            if (!before && !absolute)
                return lay_fail(err, LAY_E_BREAKOUT, "path escapes from parent");
            size_t cut = lay_path_base(resolved->p, before);
            lay_text_cut(resolved, cut ? cut - 1 : 0);
            continue;
        }
        if ((before && lay_text_add(resolved, "/", 1, err)) || lay_text_add(resolved, part, len, err))
            return err->code;
        struct stat st;
        if (lay_tree_stat(u->root_fd, resolved->p, resolved->len, &st) != 0 || !S_ISLNK(st.st_mode))
            continue;
        if (u->own_links && !lay_unpack_is(u, resolved->p, resolved->len, 0))
            continue;                         /* it goes, for a directory */
        if (++links > LINKS_MAX)
            return lay_fail_os(err, ELOOP, NULL, "too many links");
        size_t base = lay_path_base(resolved->p, resolved->len);
        LAY_AUTO_FD int dir = lay_tree_open_dir(u->root_fd, resolved->p, base ? base - 1 : 0, 0);
        ssize_t got = dir < 0 ? -1 : readlinkat(dir, resolved->p + base, target, sizeof target);
        if (got < 0)
            return lay_fail_os(err, errno, NULL, "cannot read the symbolic link");
        absolute |= got && target[0] == '/';
        lay_text_cut(resolved, got && target[0] == '/' ? 0 : before);
        LAY_AUTO_FREE lay_text next = { 0 };
        size_t left = at < rest.len ? rest.len - at : 0;
        if (left < *tail)
            *tail = left;
        if (lay_text_set(&next, target, (size_t)got, err) || (left && (lay_text_add(&next, "/", 1, err) || lay_text_add(&next, rest.p + at, left, err))))
            return err->code;
        lay_text passed = rest;
        rest = next;
        next = passed;
        at = 0;
    }
    return LAY_OK;
}

/* ---- directories -------------------------------------------------------------------------------------- */

/* near: a directory that may lie on the way there; NULL: none. */
static int open_dir(lay_unpack *u, const lay_dir *near, const char *path, size_t n)
{
    size_t skip = near && near->path_len && near->path_len < n && path[near->path_len] == '/' && !memcmp(near->path, path, near->path_len)
        ? near->path_len + 1 : 0;
    int fd = lay_tree_open_dir(skip ? near->fd : u->root_fd, path + skip, n - skip, 0);
    if (fd < 0 && (errno == EMFILE || errno == ENFILE)) {
        lay_error ignored;
        lay_error_clear(&ignored);
        lay_unpack_drain(u, &ignored);                  /* its error shows again at the next drain */
        lay_dirs_forget(&u->dirs);
        fd = lay_tree_open_dir(u->root_fd, path, n, 0);
    }
    return fd;
}

/* Parents that have no entry of their own: 0755 exactly, the root's owner, until it is known what is below. */
static lay_code make_missing(lay_unpack *u, const char *path, size_t n, lay_error *err)
{
    size_t have = n, from = n;
    LAY_AUTO_FD int fd = -1;
    for (;;) {                                /* the deepest one that is there */
        have = lay_path_base(path, have);
        have = have ? have - 1 : 0;
        fd = open_dir(u, NULL, path, have);
        if (fd >= 0 || errno != ENOENT || !have)
            break;
    }
    while (fd >= 0 && have < n) {
        size_t at = have ? have + 1 : 0, to = at;
        while (to < n && path[to] != '/')
            to++;
        char name[NAME_MAX + 1];
        if (to - at > NAME_MAX)
            return lay_fail_os(err, ENAMETOOLONG, NULL, NULL);
        memcpy(name, path + at, to - at);
        name[to - at] = '\0';
        bool seen;
        lay_meta plain = { .mode = 0755, .uid = u->place.uid, .gid = u->place.gid, .inherits = hands_down(fd) };
        if (lay_unpack_seen(u, path, to, &seen, err))
            return err->code;
        int made = mkdirat(fd, name, 0755) == 0 ? 0 : errno;
        if (made == 0 && at < from)
            from = at;
        if (made == 0 && (lay_taken_implied(&u->taken, err) || lay_place_directory(&u->place, fd, name, true, &plain, err)))
            return err->code;
        int next = openat(fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        int e = errno == ENOENT && made ? made : errno;    /* why it is not there */
        lay_close_owner(&fd);
        errno = e;
        fd = next;
        have = to;
    }
    if (fd < 0)
        return lay_fail_os(err, errno, NULL, "cannot make the parent directory");
    return from < n ? lay_unpack_implied_made(u, path, n, from, err) : LAY_OK;
}

static bool part_seen(const lay_unpack *u, const char *path, size_t n)
{
    for (size_t i = 1; i <= n; i++)
        if ((i == n || path[i] == '/') && lay_nameset_has(&u->seen, lay_nameset_hash(&u->seen, path, i)))
            return true;
    return false;
}

/* The directory at path, made if it is missing; u->dir. *linked: a symbolic link stands in the way. */
static lay_code enter(lay_unpack *u, const char *path, size_t n, bool *linked, lay_error *err)
{
    *linked = false;
    if (u->dir && u->dir->path_len == n && !memcmp(u->dir->path, path, n))
        return LAY_OK;
    lay_dir *found = lay_dirs_find(&u->dirs, path, n);
    int fd = -1;
    if (found || (u->merged && lay_unpack_claim(u, path, n, err))) {
        lay_dir_release(u->dir);
        u->dir = found;
        return err->code;
    }
    fd = open_dir(u, u->dir, path, n);        /* a child of the last one, often */
    int e = errno;
    lay_dir_release(u->dir);
    u->dir = NULL;
    errno = e;
    if (fd < 0 && errno == ENOENT) {
        if (part_seen(u, path, n)) {          /* it may still be a file in the pool */
            if (lay_unpack_drain(u, err))
                return err->code;
            fd = open_dir(u, NULL, path, n);
        }
        if (fd < 0 && errno == ENOENT) {
            if (make_missing(u, path, n, err)) {
                *linked = err->code == LAY_E_OS && (err->sys_errno == ELOOP || err->sys_errno == ENOTDIR);
                return err->code;
            }
            fd = open_dir(u, NULL, path, n);
        }
    }
    if (fd < 0) {
        *linked = errno == ELOOP || errno == ENOTDIR;
        return lay_fail_os(err, errno, NULL, "cannot open the parent directory");
    }
    u->dir = lay_dir_new(fd, path, n, hands_down(fd));
    if (!u->dir)
        return lay_fail_nomem(err);
    lay_dirs_remember(&u->dirs, u->dir);
    return LAY_OK;
}

/* The directory where a parent leads that goes through links. The way to the last of them is remembered: what is added
 * to a tree changes no way that was found, only what is taken away does. first: why it cannot be entered as it is. */
static lay_code enter_by_links(lay_unpack *u, const char *parent, size_t n, const lay_error *first, lay_error *err)
{
    bool linked;
    size_t tail;
    lay_text *to = &u->linked_to;
    u->linked_at = 0;
    if (lay_unpack_drain(u, err) || walk_links(u, parent, n, to, &tail, err))
        return err->code;
    if (to->len == n && !memcmp(to->p, parent, n)) {
        *err = *first;                        /* no link: a file where a directory should be */
        return err->code;
    }
    if (enter(u, to->p, to->len, &linked, err) || lay_text_set(&u->linked_from, parent, tail ? n - tail - 1 : n, err))
        return err->code;
    lay_text_cut(to, !tail ? to->len : to->len > tail ? to->len - tail - 1 : 0);
    u->linked_at = u->removals + 1;
    return LAY_OK;
}

/* Enter by the way that is remembered. *known: it was one, and no other link comes behind it. */
static lay_code enter_as_before(lay_unpack *u, const char *parent, size_t n, bool *known, lay_error *err)
{
    const lay_text *from = &u->linked_from, *to = &u->linked_to;
    bool linked;
    *known = u->linked_at == u->removals + 1 && from->len <= n && !memcmp(from->p, parent, from->len) && (from->len == n || parent[from->len] == '/');
    if (!*known)
        return LAY_OK;
    size_t skip = from->len + (!to->len && from->len < n);    /* no '/' before the first of the root */
    if (lay_text_set(&u->tried, to->p, to->len, err) || lay_text_add(&u->tried, parent + skip, n - skip, err))
        return err->code;
    if (!enter(u, u->tried.p, u->tried.len, &linked, err) || !linked)
        return err->code;
    *known = false;
    lay_error_clear(err);
    return LAY_OK;
}

lay_code lay_unpack_find(lay_unpack *u, const lay_text *clean, bool *aliased, lay_error *err)
{
    size_t base;
    bool linked;
    if (lay_entry_base(clean, &base, err))
        return err->code;
    size_t parent = base ? base - 1 : 0, len = clean->len - base;
    memcpy(u->base, clean->p + base, len + 1);
    if (enter_as_before(u, clean->p, parent, aliased, err))
        return err->code;
    if (!*aliased && enter(u, clean->p, parent, &linked, err)) {
        if (!linked)
            return err->code;
        lay_error first = *err;
        lay_error_clear(err);
        if (enter_by_links(u, clean->p, parent, &first, err))
            return err->code;
        *aliased = true;
    }
    if (!*aliased)
        return lay_text_set(&u->path, clean->p, clean->len, err);
    if (lay_text_set(&u->path, u->dir->path, u->dir->path_len, err) || (u->path.len && lay_text_add(&u->path, "/", 1, err)))
        return err->code;
    return lay_text_add(&u->path, u->base, len, err);
}
