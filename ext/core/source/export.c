/* export.c - one thing on disk enters, its header blocks leave; its payload is export_read.c's.
 *
 * What has vanished since it was listed is left out, as in moby; a name that is exchanged for
 * another thing while it is looked at is looked at again. What has no place in the tar is counted (leftout.h).
 * Source: go-archive, archive.go (addTarFile), archive_linux.go (overlayWhiteoutConverter).
 */
#include "source/export.h"

#include "base/grow.h"
#include "tree/whiteout.h"

#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>

#define CAPABILITY_MAX 64      /* the kernel knows at most 24 bytes */
#define CAPABILITY_V2_SIZE 20
#define CAPABILITY_V3_SIZE 24
#define MAX_LOOKS 1000         /* at a name that is another thing each time */

void lay_export_init(lay_export *x, unsigned flags)
{
    x->source.ops = &lay_export_ops;
    x->file_fd = x->opaque = -1;
    x->overlay = (flags & LAY_EXPORT_OVERLAY) != 0;
    x->userxattr = (flags & LAY_EXPORT_USERXATTR) != 0;
    x->keep = (flags & LAY_EXPORT_KEEP) != 0;
    x->skip_marks = (flags & LAY_EXPORT_SKIP_MARKS) != 0;
    x->whole = (flags & LAY_EXPORT_WHOLE) != 0;
}

unsigned lay_export_flags(const lay_export *x)
{
    return (x->overlay ? LAY_EXPORT_OVERLAY : 0) | (x->userxattr ? LAY_EXPORT_USERXATTR : 0)
        | (x->keep ? LAY_EXPORT_KEEP : 0) | (x->skip_marks ? LAY_EXPORT_SKIP_MARKS : 0)
        | (x->whole ? LAY_EXPORT_WHOLE : 0);
}

lay_code lay_export_head(lay_export *x, const lay_tar_head *head, lay_error *err)
{
    size_t len = 0;
    if (lay_tar_format(head, &x->block, &x->block_cap, &len, err) || lay_reserve(&x->head, &x->head_cap, x->head_len + len, 1, err))
        return lay_error_path(err, head->name, head->name_len);
    memcpy(x->head + x->head_len, x->block, len);
    x->head_len += len;
    return LAY_OK;
}

/* Later names of an inode become links to the first. */
static lay_code note_link(lay_export *x, const struct stat *st, lay_tar_head *h, lay_error *err)
{
    bool seen;
    size_t at = x->names_len, n = x->name.len + 1;
    if (lay_inodes_add(&x->inodes, st->st_dev, st->st_ino, &at, &seen, err))
        return err->code;
    if (seen) {
        h->type = '1';
        h->size = 0;
        h->link = x->names + at;
        h->link_len = strlen(h->link);
        return LAY_OK;
    }
    if (lay_reserve(&x->names, &x->names_cap, x->names_len + n, 1, err))
        return err->code;
    memcpy(x->names + x->names_len, x->name.p, n);
    x->names_len += n;
    return LAY_OK;
}

static char type_of(mode_t mode)
{
    switch (mode & S_IFMT) {
    case S_IFREG: return '0';
    case S_IFLNK: return '2';
    case S_IFCHR: return '3';
    case S_IFBLK: return '4';
    case S_IFDIR: return '5';
    case S_IFIFO: return '6';
    default: return 0;
    }
}

lay_code lay_export_whiteout_name(lay_export *x, lay_error *err)
{
    const char *slash = memrchr(x->name.p, '/', x->name.len);
    size_t dir = slash ? (size_t)(slash - x->name.p) : 0, base = slash ? dir + 1 : 0;
    lay_text_cut(&x->shown, 0);
    if ((slash && lay_text_push(&x->shown, x->name.p, dir, err)) || lay_text_push(&x->shown, LAY_WH_PREFIX, LAY_WH_PREFIX_LEN, err))
        return err->code;
    return lay_text_add(&x->shown, x->name.p + base, x->name.len - base, err);
}

