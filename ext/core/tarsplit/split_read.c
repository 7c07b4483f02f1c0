/* split_read.c - a tar-split record comes in, its lines go out.
 *
 * Reads what any dockerd wrote (one gzip member, any JSON) and our own blocked gzip, where it may start
 * at any member (split_seek.h draws the field). A field is only a claim: reading may start at a member once all
 * lines before it were read and led to the place that its field names. So a start in the middle gives what
 * a start at the beginning gives, for every record. Memory: one line, one block, a block of header for each start.
 */
#include "base/grow.h"
#include "codec/inflate.h"
#include "tarsplit/split.h"
#include "tarsplit/split_seek.h"
#include "tarsplit/split_text.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#define READ_BLOCK (256u << 10)
/* Against hostile records. Ours have lines of 6 MB at most, of one entry's headers, as have those of dockerd since
 * 17.12; before that, all trailing bytes stood on one line. */
#define LINE_MAX_BYTES (32u << 20)
#define IDLE_MAX 1024u                /* lines in a row without a byte of the tar: there is one before each entry */
#define POINTS_CLOSE 1024u            /* beyond so many restart points they lie POINT_STEP bytes of the record apart */
#define POINT_STEP 4096

typedef struct point { int64_t file_offset, tar_offset; uint64_t line; } point;
/* What the lines before a restart point leave to those behind it. */
typedef struct state { uint8_t header[LAY_TAR_BLOCK]; size_t header_len; } state;
/* The beginning of a member that has a field. */
typedef struct member_head { uint8_t fixed[LAY_SEEK_AT]; lay_seek seek; } __attribute__((packed)) member_head;

struct lay_split_reader {
    int fd;
    bool gzip, input_end, text_end;
    int64_t file_offset;
    uint8_t *in;
    lay_inflate *z;
    char *text; size_t at, len, cap;          /* lines not parsed yet */
    uint8_t *bytes; size_t bytes_cap;         /* decoded payload or raw name of the present line */
    char *name; size_t name_cap;
    int64_t stop;                             /* the record ends here for now: between two points, else INT64_MAX */
    state last;                               /* the last framing block seen */
    int64_t tar_offset; uint64_t index;
    unsigned idle;                            /* lines since tar_offset moved */
    point *points; size_t npoints;
    state *states; size_t proven;             /* of the first so many points it is known that they are right */
    bool points_known;
    int64_t total;                            /* the tar's length as the first field claims, or as was counted; -1: not known */
};

static lay_code unreadable(lay_error *err, const char *why)
{
    return lay_fail(err, LAY_E_SPLIT, "the tar-split record cannot be read: %s", why);
}

static lay_code restart(lay_split_reader *r, const point *from, const state *last, lay_error *err)
{
    r->file_offset = from->file_offset;
    r->stop = INT64_MAX;
    r->tar_offset = from->tar_offset;
    r->index = from->line;
    r->at = r->len = 0;
    r->last = *last;
    r->idle = 0;
    r->input_end = r->text_end = false;
    lay_inflate_free(r->z);
    r->z = NULL;
    return r->gzip ? lay_inflate_open(&r->z, LAY_FORMAT_GZIP, err) : LAY_OK;
}

static bool has_field(const member_head *head, size_t n)
{
    return n == sizeof *head && head->fixed[0] == 0x1f && head->fixed[1] == 0x8b && head->fixed[3] == 4 && lay_seek_is_sound(&head->seek);
}

