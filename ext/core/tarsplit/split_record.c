/* split_record.c - a tar goes in, its tar-split record is written.
 *
 * The record is blocked gzip: members of about 1 MiB of lines, each with an FEXTRA field (split_seek.h), so that
 * a reader may start in the middle; any gzip reader joins the members and skips the field.
 *
 * Payload that the tree does not have (of links, whiteouts, sparse files, the skipped root entry), or not
 * to dockerd (names longer than a path may be), is recorded as segments at once; of names that come again,
 * by a second pass with a plan.
 */
#include "base/grow.h"
#include "base/limit.h"
#include "base/nameset.h"
#include "base/write_all.h"
#include "codec/pack.h"
#include "tarsplit/split.h"
#include "tarsplit/split_seek.h"
#include "tarsplit/split_text.h"
#include "tree/tree.h"
#include "tree/whiteout.h"

#include <string.h>

#define SEGMENT_MAX (1u << 20)      /* of trailing and inlined bytes; framing of one entry may be longer */
#define FRAMING_MAX (4u << 20)
#define BLOCK_LINES (1u << 20)      /* bytes of lines that make a member */
#define NAME_MAX_PATH 3072u         /* dockerd opens <root>/<name> in one piece, of 4096 bytes at most */

struct lay_split {
    int fd;
    bool gzip;
    lay_plan plan;
    lay_tar *tar;
    const lay_limits *limits;
    uint8_t *raw; size_t raw_len, raw_cap;     /* framing not written yet */
    char *out; size_t out_len, out_cap;        /* lines not written yet */
    uint8_t *packed; size_t packed_cap;
    int64_t first_member, file_end;            /* offsets in fd */
    int64_t block_tar_offset, tar_offset;      /* of the first line in out; of the next line */
    uint64_t block_line, line, entries;
    lay_seek first;                            /* of the first member, for when the total is known */
    bool inlined, unnamed, with_payload, ended;
    uint64_t crc;
    char *clean; size_t clean_cap;
    lay_nameset names, repeats;                /* of places: cleaned, without '/' before them */
    bool alone, irregular;
    lay_nameset parents, no_directories;       /* alone */
};

lay_code lay_split_open(lay_split **out, int record_fd, bool gzip, const lay_plan *plan, lay_error *err)
{
    lay_split *s = calloc(1, sizeof *s);
    if (!s)
        return lay_fail_nomem(err);
    s->fd = record_fd;
    s->gzip = gzip;
    if (plan)
        s->plan = *plan;
    s->limits = lay_limits_default();
    s->tar = lay_tar_new();
    if (!s->tar)
        lay_fail_nomem(err);
    if (!s->tar || lay_nameset_init(&s->names, err) || lay_nameset_init(&s->repeats, err)) {
        lay_split_free(s);
        return err->code;
    }
    *out = s;
    return LAY_OK;
}

void lay_split_limit(lay_split *s, const lay_limits *limits)
{
    s->limits = limits;
    lay_tar_limit(s->tar, limits);
}

void lay_split_free(lay_split *s)
{
    if (!s)
        return;
    lay_tar_free(s->tar);
    free(s->raw);
    free(s->out);
    free(s->packed);
    free(s->clean);
    lay_nameset_free(&s->names);
    lay_nameset_free(&s->repeats);
    lay_nameset_free(&s->parents);
    lay_nameset_free(&s->no_directories);
    free(s);
}

static lay_code write_all(lay_split *s, const void *p, size_t n, lay_error *err)
{
    if (lay_is_over(s->file_end + (int64_t)n, s->limits->record))
        return lay_fail_limit(err, lay_tar_offset(s->tar), "max_record", s->limits->record, "bytes", "the tar-split record is too large");
    int e = lay_write_all(s->fd, p, n, -1);
    s->file_end += (int64_t)n;
    return e ? lay_fail_fd(err, e, s->fd, "cannot write the tar-split record") : LAY_OK;
}

static lay_code write_block(lay_split *s, lay_error *err)
{
    if (!s->gzip) {
        lay_code code = write_all(s, s->out, s->out_len, err);
        s->out_len = 0;
        return code;
    }
    lay_seek field = { { 'L', 'S' }, htole16(sizeof field - 4), 0, htole64((uint64_t)s->block_tar_offset), htole64(s->block_line), UINT64_MAX, 0 };
    size_t bound = lay_gzip_bound(s->out_len) + sizeof field, len;
    if (lay_reserve(&s->packed, &s->packed_cap, bound, 1, err) || lay_gzip_member(s->out, s->out_len, &field, sizeof field, s->packed, s->packed_cap, &len, err))
        return err->code;
    field.member = htole64(len);
    field.sum = lay_seek_sum(&field);
    memcpy(s->packed + LAY_SEEK_AT, &field, sizeof field);
    if (s->block_line == 0)
        s->first = field;
    s->out_len = 0;
    s->block_tar_offset = s->tar_offset;
    s->block_line = s->line;
    return write_all(s, s->packed, len, err);
}

