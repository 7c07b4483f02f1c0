/* fuzz_listing.c - any bytes as a record are listed without harm, in batches of any size the same; and the record of any tar
 * that is one lists files whose bytes are where it says. */
#include "fuzz.h"

#define MOST 5000

typedef struct listed { uint64_t sum; size_t count; lay_code code; } listed;

static bool inside(const char *path, size_t n)
{
    return n && path[0] != '/' && strncmp(path, "../", 3) != 0 && strcmp(path, "..") != 0;
}

/* What an entry says, in one number; and that all of it may be read. */
static uint64_t look(const lay_listed *e, uint64_t sum)
{
    const char *at = e->xattrs, *name;
    const uint8_t *value;
    size_t n;
    PROMISE(strlen(e->name) == e->name_len && strlen(e->path) == e->path_len && strlen(e->link) >= e->link_len, "texts end with their only NUL");
    PROMISE(inside(e->path, e->path_len), "a path is below the root");
    PROMISE(e->kind != LAY_LISTED_LINK || inside(e->link, e->link_len), "a hard link's file is below the root");
    PROMISE(e->size >= 0 && e->offset >= -1 && (e->kind == LAY_LISTED_FILE || (!e->size && !e->has_crc)), "only a file has bytes");
    sum = lay_listed_crc(sum, e->name, e->name_len);
    sum = lay_listed_crc(sum, e->path, e->path_len);
    sum = lay_listed_crc(sum, e->link, e->link_len);
    sum = lay_listed_crc(sum, &e->size, sizeof e->size);
    sum = lay_listed_crc(sum, &e->offset, sizeof e->offset);
    sum = lay_listed_crc(sum, &e->crc, sizeof e->crc);
    for (size_t i = 0; i < e->nxattrs; i++) {
        at = lay_listed_xattr(at, &name, &value, &n);
        sum = lay_listed_crc(sum, name, strlen(name));
        sum = lay_listed_crc(sum, value, n);
    }
    return sum;
}

static void check_bytes(const lay_listed *e, const uint8_t *tar, size_t size)
{
    if (e->offset < 0)
        return;
    PROMISE((size_t)e->offset <= size && (size_t)e->size <= size - (size_t)e->offset, "a file's bytes lie in the tar");
    PROMISE(!e->has_crc || e->crc == lay_listed_crc(0, tar + e->offset, (size_t)e->size), "a file's CRC is that of its bytes");
}

static listed list(int record, size_t batch, const uint8_t *tar, size_t size)
{
    lay_error err = { .code = LAY_OK };
    listed all = { 0 };
    lay_listing *l;
    size_t count;
    int end = 0;
    all.code = lay_listing_open(&l, record, &err);
    if (all.code) {
        fuzz_error_is_whole(&err, all.code);
        return all;
    }
    while (!end && all.count < MOST && !(all.code = lay_listing_next(l, batch, 1000, &count, &end, &err)))
        for (size_t i = 0; i < count && all.count < MOST; i++, all.count++) {
            lay_listed e;
            lay_listing_at(l, i, &e);
            all.sum = look(&e, all.sum);
            if (tar)
                check_bytes(&e, tar, size);
        }
    if (all.code) {
        fuzz_error_is_whole(&err, all.code);
        PROMISE(all.code == LAY_E_SPLIT || all.code == LAY_E_NOMEM, "a record is refused for what it is");
    }
    lay_listing_free(l);
    return all;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_dice dice = fuzz_dice_of(data, size);
    int record = fuzz_file(data, size);
    listed one = list(record, 1000, NULL, 0), other = list(record, 1 + fuzz_throw(&dice, 4), NULL, 0);
    PROMISE(one.sum == other.sum && one.count == other.count && (one.code == other.code || one.count == MOST), "in any batches the same");
    close(record);

    lay_error err = { .code = LAY_OK };
    lay_apply *a;
    lay_applied done;
    record = fuzz_file(NULL, 0);
    PROMISE(!lay_apply_disassemble(&a, record, -1, -1, &(lay_apply_options){ 0 }, &err), "recording can begin");
    if (fuzz_is_plain(data, size) && !lay_apply_push(a, data, size, &err) && !lay_apply_finish(a, &done, &err))
        list(record, 1000, data, size);
    lay_apply_free(a);
    close(record);
    return 0;
}