lay_code lay_split_reader_open(lay_split_reader **out, int record_fd, lay_error *err)
{
    lay_split_reader *r = calloc(1, sizeof *r);
    if (!r)
        return lay_fail_nomem(err);
    r->total = -1;
    r->fd = fcntl(record_fd, F_DUPFD_CLOEXEC, 0);
    if (r->fd < 0) {
        lay_fail_fd(err, errno, record_fd, "cannot keep the tar-split record");
        goto fail;
    }
    r->in = malloc(READ_BLOCK);
    r->text = malloc(READ_BLOCK);
    r->cap = READ_BLOCK;
    if (!r->in || !r->text) {
        lay_fail_nomem(err);
        goto fail;
    }
    member_head head = { 0 };
    ssize_t n = pread(r->fd, &head, sizeof head, 0);
    if (n < 0) {
        lay_fail_fd(err, errno, r->fd, "cannot read the tar-split record");
        goto fail;
    }
    r->gzip = n >= 2 && head.fixed[0] == 0x1f && head.fixed[1] == 0x8b;
    if (!r->gzip && n > 0 && (!head.fixed[0] || !strchr("{ \n\t\r", head.fixed[0]))) {
        unreadable(err, "gzip: invalid header");
        goto fail;
    }
    if (has_field(&head, (size_t)n) && le64toh(head.seek.total) <= INT64_MAX)
        r->total = (int64_t)le64toh(head.seek.total);
    const point start = { 0 };
    const state none = { .header_len = 0 };
    if (restart(r, &start, &none, err))
        goto fail;
    *out = r;
    return LAY_OK;
fail:
    lay_split_reader_free(r);
    return err->code;
}

void lay_split_reader_free(lay_split_reader *r)
{
    if (!r)
        return;
    if (r->fd >= 0)
        close(r->fd);
    lay_inflate_free(r->z);
    free(r->in);
    free(r->text);
    free(r->bytes);
    free(r->name);
    free(r->points);
    free(r->states);
    free(r);
}

static lay_code read_input(lay_split_reader *r, uint8_t *to, size_t room, size_t *got, lay_error *err)
{
    ssize_t n;
    if ((int64_t)room > r->stop - r->file_offset)
        room = (size_t)(r->stop - r->file_offset);
    do
        n = pread(r->fd, to, room, r->file_offset);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return lay_fail_fd(err, errno, r->fd, "cannot read the tar-split record");
    r->file_offset += n;
    *got = (size_t)n;
    return LAY_OK;
}

/* More text behind what is there; text_end when there is none. */
static lay_code more_text(lay_split_reader *r, lay_error *err)
{
    if (r->at) {
        memmove(r->text, r->text + r->at, r->len - r->at);
        r->len -= r->at;
        r->at = 0;
    }
    if (r->cap - r->len < READ_BLOCK / 2) {
        if (r->cap >= LINE_MAX_BYTES)
            return lay_fail(err, LAY_E_SPLIT, "the tar-split record has a line longer than %u bytes", LINE_MAX_BYTES);
        char *grown = realloc(r->text, 2 * r->cap);
        if (!grown)
            return lay_fail_nomem(err);
        r->text = grown;
        r->cap *= 2;
    }
    size_t got = 0;
    if (!r->gzip) {
        if (read_input(r, (uint8_t *)r->text + r->len, r->cap - r->len, &got, err))
            return err->code;
        r->text_end = got == 0;
        r->len += got;
        return LAY_OK;
    }
    for (;;) {
        if (lay_inflate_next(r->z, r->text + r->len, r->cap - r->len, &got, err)) {
            char why[LAY_ERROR_TEXT];
            memcpy(why, err->text, sizeof why);
            return err->code == LAY_E_NOMEM ? err->code : unreadable(err, why);
        }
        r->len += got;
        if (got)
            return LAY_OK;
        if (r->input_end) {
            r->text_end = true;
            if (lay_inflate_eof(r->z, err))
                return unreadable(err, "unexpected EOF");
            return LAY_OK;
        }
        if (read_input(r, r->in, READ_BLOCK, &got, err))
            return err->code;
        r->input_end = got == 0;
        if (got)
            lay_inflate_feed(r->z, r->in, got);
    }
}

static lay_code decode(lay_split_reader *r, const char *text, size_t n, size_t *len, lay_error *err)
{
    if (lay_reserve(&r->bytes, &r->bytes_cap, n / 4 * 3 + 1, 1, err))
        return err->code;
    return lay_base64_decode(text, n, r->bytes, len) ? LAY_OK : unreadable(err, "illegal base64 data");
}

