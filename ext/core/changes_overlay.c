/* changes_overlay.c - how an overlay differs from its lowers: the upper directory is read, and only
 * what it names is looked up below. What leaves is what comparing both mounted trees would give.
 *
 * In every directory of upper two things are known: which lowers make up the old directory of that
 * path, nearest first (none: all here is new, nothing is looked up), and whether an opaque mark at or
 * above it cuts them off, so that an old name is deleted unless upper has it too. A whiteout deletes
 * what the lowers show. Marks of renamed directories and of files without their data need what only
 * a mount can do: LAY_E_UNSUPPORTED.
 * Source: fs/overlayfs/namei.c (what hides what); go-archive, changes_linux.go (what is a change).
 */
#include "changes.h"
#include "whiteout.h"

#include <dirent.h>
#include <fcntl.h>
#include <string.h>

#define SLOTS 64               /* lower directories kept open, whatever the number of lowers */
#define HIDDEN DT_WHT          /* lay_name.type: a whiteout of upper */
#define GONE 255               /* lay_name.type: listed, but not there any more */

typedef struct level {
    lay_names names; size_t next;
    size_t lowers, nlowers;    /* in overlay.lowers */
    uint64_t serial;           /* of this directory among all entered */
    bool cut;
} level;

typedef struct slot { int fd; size_t lower; uint64_t serial; } slot;

typedef struct overlay {
    lay_differ differ;
    lay_trail upper;
    const int *lower_fds; size_t n;
    const char *opaque, *redirect, *metacopy, *xwhiteout;
    level *levels; size_t depth, cap;
    size_t *lowers; size_t nlowers, lowers_cap;
    uint64_t serial;
    slot slots[SLOTS];
} overlay;

/* What the lowers show under one name of the directory we stand in. */
typedef struct old_view {
    bool visible;
    struct stat st;
    size_t lower;              /* that shows it */
    size_t from;               /* in the level's list of lowers */
} old_view;

static level *here(overlay *o) { return &o->levels[o->depth - 1]; }

/* Lower directory of the level we stand in; a descriptor of the slot's, or -1 and errno. */
static int lower_dir(overlay *o, size_t lower)
{
    const level *l = here(o);
    if (o->depth == 1)
        return o->lower_fds[lower];
    slot *s = &o->slots[lower % SLOTS];
    if (s->fd >= 0 && s->lower == lower && s->serial == l->serial)
        return s->fd;
    const int flags = O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
    const lay_differ *d = &o->differ;
    bool in_parent = s->fd >= 0 && s->lower == lower && s->serial == l[-1].serial;
    size_t base = d->depth > 1 ? d->lens[d->depth - 2] + 1 : 0;
    int fd = in_parent ? openat(s->fd, d->path.text + base, flags)
                       : lay_tree_open_dir(o->lower_fds[lower], d->path.text, d->path.len, flags);
    if (fd < 0)
        return -1;
    lay_close_owner(&s->fd);
    *s = (slot){ fd, lower, l->serial };
    return fd;
}

static lay_code unsupported(overlay *o, const char *name, const char *what, lay_error *err)
{
    lay_code code = lay_path_push(&o->differ.path, name, strlen(name), err);
    if (code != LAY_OK)
        return code;
    lay_fail(err, LAY_E_UNSUPPORTED, "%s: only a mount can tell what is there", what);
    lay_error_path(err, o->differ.path.text, o->differ.path.len);
    return LAY_E_UNSUPPORTED;
}

/* A directory's marks: opaque or not; a redirect, or whiteouts made of xattrs, is beyond us. */
static lay_code read_marks(overlay *o, int dir_fd, const char *name, bool *opaque, lay_error *err)
{
    char value[8];
    ssize_t n = lay_tree_getxattr(dir_fd, name, o->opaque, value, sizeof value);
    if (n < 0 && errno != ERANGE)
        return lay_differ_fail(&o->differ, errno, name, "read the opaque mark", err);
    *opaque = n == 1 && value[0] == 'y';
    if (n == 1 && value[0] == 'x')
        return unsupported(o, name, "a directory with whiteouts as extended attributes", err);
    int has = lay_tree_hasxattr(dir_fd, name, o->redirect);
    if (has < 0)
        return lay_differ_fail(&o->differ, errno, name, "read the redirect mark", err);
    return has == 0 ? LAY_OK : unsupported(o, name, "a redirected directory", err);
}

