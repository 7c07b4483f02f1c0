/* changes_overlay.c - how an overlay differs from its lowers: the upper directory is read, and only
 * what it names is looked up below. What leaves is what comparing both mounted trees would give.
 *
 * In every directory of upper two things are known: which lowers make up the old directory of that
 * path, nearest first (none: all here is new, nothing is looked up), and whether an opaque mark at or
 * above it cuts them off, so that an old name is deleted unless upper has it too. A whiteout deletes
 * what the lowers show. Marks of renamed directories and of files without their data need what only
 * a mount can do: LAY_E_UNSUPPORTED. The directories are spots (changes_spots.h): any thread may be in any of
 * them, with descriptors of its own.
 * Source: fs/overlayfs/namei.c (what hides what); go-archive, changes_linux.go (what is a change).
 */
#include "changes/changes_spots.h"
#include "tree/whiteout.h"

#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/xattr.h>

#ifndef SYS_listxattrat
#define SYS_listxattrat 465
#endif

#define UPPER SIZE_MAX         /* in place of a lower's number */
#define UPPER_SLOTS 4u         /* directories of upper kept open in a thread */
#define LOWER_SLOTS 128u       /* of lowers: for 64 of them the directory we are in and the one above it */
#define MANY_LOWERS 32u        /* two threads are enough there: descriptors are few */
#define LIST_SIZE 1024         /* names of extended attributes; where there are more, each is asked for */
#define HIDDEN DT_WHT          /* lay_name.type: a whiteout of upper */
#define GONE 255               /* lay_name.type: listed, but not there any more */

typedef struct overlay {
    int upper_fd;              /* our own */
    const int *lower_fds; size_t n;
    const char *opaque, *redirect, *metacopy, *xwhiteout;
} overlay;

typedef struct slot { int fd; size_t tree; const lay_spot *spot; } slot;

/* One thread's. */
typedef struct reader {
    const overlay *o;
    lay_path path;
    slot upper[UPPER_SLOTS], lower[LOWER_SLOTS];
} reader;

/* What extended attributes a directory may have, of those that say anything here. */
typedef struct marks { bool opaque, redirect, capability; } marks;

/* What the lowers show under one name of a directory. */
typedef struct old_view {
    bool visible;
    struct stat st;
    size_t lower;              /* that shows it */
} old_view;

/* ---- ways ---- */

static lay_code fail(reader *r, const lay_spot *s, int sys_errno, const char *name, const char *what, lay_error *err)
{
    lay_code code = lay_spot_path(s, &r->path, err);
    if (code == LAY_OK && name[0] != '\0')
        code = lay_path_push(&r->path, name, strlen(name), err);
    return code != LAY_OK ? code : lay_fail_os(err, sys_errno, r->path.len > 0 ? r->path.text : ".", what);
}

static lay_code unsupported(reader *r, const lay_spot *s, const char *name, const char *what, lay_error *err)
{
    lay_code code = lay_spot_path(s, &r->path, err);
    if (code == LAY_OK && name[0] != '\0')
        code = lay_path_push(&r->path, name, strlen(name), err);
    if (code != LAY_OK)
        return code;
    lay_fail(err, LAY_E_UNSUPPORTED, "%s: only a mount can tell what is there", what);
    lay_error_path(err, r->path.text, r->path.len);
    return LAY_E_UNSUPPORTED;
}

static slot *slot_of(reader *r, const lay_spot *s, size_t tree)
{
    return tree == UPPER ? &r->upper[s->depth % UPPER_SLOTS] : &r->lower[(tree * 2 + s->depth % 2) % LOWER_SLOTS];
}

static int keep(reader *r, const lay_spot *s, size_t tree, int fd)
{
    if (fd < 0)
        return -1;
    slot *k = slot_of(r, s, tree);
    lay_close_owner(&k->fd);
    *k = (slot){ fd, tree, s };
    return fd;
}

