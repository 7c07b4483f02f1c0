/* sweep.c - over a whole tree in no order: the walk; adding up its bytes, and removing it.
 *
 * Every directory is read once: what is no directory is dealt with on the spot, the names of its
 * directories wait on a stack. No recursion, no path handed to the kernel, descriptors as a trail has.
 * Source: moby, pkg/directory (sizes); daemon/graphdriver/overlay2 (removal, system.EnsureRemoveAll).
 */
#include "tree/sweep.h"

#include "base/grow.h"

#include <dirent.h>
#include <fcntl.h>
#include <string.h>

#define MAX_TRIES 100     /* a directory that others keep filling */

typedef struct lay_sweep sweep;
typedef struct lay_sweep_frame frame;

lay_code lay_sweep_fail(sweep *s, int e, const char *name, const char *what, lay_error *err)
{
    if (lay_text_push(&s->path, name, strlen(name), err))
        return err->code;
    return lay_fail_os(err, e, s->path.p, what);
}

lay_code lay_sweep_wait(sweep *s, const char *name, lay_error *err)
{
    size_t len = strlen(name) + 1;
    if (lay_reserve(&s->text, &s->text_cap, s->text_len + len, 1, err) || lay_grow(&s->at, &s->cap, s->count, sizeof *s->at, err))
        return err->code;
    s->at[s->count++] = s->text_len;
    memcpy(s->text + s->text_len, name, len);
    s->text_len += len;
    return LAY_OK;
}

static lay_code remove_one(sweep *s, int fd, const char *name, uint8_t type, lay_error *err)
{
    if (type != DT_DIR && (unlinkat(fd, name, 0) == 0 || errno == ENOENT))
        return LAY_OK;
    if (type == DT_DIR || errno == EISDIR)
        return lay_sweep_wait(s, name, err);
    return lay_sweep_fail(s, errno, name, "cannot remove it", err);
}

typedef struct sizing {
    sweep sweep;              /* first */
    int64_t size;
    lay_inodes inodes;
} sizing;

static lay_code size_one(sweep *w, int fd, const char *name, uint8_t type, lay_error *err)
{
    sizing *s = (sizing *)w;
    struct stat st;
    if (type == DT_DIR)
        return lay_sweep_wait(w, name, err);
    if (fstatat(fd, name, &st, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT) < 0)
        return errno == ENOENT ? LAY_OK : lay_sweep_fail(w, errno, name, "cannot stat it", err);
    if (S_ISDIR(st.st_mode))
        return lay_sweep_wait(w, name, err);
    bool seen = false;
    size_t unused = 0;
    if (st.st_size > 0 && st.st_nlink > 1 && lay_inodes_add(&s->inodes, st.st_dev, st.st_ino, &unused, &seen, err))
        return err->code;
    if (!seen && __builtin_add_overflow(s->size, (int64_t)st.st_size, &s->size))
        return lay_fail(err, LAY_E_LIMIT, "the tree's sizes add up to more than 2^63 bytes");
    return LAY_OK;
}

/* Read the directory the trail stands in. */
static lay_code sweep_directory(sweep *s, unsigned tries, lay_error *err)
{
    lay_dents dents;
    int fd = lay_trail_fd(&s->trail);
    if (lay_grow(&s->frames, &s->frame_cap, s->depth, sizeof *s->frames, err))
        return err->code;
    s->frames[s->depth++] = (frame){ s->count, s->path.len, tries };
    dents.len = 0;
    for (const lay_dent *d; (d = lay_dents_next(&dents, fd)) != NULL;)
        if (s->one(s, fd, d->name, d->type, err))
            return err->code;
    if (errno == 0 || errno == ENOENT)     /* removed by another meanwhile */
        return LAY_OK;
    return lay_fail_os(err, errno, s->path.len > 0 ? s->path.p : ".", "cannot read the directory");
}

/* The trail has just gone down to this name. */
static lay_code sweep_enter(sweep *s, const char *name, unsigned tries, lay_error *err)
{
    if (lay_text_push(&s->path, name, strlen(name), err))
        return err->code;
    return sweep_directory(s, tries, err);
}

/* Down into the last name that waits in this directory. */
static lay_code sweep_down(sweep *s, lay_error *err)
{
    const char *name = s->text + s->at[s->count - 1];
    if (lay_trail_down(&s->trail, name) < 0) {
        if (s->removing ? errno != ENOENT : !lay_tree_gone(errno))
            return lay_sweep_fail(s, errno, name, "cannot open the directory", err);
        s->text_len = s->at[--s->count];
        return LAY_OK;
    }
    return sweep_enter(s, name, 0, err);
}

