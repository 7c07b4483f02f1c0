/* check.c - a stored layer against its record: every file's CRC-64, the whole DiffID, and the tree that the tar makes.
 *
 * Iterator, in two passes that go on after damage. The first follows the record: files are read by the names it gives,
 * everything is hashed, and the framing goes through the tar reader, whose entries build the tree that must be there
 * (expect.c). The second walks the directory and compares (inspect.c). The DiffID is only asked for when every file is
 * as recorded: a damaged one changes it anyway.
 */
#include "base/digest.h"
#include "base/clock.h"
#include "inspect/inspect.h"
#include "base/limit.h"
#include "tree/payload.h"
#include "tarsplit/split.h"
#include "tree/tree.h"

#include <fcntl.h>
#include <string.h>

#define BLOCK (1u << 20)

typedef enum stage { RECORD, DIFF_ID, TREE, DONE } stage;

struct lay_check {
    int root_fd;
    unsigned flags;
    lay_lowers lowers;
    lay_split_reader *reader;
    stage stage;
    bool verify, damaged;
    uint8_t diff_id[LAY_SHA256_SIZE];
    lay_sha256 sha;
    uint8_t *block;
    lay_split_line line;
    int fd; int64_t left; uint64_t crc;      /* the file being read */
    lay_hand hand;                           /* its parent: no longer than for one lay_check_next: the tree may change */
    lay_tar *tar;                            /* NULL: the record's framing is no tar, which was told */
    lay_expect *expect;
    bool feeding, partial;                   /* partial: some entry is not in expect, which was told */
    uint32_t want;                           /* of the entry whose payload passes; LAY_NO_WANT: of none */
    uint64_t entry_crc; int64_t entry_at;    /* of its bytes that came with the framing */
    bool entry_open, is_file, by_line;       /* an entry is not done yet; has bytes; they are a line of the record */
    char name[LAY_ERROR_PATH]; size_t name_len; int64_t entry_size;      /* of that entry, cut if it is longer */
    lay_inspect *inspect;
    int64_t done;                            /* bytes of files looked at */
    lay_text told;                           /* path of the problem given */
};

static lay_xattr_scope scope_of(unsigned flags)
{
    return flags & LAY_CHECK_FIRST ? LAY_XATTRS_FRESH : flags & LAY_CHECK_USERNS ? LAY_XATTRS_USERNS : LAY_XATTRS_ALL;
}

lay_code lay_check_open(lay_check **out, const lay_check_options *o, lay_error *err)
{
    lay_error_clear(err);
    lay_check *c = calloc(1, sizeof *c);
    if (!c)
        return lay_fail_nomem(err);
    c->fd = -1;
    c->root_fd = -1;
    c->flags = o->flags;
    c->want = LAY_NO_WANT;
    c->hand = (lay_hand)LAY_HAND_NONE;
    c->verify = o->diff_id != NULL;
    if (o->diff_id)
        memcpy(c->diff_id, o->diff_id, sizeof c->diff_id);
    lay_sha256_start(&c->sha);
    c->block = malloc(BLOCK);
    c->tar = lay_tar_new();
    if (!c->block || !c->tar) {
        lay_fail_nomem(err);
        goto failed;
    }
    lay_tar_limit(c->tar, lay_limits_of_record());
    if (lay_expect_new(&c->expect, scope_of(o->flags), err)
        || lay_lowers_open(&c->lowers, o->lowers, o->nlowers, o->flags & LAY_CHECK_USERXATTR, err)
        || lay_lowers_keep(&c->lowers, err))
        goto failed;
    c->root_fd = fcntl(o->root_fd, F_DUPFD_CLOEXEC, 0);
    if (c->root_fd < 0)
        lay_fail_fd(err, errno, o->root_fd, "cannot keep the layer's directory");
    else if (lay_split_reader_open(&c->reader, o->record_fd, err) == LAY_OK) {
        *out = c;
        return LAY_OK;
    }
failed:
    lay_check_free(c);
    return err->code;
}

