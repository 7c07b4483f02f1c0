/* pack.h - plain bytes to gzip: a whole member in one go. What packs a stream is in lay.h. */
#ifndef LAY_PACK_H
#define LAY_PACK_H

#include "base/error.h"

/* One independent gzip member of n bytes at out (room: lay_gzip_bound(n) + extra_len), with an FEXTRA
 * field of extra_len bytes when extra_len > 0; fast level. Any gzip reader joins members. */
size_t lay_gzip_bound(size_t n);
lay_code lay_gzip_member(const void *p, size_t n, const void *extra, size_t extra_len, void *out, size_t room, size_t *len, lay_error *err);

/* The CRC-32 of gzip, going on from crc (0 at first). */
uint32_t lay_crc32_add(uint32_t crc, const void *p, size_t n);

#endif
