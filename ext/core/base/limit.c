/* limit.c - the limits that hold where nobody set others.
 *
 * On by default is what bounds memory and time out of proportion to the bytes of the tar; each lies far above what
 * any real layer was seen to have. What only costs disk is the caller's to bound: Docker stores layers of any size.
 */
#include "base/limit.h"

static const lay_limits defaults = {
    .entries = 16 << 20,
    .names = INT64_C(2) << 30,
    .path = 16 << 10,             /* four times the kernel's PATH_MAX */
    .depth = 1 << 10,             /* at worst some 30 ms for each name that goes through links */
    .header = 1 << 20,            /* Go's */
    .headers = 8 << 20,
    .global_headers = 16 << 20,
    .extents = 1 << 20,           /* Go's */
    .xattrs = 1 << 10,
    .xattr_size = 1 << 20,
    .window = 128 << 20,          /* libzstd's, and that of zstd --long */
};

const lay_limits *lay_limits_default(void) { return &defaults; }

lay_code lay_fail_limit(lay_error *err, int64_t offset, const char *option, int64_t limit, const char *unit, const char *what)
{
    return lay_fail_at(err, LAY_E_LIMIT, offset, "%s: more than %lld %s (%s)", what, (long long)limit, unit, option);
}
