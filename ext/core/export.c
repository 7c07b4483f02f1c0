/* export.c - a tree, or changes over a tree, become a tar: things on disk enter, bytes leave on demand.
 *
 * Payload goes from the file straight into the caller's buffer. The header promises a size, so what a
 * file has grown meanwhile is left out, and a file that has shrunk is an error: never padding that
 * was not there. What has vanished since it was listed is left out, as in moby.
 * Source: go-archive, archive.go (addTarFile), archive_linux.go (overlayWhiteoutConverter).
 */
#include "export.h"
#include "whiteout.h"

#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>

#define CAPABILITY_MAX 64      /* the kernel knows at most 24 bytes */
#define CAPABILITY_V2_SIZE 20

void lay_export_init(lay_export *x)
{
    x->source.ops = &lay_export_ops;
    x->file_fd = -1;
}

static lay_code reserve(uint8_t **p, size_t *cap, size_t need, lay_error *err)
{
    if (need <= *cap)
        return LAY_OK;
    uint8_t *grown = realloc(*p, need * 2);
    if (grown == NULL)
        return lay_fail_nomem(err);
    *p = grown;
    *cap = need * 2;
    return LAY_OK;
}

lay_code lay_export_head(lay_export *x, const lay_tar_head *head, lay_error *err)
{
    size_t len = 0;
    lay_code code = lay_tar_format(head, &x->block, &x->block_cap, &len, err);
    if (code == LAY_OK)
        code = reserve(&x->head, &x->head_cap, x->head_len + len, err);
    if (code != LAY_OK) {
        lay_error_path(err, head->name, head->name_len);
        return code;
    }
    memcpy(x->head + x->head_len, x->block, len);
    x->head_len += len;
    return LAY_OK;
}

/* What has vanished is no failure. */
static lay_code entry_fail(lay_export *x, int sys_errno, const char *what, lay_error *err)
{
    return sys_errno == ENOENT ? LAY_OK : lay_fail_os(err, sys_errno, x->name.text, what);
}

/* Later names of an inode become links to the first. */
static lay_code note_link(lay_export *x, const struct stat *st, lay_tar_head *h, lay_error *err)
{
    bool seen;
    size_t at = x->names_len, n = x->name.len + 1;
    lay_code code = lay_inodes_add(&x->inodes, st->st_dev, st->st_ino, &at, &seen, err);
    if (code != LAY_OK)
        return code;
    if (seen) {
        h->type = '1';
        h->size = 0;
        h->link = x->names + at;
        h->link_len = strlen(h->link);
        return LAY_OK;
    }
    if (x->names_len + n > x->names_cap) {
        size_t cap = (x->names_len + n) * 2;
        char *grown = realloc(x->names, cap);
        if (grown == NULL)
            return lay_fail_nomem(err);
        x->names = grown;
        x->names_cap = cap;
    }
    memcpy(x->names + x->names_len, x->name.text, n);
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
    const char *slash = memrchr(x->name.text, '/', x->name.len);
    size_t dir = slash ? (size_t)(slash - x->name.text) : 0, base = slash ? dir + 1 : 0;
    lay_path_cut(&x->shown, 0);
    lay_code code = slash ? lay_path_push(&x->shown, x->name.text, dir, err) : LAY_OK;
    if (code == LAY_OK)
        code = lay_path_push(&x->shown, LAY_WH_PREFIX, LAY_WH_PREFIX_LEN, err);
    if (code == LAY_OK)
        code = lay_path_add(&x->shown, x->name.text + base, x->name.len - base, err);
    return code;
}

/* What only a mount could resolve must not leave as if it were content. */
static lay_code refuse_marks(lay_export *x, int dir_fd, const char *base, mode_t mode, lay_error *err)
{
    const char *mark = S_ISDIR(mode) ? (x->userxattr ? LAY_REDIRECT_USER : LAY_REDIRECT_TRUSTED)
                                     : (x->userxattr ? LAY_METACOPY_USER : LAY_METACOPY_TRUSTED);
    int has = lay_tree_hasxattr(dir_fd, base, mark);
    if (has < 0)
        return entry_fail(x, errno, "read overlay's marks", err);
    if (has == 0)
        return LAY_OK;
    lay_fail(err, LAY_E_UNSUPPORTED, "%s: only a mount can tell what is there",
             S_ISDIR(mode) ? "a redirected directory" : "a file without its data (metacopy)");
    lay_error_path(err, x->name.text, x->name.len);
    return LAY_E_UNSUPPORTED;
}

