/* erofs_open.c - an image opens: its superblock, its other devices and its long prefixes are read and checked. */
#include "erofs/erofs_image_state.h"

#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>

#define INCOMPAT_PADDING 0x1u                   /* of compressed inodes, which are refused one by one */
#define INCOMPAT_FRAGMENTS 0x20u                /* that there may be a packed inode */
#define INCOMPAT_PREFIXES 0x40u
#define KNOWN (INCOMPAT_PADDING | LAY_EROFS_INCOMPAT_CHUNKED | LAY_EROFS_INCOMPAT_DEVICES | INCOMPAT_FRAGMENTS | INCOMPAT_PREFIXES)
#define SUPER_MOST 3072                         /* what the checksum may be over */

/* Fields that only a reader asks for. */
#define AT_EPOCH 24
#define AT_NSEC 32
#define AT_SHARED 44
#define AT_DIR_BITS 90
#define AT_PREFIXES 91
#define AT_PREFIX_START 92
#define AT_PACKED 96

/* ---- the superblock ---- */

static lay_code bad(lay_error *err, int fd, const char *field, const char *why)
{
    lay_error named;
    lay_fail_fd(&named, 0, fd, NULL);
    lay_fail(err, LAY_E_IMAGE, "not an EROFS image that can be read: %s: %s", field, why);
    return lay_error_path(err, named.path, strlen(named.path));
}

static lay_code read_super(lay_erofs *e, uint8_t *p, lay_error *err)
{
    size_t have = 0;
    while (have < SUPER_MOST) {
        ssize_t got = pread(e->fd, p + have, SUPER_MOST - have, LAY_EROFS_SUPER + (off_t)have);
        if (got < 0 && errno != EINTR)
            return lay_fail_fd(err, errno, e->fd, "cannot read the image");
        if (got == 0)
            break;
        have += got > 0 ? (size_t)got : 0;
    }
    if (have < LAY_EROFS_SUPER_SIZE)
        return bad(err, e->fd, "size", "the file is shorter than a superblock");
    if (lay_get32(p) != LAY_EROFS_MAGIC)
        return bad(err, e->fd, "magic", "there is none");
    e->bits = p[LAY_EROFS_AT_BITS];
    if (e->bits < 9 || e->bits > 12)
        return bad(err, e->fd, "blkszbits", "blocks have 512 to 4096 bytes");
    size_t over = e->bits == 9 || e->bits == 10 ? (size_t)1 << e->bits : ((size_t)1 << e->bits) - LAY_EROFS_SUPER;
    if ((lay_get32(p + LAY_EROFS_AT_COMPAT) & LAY_EROFS_COMPAT_CHECKSUM) != 0 && have < over)
        return bad(err, e->fd, "size", "the file is shorter than the superblock's block");
    if ((lay_get32(p + LAY_EROFS_AT_COMPAT) & LAY_EROFS_COMPAT_CHECKSUM) != 0 && lay_get32(p + LAY_EROFS_AT_CHECKSUM) != lay_erofs_checksum(p, over))
        return bad(err, e->fd, "checksum", "it is not that of the superblock");
    return LAY_OK;
}

static lay_code take_super(lay_erofs *e, const uint8_t *p, lay_error *err)
{
    e->incompat = lay_get32(p + LAY_EROFS_AT_INCOMPAT);
    e->blocks = lay_get32(p + LAY_EROFS_AT_BLOCKS);
    e->limit = (int64_t)(e->blocks << e->bits);
    e->meta = (int64_t)((uint64_t)lay_get32(p + LAY_EROFS_AT_META) << e->bits);
    e->shared = (int64_t)((uint64_t)lay_get32(p + AT_SHARED) << e->bits);
    e->root = lay_get16(p + LAY_EROFS_AT_ROOT);
    e->epoch = (int64_t)lay_get64(p + AT_EPOCH);
    e->nsec = lay_get32(p + AT_NSEC);
    if ((e->incompat & ~KNOWN) != 0)
        return bad(err, e->fd, "feature_incompat", "it asks for what is not known here");
    if (p[AT_DIR_BITS] != 0)
        return bad(err, e->fd, "dirblkbits", "it must be 0");
    if (e->limit < LAY_EROFS_SUPER + LAY_EROFS_SUPER_SIZE || e->limit > e->size)
        return bad(err, e->fd, "blocks", e->limit > e->size ? "the file is shorter than they are" : "there are too few of them");
    if (e->meta > e->limit || e->shared > e->limit)
        return bad(err, e->fd, e->meta > e->limit ? "meta_blkaddr" : "xattr_blkaddr", "it is behind the last block");
    if (e->nsec >= 1000000000)
        return bad(err, e->fd, "fixed_nsec", "it is a second or more");
    return LAY_OK;
}