lay_code lay_export_mark(lay_export *x, lay_error *err)
{
    if (x->skip_marks)
        return lay_left_out_add(&x->left, LAY_LEFT_MARK, x->name.p, x->name.len, err);
    lay_fail(err, LAY_E_BREAKOUT, "a name that begins with " LAY_WH_PREFIX " would delete where the tar is unpacked: "
             "rename it, or leave such names out (marks=\"skip\")");
    return lay_error_path(err, x->name.p, x->name.len);
}

lay_code lay_export_deletion(lay_export *x, int64_t mtime, lay_error *err)
{
    if (lay_export_whiteout_name(x, err))
        return err->code;
    lay_tar_head h = { .name = x->shown.p, .name_len = x->shown.len, .type = '0', .mtime = mtime };
    return lay_export_head(x, &h, err);
}

/* What only a mount could resolve must not leave as if it were content. */
static lay_code refuse_marks(lay_export *x, mode_t mode, lay_error *err)
{
    const char *mark = S_ISDIR(mode) ? (x->userxattr ? LAY_REDIRECT_USER : LAY_REDIRECT_TRUSTED)
                                     : (x->userxattr ? LAY_METACOPY_USER : LAY_METACOPY_TRUSTED);
    if (!lay_attributes_has(&x->attributes, mark))
        return LAY_OK;
    lay_fail(err, LAY_E_UNSUPPORTED, "%s: only a mount can tell what is there",
             S_ISDIR(mode) ? "a redirected directory" : "a file without its data (metacopy)");
    return lay_error_path(err, x->name.p, x->name.len);
}

/* moby looks for exactly this value, and a failure to look is none of ours to hide. */
static lay_code read_opaque(lay_export *x, const lay_bearer *thing, bool *opaque, lay_error *err)
{
    char value[8];
    *opaque = false;
    if (!lay_attributes_has(&x->attributes, lay_opaque_xattr(x->userxattr)))
        return LAY_OK;
    ssize_t n = lay_attribute_get(thing, lay_opaque_xattr(x->userxattr), value, sizeof value);
    if (n < 0 && errno != ERANGE)
        return lay_tree_gone(errno) ? LAY_OK : lay_fail_os(err, errno, x->name.p, "cannot read the opaque mark");
    *opaque = n == 1 && value[0] == 'y';
    return LAY_OK;
}

static lay_code add_opaque(lay_export *x, const lay_bearer *thing, const lay_tar_head *dir, lay_error *err)
{
    bool opaque = x->opaque > 0;
    if (x->opaque < 0 && read_opaque(x, thing, &opaque, err))
        return err->code;
    if (!opaque)
        return LAY_OK;
    lay_text_cut(&x->shown, 0);
    if (lay_text_push(&x->shown, x->name.p, x->name.len, err)
        || lay_text_push(&x->shown, LAY_WH_OPAQUE, sizeof LAY_WH_OPAQUE - 1, err))
        return err->code;
    lay_tar_head h = { .name = x->shown.p, .name_len = x->shown.len, .type = '0', .mode = dir->mode & 0777,
                       .uid = dir->uid, .gid = dir->gid };
    return lay_export_head(x, &h, err);
}

/* Revision 3 names the user namespace it was made in: in a tar it is revision 2. Returns the length. */
static size_t as_second_revision(uint8_t *value, size_t n)
{
    if (n < 4 || value[3] != 3)
        return n;
    value[3] = 2;
    return n > CAPABILITY_V2_SIZE ? CAPABILITY_V2_SIZE : n;
}

/* ---- where it lies ---- */

lay_code lay_near_init(lay_near *n, int root_fd, lay_error *err)
{
    *n = (lay_near){ .fd = -1, .root_fd = fcntl(root_fd, F_DUPFD_CLOEXEC, 3) };
    return n->root_fd < 0 ? lay_fail_fd(err, errno, root_fd, "cannot open the directory") : LAY_OK;
}