/* The spot's directory in upper or in a lower: the slot's descriptor, or -1 and errno. */
static int open_spot(reader *r, const lay_spot *s, size_t tree)
{
    int root_fd = tree == UPPER ? r->o->upper_fd : r->o->lower_fds[tree];
    if (s->parent == NULL)
        return root_fd;
    const slot *k = slot_of(r, s, tree);
    if (k->fd >= 0 && k->spot == s && k->tree == tree)
        return k->fd;
    lay_error ignored;
    if (lay_spot_path(s, &r->path, &ignored) != LAY_OK) {
        errno = ENOMEM;
        return -1;
    }
    return keep(r, s, tree, lay_tree_open_dir(root_fd, r->path.text, r->path.len, tree == UPPER ? 0 : O_PATH));
}

/* The same from its parent's. */
static int open_below(reader *r, const lay_spot *s, size_t tree, int parent_fd)
{
    const int flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC | (tree == UPPER ? 0 : O_PATH);
    return keep(r, s, tree, openat(parent_fd, s->name, flags));
}

/* ---- marks ---- */

static bool listed(const char *list, size_t n, const char *xattr)
{
    for (const char *at = list; at < list + n; at += strlen(at) + 1)
        if (strcmp(at, xattr) == 0)
            return true;
    return false;
}

/* One list is cheaper than asking for each, and mostly says that there is none. */
static marks list_marks(const overlay *o, int fd, size_t tree)
{
    char list[LIST_SIZE];
    ssize_t n = tree == UPPER ? flistxattr(fd, list, sizeof list)
                              : syscall(SYS_listxattrat, fd, ".", 0, list, sizeof list);   /* O_PATH: by a name only */
    if (n < 0)
        return (marks){ true, true, true };
    return (marks){ listed(list, (size_t)n, o->opaque), listed(list, (size_t)n, o->redirect),
                    listed(list, (size_t)n, "security.capability") };
}

/* A directory's marks: opaque or not; a redirect, or whiteouts made of xattrs, is beyond us. */
static lay_code read_marks(reader *r, const lay_spot *s, int fd, marks found, bool *opaque, lay_error *err)
{
    char value[8];
    ssize_t n = found.opaque ? lay_tree_getxattr(fd, ".", r->o->opaque, value, sizeof value) : 0;
    if (n < 0 && errno != ERANGE)
        return fail(r, s, errno, "", "read the opaque mark", err);
    *opaque = n == 1 && value[0] == 'y';
    if (n == 1 && value[0] == 'x')
        return unsupported(r, s, "", "a directory with whiteouts as extended attributes", err);
    int has = found.redirect ? lay_tree_hasxattr(fd, ".", r->o->redirect) : 0;
    if (has < 0)
        return fail(r, s, errno, "", "read the redirect mark", err);
    return has == 0 ? LAY_OK : unsupported(r, s, "", "a redirected directory", err);
}

/* A file without its data has size, times, rights and capability of its own: enough to tell how it differs, where
 * its data lie under the same name. */
static lay_code check_metacopy(reader *r, const lay_spot *s, int dir_fd, const char *name, const struct stat *st, const old_view *v, lay_error *err)
{
    int has = lay_tree_hasxattr(dir_fd, name, r->o->metacopy);
    int moved = has > 0 ? lay_tree_hasxattr(dir_fd, name, r->o->redirect) : 0;
    if (has < 0 || moved < 0)
        return lay_tree_gone(errno) ? LAY_OK : fail(r, s, errno, name, "read the metacopy mark", err);
    if (has == 0 || (moved == 0 && v->visible && S_ISREG(v->st.st_mode) && v->st.st_size == st->st_size))
        return LAY_OK;
    return unsupported(r, s, name, "a file without its data (metacopy)", err);
}

/* Does this thing of a lower hide what is below? A device, or an empty file with a mark. */
static lay_code hides(reader *r, const lay_spot *s, int dir_fd, const char *name, const struct stat *st, bool *hidden, lay_error *err)
{
    *hidden = lay_stat_is_whiteout(st->st_mode, st->st_rdev);
    if (*hidden || !S_ISREG(st->st_mode) || st->st_size != 0)
        return LAY_OK;
    int has = lay_tree_hasxattr(dir_fd, name, r->o->xwhiteout);
    *hidden = has > 0;
    return has >= 0 || lay_tree_gone(errno) ? LAY_OK : fail(r, s, errno, name, "read the whiteout mark", err);
}