/* ---- devices ---- */

static lay_code size_of(int fd, int64_t *size, struct stat *st, lay_error *err)
{
    if (fstat(fd, st) < 0)
        return lay_fail_fd(err, errno, fd, "cannot look at the image");
    if (!S_ISREG(st->st_mode) && !S_ISBLK(st->st_mode))
        return lay_fail_fd(err, S_ISDIR(st->st_mode) ? EISDIR : EINVAL, fd, "cannot read an image from what is no file");
    *size = S_ISBLK(st->st_mode) ? lseek(fd, 0, SEEK_END) : st->st_size;
    return *size < 0 ? lay_fail_fd(err, errno, fd, "cannot tell the image's size") : LAY_OK;
}

/* The slot of one device: a descriptor of its own, or a part of the image's file behind what the superblock calls the image. */
static lay_code open_device(lay_erofs *e, size_t k, const int *fds, lay_error *err)
{
    lay_erofs_device *d = &e->devices[k];
    const uint8_t *slot = e->map + ((int64_t)d->from + (int64_t)(k - 1) * LAY_EROFS_DEVICE);
    d->blocks = lay_get32(slot + LAY_EROFS_DEVICE_BLOCKS);
    d->uni = lay_get32(slot + LAY_EROFS_DEVICE_UNI);
    int64_t bytes = (int64_t)(d->blocks << e->bits);
    d->from = 0;
    if (fds == NULL) {
        d->from = (int64_t)(d->uni << e->bits);
        d->size = e->size;
    } else {
        d->fd = fcntl(fds[k - 1], F_DUPFD_CLOEXEC, 0);
        if (d->fd < 0)
            return lay_fail_fd(err, errno, fds[k - 1], "cannot keep a device of the image");
        if (size_of(d->fd, &d->size, &(struct stat){ 0 }, err))
            return err->code;
    }
    if (d->uni < e->blocks)
        return bad(err, e->fd, "uniaddr", "a device begins within the image");
    /* the last block may be cut: a tar's length need be no multiple of a block's */
    if (d->from > d->size || bytes - (d->size - d->from) >= (int64_t)1 << e->bits)
        return bad(err, e->fd, "blocks", "a device is shorter than its slot says");
    return LAY_OK;
}

static lay_code open_devices(lay_erofs *e, const uint8_t *p, const int *fds, size_t n, lay_error *err)
{
    size_t slots = (e->incompat & LAY_EROFS_INCOMPAT_DEVICES) != 0 ? lay_get16(p + LAY_EROFS_AT_DEVICES) : 0;
    int64_t table = (int64_t)lay_get16(p + LAY_EROFS_AT_DEVICE_SLOT) * LAY_EROFS_DEVICE;
    if (slots > LAY_EROFS_DEVICES_MOST)
        return bad(err, e->fd, "extra_devices", "there are too many");
    if (n > 0 && n != slots)
        return bad(err, e->fd, "extra_devices", "not so many devices were given");
    if (table + (int64_t)slots * LAY_EROFS_DEVICE > e->limit)
        return bad(err, e->fd, "devt_slotoff", "the slots are behind the last block");
    e->devices = calloc(slots + 1, sizeof *e->devices);
    if (e->devices == NULL)
        return lay_fail_nomem(err);
    e->devices[0] = (lay_erofs_device){ .fd = e->fd, .blocks = e->blocks, .size = e->size };
    for (e->ndevices = 1; e->ndevices <= slots;) {
        lay_erofs_device *d = &e->devices[e->ndevices++];
        *d = (lay_erofs_device){ .fd = e->fd, .from = table };
        if (open_device(e, e->ndevices - 1, n > 0 ? fds : NULL, err))
            return err->code;
    }
    return LAY_OK;
}

/* ---- long prefixes ---- */

#define PREFIX_MOST 512                         /* bytes a prefix can take in the table: its length, its number, a name */

/* Bytes of the table, which lies in the packed inode or in the image itself; fewer where that ends. */
static ssize_t read_table(const lay_erofs *e, const lay_einode *packed, int64_t at, uint8_t *to, size_t n)
{
    if (packed != NULL)
        return lay_erofs_pread(e, packed, to, n, at);
    size_t left = at < e->limit ? (size_t)(e->limit - at) : 0;
    n = n < left ? n : left;
    memcpy(to, e->map + (n > 0 ? at : 0), n);
    return (ssize_t)n;
}

