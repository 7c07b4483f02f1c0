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
#include "tree/attributes.h"
#include "tree/whiteout.h"

#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <string.h>

#define UPPER_SLOTS 4u         /* directories of upper kept open in a thread */
#define LOWER_SLOTS 128u       /* of lowers: for 64 of them the directory we are in and the one above it */
#define MANY_LOWERS 32u        /* two threads are enough there: descriptors are few */
#define LIST_SIZE 1024         /* names of extended attributes; where there are more, each is asked for */
#define HIDDEN DT_WHT          /* lay_name.type: a whiteout of upper */
#define GONE 255               /* lay_name.type: listed, but gone since */

typedef struct overlay {
    lay_lower upper;
    const lay_lowers *lowers;
    bool contents;             /* bytes count, and times do not */
    const char *opaque, *redirect, *metacopy, *xwhiteout;
} overlay;

/* A spot's directory in one of the layers, kept open. */
typedef struct slot { const lay_lower *layer; lay_lower_dir in; const lay_spot *spot; } slot;

/* One thread's. */
typedef struct reader {
    const overlay *o;
    lay_text path;
    slot upper[UPPER_SLOTS], lower[LOWER_SLOTS];
} reader;

/* What extended attributes a directory may have, of those that say anything here. */
typedef struct marks { bool opaque, redirect, capability; } marks;

/* What the lowers show under one name of a directory. */
typedef struct old_view {
    bool visible;
    struct stat st;
    const lay_lower *layer;    /* that shows it */
} old_view;

/* ---- ways ---- */

/* Of a name in it, or with "" of the directory itself. */
static lay_code path_of(reader *r, const lay_spot *s, const char *name, lay_error *err)
{
    return lay_spot_path(s, &r->path, err) || (name[0] != '\0' && lay_text_push(&r->path, name, strlen(name), err)) ? err->code : LAY_OK;
}

static lay_code fail(reader *r, const lay_spot *s, int sys_errno, const char *name, const char *what, lay_error *err)
{
    return path_of(r, s, name, err) ? err->code : lay_fail_os(err, sys_errno, r->path.len > 0 ? r->path.p : ".", what);
}

static lay_code unsupported(reader *r, const lay_spot *s, const char *name, const char *what, lay_error *err)
{
    if (path_of(r, s, name, err))
        return err->code;
    lay_fail(err, LAY_E_UNSUPPORTED, "%s: only a mount can tell what is there", what);
    lay_error_path(err, r->path.p, r->path.len);
    return LAY_E_UNSUPPORTED;
}

static slot *slot_of(reader *r, const lay_spot *s, const lay_lower *l)
{
    if (l == &r->o->upper)
        return &r->upper[s->depth % UPPER_SLOTS];
    return &r->lower[((size_t)(l - r->o->lowers->list) * 2 + s->depth % 2) % LOWER_SLOTS];
}

static void drop(slot *k)
{
    if (k->layer != NULL)
        lay_lower_leave(k->layer, k->in);
    k->layer = NULL;
}

/* Below a directory of the layer: kept, or -1 and errno. */
static lay_lower_dir open_at(reader *r, const lay_spot *s, const lay_lower *l, lay_lower_dir above, const char *path, size_t n)
{
    lay_lower_dir in = l->ops->open(l, above, path, n);
    if (in < 0)
        return -1;
    slot *k = slot_of(r, s, l);
    drop(k);
    *k = (slot){ l, in, s };
    return in;
}

