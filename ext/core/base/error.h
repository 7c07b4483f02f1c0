/* error.h - how the core makes, wraps and names a lay_error, and the owners that make early return right. */
#ifndef LAY_ERROR_H
#define LAY_ERROR_H

#include "lay.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <unistd.h>

/* Each returns its code, so that a failure is one `return`. */
lay_code lay_fail(lay_error *err, lay_code code, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* LAY_E_OS from a given errno; path may be NULL. The text is strerror's, after "<what>: " if what is not NULL. */
lay_code lay_fail_os(lay_error *err, int sys_errno, const char *path, const char *what);
/* The same of an open file: the path that the kernel has for it, or that of its directory where it has no name. */
lay_code lay_fail_fd(lay_error *err, int sys_errno, int fd, const char *what);
lay_code lay_fail_nomem(lay_error *err);
/* With the place in the tar. */
lay_code lay_fail_at(lay_error *err, lay_code code, int64_t offset, const char *format, ...) __attribute__((format(printf, 4, 5)));
/* Adds the path (n bytes, cut with "..." if too long) to a failure that has none. Returns the failure's code. */
lay_code lay_error_path(lay_error *err, const char *path, size_t n);
void lay_error_clear(lay_error *err);

static inline void lay_free_owner(void *p) { int e = errno; free(*(void **)p); errno = e; }
static inline void lay_close_owner(int *fd) { if (*fd >= 0) { int e = errno; close(*fd); errno = e; } }
#define LAY_AUTO_FREE __attribute__((cleanup(lay_free_owner)))
#define LAY_AUTO_FD __attribute__((cleanup(lay_close_owner)))
static inline int lay_steal_fd(int *fd) { int r = *fd; *fd = -1; return r; }
#define lay_steal(p) ({ __typeof__(p) *lay_p_ = &(p); __typeof__(p) lay_v_ = *lay_p_; *lay_p_ = NULL; lay_v_; })

#endif
