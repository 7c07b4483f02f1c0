/* inspect.c - directory after directory: what lies there is looked up in the tree that must be, then what was not met is told.
 *
 * A directory's names come in the order the kernel has them, so nothing is kept of them; which directory comes next is
 * the expected tree's to say, so nothing is kept for that either. What was added is told, and not gone into. A directory
 * is compared last, when it is known whether its names changed: its own time follows from that.
 */
#include "inspect/inspect.h"

#include "base/digest.h"
#include "tree/trail.h"
#include "tree/whiteout.h"
#include "inspect/xattrs.h"

#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/sysmacros.h>

#define BLOCK (1u << 20)

typedef enum phase { READ_NAMES, TELL_MISSING, LOSE, LEAVE, END } phase;

struct lay_inspect {
    lay_inspect_options o;
    phase phase;
    lay_trail trail;
    lay_text here;                   /* of the directory, and of what is told */
    uint32_t directory, child;       /* where it is; the next name to be asked whether it was met */
    uint32_t lost, lost_at;          /* LOSE: all below the first is gone; the next to tell */
    bool changed;                    /* names of this directory differ, or their kinds */
    lay_dents dents;
    int file; int64_t file_at; uint64_t crc; uint32_t file_want;      /* the file being read */
    uint8_t *block;
    lay_inodes shared;               /* inodes with more names than they must have, and whose they are */
    lay_attributes room;
    lay_problem pending;             /* a second problem of one name */
    lay_text told;                   /* path of the problem given */
    int64_t bytes;
};

/* An opaque mark at the top: the names that it hides are to be marked, each. */
static lay_code hide_below(const lay_inspect_options *o, lay_error *err)
{
    lay_code code = LAY_OK;
    if (!(lay_expect_made(o->expect, LAY_ROOT)->flags & LAY_MADE_OPAQUE))
        return LAY_OK;
    for (size_t k = 0; k < o->lowers->count && !code; k++) {
        const lay_lower *l = &o->lowers->list[k];
        lay_names names;
        code = l->ops->list(l, l->root, &names, err);
        for (size_t n = 0; n < names.count && !code; n++)
            code = lay_expect_hide(o->expect, names.text + names.list[n].at, names.list[n].len, err);
        lay_names_free(&names);
    }
    return code;
}

lay_code lay_inspect_open(lay_inspect **out, const lay_inspect_options *o, lay_error *err)
{
    lay_inspect *i = calloc(1, sizeof *i);
    if (!i)
        return lay_fail_nomem(err);
    i->o = *o;
    i->file = -1;
    i->trail = (lay_trail)LAY_TRAIL_NONE;
    i->block = malloc(BLOCK);
    if (!i->block)
        lay_fail_nomem(err);
    else if (lay_trail_open(&i->trail, o->root_fd, false) != 0)
        lay_fail_os(err, errno, NULL, "cannot look into the layer");
    else if (hide_below(o, err) == LAY_OK) {
        *out = i;
        return LAY_OK;
    }
    lay_inspect_free(i);
    return err->code;
}

void lay_inspect_free(lay_inspect *i)
{
    if (!i)
        return;
    lay_close_owner(&i->file);
    lay_trail_free(&i->trail);
    free(i->here.p);
    lay_inodes_free(&i->shared);
    lay_attributes_free(&i->room);
    free(i->told.p);
    free(i->block);
    free(i);
}

int64_t lay_inspect_bytes(const lay_inspect *i) { return i->bytes; }

/* ---- telling ------------------------------------------------------------------------------------------------ */

__attribute__((format(printf, 3, 4)))
static void say(lay_problem *p, int kind, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    p->kind = kind;
    vsnprintf(p->text, sizeof p->text, format, args);
    va_end(args);
}

