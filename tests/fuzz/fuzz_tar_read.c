/* fuzz_tar_read.c - the law of the reader: RAW and DATA spans, in order, are the bytes fed; and entries and errors are
 * the same wherever the windows are cut. */
#include "fuzz.h"
#include "tar/tar.h"

/* All that a reading gave, but for where its spans were cut. */
typedef struct reading { uint64_t sum; uint64_t entries; lay_code code; int64_t offset; bool ended; } reading;

static void sum(reading *r, const void *p, size_t n)
{
    const uint8_t *b = p;
    for (size_t i = 0; i < n; i++)
        r->sum = (r->sum ^ b[i]) * 0x100000001b3u;
}

static void sum_number(reading *r, int64_t x) { sum(r, &x, sizeof x); }

static void sum_entry(reading *r, const lay_tar_entry *e)
{
    PROMISE(e->name[e->name_len] == '\0' && strlen(e->name) == e->name_len, "a name ends with its only NUL");
    PROMISE(e->link[e->link_len] == '\0' && strlen(e->link) == e->link_len, "a link ends with its only NUL");
    PROMISE(e->stored >= 0 && (e->stored == 0 || e->size >= e->stored) && e->ordinal == r->entries,
            "what is stored fits the size, and entries are counted");
    PROMISE(e->mtime.nsec >= 0 && e->mtime.nsec < 1000000000 && e->atime.nsec >= 0 && e->atime.nsec < 1000000000,
            "nanoseconds are less than a second");
    r->entries++;
    sum(r, e->name, e->name_len + 1);
    sum(r, e->link, e->link_len + 1);
    const int64_t numbers[] = { e->type, e->sparse, e->size, e->stored, e->mode, e->uid, e->gid, e->mtime.sec, e->mtime.nsec,
                                e->atime.sec, e->has_atime, e->dev_major, e->dev_minor, e->offset };
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        sum_number(r, numbers[i]);
    for (size_t i = 0; i < e->nxattrs; i++) {
        sum(r, e->xattrs[i].name, strlen(e->xattrs[i].name) + 1);
        sum(r, e->xattrs[i].value, e->xattrs[i].len);
    }
}

static reading read_all(const uint8_t *data, size_t size, fuzz_dice *dice)
{
    reading r = { .code = LAY_OK };
    lay_error err = { .code = LAY_OK, .offset = -1 };
    lay_tar *t = lay_tar_new();
    lay_tar_item item;
    lay_tar_event event = LAY_TAR_NEED;
    int64_t payload = 0;
    size_t at = 0;
    while (at < size && event == LAY_TAR_NEED) {
        size_t n = dice ? fuzz_piece(dice, size - at) : size;
        uint8_t *window = fuzz_copy(data + at, n);
        size_t spent = 0;
        lay_tar_feed(t, window, n);
        while ((event = lay_tar_next(t, &item, &err)) > LAY_TAR_NEED) {
            const lay_tar_entry *e = item.entry;
            switch (event) {
            case LAY_TAR_DATA:
                PROMISE(item.file_offset >= 0 && item.file_offset + (int64_t)item.n <= e->size, "payload lies inside the file");
                for (size_t i = 0; i < item.n; i++)
                    sum_number(&r, (item.file_offset + (int64_t)i) << 8 | item.p[i]);
                payload += (int64_t)item.n;
                __attribute__((fallthrough));
            case LAY_TAR_RAW:
                PROMISE(item.n > 0 && item.p == window + spent, "spans in order are the bytes fed");
                spent += item.n;
                PROMISE(lay_tar_offset(t) == (int64_t)(at + spent), "the offset counts them");
                break;
            case LAY_TAR_ENTRY:
                sum_entry(&r, e);
                payload = 0;
                break;
            case LAY_TAR_DONE:
                PROMISE(payload == e->stored, "a payload is as long as it said");
                break;
            default:
                break;
            }
        }
        PROMISE(event == LAY_TAR_BAD || spent == n, "a window is spent before the next is needed");
        free(window);
        at += n;
    }
    if (event == LAY_TAR_BAD) {
        lay_error again = { .code = LAY_OK };
        PROMISE(lay_tar_next(t, &item, &again) == LAY_TAR_BAD && again.offset == err.offset, "an error stays");
    } else {
        lay_tar_eof(t, &err);
    }
    if (err.code != LAY_OK) {
        fuzz_error_is_whole(&err, err.code);
        PROMISE(err.offset >= 0 && err.offset <= (int64_t)size, "an error lies inside the tar");
    }
    r.code = err.code;
    r.offset = err.offset;
    r.ended = lay_tar_ended(t);
    lay_tar_free(t);
    return r;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_dice dice = fuzz_dice_of(data, size);
    reading whole = read_all(data, size, NULL), cut = read_all(data, size, &dice);
    PROMISE(whole.code == cut.code && whole.offset == cut.offset, "cuts do not change the error");
    PROMISE(whole.entries == cut.entries && whole.sum == cut.sum && whole.ended == cut.ended, "cuts do not change the entries");
    return 0;
}