static lay_code refuse_metacopy(overlay *o, int dir_fd, const char *name, lay_error *err)
{
    int has = lay_tree_hasxattr(dir_fd, name, o->metacopy);
    if (has > 0)
        return unsupported(o, name, "a file without its data (metacopy)", err);
    return has == 0 || errno == ENOENT ? LAY_OK : lay_differ_fail(&o->differ, errno, name, "read the metacopy mark", err);
}

/* Does this thing of a lower hide what is below? A device, or an empty file with a mark. */
static lay_code hides(overlay *o, int dir_fd, const char *name, const struct stat *st, bool *hidden, lay_error *err)
{
    *hidden = lay_stat_is_whiteout(st->st_mode, st->st_rdev);
    if (*hidden || !S_ISREG(st->st_mode) || st->st_size != 0)
        return LAY_OK;
    int has = lay_tree_hasxattr(dir_fd, name, o->xwhiteout);
    *hidden = has > 0;
    return has >= 0 || errno == ENOENT ? LAY_OK : lay_differ_fail(&o->differ, errno, name, "read the whiteout mark", err);
}

static lay_code look_up(overlay *o, const char *name, old_view *v, lay_error *err)
{
    const level *l = here(o);
    v->visible = false;
    for (size_t i = 0; i < l->nlowers; i++) {
        size_t lower = o->lowers[l->lowers + i];
        int fd = lower_dir(o, lower);
        if (fd < 0)
            return lay_differ_fail(&o->differ, errno, "", "open a lower directory", err);
        if (fstatat(fd, name, &v->st, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT) < 0) {
            if (errno != ENOENT)
                return lay_differ_fail(&o->differ, errno, name, "look up in a lower", err);
            continue;
        }
        bool hidden;
        if (hides(o, fd, name, &v->st, &hidden, err))
            return err->code;
        v->visible = !hidden;
        v->lower = lower;
        v->from = i;
        break;
    }
    return LAY_OK;
}

static lay_code add_lower(overlay *o, size_t lower, lay_error *err)
{
    if (o->nlowers == o->lowers_cap) {
        size_t cap = o->lowers_cap * 2 + 64;
        size_t *grown = reallocarray(o->lowers, cap, sizeof *grown);
        if (grown == NULL)
            return lay_fail_nomem(err);
        o->lowers = grown;
        o->lowers_cap = cap;
    }
    o->lowers[o->nlowers++] = lower;
    return LAY_OK;
}

/* The lowers that make up old directory name, appended to o->lowers: down to a whiteout, something
 * that is no directory, or an opaque directory. */
static lay_code gather_lowers(overlay *o, const char *name, const old_view *v, lay_error *err)
{
    const level l = *here(o);
    lay_code code = LAY_OK;
    bool opaque = false;
    for (size_t i = v->from; i < l.nlowers && code == LAY_OK && !opaque; i++) {
        size_t lower = o->lowers[l.lowers + i];
        int fd = lower_dir(o, lower);
        struct stat st;
        if (fd < 0)
            return lay_differ_fail(&o->differ, errno, "", "open a lower directory", err);
        if (fstatat(fd, name, &st, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT) < 0) {
            if (errno != ENOENT)
                return lay_differ_fail(&o->differ, errno, name, "look up in a lower", err);
            continue;
        }
        if (!S_ISDIR(st.st_mode))
            break;
        code = read_marks(o, fd, name, &opaque, err);
        if (code == LAY_OK)
            code = add_lower(o, lower, err);
    }
    return code;
}

/* The trail stands in the directory already; its lowers are the last n of o->lowers. */
static lay_code read_level(overlay *o, size_t n, bool cut, lay_error *err)
{
    if (o->depth == o->cap) {
        size_t cap = o->cap * 2 + 32;
        level *grown = reallocarray(o->levels, cap, sizeof *grown);
        if (grown == NULL)
            return lay_fail_nomem(err);
        o->levels = grown;
        o->cap = cap;
    }
    level *l = &o->levels[o->depth++];
    *l = (level){ .lowers = o->nlowers - n, .nlowers = n, .serial = o->serial++, .cut = cut };
    lay_code code = lay_names_read(&l->names, lay_trail_fd(&o->upper), err);
    if (code != LAY_OK && o->differ.path.len > 0)
        lay_error_path(err, o->differ.path.text, o->differ.path.len);
    return code;
}