static void remember_framing(state *last, const uint8_t *p, size_t n)
{
    if (n >= LAY_TAR_BLOCK) {
        memcpy(last->header, p + n - LAY_TAR_BLOCK, LAY_TAR_BLOCK);
        last->header_len = LAY_TAR_BLOCK;
        return;
    }
    size_t keep = LAY_TAR_BLOCK - n < last->header_len ? LAY_TAR_BLOCK - n : last->header_len;
    memmove(last->header, last->header + last->header_len - keep, keep);
    memcpy(last->header + keep, p, n);
    last->header_len = keep + n;
}

/* A link, a directory or a node has no payload, whatever size its header names: dockerd records that
 * size, and then cannot give the tar back. We can. */
static bool has_no_payload(const lay_split_reader *r, const lay_split_line *line)
{
    if (r->last.header_len != LAY_TAR_BLOCK)
        return false;
    char type = (char)r->last.header[156];
    bool none = (type >= '1' && type <= '6') || (type == 0 && line->name_len && line->name[line->name_len - 1] == '/');
    return none && lay_tar_is_header(r->last.header);
}

static lay_code file_line(lay_split_reader *r, const lay_json_line *json, lay_split_line *line, lay_error *err)
{
    bool raw = json->name_raw && json->name_raw_len;      /* an empty one is none */
    size_t len = 0, want = raw ? json->name_raw_len : json->name_len;
    if (json->size < 0)
        return unreadable(err, "a file has a negative size");
    if (lay_reserve(&r->name, &r->name_cap, want + 1, 1, err))
        return err->code;
    if (raw) {
        if (decode(r, json->name_raw, json->name_raw_len, &len, err))
            return err->code;
        memcpy(r->name, r->bytes, len);
    } else if (json->name && !lay_json_unescape(json->name, json->name_len, r->name, &len)) {
        return unreadable(err, "invalid JSON");
    }
    r->name[len] = '\0';
    line->is_file = true;
    line->name = r->name;
    line->name_len = len;
    line->size = json->size;
    if (json->payload) {
        if (decode(r, json->payload, json->payload_len, &len, err))
            return err->code;
        line->has_crc = len == 8;
        if (line->has_crc) {
            memcpy(&line->crc, r->bytes, 8);
            line->crc = be64toh(line->crc);
        }
    }
    if (memchr(line->name, 0, line->name_len))
        return unreadable(err, "a file's name holds a NUL");
    if (line->size && has_no_payload(r, line))
        line->size = 0;
    return LAY_OK;
}

lay_code lay_split_reader_next(lay_split_reader *r, lay_split_line *line, bool *end, lay_error *err)
{
    *end = false;
    for (;;) {
        lay_json_line json;
        size_t used = 0;
        lay_json j = r->at < r->len ? lay_json_object(r->text + r->at, r->len - r->at, &json, &used) : LAY_JSON_MORE;
        if (j == LAY_JSON_BAD)
            return unreadable(err, "invalid JSON");
        if (j == LAY_JSON_MORE) {
            if (!r->text_end && more_text(r, err))
                return err->code;
            if (!r->text_end)
                continue;
            for (; r->at < r->len; r->at++)
                if (!strchr(" \n\t\r", r->text[r->at]) || !r->text[r->at])
                    return unreadable(err, "unexpected EOF");
            if (r->stop == INT64_MAX && r->total >= 0 && r->total != r->tar_offset)
                return unreadable(err, "the length that it claims is not that of its lines");
            *end = true;
            return LAY_OK;
        }
        *line = (lay_split_line){ .tar_offset = r->tar_offset, .index = r->index };
        r->index++;
        r->at += used;
        if (++r->idle > IDLE_MAX)
            return unreadable(err, "it holds many lines without a byte of a tar");
        if (json.type == 2) {
            if (json.payload && decode(r, json.payload, json.payload_len, &line->n, err))
                return err->code;
            line->p = r->bytes;
            if (!line->n)
                continue;                       /* dockerd before 25 ends every record so */
            remember_framing(&r->last, line->p, line->n);
            if (__builtin_add_overflow(r->tar_offset, (int64_t)line->n, &r->tar_offset))
                return unreadable(err, "the total size exceeds 2^63 bytes");
            r->idle = 0;
            return LAY_OK;
        }
        if (json.type == 1) {
            if (file_line(r, &json, line, err))
                return err->code;
            if (__builtin_add_overflow(r->tar_offset, line->size, &r->tar_offset))
                return unreadable(err, "the total size exceeds 2^63 bytes");
            if (line->size)
                r->idle = 0;
            return LAY_OK;
        }
    }
}

