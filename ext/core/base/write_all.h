/* write_all.h - all bytes or an errno. */
#ifndef LAY_WRITE_ALL_H
#define LAY_WRITE_ALL_H

#include "base/error.h"

/* At offset, or where fd stands (offset < 0). 0 or the errno of what failed. */
int lay_write_all(int fd, const void *p, size_t n, int64_t offset);

#endif
