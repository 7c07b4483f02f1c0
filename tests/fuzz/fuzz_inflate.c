/* fuzz_inflate.c - any bytes as gzip and as zstd: the same plain bytes or the same failure at any cut; and what is packed
 * here comes out again.
 *
 * How much of a broken stream comes out before its failure is the library's to say, and depends on the room it has. */
#include "base/digest.h"
#include "fuzz.h"
#include "codec/inflate.h"
#include "codec/pack.h"

#define ENOUGH (1u << 20)   /* a bomb is as good after its first MiB */

typedef struct outcome { uint64_t crc; size_t n; lay_code code; int64_t offset; } outcome;

static outcome inflate_all(lay_format format, const uint8_t *data, size_t size, fuzz_dice *dice)
{
    outcome o = { 0 };
    lay_error err = { .code = LAY_OK, .offset = -1 };
    lay_inflate *z;
    if (lay_inflate_open(&z, format, &err)) {
        PROMISE(err.code == LAY_E_UNSUPPORTED, "only a build without a library refuses a format");
        return o;
    }
    for (size_t at = 0; at < size && !o.code && o.n < ENOUGH;) {
        size_t n = dice ? fuzz_piece(dice, size - at) : size, got = 1;
        uint8_t *window = fuzz_copy(data + at, n);
        lay_inflate_feed(z, window, n);
        while (got > 0 && !o.code && o.n < ENOUGH) {
            size_t room = dice ? fuzz_piece(dice, ENOUGH - o.n) : ENOUGH - o.n;
            uint8_t *out = fuzz_memory(room);
            o.code = lay_inflate_next(z, out, room, &got, &err);
            PROMISE(got <= room && (!o.code || got == 0), "an error comes without bytes, and bytes stay in their room");
            o.crc = lay_crc64_plain(o.crc, out, got);
            o.n += got;
            free(out);
        }
        free(window);
        at += n;
    }
    if (!o.code && o.n < ENOUGH)
        o.code = lay_inflate_eof(z, &err);
    if (o.code) {
        fuzz_error_is_whole(&err, o.code);
        PROMISE(err.offset == (int64_t)o.n, "an error says how many bytes were good");
    }
    o.offset = err.offset;
    lay_inflate_free(z);
    return o;
}

static void pack(const uint8_t *data, size_t size, fuzz_dice *dice)
{
    lay_error err = { .code = LAY_OK };
    uint8_t extra[64] = { 0 };
    size_t extra_len = fuzz_throw(dice, sizeof extra + 1), room = lay_gzip_bound(size) + extra_len, n;
    uint8_t *packed = fuzz_memory(room), *plain = fuzz_copy(data, size);
    PROMISE(!lay_gzip_member(plain, size, extra, extra_len, packed, room, &n, &err) && n <= room, "any bytes are packed");
    outcome o = inflate_all(LAY_FORMAT_GZIP, packed, n, dice);
    PROMISE(o.n == (size < ENOUGH ? size : ENOUGH) && !o.code, "what was packed is inflated");
    PROMISE(o.crc == lay_crc64_plain(0, data, o.n), "and is the same again");
    free(plain);
    free(packed);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_dice dice = fuzz_dice_of(data, size);
    for (lay_format format = LAY_FORMAT_GZIP; format <= LAY_FORMAT_ZSTD; format++) {
        outcome whole = inflate_all(format, data, size, NULL), cut = inflate_all(format, data, size, &dice);
        bool bomb = whole.n == ENOUGH || cut.n == ENOUGH;
        PROMISE(bomb || whole.code == cut.code || cut.code == LAY_E_LIMIT, "cuts do not change whether a stream is good");
        PROMISE(whole.code || cut.code || (whole.n == cut.n && whole.crc == cut.crc), "cuts do not change the bytes");
    }
    uint8_t *window = fuzz_copy(data, size);
    lay_format guessed = lay_format_guess(window, size);
    PROMISE(guessed >= LAY_FORMAT_PLAIN && guessed <= LAY_FORMAT_LZ4, "a stream is something");
    free(window);
    pack(data, size, &dice);
    return 0;
}