/* ---- names ---- */

/* Of a name in a directory of upper: 1 or 0; -1 and errno. */
static int capability_differs(reader *r, const lay_spot *dir, int dir_fd, const char *name, size_t lower)
{
    int old_fd = open_spot(r, dir, lower);
    return old_fd < 0 ? -1 : lay_capabilities_differ(dir_fd, name, old_fd, name);
}

/* Of the directory itself, which is open. */
static int own_capability_differs(reader *r, const lay_spot *s, int fd, size_t lower)
{
    int old_fd = open_spot(r, s->parent, lower);
    return old_fd < 0 ? -1 : lay_capabilities_differ(fd, ".", old_fd, s->name);
}

static lay_code look_up(reader *r, const lay_spot *s, const char *name, old_view *v, lay_error *err)
{
    v->visible = false;
    for (size_t i = 0; i < s->nlowers; i++) {
        v->lower = s->lowers[i];
        int fd = open_spot(r, s, v->lower);
        if (fd < 0)
            return fail(r, s, errno, "", "open a lower directory", err);
        if (fstatat(fd, name, &v->st, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT) < 0) {
            if (errno != ENOENT)
                return fail(r, s, errno, name, "look up in a lower", err);
            continue;
        }
        bool hidden;
        lay_code code = hides(r, s, fd, name, &v->st, &hidden, err);
        v->visible = code == LAY_OK && !hidden;
        return code;
    }
    return LAY_OK;
}

/* The next name of an upper directory. */
static lay_code note_name(reader *r, lay_spot *s, int fd, lay_name *name, const char *text, lay_error *err)
{
    bool fresh = s->nlowers == 0, directory = name->type == DT_DIR;
    struct stat st;
    st.st_mode = (mode_t)name->type << 12;   /* as DTTOIF has it */
    /* where all is new the kind is enough, and the listing has it; a directory is looked at when it is open */
    if (!directory && (!fresh || name->type == DT_UNKNOWN || name->type == DT_CHR)) {
        if (fstatat(fd, text, &st, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT) < 0) {
            name->type = GONE;
            return errno == ENOENT ? LAY_OK : fail(r, s, errno, text, "stat", err);
        }
        if (lay_stat_is_whiteout(st.st_mode, st.st_rdev)) {
            name->type = HIDDEN;
            return LAY_OK;
        }
        directory = S_ISDIR(st.st_mode);
    }
    if (directory)
        return lay_spot_note_dir(s, text, name->len, err);
    old_view v = { 0 };
    lay_code code = fresh ? LAY_OK : look_up(r, s, text, &v, err);
    if (code == LAY_OK && S_ISREG(st.st_mode))
        code = check_metacopy(r, s, fd, text, &st, &v, err);
    if (code != LAY_OK)
        return code;
    int differs = !v.visible || lay_stats_differ(&st, &v.st) ? 1
        : capability_differs(r, s, fd, text, v.lower);
    if (differs < 0 && lay_tree_gone(errno)) {
        name->type = GONE;
        return LAY_OK;
    }
    if (differs < 0)
        return fail(r, s, errno, text, "read security.capability", err);
    return differs > 0 ? lay_spot_note(s, v.visible ? LAY_CHANGE_MODIFY : LAY_CHANGE_ADD, text, name->len, err) : LAY_OK;
}

/* ---- the directory itself ---- */

static lay_code add_lower(lay_spot *s, size_t lower, lay_error *err)
{
    if (s->lowers == NULL)
        s->lowers = calloc(s->parent->nlowers, sizeof *s->lowers);
    if (s->lowers == NULL)
        return lay_fail_nomem(err);
    s->lowers[s->nlowers++] = (unsigned)lower;
    return LAY_OK;
}

/* What lies under its name in the lowers of the directory above: v, if anything, and the lowers that make up
 * the old directory, down to a whiteout, something that is no directory, or an opaque directory. */