/* More of the same sentence. */
__attribute__((format(printf, 2, 3)))
static void add(lay_problem *p, const char *format, ...)
{
    size_t have = p->kind ? strlen(p->text) : 0;
    va_list args;
    va_start(args, format);
    if (p->kind)
        have += (size_t)snprintf(p->text + have, sizeof p->text - have, "; ");
    if (have < sizeof p->text)
        vsnprintf(p->text + have, sizeof p->text - have, format, args);
    va_end(args);
    p->kind = LAY_PROBLEM_METADATA;
}

/* Something cannot be looked at, for the reason in errno: damage, unless it says nothing of the layer. */
static lay_code cannot(lay_problem *p, int kind, const char *what, lay_error *err)
{
    if (errno == ENOMEM)
        return lay_fail_nomem(err);
    say(p, kind, "%s: %s", what, strerror(errno));
    return LAY_OK;
}

static void give_path(lay_inspect *i, lay_problem *p)
{
    p->path = i->told.p;
    p->path_len = i->told.len;
}

/* The path of a name in this directory, or with name NULL of the directory itself. */
static lay_code at_name(lay_inspect *i, const char *prefix, const char *name, size_t n, lay_problem *p, lay_error *err)
{
    const char *slash = i->here.len && (name || *prefix) ? "/" : "";
    if (lay_text_set(&i->told, i->here.p, i->here.len, err) || lay_text_add(&i->told, slash, strlen(slash), err)
        || lay_text_add(&i->told, prefix, strlen(prefix), err) || (n && lay_text_add(&i->told, name, n, err)))
        return err->code;
    give_path(i, p);
    return LAY_OK;
}

static const char *kind_name(lay_made_kind kind)
{
    static const char *const names[] = {
        "nothing", "a regular file", "a directory", "a symbolic link", "a character device", "a block device", "a fifo", "a whiteout",
    };
    return names[kind];
}

static lay_made_kind kind_on_disk(const struct stat *st)
{
    switch (st->st_mode & S_IFMT) {
    case S_IFREG:
        return LAY_MADE_FILE;
    case S_IFDIR:
        return LAY_MADE_DIRECTORY;
    case S_IFLNK:
        return LAY_MADE_SYMLINK;
    case S_IFCHR:
        return st->st_rdev ? LAY_MADE_CHARACTER : LAY_MADE_WHITEOUT;
    case S_IFBLK:
        return LAY_MADE_BLOCK;
    case S_IFIFO:
        return LAY_MADE_FIFO;
    default:
        return LAY_MADE_NONE;
    }
}

/* ---- one name ------------------------------------------------------------------------------------------------- */

/* File systems keep whole seconds some of them, and some end in 2038. */
static bool same_time(const lay_inspect *i, const lay_made *t, const struct stat *st)
{
    int64_t sec = st->st_mtim.tv_sec;
    if (sec == t->mtime_sec)
        return st->st_mtim.tv_nsec == t->mtime_nsec || st->st_mtim.tv_nsec == 0 || i->o.scope == LAY_XATTRS_FRESH;
    if (sec == 0 && i->o.scope == LAY_XATTRS_FRESH && !lay_made_keeps((lay_time){ t->mtime_sec, t->mtime_nsec }))
        return true;                          /* it was repaired from the tar */
    return sec == INT32_MAX && t->mtime_sec > sec;
}

/* What is recorded of a thing beside its bytes. */
static lay_code compare_meta(lay_inspect *i, int dir_fd, const char *name, const lay_made *t, const struct stat *st, bool times, lay_problem *p, lay_error *err)
{
    lay_made_kind kind = (lay_made_kind)t->kind;
    lay_found_xattrs has = { .mode = st->st_mode & 07777 };
    lay_code code = lay_xattrs_of_file(lay_expect_key(i->o.expect), &i->room, dir_fd, name, kind, i->o.scope, &has, err);
    if (code == LAY_E_NOMEM)
        return code;
    if (kind != LAY_MADE_SYMLINK && has.mode != t->mode)
        add(p, "its mode is %04o, not %04o", has.mode, t->mode);
    if (st->st_uid != t->uid || st->st_gid != t->gid)
        add(p, "its owner is %u:%u, not %u:%u", st->st_uid, st->st_gid, t->uid, t->gid);
    if (times && !same_time(i, t, st))
        add(p, "its time is %lld.%09ld, not %lld.%09d", (long long)st->st_mtim.tv_sec, st->st_mtim.tv_nsec, (long long)t->mtime_sec, t->mtime_nsec);
    if (code) {
        add(p, "its extended attributes cannot be read: %s", strerror(err->sys_errno));
        lay_error_clear(err);
        return LAY_OK;
    }
    if (has.sum != t->xattrs)
        add(p, "its extended attributes are not those recorded");
    if (kind != LAY_MADE_DIRECTORY && has.marks)
        add(p, "it has a mark of overlayfs that no tar can give");
    return LAY_OK;
}