int lay_near_open(lay_near *n, const char *path, size_t len, lay_error *err)
{
    if (n->fd >= 0 && n->path.len == len && (len == 0 || memcmp(n->path.p, path, len) == 0))
        return n->fd;
    lay_close_owner(&n->fd);
    n->fd = -1;
    lay_text_cut(&n->path, 0);
    if (lay_text_add(&n->path, path, len, err) == LAY_OK)
        n->fd = lay_tree_open_dir(n->root_fd, n->path.p, len, O_PATH);
    return n->fd;
}

void lay_near_free(lay_near *n)
{
    lay_close_owner(&n->fd);
    lay_close_owner(&n->root_fd);
    free(n->path.p);
}

/* ---- one thing, which others may exchange for another while it is looked at ---- */

typedef enum look { LOOK_FAILED, LOOK_GONE, LOOK_AGAIN, LOOK_DONE } look;

typedef struct found {
    lay_bearer thing;               /* first */
    const lay_lower *of;            /* as lay_export has it; then what follows is the place, and dir_fd is none */
    lay_lower_dir in;
    struct stat *st;
    char target[PATH_MAX]; size_t target_len;
    uint8_t capability[CAPABILITY_MAX]; size_t capability_len;
    mode_t mode;
} found;

lay_code lay_export_changed(const lay_export *x, lay_error *err, const char *what)
{
    if (x->plain.on)
        return lay_fail_os(err, EIO, x->name.p + x->plain.prefix, what);
    lay_fail(err, LAY_E_MISMATCH, "%s", what);
    return lay_error_path(err, x->name.p, x->name.len);
}

lay_code lay_export_damaged(const lay_lower *l, lay_error *err)
{
    const char *damage = err->code == LAY_E_OS && err->sys_errno == EUCLEAN ? lay_lower_damage(l) : NULL;
    char path[LAY_ERROR_PATH];
    if (damage == NULL)
        return err->code;
    memcpy(path, err->path, sizeof path);
    lay_fail(err, LAY_E_MISMATCH, "%s", damage);
    return lay_error_path(err, path, strlen(path));
}

/* ---- as a layer that is no directory shows it ---- */

/* What lies on a disk tells a capability of revision 3 as one of revision 2, where it is root's of the whole host. */
static ssize_t ask_layer(const lay_bearer *thing, const char *xattr, void *buf, size_t size)
{
    const found *f = (const found *)thing;
    ssize_t n = f->of->ops->xattr(f->of, f->in, thing->name, xattr, buf, size);
    bool third = n == CAPABILITY_V3_SIZE && size > 0 && xattr != NULL && strcmp(xattr, LAY_CAPABILITY) == 0;
    return third && memcmp((const uint8_t *)buf + CAPABILITY_V2_SIZE, "\0\0\0", 4) == 0 ? (ssize_t)as_second_revision(buf, (size_t)n) : n;
}

static ssize_t read_layers_link(const found *f, char *to, size_t n)
{
    const lay_lower *of = f->of;
    lay_lower_dir file = f->of->ops->file(f->of, f->in, f->thing.name, S_IFLNK, &of);
    ssize_t got = file < 0 ? -1 : of->ops->read(of, file, S_IFLNK, to, n, 0);
    lay_lower_leave(of, file);
    return got;
}

/* ---- as it lies in a directory ---- */

static look look_fail(lay_export *x, const char *what, lay_error *err)
{
    lay_fail_os(err, errno, x->name.p, what);
    return LOOK_FAILED;
}

/* The thing that a header is made of is held open, so that all that is read is of that one: a file for reading, as the
 * header promises what we then read. */