static lay_code line_done(lay_split *s, int64_t tar_bytes, lay_error *err)
{
    s->line++;
    s->tar_offset += tar_bytes;
    return s->out_len >= BLOCK_LINES ? write_block(s, err) : LAY_OK;
}

static void put(lay_split *s, const char *text, size_t n)
{
    memcpy(s->out + s->out_len, text, n);
    s->out_len += n;
}
#define PUT(s, literal) put(s, literal, sizeof(literal) - 1)

static void put_number(lay_split *s, uint64_t v)
{
    char digits[20];
    size_t n = sizeof digits;
    do
        digits[--n] = (char)('0' + v % 10);
    while (v /= 10);
    put(s, digits + n, sizeof digits - n);
}

static void put_base64(lay_split *s, const uint8_t *p, size_t n)
{
    lay_base64_encode(p, n, s->out + s->out_len);
    s->out_len += lay_base64_room(n);
}

static lay_code segment(lay_split *s, lay_error *err)
{
    if (!s->raw_len)
        return LAY_OK;
    if (lay_reserve(&s->out, &s->out_cap, s->out_len + lay_base64_room(s->raw_len) + 64, 1, err))
        return err->code;
    PUT(s, "{\"type\":2,\"payload\":\"");
    put_base64(s, s->raw, s->raw_len);
    PUT(s, "\",\"position\":");
    put_number(s, s->line);
    PUT(s, "}\n");
    int64_t n = (int64_t)s->raw_len;
    s->raw_len = 0;
    return line_done(s, n, err);
}

/* size 0: nothing of the payload is read from the tree. */
static lay_code file_line(lay_split *s, const lay_tar_entry *e, int64_t size, lay_error *err)
{
    if (lay_reserve(&s->out, &s->out_cap, s->out_len + 6 * e->name_len + 128, 1, err))
        return err->code;
    PUT(s, "{\"type\":1");
    if (e->name_len && lay_utf8_valid(e->name, e->name_len)) {
        PUT(s, ",\"name\":\"");
        s->out_len += lay_json_escape(e->name, e->name_len, s->out + s->out_len);
        PUT(s, "\"");
    } else if (e->name_len) {
        PUT(s, ",\"name_raw\":\"");
        put_base64(s, (const uint8_t *)e->name, e->name_len);
        PUT(s, "\"");
    }
    if (size) {
        PUT(s, ",\"size\":");
        put_number(s, (uint64_t)size);
        PUT(s, ",\"payload\":\"");
        uint64_t crc = htobe64(s->crc);
        put_base64(s, (const uint8_t *)&crc, sizeof crc);
        PUT(s, "\",\"position\":");
    } else {
        PUT(s, ",\"payload\":null,\"position\":");
    }
    put_number(s, s->line);
    PUT(s, "}\n");
    return line_done(s, size, err);
}

static lay_code raw(lay_split *s, const uint8_t *p, size_t n, size_t max, lay_error *err)
{
    while (n) {
        if (s->raw_len >= max && segment(s, err))
            return err->code;
        size_t part = max - s->raw_len < n ? max - s->raw_len : n;
        if (lay_reserve(&s->raw, &s->raw_cap, s->raw_len + part, 1, err))
            return err->code;
        memcpy(s->raw + s->raw_len, p, part);
        s->raw_len += part;
        p += part;
        n -= part;
    }
    return LAY_OK;
}

/* Whiteouts and the root itself leave no file that could give their payload back. */
static bool leaves_no_file(const char *clean, size_t n)
{
    size_t at = lay_path_base(clean, n), len = n - at;
    const char *base = clean + at;
    return len == 0 || (len == 1 && base[0] == '.') || lay_whiteout_kind(base, len) != LAY_WH_PLAIN;
}

lay_code lay_split_alone(lay_split *s, lay_error *err)
{
    s->alone = true;
    return lay_nameset_init(&s->parents, err) || lay_nameset_init(&s->no_directories, err) ? err->code : LAY_OK;
}

static const char *place_of(const char *clean, size_t *n)
{
    while (*n && *clean == '/') {
        clean++;
        --*n;
    }
    return clean;
}

/* Does a name lead through a link or a file, or does something take the place of a directory? */
static lay_code watch(lay_split *s, const lay_tar_entry *e, const char *place, size_t n, lay_error *err)
{
    bool seen;
    for (size_t i = n; i-- > 1;)
        if (place[i] == '/') {
            s->irregular = s->irregular || lay_nameset_has(&s->no_directories, lay_nameset_hash(&s->no_directories, place, i));
            if (lay_nameset_add(&s->parents, lay_nameset_hash(&s->parents, place, i), &seen, err))
                return err->code;
        }
    if (e->type == '5' || e->type == 'g')
        return LAY_OK;
    s->irregular = s->irregular || lay_nameset_has(&s->parents, lay_nameset_hash(&s->parents, place, n));
    return lay_nameset_add(&s->no_directories, lay_nameset_hash(&s->no_directories, place, n), &seen, err);
}

