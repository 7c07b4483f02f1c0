/* fuzz_gzip.c - the container of gzip: members with every field that a header may have, damaged in one bit or cut. What
 * comes out without a failure is what went in; or it lacks whole members: those behind a damaged one, which is reported,
 * and those that a damaged length of a field skips, as no checksum protects that. */
#include "base/digest.h"
#include "fuzz.h"
#include "codec/inflate.h"
#include "codec/pack.h"

#include <endian.h>

#define MOST_MEMBERS 4u
#define MOST_PLAIN 4096u

/* Optional fields in the order of RFC 1952: extra 4, name 8, comment 16, header CRC 2. */
static void put_member(fuzz_bytes *s, const uint8_t *plain, size_t size, fuzz_dice *dice)
{
    lay_error err = { .code = LAY_OK };
    size_t room = lay_gzip_bound(size), n, start = s->n;
    uint8_t *packed = fuzz_memory(room);
    PROMISE(!lay_gzip_member(plain, size, NULL, 0, packed, room, &n, &err), "any bytes are packed");
    size_t fixed = 10 + (packed[3] & 4 ? 2u + packed[10] + 256u * packed[11] : 0u);
    uint8_t flags = (uint8_t)(fuzz_throw(dice, 16) << 1), head[10] = { 0x1f, 0x8b, 8, flags, 1, 2, 3, 4, 0, 255 };
    fuzz_put(s, head, sizeof head);
    if (flags & 4) {
        uint16_t len = (uint16_t)fuzz_throw(dice, 40), le = htole16(len);
        fuzz_put(s, &le, 2);
        for (uint16_t i = 0; i < len; i++)
            fuzz_put(s, &(uint8_t){ (uint8_t)fuzz_throw(dice, 256) }, 1);
    }
    for (uint8_t field = 8; field <= 16; field = (uint8_t)(2 * field))
        if (flags & field)
            fuzz_put(s, "a name\0 or more", fuzz_throw(dice, 2) ? 7 : 1), s->p[s->n - 1] = 0;
    if (flags & 2) {
        uint16_t crc = htole16((uint16_t)lay_crc32_add(0, s->p + start, s->n - start));
        fuzz_put(s, &crc, 2);
    }
    fuzz_put(s, packed + fixed, n - fixed);
    free(packed);
}

/* Are these the contents of some of the members, in their order? */
static bool is_of_members(const uint8_t *out, size_t have, const uint8_t *data, const size_t *ends, size_t members)
{
    for (unsigned taken = 0; taken < 1u << members; taken++) {
        size_t at = 0, from = 0;
        bool same = true;
        for (size_t i = 0; i < members && same; from = ends[i++])
            if (taken & 1u << i) {
                size_t n = ends[i] - from;
                same = n <= have - at && memcmp(out + at, data + from, n) == 0;
                at += same ? n : 0;
            }
        if (same && at == have)
            return true;
    }
    return false;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_dice dice = fuzz_dice_of(data, size);
    fuzz_bytes s = { 0 };
    size_t ends[MOST_MEMBERS], members = 0, total = 0;
    if (size > MOST_PLAIN)
        size = MOST_PLAIN;
    for (size_t most = 1 + fuzz_throw(&dice, MOST_MEMBERS); members < most; members++) {
        size_t n = members + 1 == most ? size - total : fuzz_throw(&dice, size - total + 1);
        put_member(&s, data + total, n, &dice);
        total += n;
        ends[members] = total;
    }
    bool sound = fuzz_throw(&dice, 3) == 0;
    if (!sound && fuzz_throw(&dice, 4) == 0)
        s.n = fuzz_throw(&dice, s.n);
    else if (!sound)
        s.p[fuzz_throw(&dice, s.n)] ^= (uint8_t)(1u << fuzz_throw(&dice, 8));

    lay_error err = { .code = LAY_OK };
    lay_inflate *z;
    PROMISE(!lay_inflate_open(&z, LAY_FORMAT_GZIP, &err), "gzip is always known");
    uint8_t *out = fuzz_memory(MOST_PLAIN + 1);
    size_t have = 0, got;
    lay_code code = LAY_OK;
    for (size_t at = 0; at < s.n && !code;) {
        size_t n = fuzz_piece(&dice, s.n - at);
        uint8_t *window = fuzz_copy(s.p + at, n);
        lay_inflate_feed(z, window, n);
        do {
            size_t room = 1 + fuzz_throw(&dice, MOST_PLAIN);
            uint8_t *to = fuzz_memory(room);
            code = lay_inflate_next(z, to, room, &got, &err);
            size_t fits = got <= MOST_PLAIN - have ? got : MOST_PLAIN - have;
            memcpy(out + have, to, fits);
            PROMISE(fits == got || !sound, "no more comes out than went in");
            have += fits;
            free(to);
        } while (got && !code);
        free(window);
        at += n;
    }
    if (!code)
        code = lay_inflate_eof(z, &err);
    if (code) {
        fuzz_error_is_whole(&err, code);
        PROMISE(!sound, "a sound stream is inflated");
    } else {
        PROMISE(is_of_members(out, have, data, ends, members), "what comes out is what went in, of whole members");
        PROMISE(!sound || (have == total && lay_inflate_is_between(z)), "of a sound stream all of it");
        PROMISE(have == total || lay_inflate_left_over(z) || !s.n || lay_inflate_is_between(z), "what is passed over is told");
    }
    lay_inflate_free(z);
    free(out);
    free(s.p);
    return 0;
}
