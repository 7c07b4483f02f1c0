/* split_seek.h - the gzip extra field "LS" at each member of our records, by which a reader may start there.
 *
 *   member      u64  bytes of this gzip member
 *   tar_offset  u64  where its first line's bytes begin in the tar
 *   line        u64  that line's number
 *   total       u64  the tar's length, in the first member; all ones elsewhere
 *   sum         u64  CRC-64 of the four: gzip's own does not cover a field, and a wrong one would give wrong bytes
 *
 * All little-endian. Any other gzip reader passes over it.
 */
#ifndef LAY_SPLIT_SEEK_H
#define LAY_SPLIT_SEEK_H

#include "base/digest.h"

#include <endian.h>
#include <string.h>

#define LAY_SEEK_AT 12           /* in the member, after gzip's fixed header and XLEN */

typedef struct lay_seek { char id[2]; uint16_t len; uint64_t member, tar_offset, line, total, sum; } __attribute__((packed)) lay_seek;

static inline uint64_t lay_seek_sum(const lay_seek *s)
{
    return htole64(lay_crc64_add(0, (const char *)s + offsetof(lay_seek, member), 32));
}

static inline bool lay_seek_is_sound(const lay_seek *s)
{
    return memcmp(s->id, "LS", 2) == 0 && le16toh(s->len) == sizeof *s - 4 && s->sum == lay_seek_sum(s);
}

#endif
