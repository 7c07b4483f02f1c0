/* listing.c - what a stored layer holds, by its record alone: the headers in it, and each file's CRC. Or by the headers of
 * its tar, where that lies in a file, or of the fresh tar that directories would give.
 *
 * Iterator: record lines in, batches of entries out. Framing goes through the tar reader; for a payload that is
 * not in the record the reader is told to pass over it, so that no byte of a file is needed.
 * Memory: one line, one batch. Whatever such a record or tar cannot say is LAY_E_SPLIT, after all good entries.
 */
#include "base/limit.h"
#include "base/digest.h"
#include "base/clock.h"
#include "base/grow.h"
#include "base/text.h"
#include "source/export.h"
#include "tarsplit/split.h"
#include "tree/tree.h"
#include "tree/whiteout.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#define BATCH_TEXT (256u << 10)   /* bytes of names and xattrs after which a batch is full */
#define AHEAD (16u << 10)         /* bytes read with a header: those behind it serve as long as small files follow */

/* An entry, its texts as places in the arena. */
typedef struct item { lay_listed e; size_t name, path, link, xattrs; } item;

/* A tar in a file. */
typedef struct lying {
    int fd;
    int64_t begin, size, at;          /* at: in the tar, of the next block to feed */
    int64_t stored;                   /* bytes of the payload that comes there */
    uint8_t *ahead;
    int64_t ahead_at; size_t ahead_len;
} lying;

struct lay_listing {
    lay_split_reader *reader;         /* or: */
    lay_export *fresh;                /* dry; or: */
    lying *lying;
    const char *of;                   /* what is read, for messages */
    lay_tar *tar;
    lay_split_line line;
    int64_t line_start;               /* where the reader was when this segment began */
    bool feeding, ended;
    item *items; size_t count, cap;
    lay_text arena;
    bool open;                        /* the payload of the last item has not passed yet */
    bool sparse;                      /* it is stored in pieces */
    int64_t seen;                     /* bytes of it that came with the framing */
    lay_error failure;                /* told once what came before is given */
};

static lay_listing *listing_new(lay_error *err)
{
    lay_error_clear(err);
    lay_listing *l = calloc(1, sizeof *l);
    if (l)
        l->tar = lay_tar_new();
    if (l && l->tar) {
        lay_tar_limit(l->tar, lay_limits_of_record());
        l->of = "the tar-split record";
        return l;
    }
    free(l);
    lay_fail_nomem(err);
    return NULL;
}

lay_code lay_listing_open(lay_listing **out, int record_fd, lay_error *err)
{
    lay_listing *l = listing_new(err);
    if (!l)
        return err->code;
    if (lay_split_reader_open(&l->reader, record_fd, err))
        lay_listing_free(l);
    else
        *out = l;
    return err->code;
}

lay_code lay_listing_stack_open(lay_listing **out, const lay_shown *layers, size_t n, const lay_shown *below, size_t nbelow, unsigned flags, lay_error *err)
{
    lay_source *s;
    lay_listing *l = listing_new(err);
    if (!l)
        return err->code;
    if (lay_export_stack_open(&s, layers, n, below, nbelow, flags | LAY_EXPORT_SKIP_MARKS, err)) {
        lay_listing_free(l);
        return err->code;
    }
    l->fresh = (lay_export *)s;
    l->fresh->dry = true;
    *out = l;
    return LAY_OK;
}

lay_code lay_listing_tar_open(lay_listing **out, int fd, int64_t offset, int64_t size, lay_error *err)
{
    lay_listing *l = listing_new(err);
    if (!l)
        return err->code;
    l->of = "the tar";
    l->lying = calloc(1, sizeof *l->lying);
    if (!l->lying || !(l->lying->ahead = malloc(AHEAD))) {
        free(l->lying);
        l->lying = NULL;
        lay_listing_free(l);
        return lay_fail_nomem(err);
    }
    *l->lying = (lying){ .fd = fcntl(fd, F_DUPFD_CLOEXEC, 0), .begin = offset, .size = size, .ahead = l->lying->ahead };
    if (l->lying->fd < 0) {
        lay_fail_os(err, errno, NULL, "cannot keep a descriptor");
        lay_listing_free(l);
        return err->code;
    }
    *out = l;
    return LAY_OK;
}