/* Names that share a file must go on to, and others must not begin to. */
static lay_code compare_identity(lay_inspect *i, uint32_t want, lay_made *t, const struct stat *st, lay_problem *p, lay_error *err)
{
    if (t->names > 1) {
        uint64_t node = (uint64_t)st->st_ino ^ (uint64_t)st->st_dev << 40;
        if (t->flags & LAY_MADE_MET && t->met != node)
            add(p, "it is no longer the same file as another name of it");
        else
            t->met = node;
        t->flags |= LAY_MADE_MET;
    }
    if (st->st_nlink > t->names) {
        size_t whose = lay_expect_want(i->o.expect, want)->thing;
        bool seen;
        if (lay_inodes_add(&i->shared, st->st_dev, st->st_ino, &whose, &seen, err))
            return err->code;
        if (seen && whose != lay_expect_want(i->o.expect, want)->thing)
            add(p, "it is the same file as one that is another in the tar");
    }
    return LAY_OK;
}

static lay_code compare_link(lay_inspect *i, const char *name, const lay_made *t, lay_problem *p, lay_error *err)
{
    ssize_t n = readlinkat(lay_trail_fd(&i->trail), name, (char *)i->block, BLOCK);
    if (n < 0)
        return cannot(p, LAY_PROBLEM_CONTENT, "the symbolic link cannot be read", err);
    if (n != t->size || memcmp(i->block, lay_expect_text(i->o.expect, t), (size_t)n) != 0)
        say(p, LAY_PROBLEM_CONTENT, "the symbolic link leads elsewhere");
    return LAY_OK;
}

/* Is an empty file the whiteout that must be there? */
static bool is_marked_whiteout(lay_inspect *i, const char *name, const struct stat *st)
{
    int dir = lay_trail_fd(&i->trail);
    return S_ISREG(st->st_mode) && st->st_size == 0
        && (lay_tree_hasxattr(dir, name, LAY_XWHITEOUT_TRUSTED) > 0 || lay_tree_hasxattr(dir, name, LAY_XWHITEOUT_USER) > 0);
}

static bool is_kind(lay_inspect *i, const char *name, const lay_made *t, const struct stat *st)
{
    lay_made_kind kind = kind_on_disk(st);
    if (t->kind == LAY_MADE_CHARACTER && !t->major && !t->minor)
        return kind == LAY_MADE_WHITEOUT;
    return kind == t->kind || (t->kind == LAY_MADE_WHITEOUT && is_marked_whiteout(i, name, st));
}

/* Bytes that the record has itself: compare them now. */
static lay_code begin_file(lay_inspect *i, const char *name, uint32_t want, lay_problem *p, lay_error *err)
{
    struct stat st;
    i->file_at = 0;
    i->crc = 0;
    i->file_want = want;
    i->file = lay_tree_open_regular(lay_trail_fd(&i->trail), name, &st);
    return i->file < 0 ? cannot(p, LAY_PROBLEM_CONTENT, "the file cannot be opened", err) : LAY_OK;
}

