/* fuzz_image.c - any tar becomes the same image at any cut; the image is what the tar's headers make, and can be read. */
#include "fuzz.h"

#include <sys/stat.h>

typedef struct outcome { lay_code code; int64_t offset, size; int fd; uint8_t diff_id[32]; } outcome;

static outcome write_image(const uint8_t *data, size_t size, fuzz_dice *dice)
{
    outcome o = { .fd = fuzz_file(NULL, 0) };
    lay_error err = { .code = LAY_OK, .offset = -1 };
    lay_apply_options options = { 0 };
    lay_applied done = { 0 };
    lay_apply *a;
    PROMISE(!lay_apply_erofs(&a, o.fd, NULL, 0, &options, &err), "a writer of images opens");
    for (size_t at = 0; at < size && !o.code;) {
        size_t n = dice ? fuzz_piece(dice, size - at) : size;
        uint8_t *window = fuzz_copy(data + at, n);
        o.code = lay_apply_push(a, window, n, &err);
        free(window);
        at += n;
    }
    if (!o.code)
        o.code = lay_apply_finish(a, &done, &err);
    if (o.code)
        fuzz_error_is_whole(&err, o.code);
    o.offset = err.offset;
    o.size = done.size;
    memcpy(o.diff_id, done.diff_id, sizeof o.diff_id);
    lay_apply_free(a);
    return o;
}

static void check_image(const outcome *o, size_t size)
{
    lay_error err = { .code = LAY_OK, .offset = -1 };
    lay_image_of of = { .fd = o->fd, .tar_size = (int64_t)size, .diff_id = o->diff_id };
    lay_erofs_check *c;
    lay_problem problem;
    int end = 0;
    PROMISE(!lay_erofs_check_open(&c, &of, 1, &err), "a check opens");
    while (!end) {
        PROMISE(!lay_erofs_check_next(c, 1000, &problem, &end, &err), "a check goes on");
        PROMISE(problem.kind == LAY_PROBLEM_NONE, "an image is what its tar makes");
    }
    lay_erofs_check_free(c);
}

/* By its headers alone a tar is the same, or refused for the same reason. */
static void scan_headers(const uint8_t *data, size_t size, const outcome *o)
{
    lay_error err = { .code = LAY_OK, .offset = -1 };
    int fd = fuzz_file(NULL, 0);
    lay_image_of of = { .fd = fd, .tar_size = (int64_t)size, .diff_id = o->diff_id, .limits = lay_limits_default() };
    PROMISE(size == 0 || pwrite(fd, data, size, LAY_IMAGE_TAR) == (ssize_t)size, "the fuzzer itself can write");
    PROMISE(lay_erofs_rebuild(&of, &err) == o->code, "a tar's headers tell what the tar tells");
    PROMISE(o->code == LAY_OK || err.offset == o->offset, "and where it is wrong");
    close(fd);
}

/* What is written is what the reader takes, and can be copied into an image of its own. */
static void read_image(const outcome *o)
{
    lay_error err = { .code = LAY_OK, .offset = -1 };
    lay_erofs *e;
    lay_erofs_flat *f;
    const void *p;
    size_t n;
    int end = 0;
    PROMISE(!lay_erofs_open(&e, o->fd, -1, NULL, 0, &err), "an image opens");
    PROMISE(!lay_erofs_verify(e, &err), "an image is sound");
    PROMISE(!lay_erofs_flat_open(&f, &e, 1, 0, &err), "an index opens");
    while (!end)
        PROMISE(!lay_erofs_flat_next(f, 1000, &p, &n, &end, &err), "an index is made");
    lay_erofs_flat_free(f);
    lay_erofs_free(e);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_dice dice = fuzz_dice_of(data, size);
    if (!fuzz_is_plain(data, size))
        return 0;
    outcome whole = write_image(data, size, NULL), cut = write_image(data, size, &dice);
    PROMISE(whole.code == cut.code && whole.offset == cut.offset, "cuts do not change the error");
    PROMISE(whole.code || whole.size == cut.size, "cuts do not change the outcome");
    scan_headers(data, size, &whole);
    if (!whole.code) {
        check_image(&whole, size);
        check_image(&cut, size);
        read_image(&whole);
    }
    close(whole.fd);
    close(cut.fd);
    return 0;
}
