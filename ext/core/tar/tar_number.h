/* tar_number.h - the numbers of tars: fields of a header block, decimals and times of PAX records.
 * Read as Go's archive/tar reads them (strconv.go); false: not a number. */
#ifndef LAY_TAR_NUMBER_H
#define LAY_TAR_NUMBER_H

#include "tar/tar.h"

#include <string.h>

/* Bytes before the first NUL. */
static inline size_t lay_field_len(const uint8_t *b, size_t n)
{
    const void *nul = memchr(b, 0, n);
    return nul ? (size_t)((const uint8_t *)nul - b) : n;
}

/* Octal between blanks and NULs, or base-256 when the top bit is set. */
bool lay_tar_number(const uint8_t *b, size_t n, int64_t *out);
/* Sign, digits, nothing else. */
bool lay_tar_decimal(const char *s, size_t n, int64_t *out);
/* "seconds[.fraction]"; digits beyond nanoseconds are dropped. */
bool lay_tar_seconds(const char *s, size_t n, lay_time *out);

#endif