/* Of what is of the right kind: size, bytes that no other step reads, what a link says, which device it is. */
static lay_code compare_content(lay_inspect *i, const char *name, uint32_t want, const lay_made *t, const struct stat *st, bool told, lay_problem *p, lay_error *err)
{
    bool device = t->kind == LAY_MADE_CHARACTER || t->kind == LAY_MADE_BLOCK;
    if (t->kind == LAY_MADE_FILE && !told) {
        if (st->st_size != t->size)
            say(p, LAY_PROBLEM_CONTENT, "its size is %lld, not %lld", (long long)st->st_size, (long long)t->size);
        else if (t->flags & LAY_MADE_INLINE && !(t->flags & LAY_MADE_MET))
            return begin_file(i, name, want, p, err);
    } else if (i->o.metadata && t->kind == LAY_MADE_SYMLINK) {
        return compare_link(i, name, t, p, err);
    } else if (i->o.metadata && device && (major(st->st_rdev) != t->major || minor(st->st_rdev) != t->minor)) {
        say(p, LAY_PROBLEM_CONTENT, "it is the device %u:%u, not %u:%u", major(st->st_rdev), minor(st->st_rdev), t->major, t->minor);
    }
    return LAY_OK;
}

/* A name that the tar does not have, and may be there: a whiteout, in a layer that hides all below, of a name that was
 * below when it was made; or what a fresh tar leaves out. */
static bool may_be_there(const lay_inspect *i, int dir, const char *name)
{
    struct stat st;
    if (fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT) != 0)
        return false;
    bool hides = i->directory == LAY_ROOT && lay_expect_made(i->o.expect, LAY_ROOT)->flags & LAY_MADE_OPAQUE;
    return (hides && lay_stat_is_whiteout(st.st_mode, st.st_rdev)) || (i->o.scope == LAY_XATTRS_FRESH && S_ISSOCK(st.st_mode));
}

static lay_code compare(lay_inspect *i, const char *name, size_t n, lay_problem *p, lay_error *err)
{
    struct stat st;
    int dir = lay_trail_fd(&i->trail);
    uint32_t want = lay_expect_find(i->o.expect, i->directory, name, n);
    if (want == LAY_NO_WANT) {
        if (may_be_there(i, dir, name))
            return LAY_OK;
        i->changed = true;
        if (!i->o.metadata || i->o.partial)
            return LAY_OK;
        say(p, LAY_PROBLEM_ADDED, "the layer's tar has no such name");
        return at_name(i, "", name, n, p, err);
    }
    if (fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT) != 0) {
        if (errno == ENOENT)
            return LAY_OK;                    /* told as missing, when all names have been read */
        lay_expect_want(i->o.expect, want)->flags |= LAY_WANT_SEEN | LAY_WANT_TOLD;
        return cannot(p, LAY_PROBLEM_METADATA, "it cannot be looked at", err) || at_name(i, "", name, n, p, err) ? err->code : LAY_OK;
    }
    lay_made *t = lay_expect_made(i->o.expect, want);
    bool told = t->flags & LAY_MADE_CHANGED;
    if (!is_kind(i, name, t, &st)) {
        i->changed = true;
        lay_expect_want(i->o.expect, want)->flags |= LAY_WANT_TOLD;     /* and with a directory all that was in it */
        if (told || !(i->o.metadata || t->kind == LAY_MADE_DIRECTORY))
            return LAY_OK;
        say(p, LAY_PROBLEM_CONTENT, "it is %s, not %s", kind_name(kind_on_disk(&st)), kind_name((lay_made_kind)t->kind));
        const char *prefix = t->kind == LAY_MADE_WHITEOUT ? LAY_WH_PREFIX : "";
        return at_name(i, prefix, name, n, p, err);
    }
    lay_expect_want(i->o.expect, want)->flags |= LAY_WANT_SEEN;
    if (t->kind == LAY_MADE_DIRECTORY || t->kind == LAY_MADE_WHITEOUT)
        return LAY_OK;
    if (compare_content(i, name, want, t, &st, told, p, err))
        return err->code;
    if (p->kind)
        t->flags |= LAY_MADE_CHANGED;
    told = told || p->kind;
    if (i->o.metadata) {
        lay_problem *second = p->kind ? &i->pending : p;
        if (compare_meta(i, dir, name, t, &st, !told, second, err) || compare_identity(i, want, t, &st, second, err))
            return err->code;
    }
    return p->kind || i->file >= 0 ? at_name(i, "", name, n, p, err) : LAY_OK;
}