static lay_code open_prefixes(lay_erofs *e, const uint8_t *p, lay_error *err)
{
    size_t count = (e->incompat & INCOMPAT_PREFIXES) != 0 ? p[AT_PREFIXES] : 0;
    int64_t at = (int64_t)lay_get32(p + AT_PREFIX_START) * 4;
    uint64_t packed_nid = (e->incompat & INCOMPAT_FRAGMENTS) != 0 ? lay_get64(p + AT_PACKED) : 0;
    lay_einode packed;
    if (count == 0)
        return LAY_OK;
    if (packed_nid != 0 && lay_erofs_inode(e, packed_nid, &packed) < 0)
        return bad(err, e->fd, "packed_nid", e->damage);
    e->infixes = calloc(count, sizeof *e->infixes);
    e->infix_text = malloc(count * PREFIX_MOST);
    if (e->infixes == NULL || e->infix_text == NULL)
        return lay_fail_nomem(err);
    for (; e->ninfixes < count; e->ninfixes++) {
        uint8_t *to = e->infix_text + e->ninfixes * PREFIX_MOST;
        ssize_t got = read_table(e, packed_nid != 0 ? &packed : NULL, at, to, PREFIX_MOST);
        size_t len = got >= 3 ? lay_get16(to) : 0;
        if (len < 1 || len > 256 || (ssize_t)len > got - 2)
            return bad(err, e->fd, "xattr_prefix_start", "a long prefix cannot be read");
        e->infixes[e->ninfixes] = (lay_erofs_infix){ .base = to[2], .len = (uint8_t)(len - 1), .text = (const char *)to + 3 };
        at += (int64_t)((2 + len + 3) & ~(size_t)3);
    }
    return LAY_OK;
}

/* ---- all of it ---- */

static lay_code open_root(lay_erofs *e, lay_error *err)
{
    lay_einode root;
    lay_edirent up;
    if (lay_erofs_inode(e, e->root, &root) < 0)
        return bad(err, e->fd, "root_nid", e->damage);
    if (!S_ISDIR(root.mode))
        return bad(err, e->fd, "root_nid", "it is no directory's");
    if (lay_erofs_look(e, &root, "..", 2, &up) < 0)
        return bad(err, e->fd, "root_nid", errno == ENOENT ? "the root has no name .." : e->damage);
    return up.nid == e->root ? LAY_OK : bad(err, e->fd, "root_nid", "the root's name .. does not lead to itself");
}

static lay_code open_image(lay_erofs *e, int fd, int64_t size, const int *devices, size_t n, lay_error *err)
{
    uint8_t p[SUPER_MOST];
    struct stat st;
    e->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (e->fd < 0)
        return lay_fail_fd(err, errno, fd, "cannot keep the image open");
    if (size_of(e->fd, &e->size, &st, err))
        return err->code;
    if (size >= 0 && size != e->size)
        return bad(err, e->fd, "size", "the file is not as long as was said");
    e->dev = (dev_t)1 << 63 | ((dev_t)st.st_dev << 40 ^ (dev_t)st.st_ino);
    if (read_super(e, p, err) || take_super(e, p, err))
        return err->code;
    void *map = mmap(NULL, (size_t)e->limit, PROT_READ, MAP_SHARED, e->fd, 0);
    if (map == MAP_FAILED)
        return lay_fail_fd(err, errno, e->fd, "cannot map the image");
    e->map = map;
    if (open_devices(e, p, devices, n, err) || open_prefixes(e, p, err))
        return err->code;
    return open_root(e, err);
}

lay_code lay_erofs_open(lay_erofs **out, int fd, int64_t size, const int *devices, size_t n, lay_error *err)
{
    lay_error_clear(err);
    lay_erofs *e = calloc(1, sizeof *e);
    if (e == NULL)
        return lay_fail_nomem(err);
    e->fd = -1;
    atomic_init(&e->held, 1);
    atomic_init(&e->damaged, 0);
    atomic_init(&e->seen, 0);
    if (open_image(e, fd, size, devices, n, err)) {
        lay_erofs_free(e);
        return err->code;
    }
    e->as = (lay_lower){ .ops = &lay_erofs_lower_ops, .layer = e, .root = (lay_lower_dir)e->root };
    *out = e;
    return LAY_OK;
}
