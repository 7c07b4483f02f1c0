/* inflate.h - gzip (all members; bytes after the last that are no gzip member end the stream, as gzip(1) has it)
 * and zstd (all frames) to plain bytes: feed a window, then ask for output until it is spent. */
#ifndef LAY_INFLATE_H
#define LAY_INFLATE_H

#include "base/error.h"

typedef enum lay_format { LAY_FORMAT_PLAIN, LAY_FORMAT_GZIP, LAY_FORMAT_ZSTD, LAY_FORMAT_BZIP2, LAY_FORMAT_XZ, LAY_FORMAT_LZ4 } lay_format;

/* What the first bytes of a stream are (512 are enough; n may be less at the end of the stream). A tar
 * header with a right checksum is PLAIN whatever its first bytes look like. */
lay_format lay_format_guess(const uint8_t *p, size_t n);

typedef struct lay_inflate lay_inflate;
lay_code lay_inflate_open(lay_inflate **out, lay_format format, lay_error *err);   /* GZIP or ZSTD */
/* The most a zstd frame may look back, in bytes down to a power of two; 0: whatever the library can. Before feeding. */
void lay_inflate_limit(lay_inflate *z, int64_t window);
void lay_inflate_feed(lay_inflate *z, const void *p, size_t n);                     /* only when spent */
/* Writes up to n bytes to out; *got == 0: the window is spent (feed more) or the stream is over. */
lay_code lay_inflate_next(lay_inflate *z, void *out, size_t n, size_t *got, lay_error *err);
/* No more input: LAY_OK, or LAY_E_TRUNCATED when a member or frame is cut. */
lay_code lay_inflate_eof(lay_inflate *z, lay_error *err);
/* Gzip: has all that was fed been whole members, to the last byte, so that another one may follow? */
bool lay_inflate_is_between(const lay_inflate *z);
/* After the end: was there something behind the last gzip member, and no zeros? It may be one whose header is damaged. */
bool lay_inflate_left_over(const lay_inflate *z);
void lay_inflate_free(lay_inflate *z);

#endif
