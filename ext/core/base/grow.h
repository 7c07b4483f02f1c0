/* grow.h - lists that grow: by half of what is needed each time, so that appending stays cheap. */
#ifndef LAY_GROW_H
#define LAY_GROW_H

#include "base/error.h"

/* list: the address of a pointer of malloc, or of NULL; *cap: the elements of this size that it has room for. */

/* Room for `need` elements. */
lay_code lay_reserve(void *list, size_t *cap, size_t need, size_t size, lay_error *err);
/* The same without an error's struct. False: errno is ENOMEM. */
bool lay_reserved(void *list, size_t *cap, size_t need, size_t size);
/* Room for one more than the `count` elements that are there. */
lay_code lay_grow(void *list, size_t *cap, size_t count, size_t size, lay_error *err);

#endif