/* ---- the file being read ----------------------------------------------------------------------------------------- */

static void end_file(lay_inspect *i, lay_problem *p, const char *why)
{
    lay_close_owner(&i->file);
    i->file = -1;
    if (!why)
        return;
    lay_expect_made(i->o.expect, i->file_want)->flags |= LAY_MADE_CHANGED;
    say(p, LAY_PROBLEM_CONTENT, "%s", why);
    give_path(i, p);
}

/* A block, or the hole before it. */
static void read_file(lay_inspect *i, lay_problem *p)
{
    const lay_made *t = lay_expect_made(i->o.expect, i->file_want);
    int64_t data = lseek(i->file, i->file_at, SEEK_DATA);
    if (data < 0)
        data = errno == ENXIO ? t->size : i->file_at;
    if (data > t->size)
        data = t->size;
    if (data > i->file_at) {
        i->crc = lay_crc64_zeros(i->crc, (uint64_t)(data - i->file_at));
        i->file_at = data;
    }
    size_t want = t->size - i->file_at < (int64_t)BLOCK ? (size_t)(t->size - i->file_at) : BLOCK;
    ssize_t n = want ? pread(i->file, i->block, want, i->file_at) : 0;
    if (n < 0 && errno == EINTR)
        return;
    if (n < 0) {
        end_file(i, p, strerror(errno));
        return;
    }
    i->crc = lay_crc64_add(i->crc, i->block, (size_t)n);
    i->file_at += n;
    i->bytes += n;
    if (i->file_at < t->size && n > 0)
        return;
    end_file(i, p, i->file_at == t->size && i->crc == t->crc ? NULL : "its bytes are not those recorded");
}

/* ---- directories --------------------------------------------------------------------------------------------------- */

static lay_code next_name(lay_inspect *i, lay_problem *p, lay_error *err)
{
    const lay_dent *d = lay_dents_next(&i->dents, lay_trail_fd(&i->trail));
    if (d)
        return compare(i, d->name, strlen(d->name), p, err);
    i->phase = TELL_MISSING;
    i->child = lay_expect_want(i->o.expect, i->directory)->first;
    if (errno == 0)
        return LAY_OK;
    return cannot(p, LAY_PROBLEM_METADATA, "the directory cannot be read", err) || at_name(i, "", NULL, 0, p, err) ? err->code : LAY_OK;
}

/* Would another tree be seen without this mark, of i->here or (name not NULL) of a name in it? Those that an entry asks
 * for are there wherever it stands; those that follow from others need only be where they hide something. */
static lay_code is_needed(lay_inspect *i, const char *name, size_t n, bool *needed, lay_error *err)
{
    *needed = i->o.lowers->count > 0;
    /* Where the layer itself hides all below a directory, nothing in it need be hidden once more. */
    uint32_t above = name ? i->directory : i->directory == LAY_ROOT ? LAY_NO_WANT : lay_expect_want(i->o.expect, i->directory)->parent;
    for (; above != LAY_NO_WANT && above != LAY_ROOT; above = lay_expect_want(i->o.expect, above)->parent)
        if (lay_expect_made(i->o.expect, above)->flags & LAY_MADE_HIDES)
            *needed = false;
    lay_problem unused;
    if (!*needed || at_name(i, "", name, n, &unused, err))
        return err->code;
    if (i->told.len)
        *needed = lay_lowers_show(i->o.lowers, i->told.p, i->told.len) != 0;
    return LAY_OK;
}