/* Follow the members' fields from the start; without them (dockerd's record) the start is the only point. */
static lay_code find_points(lay_split_reader *r, lay_error *err)
{
    member_head head;
    size_t cap = 0;
    int64_t at = 0;
    struct stat st;
    if (fstat(r->fd, &st) < 0)
        return lay_fail_fd(err, errno, r->fd, "cannot read the tar-split record");
    for (;;) {
        if (lay_grow(&r->points, &cap, r->npoints, sizeof *r->points, err))
            return err->code;
        ssize_t n = r->gzip ? pread(r->fd, &head, sizeof head, at) : 0;
        bool known = n > 0 && has_field(&head, (size_t)n);
        int64_t tar_offset = known ? (int64_t)le64toh(head.seek.tar_offset) : 0, member = known ? (int64_t)le64toh(head.seek.member) : 0;
        if (at == 0)
            r->points[r->npoints++] = (point){ 0 };
        else if (known && tar_offset >= r->points[r->npoints - 1].tar_offset
                 && (r->npoints < POINTS_CLOSE || at - r->points[r->npoints - 1].file_offset >= POINT_STEP))
            r->points[r->npoints++] = (point){ at, tar_offset, le64toh(head.seek.line) };
        if (member < (int64_t)sizeof head || member > st.st_size - at)
            break;
        at += member;
    }
    r->states = calloc(1, sizeof *r->states);       /* of the start */
    if (!r->states)
        return lay_fail_nomem(err);
    r->proven = 1;
    r->points_known = true;
    return LAY_OK;
}

/* Read from the last point that is proven to the next one: are the lines at the place that the field of the next one
 * names, with nothing cut or between? If not, that one and all behind it are no points. */
static lay_code prove_next(lay_split_reader *r, lay_error *err)
{
    const point *from = &r->points[r->proven - 1], *to = from + 1;
    state *grown = reallocarray(r->states, r->proven + 1, sizeof *grown);
    if (!grown)
        return lay_fail_nomem(err);
    r->states = grown;
    if (restart(r, from, &r->states[r->proven - 1], err))
        return err->code;
    r->stop = to->file_offset;
    bool end = false;
    while (!end) {
        lay_split_line line;
        if (lay_split_reader_next(r, &line, &end, err)) {
            if (err->code != LAY_E_SPLIT)
                return err->code;
            lay_error_clear(err);                   /* it is told when these lines are read */
            break;
        }
    }
    if (end && lay_inflate_is_between(r->z) && r->tar_offset == to->tar_offset && r->index == to->line)
        r->states[r->proven++] = r->last;
    else
        r->npoints = r->proven;
    return LAY_OK;
}

lay_code lay_split_reader_rewind(lay_split_reader *r, int64_t tar_offset, lay_error *err)
{
    if (!r->points_known && find_points(r, err))
        return err->code;
    while (r->proven < r->npoints && r->points[r->proven].tar_offset <= tar_offset)
        if (prove_next(r, err))
            return err->code;
    size_t low = 0, high = r->proven;               /* the last point at or before tar_offset */
    while (high - low > 1) {
        size_t mid = low + (high - low) / 2;
        if (r->points[mid].tar_offset <= tar_offset)
            low = mid;
        else
            high = mid;
    }
    return restart(r, &r->points[low], &r->states[low], err);
}

lay_code lay_split_reader_size(lay_split_reader *r, int64_t *size, lay_error *err)
{
    if (r->total < 0) {
        lay_split_line line;
        bool end = false;
        if (lay_split_reader_rewind(r, 0, err))
            return err->code;
        while (!end)
            if (lay_split_reader_next(r, &line, &end, err))
                return err->code;
        r->total = r->tar_offset;
    }
    *size = r->total;
    return LAY_OK;
}
