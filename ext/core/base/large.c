/* large.c - how long a list is says whose it is: the kernel's from MAPPED bytes on, or else malloc's. */
#include "base/large.h"

#include <string.h>
#include <sys/mman.h>

#define MAPPED (128u << 10)
#define LEAST 256u      /* bytes of a list that was empty */

static void *pages(size_t n)
{
    void *p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

static void *longer(void *list, size_t old, size_t n)
{
    if (old >= MAPPED) {
        void *moved = mremap(list, old, n, MREMAP_MAYMOVE);
        return moved == MAP_FAILED ? NULL : moved;
    }
    void *p = n < MAPPED ? realloc(list, n) : pages(n);
    if (p && n < MAPPED)
        memset((uint8_t *)p + old, 0, n - old);
    else if (p && old) {
        memcpy(p, list, old);
        free(list);
    }
    return p;
}

lay_code lay_large_reserve(void *list, size_t *cap, size_t need, size_t size, lay_error *err)
{
    size_t more, bytes;
    void *p;
    if (need <= *cap)
        return LAY_OK;
    if (__builtin_add_overflow(need, need / 2 + LEAST / size + 1, &more) || __builtin_mul_overflow(more, size, &bytes))
        return lay_fail_nomem(err);
    memcpy(&p, list, sizeof p);
    p = longer(p, *cap * size, bytes);
    if (!p)
        return lay_fail_nomem(err);
    memcpy(list, &p, sizeof p);
    *cap = more;
    return LAY_OK;
}

void *lay_large_zeros(size_t n, size_t size)
{
    size_t bytes;
    if (__builtin_mul_overflow(n, size, &bytes)) {
        errno = ENOMEM;
        return NULL;
    }
    return bytes < MAPPED ? calloc(n, size) : pages(bytes);
}

void lay_large_free(void *list, size_t n, size_t size)
{
    if (list && n * size >= MAPPED)
        munmap(list, n * size);
    else
        free(list);
}