/* moby looks for exactly this value, and a failure to look is none of ours to hide. */
static lay_code add_opaque(lay_export *x, int dir_fd, const char *base, const lay_tar_head *dir, lay_error *err)
{
    char value[8];
    ssize_t n = lay_tree_getxattr(dir_fd, base, lay_opaque_xattr(x->userxattr), value, sizeof value);
    if (n < 0 && errno != ERANGE)
        return entry_fail(x, errno, "read the opaque mark", err);
    if (n != 1 || value[0] != 'y')
        return LAY_OK;
    lay_path_cut(&x->shown, 0);
    lay_code code = lay_path_push(&x->shown, x->name.text, x->name.len, err);
    if (code == LAY_OK)
        code = lay_path_push(&x->shown, LAY_WH_OPAQUE, sizeof LAY_WH_OPAQUE - 1, err);
    if (code != LAY_OK)
        return code;
    lay_tar_head h = { .name = x->shown.text, .name_len = x->shown.len, .type = '0', .mode = dir->mode & 0777,
                       .uid = dir->uid, .gid = dir->gid };
    return lay_export_head(x, &h, err);
}

/* Revision 3 names the user namespace it was made in: in a tar it is revision 2. */
static ssize_t get_capability(int dir_fd, const char *base, uint8_t value[CAPABILITY_MAX])
{
    ssize_t n = lay_tree_getxattr(dir_fd, base, "security.capability", value, CAPABILITY_MAX);
    if (n >= 4 && value[3] == 3) {
        value[3] = 2;
        n = n > CAPABILITY_V2_SIZE ? CAPABILITY_V2_SIZE : n;
    }
    return n;
}