/* All below is done: up, and away with it; its name still waits as the last of the parent's. */
static lay_code sweep_up(sweep *s, lay_error *err)
{
    unsigned tries;
    int r = 1;
    while (r > 0) {         /* the rest of a directory that has gone is skipped */
        tries = s->frames[s->depth - 1].tries;
        s->count = s->frames[s->depth - 1].first;
        s->depth--;
        lay_text_cut(&s->path, s->frames[s->depth - 1].path_len);
        size_t skip = s->path.len > s->prefix ? s->prefix + (s->prefix > 0) : s->path.len;
        r = lay_trail_up(&s->trail, s->path.len > 0 ? s->path.p + skip : "", s->path.len - skip);
        if (r < 0 || (r > 0 && s->removing))
            return lay_fail_os(err, r < 0 ? errno : ESTALE, s->path.len ? s->path.p : ".", "cannot go back to the directory");
    }
    const char *name = s->text + s->at[s->count - 1];
    if (s->removing && unlinkat(lay_trail_fd(&s->trail), name, AT_REMOVEDIR) < 0 && errno != ENOENT) {
        /* removing while reading may make a file system leave names out: read it again */
        if ((errno != ENOTEMPTY && errno != EEXIST) || tries >= MAX_TRIES)
            return lay_sweep_fail(s, errno, name, "cannot remove the directory", err);
        if (lay_trail_down(&s->trail, name) < 0)
            return errno == ENOENT ? LAY_OK : lay_sweep_fail(s, errno, name, "cannot open the directory", err);
        return sweep_enter(s, name, tries + 1, err);
    }
    s->text_len = s->at[--s->count];
    return LAY_OK;
}

static lay_code run(sweep *s, lay_error *err)
{
    lay_code code = sweep_directory(s, 0, err);
    while (code == LAY_OK) {
        if (s->count > s->frames[s->depth - 1].first)
            code = sweep_down(s, err);
        else if (s->depth > 1)
            code = sweep_up(s, err);
        else
            break;
    }
    return code;
}

static void sweep_free(sweep *s)
{
    lay_trail_free(&s->trail);
    free(s->path.p);
    free(s->text);
    free(s->at);
    free(s->frames);
}

lay_code lay_sweep_over(sweep *s, int root_fd, lay_error *err)
{
    lay_code code = lay_trail_open(&s->trail, root_fd, false) < 0 ? lay_fail_fd(err, errno, root_fd, "cannot open the directory")
                                                                  : run(s, err);
    sweep_free(s);
    return code;
}

lay_code lay_tree_size(int root_fd, int64_t *size, lay_error *err)
{
    sizing s = { .sweep = { .trail = LAY_TRAIL_NONE, .one = size_one } };
    lay_code code = lay_sweep_over(&s.sweep, root_fd, err);
    if (code == LAY_OK)
        *size = s.size;
    lay_inodes_free(&s.inodes);
    return code;
}

/* A name is no longer the kind of thing it was when it was read: another process changes the tree. */
static bool is_another_kind(const lay_error *err)
{
    return err->code == LAY_E_OS && (err->sys_errno == ENOTDIR || err->sys_errno == ELOOP || err->sys_errno == EISDIR);
}

static lay_code remove_below(int parent_fd, int dir_fd, const char *name, lay_error *err)
{
    sweep s = { .trail = LAY_TRAIL_NONE, .one = remove_one, .removing = true, .prefix = strlen(name) };
    lay_code code = lay_text_push(&s.path, name, s.prefix, err);
    for (unsigned tries = 0; code == LAY_OK; tries++) {
        lay_trail_free(&s.trail);
        s.depth = s.count = s.text_len = 0;
        lay_text_cut(&s.path, s.prefix);
        code = lay_trail_open(&s.trail, dir_fd, true) < 0 ? lay_fail_os(err, errno, name, "cannot open the directory")
                                                           : run(&s, err);
        if (code != LAY_OK && tries < MAX_TRIES && is_another_kind(err)) {
            lay_error_clear(err);
            code = LAY_OK;
            continue;
        }
        if (code != LAY_OK || unlinkat(parent_fd, name, AT_REMOVEDIR) == 0 || errno == ENOENT)
            break;
        if ((errno != ENOTEMPTY && errno != EEXIST) || tries >= MAX_TRIES)
            code = lay_fail_os(err, errno, name, "cannot remove the directory");
    }
    sweep_free(&s);
    return code;
}

lay_code lay_tree_remove(int parent_fd, const char *name, lay_error *err)
{
    struct stat st, parent;
    if (name[0] == '\0' || strchr(name, '/') != NULL || strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
        return lay_fail_os(err, EINVAL, name, "cannot remove it");
    if (fstat(parent_fd, &parent) < 0 || fstatat(parent_fd, name, &st, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT) < 0)
        return errno == ENOENT ? LAY_OK : lay_fail_os(err, errno, name, "cannot stat it");
    if (!S_ISDIR(st.st_mode))
        return unlinkat(parent_fd, name, 0) == 0 || errno == ENOENT ? LAY_OK : lay_fail_os(err, errno, name, "cannot remove it");
    bool crossed = false;
    LAY_AUTO_FD int fd = lay_tree_open_sub(parent_fd, name, &crossed);
    if (fd < 0)
        return errno == ENOENT ? LAY_OK : lay_fail_os(err, errno, name, "cannot open the directory");
    if (crossed || st.st_dev != parent.st_dev)
        return lay_fail_os(err, EBUSY, name, "cannot remove it");
    return remove_below(parent_fd, fd, name, err);
}