/* A name that was not met. */
static lay_code tell_missing(lay_inspect *i, uint32_t want, lay_problem *p, lay_error *err)
{
    lay_want *w = lay_expect_want(i->o.expect, want);
    const lay_made *t = lay_expect_made(i->o.expect, want);
    const char *name = lay_expect_name(i->o.expect, want);
    bool needed = true;
    bool told = w->flags & LAY_WANT_TOLD;
    if (w->flags & LAY_WANT_SEEN)
        return LAY_OK;
    if (w->flags & LAY_WANT_DERIVED && !told && is_needed(i, name, w->name_len, &needed, err))
        return err->code;
    if (!needed)
        return LAY_OK;
    i->changed = true;
    w->flags |= LAY_WANT_TOLD;
    if (t->kind == LAY_MADE_DIRECTORY) {
        i->phase = LOSE;
        i->lost = i->lost_at = want;
    }
    if (told)
        return LAY_OK;
    say(p, LAY_PROBLEM_MISSING, "%s of the layer is gone", kind_name((lay_made_kind)t->kind));
    return at_name(i, t->kind == LAY_MADE_WHITEOUT ? LAY_WH_PREFIX : "", name, w->name_len, p, err);
}

/* Below a directory that is gone: one name further. */
static lay_code lose(lay_inspect *i, lay_problem *p, lay_error *err)
{
    lay_expect *x = i->o.expect;
    uint32_t next = lay_expect_want(x, i->lost_at)->first;
    while (next == LAY_NO_WANT && i->lost_at != i->lost) {
        next = lay_expect_want(x, i->lost_at)->next;
        i->lost_at = lay_expect_want(x, i->lost_at)->parent;
    }
    if (next == LAY_NO_WANT) {
        i->phase = TELL_MISSING;
        return LAY_OK;
    }
    i->lost_at = next;
    const lay_made *t = lay_expect_made(x, next);
    lay_want *w = lay_expect_want(x, next);
    if (w->flags & LAY_WANT_TOLD || t->kind == LAY_MADE_WHITEOUT || t->flags & LAY_MADE_IMPLIED)
        return LAY_OK;                        /* hidden names are told when their directory is there again */
    w->flags |= LAY_WANT_TOLD;
    say(p, LAY_PROBLEM_MISSING, "%s of the layer is gone", kind_name((lay_made_kind)t->kind));
    if (lay_expect_path(x, next, &i->told, err))
        return err->code;
    give_path(i, p);
    return LAY_OK;
}

/* The directory itself, when all in it is known. */
static lay_code compare_directory(lay_inspect *i, lay_problem *p, lay_error *err)
{
    const lay_made *t = lay_expect_made(i->o.expect, i->directory);
    int dir = lay_trail_fd(&i->trail);
    lay_found_xattrs has = { 0 };
    if (i->o.metadata && !(t->flags & LAY_MADE_IMPLIED)) {
        struct stat st;
        if (fstat(dir, &st) == 0 && compare_meta(i, dir, ".", t, &st, !i->changed, p, err))
            return err->code;
    }
    if (lay_xattrs_of_file(lay_expect_key(i->o.expect), &i->room, dir, ".", LAY_MADE_DIRECTORY, i->o.scope, &has, err)) {
        if (err->code == LAY_E_NOMEM)
            return err->code;
        lay_error_clear(err);
        has.marks = 0;                          /* told above */
    }
    unsigned right = i->o.userxattr ? LAY_MARK_OPAQUE_USER : LAY_MARK_OPAQUE_TRUSTED;
    bool needed = t->flags & LAY_MADE_OPAQUE && !(has.marks & right);
    if (t->flags & LAY_MADE_REBORN && !needed && !(has.marks & right) && is_needed(i, NULL, 0, &needed, err))
        return err->code;
    if (i->o.metadata && !(t->flags & LAY_MADE_HIDES) && has.marks & right)
        add(p, "it is marked opaque, and hides what lies below, though the tar does not say so");
    if (i->o.metadata && has.marks & LAY_MARK_OTHER)
        add(p, "it has a mark of overlayfs that no tar can give");
    if (p->kind && at_name(i, "", NULL, 0, p, err))
        return err->code;
    if (!needed)
        return LAY_OK;
    lay_problem *mark = p->kind ? &i->pending : p;
    const char *why = has.marks & (LAY_MARK_OPAQUE_USER | LAY_MARK_OPAQUE_TRUSTED)
        ? "the mark that hides what lies below the directory is one that the mounts of this store do not see"
        : "the mark that hides what lies below the directory is gone";
    say(mark, LAY_PROBLEM_MISSING, "%s", why);
    return mark == p ? at_name(i, LAY_WH_OPAQUE, NULL, 0, p, err) : LAY_OK;
}