static lay_code gather_lowers(reader *r, lay_spot *s, old_view *v, marks *old, lay_error *err)
{
    const lay_spot *parent = s->parent;
    bool opaque = false;
    for (size_t i = 0; i < parent->nlowers && !opaque; i++) {
        size_t lower = parent->lowers[i];
        int in = open_spot(r, parent, lower);
        if (in < 0)
            return fail(r, parent, errno, "", "open a lower directory", err);
        int fd = open_below(r, s, lower, in);
        if (fd < 0 && errno == ENOENT)
            continue;
        if (fd < 0 && errno != ENOTDIR && errno != ELOOP)
            return fail(r, s, errno, "", "look up in a lower", err);
        if (!v->visible && (fd >= 0 ? fstat(fd, &v->st) : fstatat(in, s->name, &v->st, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT)) < 0)
            return fail(r, s, errno, "", "look up in a lower", err);
        if (fd < 0) {
            bool hidden = false;
            lay_code code = v->visible ? LAY_OK : hides(r, parent, in, s->name, &v->st, &hidden, err);
            v->visible |= !hidden;
            return code;
        }
        marks found = list_marks(r->o, fd, lower);
        if (!v->visible) {
            v->lower = lower;
            *old = found;
        }
        v->visible = true;
        lay_code code = read_marks(r, s, fd, found, &opaque, err);
        if (code == LAY_OK)
            code = add_lower(s, lower, err);
        if (code != LAY_OK)
            return code;
    }
    return LAY_OK;
}

/* Opens the directory in upper and says how it differs itself, and from what its names will. */
static lay_code enter(reader *r, lay_spot *s, int *fd, lay_error *err)
{
    int in = open_spot(r, s->parent, UPPER);
    *fd = in < 0 ? -1 : open_below(r, s, UPPER, in);
    if (*fd < 0) {                                  /* a tree in use: gone since it was listed */
        s->kind = LAY_SPOT_GONE;
        return lay_tree_gone(errno) ? LAY_OK : fail(r, s, errno, "", "open directory", err);
    }
    struct stat st;
    if (fstat(*fd, &st) < 0)
        return fail(r, s, errno, "", "stat", err);
    marks now = list_marks(r->o, *fd, UPPER), old = { 0 };
    old_view v = { 0 };
    bool opaque;
    lay_code code = read_marks(r, s, *fd, now, &opaque, err);
    if (code == LAY_OK)
        code = gather_lowers(r, s, &v, &old, err);
    if (code != LAY_OK)
        return code;
    int differs = !v.visible || lay_stats_differ(&st, &v.st);
    if (differs == 0 && (now.capability || old.capability))
        differs = own_capability_differs(r, s, *fd, v.lower);
    if (differs < 0)
        return fail(r, s, errno, "", "read security.capability", err);
    s->kind = differs == 0 ? LAY_SPOT_SAME : v.visible ? LAY_CHANGE_MODIFY : LAY_CHANGE_ADD;
    s->cut = opaque || s->parent->cut;
    return LAY_OK;
}

/* ---- deletions ---- */

static int compare_names(const char *a, size_t n, const char *b, size_t m)
{
    int r = memcmp(a, b, n < m ? n : m);
    return r != 0 ? r : (n > m) - (n < m);
}

/* Is there still an entry of this name in upper, and no whiteout? *at moves on. */
static bool upper_has(const lay_names *names, size_t *at, const char *name, size_t n)
{
    for (; *at < names->count; ++*at) {
        const lay_name *x = &names->list[*at];
        int r = compare_names(names->text + x->at, x->len, name, n);
        if (r >= 0)
            return r == 0 && x->type != HIDDEN && x->type != GONE;
    }
    return false;
}

/* Below an opaque mark: every old name that upper does not have. The lowers' sorted lists are merged;
 * the nearest that has a name says whether it is visible. */
