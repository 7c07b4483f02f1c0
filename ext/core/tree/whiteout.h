/* whiteout.h - .wh. names (AUFS style, in tars) <-> overlay marks (on disk), both directions.
 *
 *   in the tar                     on disk, below an overlay upper directory
 *   <dir>/.wh.<name>               <dir>/<name>: character device 0:0
 *   <dir>/.wh..wh..opq             <dir> has xattr trusted.overlay.opaque = "y"
 *                                  (user.overlay.opaque in a user namespace)
 *   <dir>/.wh.<name>, then <dir>/<name>/    the directory, with that xattr
 */
#ifndef LAY_WHITEOUT_H
#define LAY_WHITEOUT_H

#include <stdbool.h>
#include <stddef.h>
#include <string.h>
#include <sys/stat.h>

#define LAY_WH_PREFIX ".wh."
#define LAY_WH_PREFIX_LEN 4u
#define LAY_WH_META ".wh..wh."
#define LAY_WH_OPAQUE ".wh..wh..opq"
#define LAY_OPAQUE_TRUSTED "trusted.overlay.opaque"
#define LAY_OPAQUE_USER "user.overlay.opaque"
/* Empty, on a directory that may be in one layer alone: overlayfs lists such a one as it lies on the disk, whiteouts
 * too, unless this says that it may have some. */
#define LAY_ORIGIN_TRUSTED "trusted.overlay.origin"
#define LAY_ORIGIN_USER "user.overlay.origin"
/* On an empty file: a whiteout where no device can be made (a layer unpacked inside of an overlay). */
#define LAY_XWHITEOUT_TRUSTED "trusted.overlay.whiteout"
#define LAY_XWHITEOUT_USER "user.overlay.whiteout"
/* Marks of a directory renamed, and of a file copied up, without what was in it: no tar can say them. */
#define LAY_REDIRECT_TRUSTED "trusted.overlay.redirect"
#define LAY_REDIRECT_USER "user.overlay.redirect"
#define LAY_METACOPY_TRUSTED "trusted.overlay.metacopy"
#define LAY_METACOPY_USER "user.overlay.metacopy"

typedef enum lay_wh {
    LAY_WH_PLAIN,      /* an ordinary name */
    LAY_WH_NAME,       /* hides the name after the prefix */
    LAY_WH_OPAQUE_DIR, /* hides all that lower layers have in the parent directory */
    LAY_WH_BAD         /* ".wh.", ".wh..", ".wh...": would name the directory itself or its parent */
} lay_wh;

static inline lay_wh lay_whiteout_kind(const char *base, size_t n)
{
    if (n < LAY_WH_PREFIX_LEN || memcmp(base, LAY_WH_PREFIX, LAY_WH_PREFIX_LEN) != 0)
        return LAY_WH_PLAIN;
    if (n == sizeof LAY_WH_OPAQUE - 1 && memcmp(base, LAY_WH_OPAQUE, n) == 0)
        return LAY_WH_OPAQUE_DIR;
    const char *rest = base + LAY_WH_PREFIX_LEN;
    size_t m = n - LAY_WH_PREFIX_LEN;
    if (m == 0 || (m == 1 && rest[0] == '.') || (m == 2 && rest[0] == '.' && rest[1] == '.'))
        return LAY_WH_BAD;
    return LAY_WH_NAME;
}

static inline bool lay_stat_is_whiteout(mode_t mode, dev_t rdev)
{
    return S_ISCHR(mode) && rdev == 0;
}

static inline const char *lay_opaque_xattr(bool userxattr)
{
    return userxattr ? LAY_OPAQUE_USER : LAY_OPAQUE_TRUSTED;
}

static inline const char *lay_origin_xattr(bool userxattr)
{
    return userxattr ? LAY_ORIGIN_USER : LAY_ORIGIN_TRUSTED;
}

#endif