void lay_check_free(lay_check *c)
{
    if (!c)
        return;
    lay_close_owner(&c->fd);
    lay_close_owner(&c->root_fd);
    lay_inspect_free(c->inspect);
    lay_expect_free(c->expect);
    lay_lowers_free(&c->lowers);
    lay_split_reader_free(c->reader);
    lay_tar_free(c->tar);
    free(c->told.p);
    free(c->block);
    lay_hand_free(&c->hand);
    free(c);
}

/* ---- telling --------------------------------------------------------------------------------------------- */

/* What why says becomes a problem; its path is that of the line, whatever its length, where name is not NULL. */
static lay_code tell(lay_check *c, lay_problem *p, int kind, const lay_error *why, const char *name, size_t n, lay_error *err)
{
    if (why->code == LAY_E_NOMEM || why->sys_errno == ENOMEM)
        return lay_fail_nomem(err);
    const char *path = name ? name : why->path;
    p->kind = kind;
    memcpy(p->text, why->text, sizeof p->text);
    if (lay_text_set(&c->told, path, name ? n : strlen(path), err))
        return err->code;
    p->path = c->told.p;
    p->path_len = c->told.len;
    return LAY_OK;
}

/* Of the file whose line this is. */
static lay_code tell_file(lay_check *c, lay_problem *p, int kind, const lay_error *why, lay_error *err)
{
    c->damaged = true;
    lay_close_owner(&c->fd);
    c->fd = -1;
    if (c->want != LAY_NO_WANT && c->by_line) {
        if (kind == LAY_PROBLEM_MISSING)
            lay_expect_want(c->expect, c->want)->flags |= LAY_WANT_TOLD;
        lay_expect_made(c->expect, c->want)->flags |= LAY_MADE_CHANGED;
    }
    return tell(c, p, kind, why, c->line.name, c->line.name_len, err);
}

/* ---- the tar ---------------------------------------------------------------------------------------------- */

/* The framing cannot be followed any further: what the tree must be is not known. */
static lay_code stop_tar(lay_check *c, lay_problem *p, lay_error *why, lay_error *err)
{
    char text[LAY_ERROR_TEXT];
    memcpy(text, why->text, sizeof text);
    lay_tar_free(c->tar);
    c->tar = NULL;
    c->feeding = false;
    c->want = LAY_NO_WANT;
    if (why->code != LAY_E_SPLIT && why->code != LAY_E_NOMEM) {
        why->code = LAY_E_SPLIT;
        lay_fail(why, LAY_E_SPLIT, "the tar-split record cannot be read as a tar: %.400s", text);
    }
    return tell(c, p, LAY_PROBLEM_RECORD, why, NULL, 0, err);
}

static lay_code see_entry(lay_check *c, const lay_tar_entry *e, lay_problem *p, lay_error *err)
{
    lay_error why;
    lay_error_clear(&why);
    c->entry_open = true;
    c->by_line = false;
    c->is_file = e->type == '0' || e->type == 'S';
    c->entry_crc = 0;
    c->entry_at = 0;
    c->entry_size = e->size;
    c->name_len = e->name_len < sizeof c->name ? e->name_len : sizeof c->name;
    memcpy(c->name, e->name, c->name_len);
    if (!lay_expect_entry(c->expect, e, &c->want, &why))
        return LAY_OK;
    c->want = LAY_NO_WANT;
    c->partial = true;
    return tell(c, p, LAY_PROBLEM_RECORD, &why, e->name, e->name_len, err);
}

static void see_data(lay_check *c, const lay_tar_item *item)
{
    if (item->file_offset > c->entry_at)
        c->entry_crc = lay_crc64_zeros(c->entry_crc, (uint64_t)(item->file_offset - c->entry_at));
    c->entry_crc = lay_crc64_add(c->entry_crc, item->p, item->n);
    c->entry_at = item->file_offset + (int64_t)item->n;
}

static void see_done(lay_check *c)
{
    c->entry_open = false;
    if (c->want == LAY_NO_WANT || c->by_line || !c->is_file)
        return;
    lay_made *t = lay_expect_made(c->expect, c->want);
    if (!t->size || t->size < c->entry_at)
        return;
    t->crc = lay_crc64_zeros(c->entry_crc, (uint64_t)(t->size - c->entry_at));
    t->flags |= LAY_MADE_INLINE;
}

