/* fuzz.h - what the fuzz targets share: a promise that ends the process, cuts drawn from the input, a file in memory.
 *
 * Everything a target draws it draws from the bytes of its input, so that a file reproduces what it did.
 */
#ifndef FUZZ_H
#define FUZZ_H

#include "base/grow.h"
#include "codec/inflate.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The sentence is the promise that was broken. */
#define PROMISE(held, sentence) ((held) ? (void)0 : fuzz_broken(sentence, __FILE__, __LINE__))

static inline _Noreturn void fuzz_broken(const char *sentence, const char *file, int line)
{
    fprintf(stderr, "%s:%d: broken promise: %s\n", file, line, sentence);
    abort();
}

typedef struct fuzz_dice { uint64_t state; } fuzz_dice;

static inline fuzz_dice fuzz_dice_of(const uint8_t *data, size_t size)
{
    fuzz_dice d = { 0xcbf29ce484222325u };
    for (size_t i = 0; i < size; i++)
        d.state = (d.state ^ data[i]) * 0x100000001b3u;
    return d;
}

/* 0 .. below - 1 */
static inline size_t fuzz_throw(fuzz_dice *d, size_t below)
{
    d->state = d->state * 6364136223846793005u + 1442695040888963407u;
    return below ? (size_t)(d->state >> 33) % below : 0;
}

/* How long the next piece is: mostly short, now and then all of the rest. */
static inline size_t fuzz_piece(fuzz_dice *d, size_t left)
{
    size_t n = fuzz_throw(d, 8) == 0 ? left : 1 + fuzz_throw(d, (size_t)1 << fuzz_throw(d, 14));
    return n < left ? n : left;
}

static inline void *fuzz_memory(size_t n)
{
    void *p = malloc(n ? n : 1);
    PROMISE(p != NULL, "the fuzzer itself has memory");
    return p;
}

/* A copy that ends where its memory does. */
static inline uint8_t *fuzz_copy(const uint8_t *p, size_t n)
{
    uint8_t *copy = fuzz_memory(n);
    memcpy(copy, p, n);
    return copy;
}

typedef struct fuzz_bytes { uint8_t *p; size_t n, cap; } fuzz_bytes;

static inline void fuzz_put(fuzz_bytes *b, const void *p, size_t n)
{
    PROMISE(lay_reserved(&b->p, &b->cap, b->n + n + 1, 1), "the fuzzer itself has memory");
    if (n)
        memcpy(b->p + b->n, p, n);
    b->n += n;
}

static inline int fuzz_file(const uint8_t *p, size_t n)
{
    int fd = memfd_create("fuzz", MFD_CLOEXEC);
    PROMISE(fd >= 0, "the fuzzer itself has a file");
    while (n > 0) {
        ssize_t w = write(fd, p, n);
        PROMISE(w > 0, "the fuzzer itself can write");
        p += w;
        n -= (size_t)w;
    }
    PROMISE(lseek(fd, 0, SEEK_SET) == 0, "the fuzzer itself can seek");
    return fd;
}

/* Not what an apply would inflate or refuse for its packing. */
static inline bool fuzz_is_plain(const uint8_t *p, size_t n)
{
    return lay_format_guess(p, n < 512 ? n : 512) == LAY_FORMAT_PLAIN;
}

static inline void fuzz_error_is_whole(const lay_error *err, lay_code code)
{
    PROMISE(code > LAY_OK && code < LAY_CODE_COUNT, "a failure has a code");
    PROMISE(err->code == code, "the error says what was returned");
    PROMISE(memchr(err->text, 0, sizeof err->text) != NULL && err->text[0] != '\0', "an error has a sentence");
    PROMISE(memchr(err->path, 0, sizeof err->path) != NULL, "an error's path ends");
}

#endif
