/* erofs_format.c - the superblock as we write it, its checksum, and the prefixes of extended attributes. */
#include "erofs/erofs_format.h"

#include <inttypes.h>
#include <stdio.h>
#include <sys/stat.h>

uint32_t lay_erofs_checksum(const uint8_t *superblock, size_t size)
{
    uint32_t crc = 0xFFFFFFFFu;
    for (size_t i = 0; i < size; i++) {
        crc ^= i >= LAY_EROFS_AT_CHECKSUM && i < LAY_EROFS_AT_CHECKSUM + 4 ? 0 : superblock[i];
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0x82F63B78u : 0);
    }
    return crc;
}

void lay_erofs_uuid(const uint8_t diff_id[32], uint8_t uuid[16]) { memcpy(uuid, diff_id, 16); }

void lay_erofs_volume_name(int64_t tar_size, uint8_t name[LAY_EROFS_NAME_SIZE])
{
    char text[32];
    int n = snprintf(text, sizeof text, "tar:%" PRId64, tar_size);
    memset(name, 0, LAY_EROFS_NAME_SIZE);
    if (tar_size >= 0 && n < LAY_EROFS_NAME_SIZE)  /* its last byte stays 0 */
        memcpy(name, text, (size_t)n);
}

int64_t lay_erofs_tar_size(const uint8_t name[LAY_EROFS_NAME_SIZE])
{
    uint8_t same[LAY_EROFS_NAME_SIZE];
    int64_t size = 0;
    if (memcmp(name, "tar:", 4) != 0)
        return -1;
    for (size_t i = 4; i < LAY_EROFS_NAME_SIZE && name[i] >= '0' && name[i] <= '9'; i++)
        size = size * 10 + (name[i] - '0');
    lay_erofs_volume_name(size, same);
    return memcmp(same, name, LAY_EROFS_NAME_SIZE) == 0 ? size : -1;
}

void lay_erofs_put_super(uint8_t *header, const lay_erofs_super *s)
{
    uint8_t *b = header + LAY_EROFS_SUPER;
    memset(header, 0, LAY_EROFS_HEADER);
    lay_put32(b, LAY_EROFS_MAGIC);
    lay_put32(b + LAY_EROFS_AT_COMPAT, LAY_EROFS_COMPAT_CHECKSUM | LAY_EROFS_COMPAT_MTIME);
    b[LAY_EROFS_AT_BITS] = LAY_EROFS_BITS;
    lay_put16(b + LAY_EROFS_AT_ROOT, (uint16_t)s->root);
    lay_put64(b + LAY_EROFS_AT_INODES, s->inodes);
    lay_put32(b + LAY_EROFS_AT_BLOCKS, s->blocks);
    lay_put32(b + LAY_EROFS_AT_META, s->meta);
    lay_erofs_uuid(s->diff_id, b + LAY_EROFS_AT_UUID);
    lay_erofs_volume_name(s->tar_size, b + LAY_EROFS_AT_NAME);
    lay_put32(b + LAY_EROFS_AT_INCOMPAT, s->incompat);
    lay_put16(b + LAY_EROFS_AT_DEVICES, s->devices);
    lay_put16(b + LAY_EROFS_AT_DEVICE_SLOT, s->device_slot);
    lay_put32(b + LAY_EROFS_AT_CHECKSUM, lay_erofs_checksum(b, LAY_EROFS_BLOCK));
}

/* Those of an ACL take the whole name. */
static const struct { const char *text; uint8_t number; bool whole; } prefixes[] = {
    { "user.", 1, false }, { "system.posix_acl_access", 2, true }, { "system.posix_acl_default", 3, true },
    { "trusted.", 4, false }, { "security.", 6, false },
};
#define PREFIXES (sizeof prefixes / sizeof *prefixes)

uint8_t lay_erofs_prefix(const char *name, size_t n, size_t *taken)
{
    for (size_t i = 0; i < PREFIXES; i++) {
        size_t len = strlen(prefixes[i].text);
        if ((prefixes[i].whole ? n == len : n >= len) && memcmp(name, prefixes[i].text, len) == 0) {
            *taken = len;
            return prefixes[i].number;
        }
    }
    return 0;
}

const char *lay_erofs_prefix_text(uint8_t number)
{
    for (size_t i = 0; i < PREFIXES; i++)
        if (prefixes[i].number == number)
            return prefixes[i].text;
    return NULL;
}

uint8_t lay_erofs_file_type(uint32_t mode)
{
    switch (mode & S_IFMT) {
    case S_IFREG: return 1;
    case S_IFDIR: return 2;
    case S_IFCHR: return 3;
    case S_IFBLK: return 4;
    case S_IFIFO: return 5;
    case S_IFSOCK: return 6;
    case S_IFLNK: return 7;
    default: return 0;
    }
}