static look hold(lay_export *x, found *f, lay_error *err)
{
    mode_t kind = f->st->st_mode & S_IFMT;
    int flags = kind == S_IFREG ? O_RDONLY | O_NONBLOCK | O_NOCTTY : kind == S_IFDIR ? O_RDONLY | O_DIRECTORY : O_PATH;
    int fd = openat(f->thing.dir_fd, f->thing.name, flags | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 && errno == EACCES && (kind == S_IFDIR || f->st->st_size == 0))       /* no contents are needed */
        fd = openat(f->thing.dir_fd, f->thing.name, (flags = O_PATH) | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return errno == ENOENT ? LOOK_GONE : errno == ELOOP || errno == ENXIO || errno == ENOTDIR ? LOOK_AGAIN
            : look_fail(x, "cannot open it", err);
    f->thing.fd = fd;
    f->thing.by_path = (flags & O_PATH) != 0;
    if (fstat(fd, f->st) < 0)
        return look_fail(x, "cannot stat it", err);
    return (f->st->st_mode & S_IFMT) == kind ? LOOK_DONE : LOOK_AGAIN;
}

static look read_target(lay_export *x, found *f, lay_error *err)
{
    bool held = f->thing.fd >= 0;
    ssize_t n = f->of != NULL ? read_layers_link(f, f->target, sizeof f->target)
        : readlinkat(held ? f->thing.fd : f->thing.dir_fd, held ? "" : f->thing.name, f->target, sizeof f->target);
    if (n < 0)
        return errno == ENOENT && !held ? LOOK_GONE : errno == EINVAL ? LOOK_AGAIN : look_fail(x, "cannot read the link", err);
    f->target_len = (size_t)n;
    return LOOK_DONE;
}

/* Of a plain directory: what a user has set, and capabilities. */
static lay_code read_plain(lay_export *x, const found *f, lay_error *err)
{
    lay_attributes *a = &x->attributes;
    size_t kept = 0;
    if (lay_attributes_read(a, &f->thing, true, err))
        return err->code;
    for (size_t i = 0; i < a->count; i++) {
        bool capability = strcmp(a->xattrs[i].name, LAY_CAPABILITY) == 0;
        if (capability)
            a->xattrs[i].len = as_second_revision(a->values + (a->xattrs[i].value - a->values), a->xattrs[i].len);
        if (capability || lay_begins(a->xattrs[i].name, "user."))
            a->xattrs[kept++] = a->xattrs[i];
    }
    a->count = kept;
    return LAY_OK;
}

/* What of the thing's attributes goes into the header. */
static lay_code read_attributes(lay_export *x, found *f, lay_error *err)
{
    lay_attributes *a = &x->attributes;
    f->mode = f->st->st_mode;
    f->capability_len = 0;
    if (lay_attributes_list(a, &f->thing, err))
        return err->code;
    if (a->len == 0)
        return LAY_OK;
    if (x->keep)
        return lay_attributes_read(a, &f->thing, x->userxattr, err);
    if (lay_attributes_has(a, LAY_ACL_ACCESS) && !S_ISLNK(f->mode) && lay_mode_without_acl(&f->thing, &f->mode, err))
        return err->code;
    if (x->plain.on)
        return read_plain(x, f, err);
    if (lay_attributes_has(a, LAY_CAPABILITY)) {
        ssize_t n = lay_attribute_get(&f->thing, LAY_CAPABILITY, f->capability, sizeof f->capability);
        if (n < 0)
            return lay_fail_os(err, errno, NULL, "cannot read " LAY_CAPABILITY);
        f->capability_len = as_second_revision(f->capability, (size_t)n);
    }
    return LAY_OK;
}

static look look_once(lay_export *x, found *f, lay_error *err)
{
    look seen = LOOK_DONE;
    if (f->of != NULL ? f->of->ops->stat(f->of, f->in, f->thing.name, f->st) < 0
                      : fstatat(f->thing.dir_fd, f->thing.name, f->st, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT) < 0)
        return errno == ENOENT ? LOOK_GONE : look_fail(x, "cannot stat it", err);
    if (S_ISSOCK(f->st->st_mode) || lay_whiteout_kind(f->thing.name, strlen(f->thing.name)) != LAY_WH_PLAIN)
        return LOOK_DONE;
    if (x->overlay && lay_stat_is_whiteout(f->st->st_mode, f->st->st_rdev)) {
        x->attributes.len = x->attributes.count = 0;
        return LOOK_DONE;
    }
    if (!x->dry && f->of == NULL)
        seen = hold(x, f, err);
    if (seen == LOOK_DONE && S_ISLNK(f->st->st_mode))
        seen = read_target(x, f, err);
    if (seen != LOOK_DONE || read_attributes(x, f, err) == LAY_OK)
        return seen;
    if (err->code == LAY_E_OS && lay_tree_gone(err->sys_errno))
        return LOOK_AGAIN;
    lay_error_path(err, x->name.p, x->name.len);
    return LOOK_FAILED;
}

static look look_at(lay_export *x, found *f, lay_error *err)
{
    look seen = LOOK_AGAIN;
    for (unsigned i = 0; i < MAX_LOOKS && seen == LOOK_AGAIN; i++) {
        lay_error_clear(err);
        lay_close_owner(&f->thing.fd);
        f->thing.fd = -1;
        seen = look_once(x, f, err);
    }
    if (seen != LOOK_AGAIN)
        return seen;
    lay_export_changed(x, err, "it is another kind of thing each time it is looked at");
    return LOOK_FAILED;
}

/* What a thing has that has no place in the tar. */
static lay_code note_left_out(lay_export *x, const found *f, lay_error *err)
{
    const lay_attributes *a = &x->attributes;
    bool xattr = false, acl = false;
    for (const char *at = a->list; at < a->list + a->len; at += strlen(at) + 1) {
        if (f->of != NULL && (strcmp(at, LAY_OPAQUE_TRUSTED) == 0 || strcmp(at, LAY_OPAQUE_USER) == 0))
            continue;               /* such a layer tells its one mark by the names of both classes */
        lay_attribute kind = lay_attribute_kind(at, x->userxattr);
        acl |= !x->keep && kind == LAY_ATTRIBUTE_ACL;
        /* a label is what the host's policy says, wherever the tar is unpacked */
        xattr |= kind == LAY_ATTRIBUTE_FOREIGN || (!x->keep && kind == LAY_ATTRIBUTE_KEPT
            && !(x->plain.on && lay_begins(at, "user.")) && strcmp(at, LAY_CAPABILITY) != 0 && strcmp(at, "security.selinux") != 0);
    }
    if (S_ISLNK(f->st->st_mode))
        acl = false;
    if (xattr && lay_left_out_add(&x->left, LAY_LEFT_XATTR, x->name.p, x->name.len, err))
        return err->code;
    return acl ? lay_left_out_add(&x->left, LAY_LEFT_ACL, x->name.p, x->name.len, err) : LAY_OK;
}

static lay_code give_entry(lay_export *x, const lay_bearer *thing, const struct stat *st, lay_tar_head *h, lay_error *err)
{
    const lay_text *name = &x->name;
    size_t plain = x->name.len;
    bool dir = S_ISDIR(st->st_mode);
    if (!dir && st->st_nlink > 1 && note_link(x, st, h, err))
        return err->code;
    if (!dir && h->type != '1' && __builtin_add_overflow(x->files_size, st->st_size, &x->files_size))
        return lay_fail(err, LAY_E_LIMIT, "the total file size exceeds 2^63 bytes");
    if (x->overlay && lay_stat_is_whiteout(st->st_mode, st->st_rdev)) {
        /* a link to an earlier whiteout keeps its link name, as docker's tars have it */
        if (lay_export_whiteout_name(x, err))
            return err->code;
        name = &x->shown;
        h->type = '0';
        h->mode = 0600;
    }
    if (dir && lay_text_add(&x->name, "/", 1, err))
        return err->code;
    h->name = name->p;
    h->name_len = name->len;
    lay_code code = lay_export_head(x, h, err);
    if (dir)
        lay_text_cut(&x->name, plain);
    return !code && dir && x->overlay && !x->whole ? add_opaque(x, thing, h, err) : code;
}

static void apply_options(const lay_plain *p, lay_tar_head *h)
{
    h->mtime = h->mtime > p->newest ? p->newest : h->mtime;
    h->uid = p->uid >= 0 ? p->uid : h->uid;
    h->gid = p->gid >= 0 ? p->gid : h->gid;
}

/* The payload that the header promised, from the file that it was made of. */
static lay_code begin_payload(lay_export *x, const found *f, int *fd, int64_t size, lay_error *err)
{
    x->file_left = size;
    x->padding = lay_tar_padding(size);
    x->file_fd = lay_steal_fd(fd);
    x->file_of = NULL;
    if (f->of == NULL || x->dry)
        return LAY_OK;
    x->file_at = 0;
    x->file = f->of->ops->file(f->of, f->in, f->thing.name, S_IFREG, &x->file_of);
    return x->file < 0 ? lay_fail_os(err, errno, x->name.p, "cannot open it") : LAY_OK;
}

lay_code lay_export_entry(lay_export *x, lay_lower_dir in, const char *base, struct stat *st, lay_error *err)
{
    found f = { .thing = { .fd = -1, .dir_fd = x->of != NULL ? -1 : (int)in, .name = base, .ask = x->of != NULL ? ask_layer : NULL },
                .of = x->of, .in = in, .st = st };
    look seen = look_at(x, &f, err);
    LAY_AUTO_FD int fd = f.thing.fd;
    if (seen != LOOK_DONE) {
        st->st_mode = 0;
        return seen != LOOK_GONE ? err->code : x->plain.on ? lay_fail_os(err, ENOENT, x->name.p, NULL) : LAY_OK;
    }
    bool mark = lay_whiteout_kind(base, strlen(base)) != LAY_WH_PLAIN;
    if (mark || type_of(st->st_mode) == 0) {
        bool socket = S_ISSOCK(st->st_mode);
        st->st_mode = 0;
        if (mark || !socket)
            return mark ? lay_export_mark(x, err) : LAY_OK;
        if (lay_left_out_add(&x->left, LAY_LEFT_SOCKET, x->name.p, x->name.len, err))
            return err->code;
        return x->keep && x->overlay ? lay_export_deletion(x, st->st_mtim.tv_sec, err) : LAY_OK;
    }
    bool device = S_ISCHR(st->st_mode) || S_ISBLK(st->st_mode);
    bool whiteout = x->overlay && lay_stat_is_whiteout(st->st_mode, st->st_rdev);
    lay_tar_head h = {
        .type = type_of(st->st_mode), .mode = (whiteout ? st->st_mode : f.mode) & 07777, .uid = st->st_uid, .gid = st->st_gid,
        .size = S_ISREG(st->st_mode) ? st->st_size : 0, .mtime = st->st_mtim.tv_sec,
        .dev_major = device ? major(st->st_rdev) : 0, .dev_minor = device ? minor(st->st_rdev) : 0,
        .capability = f.capability_len > 0 ? f.capability : NULL, .capability_len = f.capability_len,
    };
    if (S_ISLNK(st->st_mode)) {
        h.link = f.target;
        h.link_len = f.target_len;
    }
    if (x->plain.on)
        apply_options(&x->plain, &h);
    if ((x->keep && !whiteout) || x->plain.on) {
        h.mtime_nsec = x->keep ? (int32_t)st->st_mtim.tv_nsec : 0;
        h.xattrs = x->attributes.xattrs;
        h.nxattrs = x->attributes.count;
    }
    if ((x->overlay && (S_ISREG(st->st_mode) || S_ISDIR(st->st_mode)) && refuse_marks(x, st->st_mode, err))
        || (!whiteout && note_left_out(x, &f, err)) || give_entry(x, &f.thing, st, &h, err))
        return err->code;
    return h.type != '0' || h.size == 0 ? LAY_OK : begin_payload(x, &f, &fd, h.size, err);
}

lay_code lay_export_unchanged(lay_export *x, int dir_fd, const char *base, lay_error *err)
{
    struct stat st;
    found f = { .thing = { .fd = -1, .dir_fd = dir_fd, .name = base }, .st = &st };
    bool dry = x->dry;
    x->dry = true;                  /* its bytes stay unread */
    look seen = look_at(x, &f, err);
    x->dry = dry;
    return seen == LOOK_DONE ? note_left_out(x, &f, err) : seen == LOOK_GONE ? LAY_OK : err->code;
}
