/* grow.c - reallocates a list when more elements are needed than it has room for. */
#include "base/grow.h"

#include <string.h>

#define LEAST 256u      /* bytes of a list that was empty */

bool lay_reserved(void *list, size_t *cap, size_t need, size_t size)
{
    if (need <= *cap)
        return true;
    size_t more;
    if (__builtin_add_overflow(need, need / 2 + LEAST / size + 1, &more)) {
        errno = ENOMEM;
        return false;
    }
    void *p;
    memcpy(&p, list, sizeof p);
    p = reallocarray(p, more, size);
    if (!p)
        return false;
    memcpy(list, &p, sizeof p);
    *cap = more;
    return true;
}

lay_code lay_reserve(void *list, size_t *cap, size_t need, size_t size, lay_error *err)
{
    return lay_reserved(list, cap, need, size) ? LAY_OK : lay_fail_nomem(err);
}

lay_code lay_grow(void *list, size_t *cap, size_t count, size_t size, lay_error *err)
{
    return lay_reserve(list, cap, count + 1, size, err);
}
