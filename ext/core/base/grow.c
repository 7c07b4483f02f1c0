/* grow.c - a list that grows by doubling. */
#include "base/grow.h"

lay_code lay_grow(void *list, size_t *cap, size_t count, size_t size, lay_error *err)
{
    void **p = list;
    if (count < *cap)
        return LAY_OK;
    size_t more = *cap ? 2 * *cap : 64;
    void *grown = reallocarray(*p, more, size);
    if (!grown)
        return lay_fail_nomem(err);
    *p = grown;
    *cap = more;
    return LAY_OK;
}
