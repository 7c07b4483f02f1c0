/* erofs_refuse.c - a superblock that we would not have written, and why. */
#include "erofs/erofs_image_state.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define FIELDS (sizeof fields / sizeof *fields)

/* What is always so, but for the fields that the tar gives. */
static const struct { uint8_t at, size; uint64_t value; const char *name; } fields[] = {
    { LAY_EROFS_AT_COMPAT, 4, LAY_EROFS_COMPAT_CHECKSUM | LAY_EROFS_COMPAT_MTIME, "feature_compat" },
    { LAY_EROFS_AT_BITS, 1, LAY_EROFS_BITS, "blkszbits" },
    { 13, 1, 0, "sb_extslots" },
    { 24, 8, 0, "epoch" },
    { 32, 4, 0, "fixed_nsec" },
    { 44, 4, 0, "xattr_blkaddr" },
    { 84, 2, 0, "compression algorithms" },
    { LAY_EROFS_AT_DEVICES, 2, 0, "extra_devices" },
    { LAY_EROFS_AT_DEVICE_SLOT, 2, 0, "devt_slotoff" },
    { 90, 1, 0, "dirblkbits" },
    { 91, 1, 0, "xattr_prefix_count" },
    { 92, 4, 0, "xattr_prefix_start" },
    { 96, 8, 0, "packed_nid" },
    { 104, 1, 0, "xattr filter" },
    { 105, 1, 0, "inode-share prefix" },
    { 106, 2, 0, "reserved (106)" },
    { 108, 4, 0, "build_time" },
    { 112, 8, 0, "root nid, 64 bit" },
    { 120, 8, 0, "reserved (120)" },
};

static uint64_t get(const uint8_t *p, size_t n)
{
    uint64_t v = 0;
    while (n > 0)
        v = v << 8 | p[--n];
    return v;
}

/* Names the field that is wrong, and says why; NULL: all are right. */
static const char *wrong(const lay_erofs *e, const uint8_t *p, const uint8_t *diff_id, int64_t tar_size, char *why, size_t room)
{
    uint8_t uuid[16], name[LAY_EROFS_NAME_SIZE];
    int64_t meta = LAY_EROFS_HEADER / LAY_EROFS_BLOCK + tar_size / LAY_EROFS_BLOCK + (tar_size % LAY_EROFS_BLOCK != 0);
    lay_erofs_uuid(diff_id, uuid);
    lay_erofs_volume_name(tar_size, name);
    for (size_t i = 0; i < FIELDS; i++) {
        uint64_t has = get(p + fields[i].at, fields[i].size);
        snprintf(why, room, "it is %" PRIu64 ", and must be %" PRIu64, has, fields[i].value);
        if (has != fields[i].value)
            return fields[i].name;
    }
    snprintf(why, room, "%" PRId64 " bytes in blocks of %d, but the file has %" PRId64 " bytes", e->limit, 1 << e->bits, e->size);
    if (e->limit != e->size)
        return "blocks";
    snprintf(why, room, "it is not the layer's DiffID");
    if (memcmp(p + LAY_EROFS_AT_UUID, uuid, sizeof uuid) != 0)
        return "uuid";
    snprintf(why, room, "it does not say the tar's size, %" PRId64 " bytes", tar_size);
    if (memcmp(p + LAY_EROFS_AT_NAME, name, sizeof name) != 0)
        return "volume_name";
    snprintf(why, room, "it is block %" PRId64 ", and must be %" PRId64 " behind a tar of %" PRId64 " bytes", e->meta / LAY_EROFS_BLOCK, meta, tar_size);
    if (e->meta != meta * LAY_EROFS_BLOCK)
        return "meta_blkaddr";
    snprintf(why, room, "it is %" PRIu64 ", and must be 1", e->root);
    if (e->root != 1)
        return "root nid";
    snprintf(why, room, "it is 0x%" PRIx32 ", and only chunked files may be in it", e->incompat);
    if ((e->incompat & ~LAY_EROFS_INCOMPAT_CHUNKED) != 0)
        return "feature_incompat";
    uint64_t inodes = get(p + LAY_EROFS_AT_INODES, 8), most = (uint64_t)(e->limit - e->meta) / LAY_EROFS_INODE;
    snprintf(why, room, "it is %" PRIu64 ", and there is room for %" PRIu64, inodes, most);
    return inodes < 1 || inodes > most ? "inos" : NULL;
}

void lay_erofs_refusal(const lay_erofs *e, const uint8_t diff_id[32], int64_t tar_size, char text[LAY_ERROR_TEXT])
{
    char why[LAY_ERROR_TEXT / 2];
    const char *field = wrong(e, e->map + LAY_EROFS_SUPER, diff_id, tar_size, why, sizeof why);
    text[0] = '\0';
    if (field != NULL)
        snprintf(text, LAY_ERROR_TEXT, "the superblock is not one of this layer: %s: %s", field, why);
}
