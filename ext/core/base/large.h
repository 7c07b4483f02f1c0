/* large.h - lists that may become large, each in pages of its own: they grow without being copied, and leave nothing behind.
 *
 * The C library gives large lists pages of their own, too, but only until the first of them was freed; from then on they lie
 * in its heap, where growing leaves holes and what lies behind keeps the heap from becoming smaller. Small lists are malloc's.
 */
#ifndef LAY_LARGE_H
#define LAY_LARGE_H

#include "base/error.h"

/* list: the address of a pointer of these functions, or of NULL; *cap: the elements of this size that it has room for. */

/* Room for `need` elements; what a list never had before is zero. */
lay_code lay_large_reserve(void *list, size_t *cap, size_t need, size_t size, lay_error *err);
/* n elements that are zero, which cannot grow; NULL: errno is ENOMEM. */
void *lay_large_zeros(size_t n, size_t size);
/* n: cap, or the n of lay_large_zeros. */
void lay_large_free(void *list, size_t n, size_t size);

#endif
