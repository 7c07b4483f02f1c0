/* fuzz_unpack.c - any tar becomes files beneath its root and nowhere else, the same at any cut. */
#include "room.h"
#include "apply/unpack.h"

typedef struct outcome { lay_code code; int64_t offset, size, entries; } outcome;

static outcome unpack(const uint8_t *data, size_t size, lay_unpack_options options, fuzz_dice *dice)
{
    outcome o = { 0 };
    lay_error err = { .code = LAY_OK, .offset = -1 };
    fuzz_room room = fuzz_room_open();
    options.root_fd = room.out;
    options.scratch_fd = options.merged ? -1 : room.scratch;
    lay_unpack *u;
    PROMISE(!lay_unpack_open(&u, &options, &err), "an unpacker opens");
    for (size_t at = 0; at < size && !o.code;) {
        size_t n = dice ? fuzz_piece(dice, size - at) : size;
        uint8_t *window = fuzz_copy(data + at, n);
        lay_span span = { window, n, (int64_t)at, 0 };
        o.code = lay_unpack_add(u, &span, &err);
        free(window);
        at += n;
    }
    lay_applied done = { 0 };
    if (!o.code)
        o.code = lay_unpack_end(u, &done, &err);
    size_t left = o.code ? 0 : done.unsettled_len;
    PROMISE(!left || !options.merged, "over what is below nothing is left open");
    if (left) {                               /* it stands on itself, where all its directories are */
        lay_error ignored;
        PROMISE(!lay_stand_on(room.out, done.unsettled, left, &(lay_shown){ room.out, NULL }, 1, options.flags, &ignored), "what is left open is settled");
    }
    if (o.code) {
        fuzz_error_is_whole(&err, o.code);
        fuzz_stays_inside(&err);
        PROMISE(err.offset >= -1 && err.offset <= (int64_t)size, "an error lies inside the tar");
    }
    o.offset = err.offset;
    o.size = done.size;
    o.entries = done.entries;
    lay_unpack_free(u);
    fuzz_room_close(&room);
    return o;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const lay_unpack_options kinds[] = { { 0 }, { .merged = true }, { .flags = LAY_APPLY_USERNS }, { .merged = true, .own_links = true } };
    fuzz_dice dice = fuzz_dice_of(data, size);
    lay_unpack_options options = kinds[fuzz_throw(&dice, 8) % 4];
    outcome whole = unpack(data, size, options, NULL), cut = unpack(data, size, options, &dice);
    PROMISE(whole.code == cut.code && whole.offset == cut.offset, "cuts do not change the error");
    PROMISE(whole.code || (whole.size == cut.size && whole.entries == cut.entries), "cuts do not change the outcome");
    return 0;
}