static lay_code enter(overlay *o, const lay_name *name, const old_view *v, bool recorded, lay_error *err)
{
    const char *text = here(o)->names.text + name->at;
    bool opaque;
    size_t before = o->nlowers;
    lay_code code = read_marks(o, lay_trail_fd(&o->upper), text, &opaque, err);
    if (code == LAY_OK && v->visible && S_ISDIR(v->st.st_mode))
        code = gather_lowers(o, text, v, err);
    if (code != LAY_OK)
        return code;
    if (lay_trail_down(&o->upper, text) < 0) {      /* a tree in use: gone since it was listed */
        o->nlowers = before;
        return errno == ENOENT ? LAY_OK : lay_differ_fail(&o->differ, errno, text, "open directory", err);
    }
    code = lay_differ_enter(&o->differ, text, name->len, recorded, err);
    return code != LAY_OK ? code : read_level(o, o->nlowers - before, opaque || here(o)->cut, err);
}

/* The next name of the upper directory. */
static lay_code next_name(overlay *o, lay_error *err)
{
    level *l = here(o);
    lay_name *name = &l->names.list[l->next++];
    const char *text = l->names.text + name->at;
    int fd = lay_trail_fd(&o->upper);
    bool fresh = l->nlowers == 0, differs = true;
    struct stat st;
    st.st_mode = (mode_t)name->type << 12;   /* as DTTOIF has it */
    /* where all is new the kind is enough, and the listing has it */
    if (!fresh || name->type == DT_UNKNOWN || name->type == DT_CHR) {
        if (fstatat(fd, text, &st, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT) < 0) {
            name->type = GONE;
            return errno == ENOENT ? LAY_OK : lay_differ_fail(&o->differ, errno, text, "stat", err);
        }
        if (lay_stat_is_whiteout(st.st_mode, st.st_rdev)) {
            name->type = HIDDEN;
            return LAY_OK;
        }
    }
    old_view v = { 0 };
    lay_code code = fresh ? LAY_OK : look_up(o, text, &v, err);
    if (code == LAY_OK && S_ISREG(st.st_mode))
        code = refuse_metacopy(o, fd, text, err);
    if (code != LAY_OK)
        return code;
    if (v.visible) {
        int lower_fd = lower_dir(o, v.lower);
        lay_side a = { fd, text, &st }, b = { lower_fd, text, &v.st };
        if (lower_fd < 0 || lay_sides_differ(&a, &b, &differs) < 0)
            return lay_differ_fail(&o->differ, errno, text, "read security.capability", err);
    }
    if (differs)
        code = lay_differ_record(&o->differ, v.visible ? LAY_CHANGE_MODIFY : LAY_CHANGE_ADD, text, name->len, err);
    return code == LAY_OK && S_ISDIR(st.st_mode) ? enter(o, name, &v, differs, err) : code;
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
static lay_code delete_unnamed(overlay *o, lay_names *lists, size_t *next, lay_error *err)
{
    const level *l = here(o);
    size_t at = 0;
    for (;;) {
        size_t nearest = l->nlowers;
        const char *least = NULL;
        size_t least_len = 0;
        for (size_t i = 0; i < l->nlowers; i++) {
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
        for (size_t i = 0; i < l->nlowers; i++)
            if (next[i] < lists[i].count && strcmp(lists[i].text + lists[i].list[next[i]].at, least) == 0)
                next[i]++;
        if (upper_has(&l->names, &at, least, least_len))
            continue;
        if (type == DT_CHR || type == DT_REG || type == DT_UNKNOWN) {
            struct stat st;
            bool hidden;
            int fd = lower_dir(o, o->lowers[l->lowers + nearest]);
            if (fd < 0 || fstatat(fd, least, &st, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT) < 0)
                return lay_differ_fail(&o->differ, errno, least, "look up in a lower", err);
            if (hides(o, fd, least, &st, &hidden, err))
                return err->code;
            if (hidden)
                continue;
        }
        lay_code code = lay_differ_record(&o->differ, LAY_CHANGE_DELETE, least, least_len, err);
        if (code != LAY_OK)
            return code;
    }
}

static lay_code delete_cut(overlay *o, lay_error *err)
{
    const level *l = here(o);
    lay_names *lists = calloc(l->nlowers, sizeof *lists);
    LAY_AUTO_FREE size_t *next = calloc(l->nlowers, sizeof *next);
    lay_code code = lists == NULL || next == NULL ? lay_fail_nomem(err) : LAY_OK;
    for (size_t i = 0; i < l->nlowers && code == LAY_OK; i++) {
        int dir = lower_dir(o, o->lowers[l->lowers + i]);
        LAY_AUTO_FD int fd = dir < 0 ? -1 : openat(dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        code = fd < 0 ? lay_differ_fail(&o->differ, errno, "", "open a lower directory", err) : lay_names_read(&lists[i], fd, err);
    }
    if (code == LAY_OK)
        code = delete_unnamed(o, lists, next, err);
    for (size_t i = 0; lists != NULL && i < l->nlowers; i++)
        lay_names_free(&lists[i]);
    free(lists);
    return code;
}

static lay_code delete_hidden(overlay *o, lay_error *err)
{
    const lay_names *names = &here(o)->names;
    for (size_t i = 0; i < names->count; i++) {
        if (names->list[i].type != HIDDEN)
            continue;
        const char *text = names->text + names->list[i].at;
        old_view v;
        lay_code code = look_up(o, text, &v, err);
        if (code == LAY_OK && v.visible)
            code = lay_differ_record(&o->differ, LAY_CHANGE_DELETE, text, names->list[i].len, err);
        if (code != LAY_OK)
            return code;
    }
    return LAY_OK;
}

static lay_code leave(overlay *o, lay_error *err)
{
    level *l = here(o);
    lay_code code = LAY_OK;
    if (l->nlowers > 0)
        code = l->cut ? delete_cut(o, err) : delete_hidden(o, err);
    if (code != LAY_OK)
        return code;
    lay_names_free(&l->names);
    o->nlowers = l->lowers;
    if (--o->depth == 0)
        return LAY_OK;
    lay_differ_leave(&o->differ);
    if (lay_trail_up(&o->upper, o->differ.path.text, o->differ.path.len) < 0)
        return lay_differ_fail(&o->differ, errno, "", "go back to directory", err);
    return LAY_OK;
}

static lay_code overlay_run(overlay *o, int upper_fd, lay_error *err)
{
    lay_code code = lay_differ_open(&o->differ, err);
    if (code == LAY_OK && lay_trail_open(&o->upper, upper_fd, false) < 0)
        code = lay_fail_os(err, errno, NULL, "open directory");
    for (size_t i = 0; i < o->n && code == LAY_OK; i++)
        code = add_lower(o, i, err);
    if (code == LAY_OK)
        code = read_level(o, o->n, false, err);
    while (code == LAY_OK && o->depth > 0)
        code = here(o)->next < here(o)->names.count ? next_name(o, err) : leave(o, err);
    return code;
}

lay_code lay_changes_overlay(lay_changes **out, int upper_fd, const int *lower_fds, size_t n, unsigned flags, lay_error *err)
{
    bool user = (flags & LAY_CHANGES_USERXATTR) != 0;
    overlay o = {
        .upper = LAY_TRAIL_NONE, .lower_fds = lower_fds, .n = n, .opaque = lay_opaque_xattr(user),
        .redirect = user ? LAY_REDIRECT_USER : LAY_REDIRECT_TRUSTED,
        .metacopy = user ? LAY_METACOPY_USER : LAY_METACOPY_TRUSTED,
        .xwhiteout = user ? LAY_XWHITEOUT_USER : LAY_XWHITEOUT_TRUSTED,
    };
    for (size_t i = 0; i < SLOTS; i++)
        o.slots[i].fd = -1;
    lay_code code = overlay_run(&o, upper_fd, err);
    if (code == LAY_OK)
        *out = lay_steal(o.differ.out);
    while (o.depth > 0)
        lay_names_free(&o.levels[--o.depth].names);
    for (size_t i = 0; i < SLOTS; i++)
        lay_close_owner(&o.slots[i].fd);
    free(o.levels);
    free(o.lowers);
    lay_trail_free(&o.upper);
    lay_differ_free(&o.differ);
    return code;
}