/* A file with bytes is opened before its header is given, as the header promises what we then read. */
static lay_code open_payload(lay_export *x, int dir_fd, const char *base, struct stat *st, int *fd, lay_error *err)
{
    *fd = openat(dir_fd, base, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
    if (*fd < 0 && errno == ENOENT) {
        st->st_mode = 0;
        return LAY_OK;
    }
    if (*fd < 0 || fstat(*fd, st) < 0)
        return lay_fail_os(err, errno, x->name.text, "open");
    if (S_ISREG(st->st_mode))
        return LAY_OK;
    lay_fail(err, LAY_E_MISMATCH, "it was a file when it was listed");
    lay_error_path(err, x->name.text, x->name.len);
    return LAY_E_MISMATCH;
}

static lay_code give_entry(lay_export *x, int dir_fd, const char *base, const struct stat *st, lay_tar_head *h, lay_error *err)
{
    lay_code code = LAY_OK;
    bool dir = S_ISDIR(st->st_mode);
    if (!dir && st->st_nlink > 1)
        code = note_link(x, st, h, err);
    h->name = x->name.text;
    h->name_len = x->name.len;
    if (code == LAY_OK && x->overlay && lay_stat_is_whiteout(st->st_mode, st->st_rdev)) {
        /* a link to an earlier whiteout keeps its link name, as docker's tars have it */
        code = lay_export_whiteout_name(x, err);
        h->name = x->shown.text;
        h->name_len = x->shown.len;
        h->type = '0';
        h->mode = 0600;
    }
    size_t plain = x->name.len;
    if (code == LAY_OK && dir) {
        code = lay_path_add(&x->name, "/", 1, err);
        h->name = x->name.text;
        h->name_len = x->name.len;
    }
    if (code == LAY_OK)
        code = lay_export_head(x, h, err);
    if (dir)
        lay_path_cut(&x->name, plain);
    return code == LAY_OK && dir && x->overlay ? add_opaque(x, dir_fd, base, h, err) : code;
}

lay_code lay_export_entry(lay_export *x, int dir_fd, const char *base, struct stat *st, lay_error *err)
{
    char target[PATH_MAX];
    uint8_t capability[CAPABILITY_MAX];
    LAY_AUTO_FD int fd = -1;
    lay_code code = LAY_OK;
    if (fstatat(dir_fd, base, st, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT) < 0) {
        st->st_mode = 0;
        return entry_fail(x, errno, "stat", err);
    }
    if (S_ISREG(st->st_mode) && st->st_size > 0 && !x->dry)
        code = open_payload(x, dir_fd, base, st, &fd, err);
    if (type_of(st->st_mode) == 0)
        st->st_mode = 0;
    if (code != LAY_OK || st->st_mode == 0)
        return code;
    bool device = S_ISCHR(st->st_mode) || S_ISBLK(st->st_mode);
    lay_tar_head h = {
        .type = type_of(st->st_mode), .mode = st->st_mode & 07777, .uid = st->st_uid, .gid = st->st_gid,
        .size = S_ISREG(st->st_mode) ? st->st_size : 0, .mtime = st->st_mtim.tv_sec,
        .dev_major = device ? major(st->st_rdev) : 0, .dev_minor = device ? minor(st->st_rdev) : 0,
    };
    if (S_ISLNK(st->st_mode)) {
        ssize_t n = readlinkat(dir_fd, base, target, sizeof target);
        if (n < 0) {
            st->st_mode = 0;
            return entry_fail(x, errno, "read link", err);
        }
        h.link = target;
        h.link_len = (size_t)n;
    }
    if (x->overlay && (S_ISREG(st->st_mode) || S_ISDIR(st->st_mode)))
        code = refuse_marks(x, dir_fd, base, st->st_mode, err);
    if (code != LAY_OK)
        return code;
    ssize_t n = get_capability(dir_fd, base, capability);
    if (n < 0) {
        st->st_mode = 0;
        return entry_fail(x, errno, "read security.capability", err);
    }
    h.capability = n > 0 ? capability : NULL;
    h.capability_len = (size_t)n;
    code = give_entry(x, dir_fd, base, st, &h, err);
    if (code != LAY_OK || h.type != '0' || h.size == 0)
        return code;
    x->file_left = h.size;
    x->padding = lay_tar_padding(h.size);
    x->file_fd = lay_steal_fd(&fd);
    return LAY_OK;
}

/* ---- as a source ---- */

static lay_code read_payload(lay_export *x, uint8_t *to, size_t n, size_t *got, lay_error *err)
{
    if ((uint64_t)x->file_left < n)
        n = (size_t)x->file_left;
    ssize_t r;
    do
        r = read(x->file_fd, to, n);
    while (r < 0 && errno == EINTR);
    if (r < 0)
        return lay_fail_os(err, errno, x->name.text, "read");
    if (r == 0) {
        lay_fail(err, LAY_E_MISMATCH, "the file became %lld bytes shorter while it was read", (long long)x->file_left);
        lay_error_path(err, x->name.text, x->name.len);
        return LAY_E_MISMATCH;
    }
    *got = (size_t)r;
    x->file_left -= r;
    if (x->file_left == 0) {
        lay_close_owner(&x->file_fd);
        x->file_fd = -1;
    }
    return LAY_OK;
}

static lay_code next_entry(lay_export *x, lay_error *err)
{
    bool end = false;
    x->head_at = x->head_len = 0;
    lay_code code = x->next(x, &end, err);
    if (code != LAY_OK || !end)
        return code;
    code = reserve(&x->head, &x->head_cap, LAY_TAR_END_BLOCKS, err);
    if (code != LAY_OK)
        return code;
    memset(x->head, 0, LAY_TAR_END_BLOCKS);
    x->head_len = LAY_TAR_END_BLOCKS;
    x->ended = true;
    return LAY_OK;
}

static lay_code export_some(lay_export *x, uint8_t *to, size_t n, size_t *got, lay_error *err)
{
    *got = 0;
    if (x->head_at < x->head_len) {
        size_t left = x->head_len - x->head_at;
        *got = left < n ? left : n;
        memcpy(to, x->head + x->head_at, *got);
        x->head_at += *got;
    } else if (x->file_left > 0) {
        return read_payload(x, to, n, got, err);
    } else if (x->padding > 0) {
        *got = x->padding < n ? x->padding : n;
        memset(to, 0, *got);
        x->padding -= *got;
    } else if (!x->ended) {
        return next_entry(x, err);
    }
    return LAY_OK;
}

static lay_code export_read(lay_source *s, void *buf, size_t n, size_t *got, lay_error *err)
{
    lay_export *x = (lay_export *)s;
    *got = 0;
    while (*got < n && !x->failed) {
        bool last = x->ended && x->head_at == x->head_len;
        size_t some = 0;
        if (last)
            return LAY_OK;
        lay_code code = export_some(x, (uint8_t *)buf + *got, n - *got, &some, &x->failure);
        x->failed = code != LAY_OK;
        *got += some;
    }
    if (!x->failed || *got > 0)     /* all good bytes come before the error */
        return LAY_OK;
    *err = x->failure;
    return x->failure.code;
}

static lay_code export_size(lay_source *s, int64_t *size, lay_error *err)
{
    lay_export *x = (lay_export *)s, *dry = NULL;
    int64_t sum = LAY_TAR_END_BLOCKS;
    bool end = false;
    lay_code code = x->twin(x, &dry, err);
    while (code == LAY_OK) {
        dry->head_at = dry->head_len = 0;
        dry->file_left = 0;
        dry->padding = 0;
        code = dry->next(dry, &end, err);
        if (code != LAY_OK || end)
            break;
        if (__builtin_add_overflow(sum, dry->file_left, &sum)
            || __builtin_add_overflow(sum, (int64_t)(dry->head_len + dry->padding), &sum))
            code = lay_fail(err, LAY_E_LIMIT, "the tar would be longer than 2^63 bytes");
    }
    if (dry != NULL)
        lay_export_ops.free(&dry->source);
    if (code == LAY_OK)
        *size = sum;
    return code;
}

static void export_free(lay_source *s)
{
    lay_export *x = (lay_export *)s;
    x->done(x);
    lay_close_owner(&x->file_fd);
    free(x->head);
    free(x->block);
    free(x->names);
    lay_inodes_free(&x->inodes);
    lay_path_free(&x->name);
    lay_path_free(&x->shown);
    free(x);
}

const lay_source_ops lay_export_ops = { .read = export_read, .size = export_size, .free = export_free };