static lay_code begin(lay_split *s, const lay_tar_entry *e, lay_error *err)
{
    if (lay_reserve(&s->clean, &s->clean_cap, e->name_len + 2, 1, err))
        return err->code;
    size_t n = lay_path_clean(e->name, e->name_len, s->clean);
    bool seen;
    size_t len = n;
    const char *place = place_of(s->clean, &len);
    if (lay_nameset_add(&s->names, lay_nameset_hash(&s->names, place, len), &seen, err))
        return err->code;
    if (seen && lay_nameset_add(&s->repeats, lay_nameset_hash(&s->repeats, place, len), &seen, err))
        return err->code;
    if (s->alone && watch(s, e, place, len, err))
        return err->code;
    uint8_t mark = e->ordinal < s->plan.count ? s->plan.marks[e->ordinal] : 0;
    s->unnamed = mark & LAY_PLAN_UNNAMED;
    s->inlined = mark || e->sparse || n > NAME_MAX_PATH || leaves_no_file(s->clean, n);
    s->with_payload = e->stored > 0 && !s->inlined;
    s->crc = 0;
    s->entries++;
    if (s->unnamed)
        return LAY_OK;
    if (segment(s, err))
        return err->code;
    return s->with_payload ? LAY_OK : file_line(s, e, 0, err);
}

lay_code lay_split_add(lay_split *s, const void *p, size_t n, lay_error *err)
{
    lay_tar_item item;
    lay_tar_event event;
    lay_code code = LAY_OK;
    lay_tar_feed(s->tar, p, n);
    while ((event = lay_tar_next(s->tar, &item, err)) > LAY_TAR_NEED && !code) {
        switch (event) {
        case LAY_TAR_RAW:
            code = raw(s, item.p, item.n, s->ended ? SEGMENT_MAX : FRAMING_MAX, err);
            break;
        case LAY_TAR_ENTRY:
            code = begin(s, item.entry, err);
            break;
        case LAY_TAR_DATA:
            if (s->with_payload)
                s->crc = lay_crc64_add(s->crc, item.p, item.n);
            else
                code = raw(s, item.p, item.n, SEGMENT_MAX, err);
            break;
        case LAY_TAR_DONE:
            if (s->with_payload)
                code = file_line(s, item.entry, item.entry->stored, err);
            break;
        case LAY_TAR_END:
            code = segment(s, err);
            s->ended = true;
            break;
        default:
            break;
        }
        if (code) {
            if (code == LAY_E_LIMIT && item.entry->name)
                lay_error_path(err, item.entry->name, item.entry->name_len);
            return code;
        }
    }
    return event == LAY_TAR_BAD ? err->code : LAY_OK;
}

lay_code lay_split_end(lay_split *s, lay_error *err)
{
    if (lay_tar_eof(s->tar, err) || segment(s, err))
        return err->code;
    if ((s->out_len || (s->gzip && !s->file_end)) && write_block(s, err))
        return err->code;
    if (!s->gzip)
        return LAY_OK;
    s->first.total = htole64((uint64_t)s->tar_offset);
    s->first.sum = lay_seek_sum(&s->first);
    if (pwrite(s->fd, &s->first, sizeof s->first, LAY_SEEK_AT) != (ssize_t)sizeof s->first)
        return lay_fail_fd(err, errno, s->fd, "cannot complete the tar-split record");
    return LAY_OK;
}

bool lay_split_ended(const lay_split *s) { return s->ended; }
bool lay_split_has_repeats(const lay_split *s) { return s->irregular || s->repeats.count > 0; }
uint64_t lay_split_entries(const lay_split *s) { return s->entries; }

bool lay_split_repeats(const lay_split *s, const char *clean_name, size_t n)
{
    clean_name = place_of(clean_name, &n);
    return lay_nameset_has(&s->repeats, lay_nameset_hash(&s->repeats, clean_name, n));
}

uint64_t lay_split_name_hash(const lay_split *s, const char *clean_name, size_t n) { return lay_nameset_hash(&s->names, clean_name, n); }

uint64_t lay_split_place_hash(const lay_split *s, const char *clean_name, size_t n)
{
    clean_name = place_of(clean_name, &n);
    return lay_nameset_hash(&s->names, clean_name, n);
}

bool lay_split_is_below_file(const lay_split *s, const char *clean_name, size_t n)
{
    clean_name = place_of(clean_name, &n);
    for (size_t i = 1; i < n; i++)
        if (clean_name[i] == '/' && lay_nameset_has(&s->no_directories, lay_nameset_hash(&s->no_directories, clean_name, i)))
            return true;
    return false;
}