void lay_listing_free(lay_listing *l)
{
    if (!l)
        return;
    lay_split_reader_free(l->reader);
    if (l->fresh)
        lay_source_free(&l->fresh->source);
    if (l->lying) {
        if (l->lying->fd >= 0)
            close(l->lying->fd);
        free(l->lying->ahead);
        free(l->lying);
    }
    lay_tar_free(l->tar);
    free(l->items);
    free(l->arena.p);
    free(l);
}

/* ---- one entry --------------------------------------------------------------------------------------- */

static lay_code unfit(const lay_listing *l, const lay_tar_entry *e, lay_error *err, const char *why)
{
    lay_fail(err, LAY_E_SPLIT, "%s cannot be read: %s", l->of, why);
    lay_error_path(err, e->name, e->name_len);
    return err->code;
}

static int kind_of(char type)
{
    switch (type) {
    case '0':
    case 'S':
        return LAY_LISTED_FILE;
    case '1':
        return LAY_LISTED_LINK;
    case '2':
        return LAY_LISTED_SYMLINK;
    case '3':
        return LAY_LISTED_CHARACTER;
    case '4':
        return LAY_LISTED_BLOCK;
    case '5':
        return LAY_LISTED_DIRECTORY;
    case '6':
        return LAY_LISTED_FIFO;
    default:
        return -1;
    }
}

static lay_code keep(lay_listing *l, const char *p, size_t n, size_t *at, lay_error *err)
{
    *at = l->arena.len;
    return lay_text_add(&l->arena, p, n, err) || lay_text_add(&l->arena, "", 1, err) ? err->code : LAY_OK;
}

/* A name, cleaned and without leading slashes, at the arena's end; *outside: it would leave the root. */
static lay_code keep_clean(lay_listing *l, const char *name, size_t n, size_t *at, size_t *len, bool *outside, lay_error *err)
{
    while (n && *name == '/') {
        name++;
        n--;
    }
    *at = l->arena.len;
    if (lay_text_room(&l->arena, *at + n + 3, err))
        return err->code;
    char *p = l->arena.p + *at;
    *len = lay_path_clean(name, n, p);
    *outside = *len >= 2 && p[0] == '.' && p[1] == '.' && (*len == 2 || p[2] == '/');
    p[*len] = '\0';
    lay_text_cut(&l->arena, *at + *len + 1);
    return LAY_OK;
}

/* Is it a mark, and of what? The path becomes that of what is hidden. */
static lay_code see_whiteout(lay_listing *l, item *i, const lay_tar_entry *e, lay_error *err)
{
    char *path = l->arena.p + i->path;
    size_t n = i->e.path_len;
    const char *slash = memrchr(path, '/', n);
    size_t base = slash ? (size_t)(slash - path) + 1 : 0;
    switch (lay_whiteout_kind(path + base, n - base)) {
    case LAY_WH_PLAIN:
        return LAY_OK;
    case LAY_WH_BAD:
        return unfit(l, e, err, "invalid whiteout entry");
    case LAY_WH_NAME:
        i->e.kind = LAY_LISTED_WHITEOUT;
        memmove(path + base, path + base + LAY_WH_PREFIX_LEN, n - base - LAY_WH_PREFIX_LEN + 1);
        i->e.path_len = n - LAY_WH_PREFIX_LEN;
        return LAY_OK;
    case LAY_WH_OPAQUE_DIR:
        i->e.kind = LAY_LISTED_OPAQUE;
        i->e.path_len = base ? base - 1 : 1;
        if (!base)
            path[0] = '.';
        path[i->e.path_len] = '\0';
        return LAY_OK;
    }
    return LAY_OK;
}

static lay_code keep_xattrs(lay_listing *l, item *i, const lay_tar_entry *e, lay_error *err)
{
    i->xattrs = l->arena.len;
    i->e.nxattrs = e->nxattrs;
    for (size_t k = 0; k < e->nxattrs; k++) {
        const lay_xattr *x = &e->xattrs[k];
        if (lay_text_add(&l->arena, x->name, strlen(x->name) + 1, err) || lay_text_add(&l->arena, &x->len, sizeof x->len, err)
            || lay_text_add(&l->arena, x->value, x->len, err))
            return err->code;
    }
    return LAY_OK;
}

