/* allocations.c - the n-th allocation of the core fails.
 *
 * Linked with -Wl,--wrap=NAME, so that every call of the core, and of what is linked statically into it, comes by here.
 * Counts what is allocated and not freed. A thread that cannot be made, a directory stream and a zstd
 * decompressor count as allocations too.
 */
#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t n);
void __real_free(void *p);
DIR *__real_fdopendir(int fd);
int __real_pthread_create(pthread_t *t, const pthread_attr_t *attr, void *(*run)(void *), void *argument);
void *__real_ZSTD_createDStream(void);
void *__real_ZSTD_createDCtx(void);

void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t n);
void *__wrap_reallocarray(void *p, size_t n, size_t size);
char *__wrap_strdup(const char *text);
char *__wrap_strndup(const char *text, size_t n);
void __wrap_free(void *p);
DIR *__wrap_fdopendir(int fd);
int __wrap_pthread_create(pthread_t *t, const pthread_attr_t *attr, void *(*run)(void *), void *argument);
void *__wrap_ZSTD_createDStream(void);
void *__wrap_ZSTD_createDCtx(void);

static atomic_long asked, first, last, live;

/* The first-th to last-th allocation from now on fail; 0, 0: none. */
void allocations_fail(long from, long to);
void allocations_fail(long from, long to)
{
    asked = 0;
    first = from;
    last = to;
}

long allocations_asked(void);
long allocations_asked(void) { return asked; }

long allocations_live(void);
long allocations_live(void) { return live; }

static int fails(void)
{
    long n = ++asked;
    if (n < first || n > last)
        return 0;
    errno = ENOMEM;
    return 1;
}

static void *counted(void *p)
{
    if (p)
        live++;
    return p;
}

void *__wrap_malloc(size_t n) { return fails() ? NULL : counted(__real_malloc(n)); }
void *__wrap_calloc(size_t n, size_t size) { return fails() ? NULL : counted(__real_calloc(n, size)); }

void *__wrap_realloc(void *p, size_t n)
{
    if (fails())
        return NULL;
    void *q = __real_realloc(p, n);
    if (!p)
        counted(q);
    return q;
}

void *__wrap_reallocarray(void *p, size_t n, size_t size)
{
    size_t bytes;
    if (__builtin_mul_overflow(n, size, &bytes)) {
        errno = ENOMEM;
        return NULL;
    }
    return __wrap_realloc(p, bytes);
}

char *__wrap_strndup(const char *text, size_t n)
{
    size_t len = strnlen(text, n);
    char *copy = __wrap_malloc(len + 1);
    if (copy) {
        memcpy(copy, text, len);
        copy[len] = '\0';
    }
    return copy;
}

char *__wrap_strdup(const char *text) { return __wrap_strndup(text, SIZE_MAX); }

void __wrap_free(void *p)
{
    if (p)
        live--;
    __real_free(p);
}

DIR *__wrap_fdopendir(int fd) { return fails() ? NULL : __real_fdopendir(fd); }
void *__wrap_ZSTD_createDStream(void) { return fails() ? NULL : __real_ZSTD_createDStream(); }
void *__wrap_ZSTD_createDCtx(void) { return fails() ? NULL : __real_ZSTD_createDCtx(); }

int __wrap_pthread_create(pthread_t *t, const pthread_attr_t *attr, void *(*run)(void *), void *argument)
{
    return fails() ? EAGAIN : __real_pthread_create(t, attr, run, argument);
}
