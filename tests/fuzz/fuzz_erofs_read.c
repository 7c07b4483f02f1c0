/* fuzz_erofs_read.c - an image, as it is and with bytes changed: whatever it says, a reader answers or says what is damaged, and comes
 * to an end. What verify finds nothing in is read without a failure, and does not differ from itself.
 */
#include "fuzz.h"
#include "changes/changes.h"
#include "erofs/erofs_image_state.h"

#include <dirent.h>
#include <limits.h>

#define MOST_THINGS 1500u       /* that a walk looks at: in a damaged image a directory may have any number of names */
#define MOST_BYTES 65536u       /* of a file */
#define VARIANTS 8u

typedef struct place { uint64_t nid; } place;
typedef struct walk { const lay_lower *l; bool sound; place *todo; size_t count, cap, things; uint8_t *buf; } walk;

/* In a sound image nothing fails. */
static bool went(const walk *w, bool well)
{
    PROMISE(well || !w->sound, "what verify accepts is read without a failure");
    return well;
}

static void look_at_bytes(walk *w, lay_lower_dir in, const char *name, const struct stat *st)
{
    const lay_lower *of;
    lay_lower_dir file = w->l->ops->file(w->l, in, name, st->st_mode, &of);
    if (!went(w, file >= 0))
        return;
    size_t room = S_ISLNK(st->st_mode) ? PATH_MAX : MOST_BYTES;
    int64_t from = S_ISREG(st->st_mode) && st->st_size > (int64_t)room ? st->st_size - (int64_t)room : 0;
    ssize_t n = of->ops->read(of, file, st->st_mode, w->buf, room, from);
    if (went(w, n >= 0))
        PROMISE(n == st->st_size - from || n < st->st_size, "no more is read than there is");
    of->ops->close(of, file);
}

static void look_at_attributes(walk *w, lay_lower_dir in, const char *name)
{
    static char names[1 << 19];
    ssize_t n = w->l->ops->xattr(w->l, in, name, NULL, names, sizeof names);
    if (!went(w, n >= 0))
        return;
    for (const char *at = names; at < names + n; at += strlen(at) + 1)
        went(w, w->l->ops->xattr(w->l, in, name, at, w->buf, MOST_BYTES) >= 0);
}

static void look_at(walk *w, lay_lower_dir in, const char *name)
{
    struct stat st;
    w->things++;
    if (!went(w, w->l->ops->stat(w->l, in, name, &st) == 0))
        return;
    look_at_attributes(w, in, name);
    if (S_ISREG(st.st_mode) || S_ISLNK(st.st_mode))
        look_at_bytes(w, in, name, &st);
    if (!S_ISDIR(st.st_mode))
        return;
    lay_lower_dir down = w->l->ops->open(w->l, in, name, strlen(name));
    if (!went(w, down >= 0))
        return;
    PROMISE(lay_reserved(&w->todo, &w->cap, w->count + 1, sizeof *w->todo), "the fuzzer itself has memory");
    w->todo[w->count++] = (place){ (uint64_t)down };
}

static void walk_all(walk *w)
{
    lay_error err = { .code = LAY_OK };
    while (w->count > 0 && w->things < MOST_THINGS) {
        lay_lower_dir in = (lay_lower_dir)w->todo[--w->count].nid;
        lay_names names;
        lay_code code = w->l->ops->list(w->l, in, &names, &err);
        if (code)
            fuzz_error_is_whole(&err, code);
        if (!went(w, code == LAY_OK))
            continue;
        for (size_t i = 0; i < names.count && w->things < MOST_THINGS; i++) {
            const char *name = names.text + names.list[i].at;
            PROMISE(i == 0 || strcmp(names.text + names.list[i - 1].at, name) < 0, "names come in order");
            look_at(w, in, name);
        }
        lay_names_free(&names);
    }
    free(w->todo);
}

static void compare_with_itself(const lay_erofs *e)
{
    lay_error err;
    lay_changes *c = NULL;
    const lay_shown one = { -1, lay_erofs_lower(e) };
    lay_code code = lay_changes_overlay(&c, &one, 1, &one, 1, 0, &err);
    PROMISE(code == LAY_OK || code == LAY_E_UNSUPPORTED, "a sound image is compared");
    PROMISE(code || lay_changes_count(c) == 0, "an image does not differ from itself");
    lay_changes_free(c);
}

static void try_one(const uint8_t *data, size_t size)
{
    int fd = fuzz_file(data, size);
    lay_error err = { .code = LAY_OK };
    lay_erofs *e = NULL;
    lay_code code = lay_erofs_open(&e, fd, -1, NULL, 0, &err);
    close(fd);
    if (code) {
        fuzz_error_is_whole(&err, code);
        return;
    }
    char text[LAY_ERROR_TEXT];
    uint8_t diff_id[32] = { 0 };
    lay_erofs_refusal(e, diff_id, (int64_t)size, text);
    PROMISE(memchr(text, 0, sizeof text) != NULL, "a refusal ends");
    code = lay_erofs_verify(e, &err);
    if (code)
        fuzz_error_is_whole(&err, code);
    walk w = { .l = lay_erofs_lower(e), .sound = code == LAY_OK, .buf = fuzz_memory(MOST_BYTES) };
    look_at(&w, w.l->root, ".");
    walk_all(&w);
    free(w.buf);
    if (code == LAY_OK)
        compare_with_itself(e);
    lay_erofs_free(e);
}

/* So that a change of the superblock is not found out by that alone. */
static void seal(uint8_t *data, size_t size)
{
    if (size < LAY_EROFS_SUPER + 3072)
        return;
    uint8_t *p = data + LAY_EROFS_SUPER;
    unsigned bits = p[LAY_EROFS_AT_BITS];
    if (bits >= 9 && bits <= 12)
        lay_put32(p + LAY_EROFS_AT_CHECKSUM, lay_erofs_checksum(p, bits <= 10 ? (size_t)1 << bits : ((size_t)1 << bits) - LAY_EROFS_SUPER));
}

/* A few bytes elsewhere: mostly of the metadata, now and then of the superblock. */
static void change(uint8_t *data, size_t size, fuzz_dice *dice)
{
    static const uint8_t odd[] = { 0, 1, 0x7F, 0x80, 0xFF };
    uint64_t meta = (uint64_t)lay_get32(data + LAY_EROFS_SUPER + LAY_EROFS_AT_META) << (data[LAY_EROFS_SUPER + LAY_EROFS_AT_BITS] & 15);
    size_t from = meta < size ? (size_t)meta : 0;
    for (size_t n = 1 + fuzz_throw(dice, 4); n > 0; n--) {
        size_t at = fuzz_throw(dice, 6) == 0 ? LAY_EROFS_SUPER + fuzz_throw(dice, 256) : from + fuzz_throw(dice, size - from);
        data[at] = fuzz_throw(dice, 2) ? odd[fuzz_throw(dice, sizeof odd)] : (uint8_t)(data[at] ^ 1u << fuzz_throw(dice, 8));
    }
    seal(data, size);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_dice dice = fuzz_dice_of(data, size);
    try_one(data, size);
    for (unsigned i = 0; i < VARIANTS && size >= 4096; i++) {
        uint8_t *copy = fuzz_copy(data, size);
        change(copy, size, &dice);
        try_one(copy, size);
        free(copy);
    }
    return 0;
}