static lay_code begin(lay_listing *l, const lay_tar_entry *e, lay_error *err)
{
    if (e->type == 'g')
        return LAY_OK;
    if (lay_grow(&l->items, &l->cap, l->count, sizeof *l->items, err))
        return err->code;
    item *i = &l->items[l->count];
    memset(i, 0, sizeof *i);
    i->e = (lay_listed){
        .kind = kind_of(e->type), .name_len = e->name_len, .mode = e->mode & 07777, .uid = e->uid, .gid = e->gid,
        .mtime_sec = e->mtime.sec, .mtime_nsec = e->mtime.nsec, .atime_sec = e->atime.sec, .atime_nsec = e->atime.nsec,
        .has_atime = e->has_atime, .dev_major = e->dev_major, .dev_minor = e->dev_minor, .offset = -1,
    };
    bool outside;
    size_t len;
    if (keep(l, e->name, e->name_len, &i->name, err) || keep_clean(l, e->name, e->name_len, &i->path, &i->e.path_len, &outside, err))
        return err->code;
    if (outside)
        return unfit(l, e, err, "it names something outside of the layer");
    if (see_whiteout(l, i, e, err))
        return err->code;
    switch (i->e.kind) {
    case LAY_LISTED_FILE:
        i->e.size = e->size;
        if (!e->sparse)
            i->e.offset = l->line.tar_offset + (lay_tar_offset(l->tar) - l->line_start);
        break;
    case LAY_LISTED_LINK:
        if (keep_clean(l, e->link, e->link_len, &i->link, &i->e.link_len, &outside, err))
            return err->code;
        len = i->e.link_len;
        if (outside || (len == 1 && l->arena.p[i->link] == '.'))
            return unfit(l, e, err, "invalid hardlink target");
        break;
    case LAY_LISTED_SYMLINK:
        i->e.link_len = e->link_len;
        if (!e->link_len)
            return unfit(l, e, err, "a symbolic link without a target");
        if (keep(l, e->link, e->link_len, &i->link, err))
            return err->code;
        break;
    case -1:
        return unfit(l, e, err, "unhandled tar header type");
    default:
        break;
    }
    if (keep_xattrs(l, i, e, err))
        return err->code;
    l->count++;
    l->open = true;
    l->sparse = e->sparse;
    l->seen = 0;
    return LAY_OK;
}

/* ---- events and lines ----------------------------------------------------------------------------------- */

static void done(lay_listing *l)
{
    if (!l->open)
        return;
    lay_listed *e = &l->items[l->count - 1].e;
    if (e->kind == LAY_LISTED_FILE && !l->sparse && l->seen == e->size)
        e->has_crc = 1;               /* it came with the framing, or has no bytes */
    l->open = false;
}

static lay_code not_a_tar(const lay_listing *l, lay_error *err)
{
    if (err->code == LAY_E_NOMEM || err->code == LAY_E_SPLIT)
        return err->code;
    char why[LAY_ERROR_TEXT];
    memcpy(why, err->text, sizeof why);
    return lay_fail(err, LAY_E_SPLIT, "%s cannot be read: %s", l->of, why);
}

/* The reader's next event, if there is one. */
static lay_code take_event(lay_listing *l, lay_tar_event *event, lay_error *err)
{
    lay_tar_item t;
    *event = lay_tar_next(l->tar, &t, err);
    if (*event == LAY_TAR_BAD)
        return not_a_tar(l, err);
    if (*event == LAY_TAR_ENTRY) {
        if (l->lying)
            l->lying->stored = t.entry->stored;
        return begin(l, t.entry, err);
    }
    if (*event == LAY_TAR_END && l->lying)
        l->ended = true;              /* what trails is no entry */
    if (*event == LAY_TAR_DATA && l->open) {
        lay_listed *e = &l->items[l->count - 1].e;
        l->seen += (int64_t)t.n;
        if (e->kind == LAY_LISTED_FILE && !l->sparse)
            e->crc = lay_crc64_add(e->crc, t.p, t.n);
    }
    if (*event == LAY_TAR_DONE)
        done(l);
    return LAY_OK;
}