/* The spot's directory in a layer: the slot's, or -1 and errno. */
static lay_lower_dir open_spot(reader *r, const lay_spot *s, const lay_lower *l)
{
    if (s->parent == NULL)
        return l->root;
    const slot *k = slot_of(r, s, l);
    if (k->layer == l && k->spot == s)
        return k->in;
    lay_error ignored;
    if (lay_spot_path(s, &r->path, &ignored) != LAY_OK) {
        errno = ENOMEM;
        return -1;
    }
    return open_at(r, s, l, l->root, r->path.p, r->path.len);
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
static marks list_marks(const overlay *o, const lay_lower *l, lay_lower_dir in)
{
    char list[LIST_SIZE];
    ssize_t n = l->ops->xattr(l, in, ".", NULL, list, sizeof list);
    if (n < 0)
        return (marks){ true, true, true };
    return (marks){ listed(list, (size_t)n, o->opaque), listed(list, (size_t)n, o->redirect), listed(list, (size_t)n, LAY_CAPABILITY) };
}

/* Is the mark there, even if it is empty? 1 or 0; -1 and errno. */
static int has_mark(const lay_lower *l, lay_lower_dir in, const char *name, const char *xattr)
{
    char value[64];
    ssize_t n = l->ops->xattr(l, in, name, xattr, value, sizeof value);
    return n < 0 ? (errno == ERANGE ? 1 : -1) : n > 0 || errno == 0;
}

/* A directory's marks: opaque or not; a redirect, or whiteouts made of xattrs, is beyond us. */
static lay_code read_marks(reader *r, const lay_spot *s, const lay_lower *l, lay_lower_dir in, marks found, bool *opaque, lay_error *err)
{
    char value[8];
    ssize_t n = found.opaque ? l->ops->xattr(l, in, ".", r->o->opaque, value, sizeof value) : 0;
    if (n < 0 && errno != ERANGE)
        return fail(r, s, errno, "", "cannot read the opaque mark", err);
    *opaque = n == 1 && value[0] == 'y';
    if (n == 1 && value[0] == 'x')
        return unsupported(r, s, "", "a directory with whiteouts as extended attributes", err);
    int has = found.redirect ? has_mark(l, in, ".", r->o->redirect) : 0;
    if (has < 0)
        return fail(r, s, errno, "", "cannot read the redirect mark", err);
    return has == 0 ? LAY_OK : unsupported(r, s, "", "a redirected directory", err);
}

/* A file without its data has size, times, rights and capability of its own: enough to tell how it differs, where
 * its data lie under the same name. */
static lay_code check_metacopy(reader *r, const lay_spot *s, lay_lower_dir in, const char *name, const struct stat *st, const old_view *v, lay_error *err)
{
    const lay_lower *upper = &r->o->upper;
    int has = has_mark(upper, in, name, r->o->metacopy);
    int moved = has > 0 ? has_mark(upper, in, name, r->o->redirect) : 0;
    if (has < 0 || moved < 0)
        return lay_tree_gone(errno) ? LAY_OK : fail(r, s, errno, name, "cannot read the metacopy mark", err);
    if (has == 0 || (moved == 0 && !r->o->contents && v->visible && S_ISREG(v->st.st_mode) && v->st.st_size == st->st_size))
        return LAY_OK;
    return unsupported(r, s, name, "a file without its data (metacopy)", err);
}

/* Does this thing of a lower hide what is below? A device, or an empty file with a mark. */
static lay_code hides(reader *r, const lay_spot *s, const lay_lower *l, lay_lower_dir in, const char *name, const struct stat *st, bool *hidden, lay_error *err)
{
    *hidden = lay_stat_is_whiteout(st->st_mode, st->st_rdev);
    if (*hidden || !S_ISREG(st->st_mode) || st->st_size != 0)
        return LAY_OK;
    int has = has_mark(l, in, name, r->o->xwhiteout);
    *hidden = has > 0;
    return has >= 0 || lay_tree_gone(errno) ? LAY_OK : fail(r, s, errno, name, "cannot read the whiteout mark", err);
}

/* ---- names ---- */

static lay_code look_up(reader *r, const lay_spot *s, const char *name, old_view *v, lay_error *err)
{
    v->visible = false;
    for (size_t i = 0; i < s->nlowers; i++) {
        const lay_lower *l = v->layer = &r->o->lowers->list[s->lowers[i]];
        lay_lower_dir in = open_spot(r, s, l);
        if (in < 0)
            return fail(r, s, errno, "", "cannot open a lower directory", err);
        if (l->ops->stat(l, in, name, &v->st) < 0) {
            if (errno != ENOENT)
                return fail(r, s, errno, name, "cannot look it up in a lower directory", err);
            continue;
        }
        bool hidden;
        lay_code code = hides(r, s, l, in, name, &v->st, &hidden, err);
        v->visible = code == LAY_OK && !hidden;
        return code;
    }
    return LAY_OK;
}

/* The next name of an upper directory. */
static lay_code note_name(reader *r, lay_spot *s, lay_lower_dir in, lay_name *name, const char *text, lay_error *err)
{
    const lay_lower *upper = &r->o->upper;
    bool fresh = s->nlowers == 0, directory = name->type == DT_DIR;
    struct stat st;
    st.st_mode = (mode_t)name->type << 12;   /* as DTTOIF has it */
    /* where all is new the kind is enough, and the listing has it; a directory is looked at when it is open */
    if (!directory && (!fresh || name->type == DT_UNKNOWN || name->type == DT_CHR)) {
        if (upper->ops->stat(upper, in, text, &st) < 0) {
            name->type = GONE;
            return errno == ENOENT ? LAY_OK : fail(r, s, errno, text, "cannot stat it", err);
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
    if ((!fresh && look_up(r, s, text, &v, err)) || (S_ISREG(st.st_mode) && check_metacopy(r, s, in, text, &st, &v, err)))
        return err->code;
    int differs = 1;
    if (v.visible && (r->o->contents || !lay_stats_differ(&st, &v.st))) {
        lay_lower_dir old = open_spot(r, s, v.layer);
        const lay_thing a = { upper, in, text, &st }, b = { v.layer, old, text, &v.st };
        differs = old < 0 ? -1 : lay_things_differ(r->o->contents, &a, &b);
    }
    if (differs < 0 && lay_tree_gone(errno)) {
        name->type = GONE;
        return LAY_OK;
    }
    if (differs < 0)
        return fail(r, s, errno, text, "cannot compare it", err);
    return differs > 0 ? lay_spot_note(s, v.visible ? LAY_CHANGE_MODIFY : LAY_CHANGE_ADD, text, name->len, err) : LAY_OK;
}

/* ---- the directory itself ---- */

static lay_code add_lower(lay_spot *s, unsigned lower, lay_error *err)
{
    if (s->lowers == NULL)
        s->lowers = calloc(s->parent->nlowers, sizeof *s->lowers);
    if (s->lowers == NULL)
        return lay_fail_nomem(err);
    s->lowers[s->nlowers++] = lower;
    return LAY_OK;
}

/* What lies under its name in the lowers of the directory above: v, if anything, and the lowers that make up
 * the old directory, down to a whiteout, something that is no directory, or an opaque directory. */
static lay_code gather_lowers(reader *r, lay_spot *s, old_view *v, marks *old, lay_error *err)
{
    const lay_spot *parent = s->parent;
    bool opaque = false;
    for (size_t i = 0; i < parent->nlowers && !opaque; i++) {
        const lay_lower *l = &r->o->lowers->list[parent->lowers[i]];
        lay_lower_dir above = open_spot(r, parent, l);
        if (above < 0)
            return fail(r, parent, errno, "", "cannot open a lower directory", err);
        lay_lower_dir in = open_at(r, s, l, above, s->name, s->name_len);
        if (in < 0 && errno == ENOENT)
            continue;
        if (in < 0 && errno != ENOTDIR && errno != ELOOP)
            return fail(r, s, errno, "", "cannot look it up in a lower directory", err);
        if (!v->visible && l->ops->stat(l, in < 0 ? above : in, in < 0 ? s->name : ".", &v->st) < 0)
            return fail(r, s, errno, "", "cannot look it up in a lower directory", err);
        if (in < 0) {
            bool hidden = false;
            lay_code code = v->visible ? LAY_OK : hides(r, parent, l, above, s->name, &v->st, &hidden, err);
            v->visible |= !hidden;
            return code;
        }
        marks found = list_marks(r->o, l, in);
        if (!v->visible) {
            v->layer = l;
            *old = found;
        }
        v->visible = true;
        if (read_marks(r, s, l, in, found, &opaque, err) || add_lower(s, parent->lowers[i], err))
            return err->code;
    }
    return LAY_OK;
}

/* Opens the directory in upper and says how it differs itself, and from what its names will. */
static lay_code enter(reader *r, lay_spot *s, lay_lower_dir *in, lay_error *err)
{
    const lay_lower *upper = &r->o->upper;
    lay_lower_dir above = open_spot(r, s->parent, upper);
    *in = above < 0 ? -1 : open_at(r, s, upper, above, s->name, s->name_len);
    if (*in < 0) {                                  /* a tree in use: gone since it was listed */
        s->kind = LAY_SPOT_GONE;
        return lay_tree_gone(errno) ? LAY_OK : fail(r, s, errno, "", "cannot open the directory", err);
    }
    struct stat st;
    if (upper->ops->stat(upper, *in, ".", &st) < 0)
        return fail(r, s, errno, "", "cannot stat it", err);
    marks now = list_marks(r->o, upper, *in), old = { 0 };
    old_view v = { 0 };
    bool opaque;
    if (read_marks(r, s, upper, *in, now, &opaque, err) || gather_lowers(r, s, &v, &old, err))
        return err->code;
    int differs = !v.visible || lay_stats_differ(&st, &v.st);
    if (differs == 0 && (now.capability || old.capability)) {
        above = open_spot(r, s->parent, v.layer);
        const lay_thing a = { upper, *in, ".", &st }, b = { v.layer, above, s->name, &v.st };
        differs = above < 0 ? -1 : lay_capabilities_differ(&a, &b);
    }
    if (differs < 0)
        return fail(r, s, errno, "", "cannot read security.capability", err);
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
            const lay_lower *l = &r->o->lowers->list[s->lowers[nearest]];
            lay_lower_dir in = open_spot(r, s, l);
            if (in < 0 || l->ops->stat(l, in, least, &st) < 0)
                return fail(r, s, errno, least, "cannot look it up in a lower directory", err);
            if (hides(r, s, l, in, least, &st, &hidden, err))
                return err->code;
        }
        if (!hidden && lay_spot_note(s, LAY_CHANGE_DELETE, least, least_len, err))
            return err->code;
    }
}

static lay_code delete_cut(reader *r, lay_spot *s, const lay_names *names, lay_error *err)
{
    lay_names *lists = calloc(s->nlowers, sizeof *lists);
    LAY_AUTO_FREE size_t *next = calloc(s->nlowers, sizeof *next);
    lay_code code = lists == NULL || next == NULL ? lay_fail_nomem(err) : LAY_OK;
    for (size_t i = 0; i < s->nlowers && code == LAY_OK; i++) {
        const lay_lower *l = &r->o->lowers->list[s->lowers[i]];
        lay_lower_dir in = open_spot(r, s, l);
        code = in < 0 ? fail(r, s, errno, "", "cannot open a lower directory", err) : l->ops->list(l, in, &lists[i], err);
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
        if (look_up(r, s, text, &v, err) || (v.visible && lay_spot_note(s, LAY_CHANGE_DELETE, text, names->list[i].len, err)))
            return err->code;
    }
    return LAY_OK;
}

/* ---- all of it ---- */

static lay_code look_into(void *arg, lay_spot *s, lay_error *err)
{
    reader *r = arg;
    const lay_lower *upper = &r->o->upper;
    lay_lower_dir in = upper->root;
    lay_code code = s->parent != NULL ? enter(r, s, &in, err) : LAY_OK;
    if (code != LAY_OK || s->kind == LAY_SPOT_GONE)
        return code;
    lay_names names;
    code = upper->ops->list(upper, in, &names, err);
    if (code != LAY_OK && s->parent != NULL && lay_spot_path(s, &r->path, err) == LAY_OK)
        lay_error_path(err, r->path.p, r->path.len);
    if (names.gone)
        s->kind = LAY_SPOT_GONE;
    for (size_t i = 0; i < names.count && code == LAY_OK && !names.gone; i++)
        code = note_name(r, s, in, &names.list[i], names.text + names.list[i].at, err);
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
        readers[i].o = o;
        of[i] = &readers[i];
    }
    lay_code code = lay_spot_walk(root, look_into, of, threads, err);
    for (unsigned i = 0; i < threads; i++) {
        for (size_t k = 0; k < UPPER_SLOTS; k++)
            drop(&readers[i].upper[k]);
        for (size_t k = 0; k < LOWER_SLOTS; k++)
            drop(&readers[i].lower[k]);
        free(readers[i].path.p);
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

static lay_code compare(const overlay *o, unsigned threads, lay_changes **out, lay_error *err)
{
    lay_spot *root = NULL;
    lay_differ differ;
    if (!lay_differ_open(&differ, err) && !root_spot(&root, o->lowers->count, err) && !overlay_run(o, root, threads, err)
        && !lay_spot_tell(root, &differ, err))
        *out = lay_steal(differ.out);
    lay_spot_free(root);
    lay_differ_free(&differ);
    return *out != NULL ? LAY_OK : err->code;
}

lay_code lay_changes_over(lay_changes **out, const lay_lower *upper, const lay_lowers *lowers, bool contents, lay_error *err)
{
    bool user = lowers->userxattr;
    const overlay o = {
        .upper = *upper, .lowers = lowers, .contents = contents, .opaque = lay_opaque_xattr(user),
        .redirect = user ? LAY_REDIRECT_USER : LAY_REDIRECT_TRUSTED,
        .metacopy = user ? LAY_METACOPY_USER : LAY_METACOPY_TRUSTED,
        .xwhiteout = user ? LAY_XWHITEOUT_USER : LAY_XWHITEOUT_TRUSTED,
    };
    unsigned threads = threads_for(lowers->count);
    *out = NULL;
    lay_code code = compare(&o, threads, out, err);
    if (code == LAY_E_OS && err->sys_errno == EMFILE && threads > 1) {
        lay_error_clear(err);                /* each thread has descriptors of its own: one needs fewer */
        code = compare(&o, 1, out, err);
    }
    return code;
}