static lay_code delete_unnamed(reader *r, lay_spot *s, const lay_names *names, lay_names *lists, size_t *next, lay_error *err)
{
    size_t at = 0;
    for (;;) {
        size_t nearest = s->nlowers;
        const char *least = NULL;
        size_t least_len = 0;
        for (size_t i = 0; i < s->nlowers; i++) {
            if (next[i] == lists[i].count)
                continue;
            const lay_name *x = &lists[i].list[next[i]];
            const char *text = lists[i].text + x->at;
            if (least == NULL || compare_names(text, x->len, least, least_len) < 0) {
                nearest = i;
                least = text;
                least_len = x->len;
            }
        }
        if (least == NULL)
            return LAY_OK;
        uint8_t type = lists[nearest].list[next[nearest]].type;
        for (size_t i = 0; i < s->nlowers; i++)
            if (next[i] < lists[i].count && strcmp(lists[i].text + lists[i].list[next[i]].at, least) == 0)
                next[i]++;
        if (upper_has(names, &at, least, least_len))
            continue;
        bool hidden = false;
        if (type == DT_CHR || type == DT_REG || type == DT_UNKNOWN) {
            struct stat st;
            int fd = open_spot(r, s, s->lowers[nearest]);
            if (fd < 0 || fstatat(fd, least, &st, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT) < 0)
                return fail(r, s, errno, least, "look up in a lower", err);
            if (hides(r, s, fd, least, &st, &hidden, err) != LAY_OK)
                return err->code;
        }
        lay_code code = hidden ? LAY_OK : lay_spot_note(s, LAY_CHANGE_DELETE, least, least_len, err);
        if (code != LAY_OK)
            return code;
    }
}