/* A line that stands for the bytes of the file whose header has just passed. */
static lay_code file_line(lay_listing *l, lay_error *err)
{
    const lay_split_line *line = &l->line;
    lay_tar_event event;
    if (!line->size)
        return LAY_OK;
    if ((l->open && l->seen) || !lay_tar_omit(l->tar))
        return lay_fail(err, LAY_E_SPLIT, "the tar-split record cannot be read: bytes of a file where none are due");
    while (!l->open) {                /* a sparse file whose map is not in the record: its entry comes only now */
        if (take_event(l, &event, err))
            return err->code;
        if (event <= LAY_TAR_NEED || event == LAY_TAR_DONE)
            break;
    }
    item *i = l->count ? &l->items[l->count - 1] : NULL;
    if (!l->open || i->e.kind != LAY_LISTED_FILE || i->e.size != line->size || i->e.name_len != line->name_len
        || memcmp(l->arena.p + i->name, line->name, line->name_len) != 0) {
        lay_fail(err, LAY_E_SPLIT, "the tar-split record cannot be read: a file is not the one its header names");
        lay_error_path(err, line->name, line->name_len);
        return err->code;
    }
    i->e.crc = line->crc;
    i->e.has_crc = line->has_crc;
    l->seen = -1;                     /* done() adds nothing */
    return LAY_OK;
}

/* What stands behind the bytes of a file, which stay unread, or the headers of the next thing. */
static lay_code next_fresh(lay_listing *l, lay_error *err)
{
    static const uint8_t zeros[LAY_TAR_BLOCK];
    lay_export *x = l->fresh;
    bool end = false;
    l->feeding = true;
    if (x->file_left > 0) {
        lay_tar_feed(l->tar, "", 0);
        if (!lay_tar_omit(l->tar))
            return lay_fail(err, LAY_E_STATE, "no bytes of a file are due");
        l->seen = -1;
        x->file_left = 0;
        lay_tar_feed(l->tar, zeros, x->padding);
        return LAY_OK;
    }
    x->head_at = x->head_len = x->padding = 0;
    if (x->next(x, &end, err))
        return err->code;
    l->ended = end;
    l->feeding = !end;
    lay_tar_feed(l->tar, x->head, x->head_len);
    return LAY_OK;
}

static lay_code cut_short(const lay_listing *l, lay_error *err)
{
    lay_fail_at(err, LAY_E_SPLIT, l->lying->at, "the tar cannot be read: unexpected EOF: it ends inside a file's data");
    if (l->open)
        lay_error_path(err, l->arena.p + l->items[l->count - 1].name, l->items[l->count - 1].e.name_len);
    return err->code;
}

/* A block of the tar, for which more is read than it: *n bytes at *p, fewer where the tar ends. */
static lay_code look_at(lying *f, const uint8_t **p, size_t *n, lay_error *err)
{
    *n = f->size - f->at < LAY_TAR_BLOCK ? (size_t)(f->size - f->at) : LAY_TAR_BLOCK;
    if (f->at < f->ahead_at || f->at + (int64_t)*n > f->ahead_at + (int64_t)f->ahead_len) {
        size_t want = f->size - f->at < AHEAD ? (size_t)(f->size - f->at) : AHEAD;
        ssize_t got;
        do
            got = pread(f->fd, f->ahead, want, f->begin + f->at);
        while (got < 0 && errno == EINTR);
        f->ahead_len = got < 0 ? 0 : (size_t)got;
        f->ahead_at = f->at;
        if (got < 0)
            return lay_fail_fd(err, errno, f->fd, "read the tar");
        if (f->ahead_len < *n)
            return lay_fail_at(err, LAY_E_SPLIT, f->at + got, "the tar cannot be read: its file ends here");
    }
    *p = f->ahead + (f->at - f->ahead_at);
    return LAY_OK;
}

/* What stands behind the payload of an entry, which stays unread, or the next block of headers. */
static lay_code next_block(lay_listing *l, lay_error *err)
{
    static const uint8_t zeros[LAY_TAR_BLOCK];
    lying *f = l->lying;
    const uint8_t *p = zeros;
    size_t n = 0;
    l->feeding = true;
    if (f->stored) {
        lay_tar_feed(l->tar, p, n);
        if (!lay_tar_omit(l->tar))
            return lay_fail(err, LAY_E_STATE, "no bytes of a file are due");
        if (f->stored > f->size - f->at)
            return cut_short(l, err);
        n = lay_tar_padding(f->stored);
        f->at += f->stored;
        f->at = f->size - f->at < (int64_t)n ? f->size : f->at + (int64_t)n;
        f->stored = 0;
        lay_tar_feed(l->tar, p, n);
        return LAY_OK;
    }
    if (f->at == f->size) {
        l->feeding = false;
        l->ended = true;
        return lay_tar_eof(l->tar, err) ? not_a_tar(l, err) : LAY_OK;
    }
    if (look_at(f, &p, &n, err))
        return err->code;
    l->line.tar_offset = f->at;
    l->line_start = lay_tar_offset(l->tar);
    f->at += (int64_t)n;
    lay_tar_feed(l->tar, p, n);
    return LAY_OK;
}