/* A second problem of what was told last. */
static lay_code give_pending(lay_inspect *i, lay_problem *p, lay_error *err)
{
    *p = i->pending;
    i->pending.kind = LAY_PROBLEM_NONE;
    if (p->kind == LAY_PROBLEM_MISSING)       /* an opaque mark, beside its directory */
        return at_name(i, LAY_WH_OPAQUE, NULL, 0, p, err);
    give_path(i, p);
    return LAY_OK;
}

/* To the next directory that is there, in the order of the expected tree; from: the one looked at, or entered in vain. */
static lay_code go_on(lay_inspect *i, lay_problem *p, lay_error *err)
{
    lay_expect *x = i->o.expect;
    uint32_t from = i->child;                 /* LAY_NO_WANT: none of this directory is left */
    while (from != LAY_NO_WANT) {
        const lay_want *w = lay_expect_want(x, from);
        bool enter = w->flags & LAY_WANT_SEEN && !(w->flags & LAY_WANT_TOLD) && lay_expect_made(x, from)->kind == LAY_MADE_DIRECTORY;
        if (!enter) {
            from = w->next;
            continue;
        }
        char name[NAME_MAX + 1];
        memcpy(name, lay_expect_name(x, from), w->name_len);
        name[w->name_len] = '\0';
        if (lay_trail_down(&i->trail, name) != 0) {
            i->child = w->next;
            return cannot(p, LAY_PROBLEM_METADATA, "the directory cannot be looked into", err) || at_name(i, "", name, w->name_len, p, err) ? err->code : LAY_OK;
        }
        i->directory = from;
        i->phase = READ_NAMES;
        i->dents.len = 0;
        i->changed = false;
        return lay_text_push(&i->here, name, w->name_len, err);
    }
    if (i->directory == LAY_ROOT) {
        i->phase = END;
        return LAY_OK;
    }
    const lay_want *w = lay_expect_want(x, i->directory);
    i->child = w->next;
    lay_text_cut(&i->here, i->here.len > w->name_len ? i->here.len - w->name_len - 1 : 0);
    i->directory = w->parent;
    if (lay_trail_up(&i->trail, i->here.p ? i->here.p : "", i->here.len) == 0)
        return LAY_OK;
    i->phase = END;
    return cannot(p, LAY_PROBLEM_METADATA, "the directory was moved while it was looked at", err) || at_name(i, "", NULL, 0, p, err) ? err->code : LAY_OK;
}

lay_code lay_inspect_step(lay_inspect *i, lay_problem *p, bool *end, lay_error *err)
{
    p->kind = LAY_PROBLEM_NONE;
    *end = false;
    if (i->pending.kind)
        return give_pending(i, p, err);
    if (i->file >= 0) {
        read_file(i, p);
        return LAY_OK;
    }
    switch (i->phase) {
    case READ_NAMES:
        return next_name(i, p, err);
    case TELL_MISSING:
        if (i->child != LAY_NO_WANT) {
            uint32_t want = i->child;
            i->child = lay_expect_want(i->o.expect, want)->next;
            return tell_missing(i, want, p, err);
        }
        i->phase = LEAVE;
        i->child = lay_expect_want(i->o.expect, i->directory)->first;
        return compare_directory(i, p, err);
    case LOSE:
        return lose(i, p, err);
    case LEAVE:
        return go_on(i, p, err);
    case END:
        *end = true;
        return LAY_OK;
    }
    return LAY_OK;
}