/* The reader's next event. */
static lay_code take_event(lay_check *c, lay_tar_event *event, lay_problem *p, lay_error *err)
{
    lay_error why;
    lay_tar_item item;
    lay_error_clear(&why);
    *event = lay_tar_next(c->tar, &item, &why);
    switch (*event) {
    case LAY_TAR_BAD:
        return stop_tar(c, p, &why, err);
    case LAY_TAR_ENTRY:
        return see_entry(c, item.entry, p, err);
    case LAY_TAR_DATA:
        see_data(c, &item);
        return LAY_OK;
    case LAY_TAR_DONE:
        see_done(c);
        return LAY_OK;
    case LAY_TAR_NEED:
        c->feeding = false;
        return LAY_OK;
    default:
        return LAY_OK;
    }
}

/* A line stands for the payload of the entry whose header has just passed. */
static lay_code see_line(lay_check *c, lay_problem *p, lay_error *err)
{
    lay_error why;
    lay_tar_event event = LAY_TAR_RAW;
    lay_error_clear(&why);
    lay_tar_feed(c->tar, "", 0);
    if ((c->entry_open && c->entry_at) || !lay_tar_omit(c->tar)) {
        lay_fail(&why, LAY_E_SPLIT, "the tar-split record cannot be read: bytes of a file where none are due");
        lay_error_path(&why, c->line.name, c->line.name_len);
        return stop_tar(c, p, &why, err);
    }
    while (c->tar && !c->entry_open && event > LAY_TAR_NEED && event != LAY_TAR_DONE)      /* its map is not in the record */
        if (take_event(c, &event, p, err) || p->kind)
            return err->code;
    size_t n = c->line.name_len < sizeof c->name ? c->line.name_len : sizeof c->name;
    if (!c->entry_open || n != c->name_len || memcmp(c->name, c->line.name, n) != 0 || c->entry_size != c->line.size) {
        lay_fail(&why, LAY_E_SPLIT, "the tar-split record cannot be read: a file is not the one its header names");
        lay_error_path(&why, c->line.name, c->line.name_len);
        return stop_tar(c, p, &why, err);
    }
    c->by_line = true;
    c->feeding = true;
    return LAY_OK;
}

/* ---- steps ------------------------------------------------------------------------------------------ */

static lay_code read_file(lay_check *c, lay_problem *p, lay_error *err)
{
    lay_error why;
    lay_error_clear(&why);
    ssize_t n = read(c->fd, c->block, BLOCK);
    if (n < 0 && errno == EINTR)
        return LAY_OK;
    if (n < 0) {
        lay_fail_os(&why, errno, NULL, "cannot read a file of the layer");
        c->done += c->left;
        return tell_file(c, p, LAY_PROBLEM_CONTENT, &why, err);
    }
    c->left -= n;
    c->done += n;
    c->crc = lay_crc64_add(c->crc, c->block, (size_t)n);
    lay_sha256_add(&c->sha, c->block, (size_t)n);
    if (n && c->left > 0)
        return LAY_OK;
    if (c->left || !c->line.has_crc || c->crc != c->line.crc) {
        c->done += c->left;
        lay_payload_differs(c->line.name, c->line.name_len, &why);
        return tell_file(c, p, LAY_PROBLEM_CONTENT, &why, err);
    }
    close(c->fd);
    c->fd = -1;
    return LAY_OK;
}

static lay_code open_file(lay_check *c, lay_problem *p, lay_error *err)
{
    lay_error why;
    lay_error_clear(&why);
    if (!lay_payload_path(&c->hand.path, c->line.name, c->line.name_len, &why))
        c->fd = lay_payload_open(c->root_fd, &c->hand.parent, c->hand.path.p, c->hand.path.len, c->line.name, c->line.name_len, c->line.size, &why);
    if (c->fd < 0) {
        c->done += c->line.size;
        bool gone = why.sys_errno == ENOENT || why.sys_errno == ENOTDIR;
        return tell_file(c, p, gone ? LAY_PROBLEM_MISSING : LAY_PROBLEM_CONTENT, &why, err);
    }
    c->left = c->line.size;
    c->crc = 0;
    return LAY_OK;
}

