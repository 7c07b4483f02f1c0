/* grow.h - a list that grows by doubling. */
#ifndef LAY_GROW_H
#define LAY_GROW_H

#include "base/error.h"

/* Room for one more. list: the address of the pointer to elements of this size, of which there are count. */
lay_code lay_grow(void *list, size_t *cap, size_t count, size_t size, lay_error *err);

#endif
