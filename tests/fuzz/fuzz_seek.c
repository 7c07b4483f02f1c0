/* fuzz_seek.c - a record of several gzip members whose seek fields tell the truth or lie: wherever a reader rewinds to, it
 * reads the lines, and ends in the failure, that reading from the beginning gives. */
#include "fuzz.h"
#include "codec/pack.h"
#include "tarsplit/split.h"
#include "tarsplit/split_seek.h"

#define MOST_LINES 4096u

typedef struct seen { int64_t tar_offset, size; uint64_t index, sum; bool is_file; } seen;
typedef struct course { seen *lines; size_t n; lay_code code; } course;

static void put_text(fuzz_bytes *b, const char *text) { fuzz_put(b, text, strlen(text)); }

/* One line; what it adds to the place in the tar is only what a reader makes of it. */
static void put_line(fuzz_bytes *b, const uint8_t **p, const uint8_t *end, fuzz_dice *dice)
{
    static const char *const lines[] = {
        "{\"type\":2,\"payload\":\"AAAA\",\"position\":0}\n", "{\"type\":1,\"name\":\"d/\",\"size\":700,\"payload\":\"AAAAAAAAAAA=\"}\n",
        "{\"type\":1,\"name\":\"f\",\"size\":3,\"payload\":\"AAAAAAAAAAA=\"}\n", "{\"type\":1,\"name\":\"e\"}\n", "{\"type\":7}\n", "\n",
        "{\"type\":2,\"payload\":\"AA", "==\"}\n", "{\"name\":\"\\u00", "41\",\"type\":1,\"size\":1}",
    };
    size_t n = fuzz_throw(dice, 700), left = (size_t)(end - *p);
    if (fuzz_throw(dice, 3)) {
        put_text(b, lines[fuzz_throw(dice, sizeof lines / sizeof *lines)]);
        return;
    }
    static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    n = (n < left ? n : left) / 4 * 4;
    put_text(b, "{\"type\":2,\"payload\":\"");
    for (size_t i = 0; i < n; i++)
        fuzz_put(b, &alphabet[(*p)[i] & 63], 1);
    *p += n;
    put_text(b, "\"}\n");
}

static course run(lay_split_reader *r)
{
    course c = { .lines = fuzz_memory(MOST_LINES * sizeof *c.lines) };
    lay_error err = { .code = LAY_OK };
    lay_split_line line;
    bool end = false;
    while (c.n < MOST_LINES && !(c.code = lay_split_reader_next(r, &line, &end, &err)) && !end)
        c.lines[c.n++] = (seen){ line.tar_offset, line.is_file ? line.size : (int64_t)line.n, line.index,
                                 line.is_file ? lay_crc64_plain(0, line.name, line.name_len) : lay_crc64_plain(0, line.p, line.n), line.is_file };
    if (c.code)
        fuzz_error_is_whole(&err, c.code);
    return c;
}

static void put_member(fuzz_bytes *record, const fuzz_bytes *text, const seen *place, fuzz_dice *dice)
{
    lay_error err = { .code = LAY_OK };
    lay_seek field = { .id = { 'L', 'S' }, .len = htole16(sizeof field - 4), .total = UINT64_MAX };
    size_t room = lay_gzip_bound(text->n) + sizeof field, n;
    uint8_t *packed = fuzz_memory(room);
    uint64_t at = (uint64_t)place->tar_offset, line = place->index;
    PROMISE(!lay_gzip_member(text->p, text->n, (const uint8_t *)&field, sizeof field, packed, room, &n, &err), "any bytes are packed");
    uint64_t member = n, total = fuzz_throw(dice, 4) ? UINT64_MAX : fuzz_throw(dice, 2000);
    switch (fuzz_throw(dice, 12)) {
    case 0: at += 3; break;
    case 1: at = at > 512 ? at - 512 : 0; break;
    case 2: line++; break;
    case 3: member += 40; break;
    case 4: member -= 9; break;
    case 5: fuzz_put(record, "junk", record->n ? 4 : 0); break;
    case 6: fuzz_put(record, "\0\0\0", record->n ? 3 : 0); break;
    default: break;
    }
    field.member = htole64(member);
    field.tar_offset = htole64(at);
    field.line = htole64(line);
    field.total = htole64(record->n ? UINT64_MAX : total);
    field.sum = lay_seek_sum(&field);
    if (fuzz_throw(dice, 16) == 0)
        field.sum ^= 1;
    memcpy(packed + LAY_SEEK_AT, &field, sizeof field);
    fuzz_put(record, packed, n);
    free(packed);
}

/* Where the lines so far end, as a reader has it; the true place of the next member. */
static seen end_of(const fuzz_bytes *all)
{
    lay_error err = { .code = LAY_OK };
    lay_split_reader *r;
    seen place = { 0 };
    int fd = fuzz_file(all->p, all->n);
    if (lay_split_reader_open(&r, fd, &err) == LAY_OK) {
        course c = run(r);
        if (c.n)
            place = (seen){ .tar_offset = c.lines[c.n - 1].tar_offset + c.lines[c.n - 1].size, .index = c.lines[c.n - 1].index + 1 };
        free(c.lines);
        lay_split_reader_free(r);
    }
    close(fd);
    return place;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_dice dice = fuzz_dice_of(data, size);
    fuzz_bytes record = { 0 }, all = { 0 };
    const uint8_t *p = data, *end = data + size;
    for (unsigned members = 1 + (unsigned)fuzz_throw(&dice, 6); members; members--) {
        fuzz_bytes text = { 0 };
        seen place = end_of(&all);
        for (unsigned n = (unsigned)fuzz_throw(&dice, 8); n; n--)
            put_line(&text, &p, end, &dice);
        put_member(&record, &text, &place, &dice);
        fuzz_put(&all, text.p, text.n);
        free(text.p);
    }
    lay_error err = { .code = LAY_OK };
    lay_split_reader *r;
    int fd = fuzz_file(record.p, record.n);
    PROMISE(!lay_split_reader_open(&r, fd, &err), "what begins as gzip is opened");
    course whole = run(r);
    for (unsigned i = 0; i < 4; i++) {
        int64_t offset = (int64_t)fuzz_throw(&dice, 4000);
        PROMISE(!lay_split_reader_rewind(r, offset, &err), "a reader rewinds, as the beginning is always a place");
        course rest = run(r);
        PROMISE(rest.n <= whole.n && rest.code == whole.code, "the same failure, and no more lines");
        size_t passed = whole.n - rest.n;
        for (size_t k = 0; k < whole.n; k++) {
            const seen *a = &whole.lines[k], *b = k < passed ? a : &rest.lines[k - passed];
            PROMISE(a->tar_offset == b->tar_offset && a->size == b->size && a->index == b->index && a->sum == b->sum && a->is_file == b->is_file,
                    "the same lines");
            PROMISE(k >= passed || a->tar_offset + a->size <= offset, "no line that is due is passed over");
        }
        free(rest.lines);
    }
    free(whole.lines);
    lay_split_reader_free(r);
    close(fd);
    free(record.p);
    free(all.p);
    return 0;
}