static lay_code next_line(lay_check *c, lay_problem *p, lay_error *err)
{
    lay_error why;
    bool end = false;
    lay_error_clear(&why);
    if (lay_split_reader_next(c->reader, &c->line, &end, &why)) {
        c->stage = c->tar ? TREE : DONE;      /* what was read is there to be compared */
        c->partial = c->damaged = true;
        return tell(c, p, LAY_PROBLEM_RECORD, &why, NULL, 0, err);
    }
    if (end) {
        c->stage = DIFF_ID;
        return c->tar && lay_tar_eof(c->tar, &why) ? stop_tar(c, p, &why, err) : LAY_OK;
    }
    if (!c->line.is_file) {
        lay_sha256_add(&c->sha, c->line.p, c->line.n);
        if (c->tar) {
            lay_tar_feed(c->tar, c->line.p, c->line.n);
            c->feeding = true;
        }
        return LAY_OK;
    }
    if (!c->line.size)
        return LAY_OK;
    c->left = -1;                             /* it is opened in the next step, whatever is told of its line */
    return c->tar ? see_line(c, p, err) : LAY_OK;
}

static lay_code compare_diff_id(lay_check *c, lay_problem *p, lay_error *err)
{
    lay_error why;
    uint8_t got[LAY_SHA256_SIZE];
    lay_error_clear(&why);
    c->stage = c->tar ? TREE : DONE;
    lay_sha256_end(&c->sha, got);
    if (!c->verify || c->damaged || !memcmp(got, c->diff_id, sizeof got))
        return LAY_OK;
    lay_fail(&why, LAY_E_MISMATCH, "the layer's tar no longer hashes to its DiffID, though every file is as recorded");
    return tell(c, p, LAY_PROBLEM_CONTENT, &why, NULL, 0, err);
}

static lay_code walk(lay_check *c, lay_problem *p, lay_error *err)
{
    lay_error why;
    bool end = false;
    lay_error_clear(&why);
    if (!c->inspect) {
        lay_inspect_options o = {
            .expect = c->expect, .root_fd = c->root_fd, .lowers = &c->lowers, .partial = c->partial,
            .metadata = c->flags & LAY_CHECK_METADATA, .scope = scope_of(c->flags), .userxattr = c->flags & LAY_CHECK_USERXATTR,
        };
        if (!lay_inspect_open(&c->inspect, &o, &why))
            return LAY_OK;
        c->stage = DONE;
        return tell(c, p, LAY_PROBLEM_METADATA, &why, NULL, 0, err);
    }
    int64_t before = lay_inspect_bytes(c->inspect);
    if (lay_inspect_step(c->inspect, p, &end, err))
        return err->code;
    c->done += lay_inspect_bytes(c->inspect) - before;
    if (end)
        c->stage = DONE;
    return LAY_OK;
}

static lay_code step(lay_check *c, lay_problem *p, lay_error *err)
{
    lay_tar_event event;
    switch (c->stage) {
    case RECORD:
        if (c->fd >= 0)
            return read_file(c, p, err);
        if (c->left < 0) {
            c->left = 0;
            return open_file(c, p, err);
        }
        return c->feeding ? take_event(c, &event, p, err) : next_line(c, p, err);
    case DIFF_ID:
        return compare_diff_id(c, p, err);
    case TREE:
        return walk(c, p, err);
    case DONE:
        return LAY_OK;
    }
    return LAY_OK;
}

int64_t lay_check_bytes(const lay_check *c) { return c->done; }

lay_code lay_check_next(lay_check *c, int max_ms, lay_problem *problem, int *end, lay_error *err)
{
    int64_t stop = lay_now_ms() + max_ms;
    lay_code code = LAY_OK;
    lay_error_clear(err);
    *problem = (lay_problem){ .kind = LAY_PROBLEM_NONE };
    for (unsigned i = 1; !code && c->stage != DONE && problem->kind == LAY_PROBLEM_NONE; i++) {
        code = step(c, problem, err);
        if (i % 64 == 0 && lay_now_ms() >= stop)
            break;
    }
    lay_parent_close(&c->hand.parent);
    *end = c->stage == DONE;
    return code;
}
