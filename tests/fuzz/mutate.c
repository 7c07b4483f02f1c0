/* mutate.c - mutations that a tar survives: blocks are moved, fields take telling values, checksums are put right.
 *
 * Without it nearly every mutation ends at the first checksum. Only for libFuzzer, which calls it.
 */
#include "fuzz.h"

#define BLOCK 512u

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed);

static bool is_header(const uint8_t *b) { return memcmp(b + 257, "ustar", 5) == 0; }

static void seal(uint8_t *b)
{
    unsigned sum = 0;
    memset(b + 148, ' ', 8);
    for (size_t i = 0; i < BLOCK; i++)
        sum += b[i];
    for (size_t i = 6; i-- > 0; sum >>= 3)
        b[148 + i] = (uint8_t)('0' + (sum & 7));
    b[154] = '\0';
}

static void put(uint8_t *field, size_t width, const char *text)
{
    size_t n = strlen(text);
    memset(field, 0, width);
    memcpy(field, text, n < width ? n : width);
}

static void change_field(uint8_t *b, fuzz_dice *d)
{
    static const char *const names[] = { "a", "a/", "a/b", "a/b/c", "b", "d/f", "./a", "/a", "/", ".", "..", "../victim/hello", "a/../../victim/x",
        "a/../b", "l", "l/f", "l/victim/hello", ".wh.a", ".wh.", ".wh..", ".wh...", ".wh..wh..opq", "a/.wh..wh..opq", "a/.wh.b", ".wh..wh.plnk/1" };
    static const char *const links[] = { "a", "b", "l", "..", "../..", "/", "../victim/hello", "/victim/hello", "a/..", ".", "", "l/../victim", "/a" };
    static const char *const sizes[] = { "0", "1", "5", "777", "1000", "1001", "2000", "77777777777", "", " 12 ", "-1" };
    static const char types[] = "0123456xgLKS7Z";
    switch (fuzz_throw(d, 6)) {
    case 0:
        put(b, 100, names[fuzz_throw(d, sizeof names / sizeof *names)]);
        break;
    case 1:
        put(b + 157, 100, links[fuzz_throw(d, sizeof links / sizeof *links)]);
        break;
    case 2:
        put(b + 124, 12, sizes[fuzz_throw(d, sizeof sizes / sizeof *sizes)]);
        break;
    case 3:
        put(b + 100 + 8 * fuzz_throw(d, 3), 8, sizes[fuzz_throw(d, sizeof sizes / sizeof *sizes)]);
        break;
    default:
        b[156] = (uint8_t)types[fuzz_throw(d, sizeof types)];
        break;
    }
}

/* Blocks from..from+n move to a place before or after others, or come twice, or go. */
static size_t move_blocks(uint8_t *data, size_t size, size_t max_size, fuzz_dice *d)
{
    size_t blocks = size / BLOCK;
    if (blocks < 2)
        return size;
    size_t from = fuzz_throw(d, blocks) * BLOCK, n = (1 + fuzz_throw(d, 4)) * BLOCK, to = fuzz_throw(d, blocks + 1) * BLOCK;
    if (n > size - from)
        n = size - from;
    if (fuzz_throw(d, 4) == 0) {
        memmove(data + from, data + from + n, size - from - n);
        return size - n;
    }
    if (n > max_size - size)
        return size;
    uint8_t *taken = fuzz_copy(data + from, n);
    memmove(data + to + n, data + to, size - to);
    memcpy(data + to, taken, n);
    free(taken);
    return size + n;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed)
{
    fuzz_dice d = { seed };
    size_t how = fuzz_throw(&d, 8), blocks = size / BLOCK;
    if (how < 2) {
        size = move_blocks(data, size, max_size, &d);
    } else if (how < 5 && blocks > 0) {
        size_t first = fuzz_throw(&d, blocks);
        for (size_t i = 0; i < blocks; i++) {
            uint8_t *b = data + (first + i) % blocks * BLOCK;
            if (is_header(b)) {
                change_field(b, &d);
                break;
            }
        }
    } else {
        size = LLVMFuzzerMutate(data, size, max_size);
    }
    if (fuzz_throw(&d, 32) != 0)
        for (size_t at = 0; size >= BLOCK && at <= size - BLOCK; at += BLOCK)
            if (is_header(data + at))
                seal(data + at);
    return size;
}
