/* erofs_image.c - bounds of an image, and its inodes. */
#include "erofs/erofs_image_state.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sysmacros.h>

#define MAPPED_MOST (8 << 20)                   /* bytes of an image that stay mapped to memory, about */
#define FORMAT_BITS 0x0Fu                       /* of an inode's format: what is known of it */

void lay_erofs_hold(const lay_erofs *e) { atomic_fetch_add(&((lay_erofs *)(uintptr_t)e)->held, 1); }

void lay_erofs_free(lay_erofs *e)
{
    if (e == NULL || atomic_fetch_sub(&e->held, 1) > 1)
        return;
    int kept = errno;
    if (e->map != NULL)
        munmap((void *)(uintptr_t)e->map, (size_t)e->limit);
    for (size_t i = 0; i < e->ndevices; i++)
        if (e->devices[i].fd != e->fd)
            lay_close_owner(&e->devices[i].fd);
    lay_close_owner(&e->fd);
    free(e->devices);
    free(e->infixes);
    free(e->infix_text);
    free(e);
    errno = kept;
}

int lay_erofs_bad(const lay_erofs *image, int64_t at, const char *format, ...)
{
    lay_erofs *e = (lay_erofs *)(uintptr_t)image;          /* what it says of itself is no part of what it shows */
    int not_yet = 0;
    if (atomic_compare_exchange_strong(&e->damaged, &not_yet, 1)) {
        char text[LAY_ERROR_TEXT / 2];
        lay_error named;
        va_list args;
        va_start(args, format);
        vsnprintf(text, sizeof text, format, args);
        va_end(args);
        lay_fail_fd(&named, 0, e->fd, NULL);
        snprintf(e->damage, sizeof e->damage, "the EROFS image%s%.200s is damaged at byte %" PRId64 ": %s", named.path[0] != '\0' ? " " : "", named.path, at, text);
        atomic_store(&e->damaged, 2);
    }
    errno = EUCLEAN;
    return -1;
}

const uint8_t *lay_erofs_at(const lay_erofs *e, int64_t at, uint64_t n, const char *what)
{
    if (at >= 0 && at <= e->limit && n <= (uint64_t)(e->limit - at))
        return e->map + at;
    lay_erofs_bad(e, at, "%s is not in it", what);
    return NULL;
}

void lay_erofs_let_go(const lay_erofs *image, int64_t n)
{
    lay_erofs *e = (lay_erofs *)(uintptr_t)image;
    if (atomic_fetch_add(&e->seen, n) + n < MAPPED_MOST)
        return;
    atomic_store(&e->seen, 0);
    madvise((void *)(uintptr_t)e->map, (size_t)e->limit, MADV_DONTNEED);
}

static void read_compact(const lay_erofs *e, const uint8_t *p, lay_einode *i)
{
    i->nlink = lay_get16(p + 6);
    i->size = lay_get32(p + 8);
    i->mtime = e->epoch;
    i->nsec = e->nsec;
    i->uid = lay_get16(p + 24);
    i->gid = lay_get16(p + 26);
}

static int read_extended(const lay_erofs *e, const uint8_t *p, lay_einode *i)
{
    uint64_t size = lay_get64(p + 8);
    i->size = (int64_t)size;
    i->uid = lay_get32(p + 24);
    i->gid = lay_get32(p + 28);
    i->mtime = (int64_t)lay_get64(p + 32);
    i->nsec = lay_get32(p + 40);
    i->nlink = lay_get32(p + 44);
    if (size > INT64_MAX)
        return lay_erofs_bad(e, i->at, "an inode's size is beyond 2^63 bytes");
    return i->nsec < 1000000000 ? 0 : lay_erofs_bad(e, i->at, "an inode's time has %" PRIu32 " nanoseconds", i->nsec);
}

int lay_erofs_inode(const lay_erofs *e, uint64_t nid, lay_einode *i)
{
    if (nid > (uint64_t)e->limit / LAY_EROFS_SLOT)
        return lay_erofs_bad(e, e->meta, "inode %" PRIu64 " is not in it", nid);
    *i = (lay_einode){ .nid = nid, .at = e->meta + (int64_t)nid * LAY_EROFS_SLOT };
    const uint8_t *p = lay_erofs_at(e, i->at, LAY_EROFS_SLOT, "an inode");
    if (p == NULL)
        return -1;
    uint16_t format = lay_get16(p);
    bool extended = (format & LAY_EROFS_EXTENDED) != 0;
    i->layout = format >> 1 & 7;
    i->mode = lay_get16(p + 4);
    i->start = lay_get32(p + 16);
    if ((format & ~FORMAT_BITS) != 0)
        return lay_erofs_bad(e, i->at, "an inode of an unknown format, 0x%x", format);
    if (extended && lay_erofs_at(e, i->at, LAY_EROFS_INODE, "an inode") == NULL)
        return -1;
    if (extended && read_extended(e, p, i) < 0)
        return -1;
    if (!extended)
        read_compact(e, p, i);
    if (lay_erofs_file_type(i->mode) == 0)
        return lay_erofs_bad(e, i->at, "an inode of no known type, mode 0%o", i->mode);
    uint32_t count = lay_get16(p + 2);
    i->xattrs = count > 0 ? LAY_EROFS_XATTR_HEADER + 4 * (count - 1) : 0;
    i->body = i->at + (extended ? LAY_EROFS_INODE : LAY_EROFS_SLOT) + i->xattrs;
    return i->body <= e->limit ? 0 : lay_erofs_bad(e, i->at, "an inode's extended attributes are not in it");
}

void lay_erofs_stat(const lay_erofs *e, const lay_einode *i, struct stat *st)
{
    bool device = S_ISCHR(i->mode) || S_ISBLK(i->mode);
    uint32_t d = i->start;
    *st = (struct stat){
        .st_dev = e->dev, .st_ino = i->nid, .st_mode = (mode_t)i->mode, .st_nlink = i->nlink, .st_uid = i->uid, .st_gid = i->gid,
        .st_rdev = device ? makedev(d >> 8 & 0xFFF, (d & 0xFF) | (d >> 12 & 0xFFF00)) : 0,
        .st_size = i->size, .st_blksize = 1 << e->bits, .st_blocks = i->size / 512 + (i->size % 512 != 0),
        .st_mtim = { .tv_sec = i->mtime, .tv_nsec = i->nsec },
    };
    st->st_atim = st->st_ctim = st->st_mtim;
}