static lay_code delete_cut(reader *r, lay_spot *s, const lay_names *names, lay_error *err)
{
    lay_names *lists = calloc(s->nlowers, sizeof *lists);
    LAY_AUTO_FREE size_t *next = calloc(s->nlowers, sizeof *next);
    lay_code code = lists == NULL || next == NULL ? lay_fail_nomem(err) : LAY_OK;
    for (size_t i = 0; i < s->nlowers && code == LAY_OK; i++) {
        int dir = open_spot(r, s, s->lowers[i]);
        LAY_AUTO_FD int fd = dir < 0 ? -1 : openat(dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        code = fd < 0 ? fail(r, s, errno, "", "open a lower directory", err) : lay_names_read(&lists[i], fd, err);
    }
    if (code == LAY_OK)
        code = delete_unnamed(r, s, names, lists, next, err);
    for (size_t i = 0; lists != NULL && i < s->nlowers; i++)
        lay_names_free(&lists[i]);
    free(lists);
    return code;
}

static lay_code delete_hidden(reader *r, lay_spot *s, const lay_names *names, lay_error *err)
{
    for (size_t i = 0; i < names->count; i++) {
        if (names->list[i].type != HIDDEN)
            continue;
        const char *text = names->text + names->list[i].at;
        old_view v;
        lay_code code = look_up(r, s, text, &v, err);
        if (code == LAY_OK && v.visible)
            code = lay_spot_note(s, LAY_CHANGE_DELETE, text, names->list[i].len, err);
        if (code != LAY_OK)
            return code;
    }
    return LAY_OK;
}

/* ---- all of it ---- */

static lay_code look_into(void *arg, lay_spot *s, lay_error *err)
{
    reader *r = arg;
    int fd = r->o->upper_fd;
    lay_code code = s->parent != NULL ? enter(r, s, &fd, err) : LAY_OK;
    if (code != LAY_OK || s->kind == LAY_SPOT_GONE)
        return code;
    lay_names names;
    code = lay_names_read(&names, fd, err);
    if (code != LAY_OK) {
        if (s->parent != NULL && lay_spot_path(s, &r->path, err) == LAY_OK)
            lay_error_path(err, r->path.text, r->path.len);
        return code;
    }
    if (names.gone)
        s->kind = LAY_SPOT_GONE;
    for (size_t i = 0; i < names.count && code == LAY_OK && !names.gone; i++)
        code = note_name(r, s, fd, &names.list[i], names.text + names.list[i].at, err);
    if (code == LAY_OK && s->nlowers > 0 && !names.gone)
        code = s->cut ? delete_cut(r, s, &names, err) : delete_hidden(r, s, &names, err);
    lay_names_free(&names);
    return code;
}

static unsigned threads_for(size_t lowers)
{
    cpu_set_t set;
    int count = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
    unsigned most = lowers > MANY_LOWERS ? 2 : LAY_SPOT_THREADS;
    return count < 1 ? 1 : (unsigned)count < most ? (unsigned)count : most;
}

static lay_code overlay_run(const overlay *o, lay_spot *root, unsigned threads, lay_error *err)
{
    reader *readers = calloc(threads, sizeof *readers);
    void *of[LAY_SPOT_THREADS];
    if (readers == NULL)
        return lay_fail_nomem(err);
    for (unsigned i = 0; i < threads; i++) {
        reader *r = of[i] = &readers[i];
        r->o = o;
        for (size_t k = 0; k < UPPER_SLOTS; k++)
            r->upper[k].fd = -1;
        for (size_t k = 0; k < LOWER_SLOTS; k++)
            r->lower[k].fd = -1;
    }
    lay_code code = lay_spot_walk(root, look_into, of, threads, err);
    for (unsigned i = 0; i < threads; i++) {
        for (size_t k = 0; k < UPPER_SLOTS; k++)
            lay_close_owner(&readers[i].upper[k].fd);
        for (size_t k = 0; k < LOWER_SLOTS; k++)
            lay_close_owner(&readers[i].lower[k].fd);
        lay_path_free(&readers[i].path);
    }
    free(readers);
    return code;
}

static lay_code root_spot(lay_spot **out, size_t lowers, lay_error *err)
{
    lay_spot *root = *out = lay_spot_root();
    unsigned *all = root == NULL ? NULL : calloc(lowers + 1, sizeof *all);
    if (all == NULL)
        return lay_fail_nomem(err);
    for (size_t i = 0; i < lowers; i++)
        all[i] = (unsigned)i;
    root->lowers = all;
    root->nlowers = lowers;
    return LAY_OK;
}

static lay_code compare(const overlay *asked, int upper_fd, unsigned threads, lay_changes **out, lay_error *err)
{
    overlay o = *asked;
    /* opened anew: reading its names must not move the caller's descriptor */
    LAY_AUTO_FD int own_fd = o.upper_fd = openat(upper_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (own_fd < 0)
        return lay_fail_fd(err, errno, upper_fd, "open directory");
    lay_spot *root = NULL;
    lay_differ differ;
    lay_code code = lay_differ_open(&differ, err);
    if (code == LAY_OK)
        code = root_spot(&root, o.n, err);
    if (code == LAY_OK)
        code = overlay_run(&o, root, threads, err);
    if (code == LAY_OK)
        code = lay_spot_tell(root, &differ, err);
    if (code == LAY_OK)
        *out = lay_steal(differ.out);
    lay_spot_free(root);
    lay_differ_free(&differ);
    return code;
}

lay_code lay_changes_overlay(lay_changes **out, int upper_fd, const int *lower_fds, size_t n, unsigned flags, lay_error *err)
{
    bool user = (flags & LAY_CHANGES_USERXATTR) != 0;
    const overlay o = {
        .upper_fd = -1, .lower_fds = lower_fds, .n = n, .opaque = lay_opaque_xattr(user),
        .redirect = user ? LAY_REDIRECT_USER : LAY_REDIRECT_TRUSTED,
        .metacopy = user ? LAY_METACOPY_USER : LAY_METACOPY_TRUSTED,
        .xwhiteout = user ? LAY_XWHITEOUT_USER : LAY_XWHITEOUT_TRUSTED,
    };
    unsigned threads = threads_for(n);
    lay_code code = compare(&o, upper_fd, threads, out, err);
    if (code == LAY_E_OS && err->sys_errno == EMFILE && threads > 1) {
        lay_error_clear(err);                /* each thread has descriptors of its own: one needs fewer */
        code = compare(&o, upper_fd, 1, out, err);
    }
    return code;
}
