/* erofs_extent.c - where the bytes of a file lie, and reading them. */
#include "erofs/erofs_image_state.h"

#include <inttypes.h>
#include <limits.h>
#include <string.h>

/* n bytes from a block of the unified space on. */
static int place(const lay_erofs *e, const lay_einode *i, uint64_t block, uint64_t n, lay_eextent *out)
{
    const lay_erofs_device *d = &e->devices[0];
    for (size_t k = 1; k < e->ndevices && d == e->devices; k++)
        if (block >= e->devices[k].uni && block - e->devices[k].uni < e->devices[k].blocks)
            d = &e->devices[k];
    uint64_t first = block - d->uni;
    if (first >= d->blocks || n > (d->blocks - first) << e->bits)
        return lay_erofs_bad(e, i->at, "an inode's blocks from %" PRIu64 " on are not in it", block);
    out->device = d;
    out->from = d->from + (int64_t)(first << e->bits);
    return 0;
}

static int flat(const lay_erofs *e, const lay_einode *i, int64_t offset, lay_eextent *out)
{
    *out = (lay_eextent){ .at = offset, .n = i->size - offset };
    int64_t tail = i->layout == LAY_EROFS_INLINE ? i->size & ((1 << e->bits) - 1) : 0;
    if (offset < i->size - tail) {
        out->n -= tail;
        uint64_t block = i->start + ((uint64_t)offset >> e->bits);
        int64_t in = offset & ((1 << e->bits) - 1);
        if (place(e, i, block, (uint64_t)in + (uint64_t)out->n, out) < 0)
            return -1;
        out->from += in;
        return 0;
    }
    if (lay_erofs_at(e, i->body, (uint64_t)tail, "the end of an inode's bytes") == NULL)
        return -1;
    if (i->body >> e->bits != (i->body + tail - 1) >> e->bits)
        return lay_erofs_bad(e, i->at, "the end of an inode's bytes goes over the end of a block");
    out->device = e->devices;
    out->from = i->body + (offset - (i->size - tail));
    return 0;
}

/* Of one chunk: its device and block. 1: it is a hole. */
static int chunk_at(const lay_erofs *e, const lay_einode *i, int64_t number, unsigned *device, uint64_t *block)
{
    bool indexes = (i->start & LAY_EROFS_CHUNK_INDEXES) != 0;
    int unit = indexes ? 8 : 4;
    int64_t array = (i->body + unit - 1) / unit * unit;
    const uint8_t *p = number <= e->limit / unit ? lay_erofs_at(e, array + number * unit, (uint64_t)unit, "an inode's chunk") : NULL;
    if (p == NULL)
        return lay_erofs_bad(e, i->at, "an inode's chunks are not in it");
    *device = indexes ? lay_get16(p + 2) : 0;
    *block = lay_get32(indexes ? p + 4 : p);
    return *block == LAY_EROFS_NO_BLOCK;
}

static int chunked(const lay_erofs *e, const lay_einode *i, int64_t offset, lay_eextent *out)
{
    unsigned bits = e->bits + (i->start & LAY_EROFS_CHUNK_BITS), device = 0;
    uint64_t block = 0;
    if ((i->start & ~(LAY_EROFS_CHUNK_BITS | LAY_EROFS_CHUNK_INDEXES)) != 0)
        return lay_erofs_bad(e, i->at, "an inode's chunks have an unknown format, 0x%" PRIx32, i->start);
    int64_t number = offset >> bits, in = offset - (number << bits), left = i->size - offset;
    *out = (lay_eextent){ .at = offset, .n = ((int64_t)1 << bits) - in };
    out->n = out->n < left ? out->n : left;
    int hole = chunk_at(e, i, number, &device, &block);
    if (hole != 0)
        return hole < 0 ? -1 : 0;
    if (device >= e->ndevices)
        return lay_erofs_bad(e, i->at, "an inode's chunk lies in device %u, and there is none", device);
    if (place(e, i, device > 0 ? e->devices[device].uni + block : block, (uint64_t)(in + out->n), out) < 0)
        return -1;
    if (device > 0 && out->device != &e->devices[device])
        return lay_erofs_bad(e, i->at, "an inode's chunk is not in its device");
    out->from += in;
    return 0;
}

int lay_erofs_extent(const lay_erofs *e, const lay_einode *i, int64_t offset, lay_eextent *out)
{
    switch (i->layout) {
    case LAY_EROFS_FLAT:
    case LAY_EROFS_INLINE: return flat(e, i, offset, out);
    case LAY_EROFS_CHUNKED: return chunked(e, i, offset, out);
    default: return lay_erofs_bad(e, i->at, "an inode's bytes are compressed, or of an unknown layout");
    }
}

static ssize_t read_piece(const lay_eextent *x, uint8_t *to, size_t n)
{
    if (x->device == NULL) {
        memset(to, 0, n);
        return (ssize_t)n;
    }
    ssize_t got;
    do
        got = pread(x->device->fd, to, n, x->from);
    while (got < 0 && errno == EINTR);
    if (got == 0) {
        errno = EIO;                            /* it was longer when it was opened */
        return -1;
    }
    return got;
}

ssize_t lay_erofs_pread(const lay_erofs *e, const lay_einode *i, void *buf, size_t n, int64_t offset)
{
    size_t have = 0;
    while (have < n && offset < i->size) {
        lay_eextent x;
        if (lay_erofs_extent(e, i, offset, &x) < 0)
            return -1;
        ssize_t got = read_piece(&x, (uint8_t *)buf + have, (uint64_t)x.n < n - have ? (size_t)x.n : n - have);
        if (got < 0)
            return -1;
        have += (size_t)got;
        offset += got;
    }
    return (ssize_t)have;
}

ssize_t lay_erofs_readlink(const lay_erofs *e, const lay_einode *i, void *buf)
{
    if (i->size == 0 || i->size >= PATH_MAX)
        return lay_erofs_bad(e, i->at, "a symbolic link has %" PRId64 " bytes", i->size);
    ssize_t n = lay_erofs_pread(e, i, buf, (size_t)i->size, 0);
    if (n > 0 && memchr(buf, '\0', (size_t)n) != NULL)
        return lay_erofs_bad(e, i->at, "a symbolic link has a NUL");
    return n;
}