static lay_code next_line(lay_listing *l, lay_error *err)
{
    bool end = false;
    if (l->fresh)
        return next_fresh(l, err);
    if (l->lying)
        return next_block(l, err);
    if (lay_split_reader_next(l->reader, &l->line, &end, err))
        return err->code;
    if (end) {
        l->ended = true;
        return lay_tar_eof(l->tar, err) ? not_a_tar(l, err) : LAY_OK;
    }
    l->line_start = lay_tar_offset(l->tar);
    if (l->line.is_file) {
        lay_tar_feed(l->tar, "", 0);
        if (file_line(l, err))
            return err->code;
    } else {
        lay_tar_feed(l->tar, l->line.p, l->line.n);
    }
    l->feeding = true;
    return LAY_OK;
}

lay_code lay_listing_next(lay_listing *l, size_t max_entries, int max_ms, size_t *count, int *end, lay_error *err)
{
    int64_t stop = lay_now_ms() + max_ms;
    lay_error_clear(err);
    *count = 0;
    *end = 0;
    if (l->failure.code) {
        *err = l->failure;
        return err->code;
    }
    if (l->open)                      /* its texts stay where they are */
        l->items[0] = l->items[l->count - 1];
    else if (l->arena.p)
        lay_text_cut(&l->arena, 0);
    l->count = l->open;
    lay_code code = LAY_OK;
    for (unsigned n = 1; !code && !l->ended; n++) {
        bool full = l->count >= max_entries || l->arena.len >= BATCH_TEXT;
        if ((full && !l->open) || (n % 64 == 0 && lay_now_ms() >= stop))
            break;
        if (l->feeding) {
            lay_tar_event event;
            code = take_event(l, &event, err);
            l->feeding = event != LAY_TAR_NEED;
        } else {
            code = next_line(l, err);
        }
    }
    *count = l->count - l->open;
    *end = l->ended && !code;
    if (!code)
        return LAY_OK;
    l->failure = *err;
    if (!*count)
        return code;
    lay_error_clear(err);
    return LAY_OK;
}

void lay_listing_at(const lay_listing *l, size_t i, lay_listed *out)
{
    const item *from = &l->items[i];
    *out = from->e;
    out->name = l->arena.p + from->name;
    out->path = l->arena.p + from->path;
    out->link = l->arena.p + from->link;
    out->xattrs = l->arena.p + from->xattrs;
    if (l->fresh)
        out->offset = -1;
    if (!l->reader)
        out->has_crc = 0;
}

const char *lay_listed_xattr(const char *at, const char **name, const uint8_t **value, size_t *len)
{
    *name = at;
    at += strlen(at) + 1;
    memcpy(len, at, sizeof *len);
    *value = (const uint8_t *)at + sizeof *len;
    return at + sizeof *len + *len;
}

uint64_t lay_listed_crc(uint64_t crc, const void *p, size_t n) { return lay_crc64_add(crc, p, n); }

lay_code lay_listed_open(int root_fd, const char *path, int64_t size, int *fd, lay_error *err)
{
    lay_error_clear(err);
    size_t n = strlen(path);
    const char *slash = memrchr(path, '/', n);
    LAY_AUTO_FD int dir = lay_tree_open_dir(root_fd, path, slash ? (size_t)(slash - path) : 0, 0);
    struct stat st;
    LAY_AUTO_FD int got = dir < 0 ? -1 : lay_tree_open_regular(dir, slash ? slash + 1 : path, &st);
    if (got < 0) {
        int e = errno;
        if (e == ENOENT || e == ENOTDIR || e == ELOOP || e == EINVAL || e == EXDEV)
            lay_fail(err, LAY_E_MISMATCH, "cannot open \"%.300s\" of the layer: %s", path,
                     e == ENOENT || e == ENOTDIR ? "it is gone" : "it is not a regular file");
        else
            lay_fail_os(err, e, path, "cannot open a file of the layer");
    } else if (st.st_size != size) {
        lay_fail(err, LAY_E_MISMATCH, "\"%.300s\" of the layer has another size than was recorded", path);
    } else {
        *fd = lay_steal_fd(&got);
        return LAY_OK;
    }
    lay_error_path(err, path, n);
    return err->code;
}
