/* erofs_format.h - the numbers of an EROFS image on disk, and what its superblock holds.
 *
 * An image over a layer's tar:  header (LAY_EROFS_HEADER bytes) | tar, zero-padded to a block | metadata | expanded files
 * All numbers are little endian. Source: the kernel's description of the format; the sizes and limits are those of Linux 6.4.
 */
#ifndef LAY_EROFS_FORMAT_H
#define LAY_EROFS_FORMAT_H

#include "base/error.h"

#include <string.h>

#define LAY_EROFS_BITS 9                        /* of a block's size, as we write it: payloads of a tar are aligned so */
#define LAY_EROFS_BLOCK 512
#define LAY_EROFS_HEADER 4096                   /* where the tar begins */
#define LAY_EROFS_SUPER 1024                    /* where the superblock is, */
#define LAY_EROFS_SUPER_SIZE 128                /* and its bytes */
#define LAY_EROFS_MAGIC 0xE0F5E1E2u
#define LAY_EROFS_SLOT 32                       /* an inode begins at a multiple of it; its number counts them */
#define LAY_EROFS_MOST_BLOCKS 0xFFFFFFFFll      /* of an image: numbers of blocks have 32 bits, and the last one means none */
#define LAY_EROFS_NO_BLOCK 0xFFFFFFFFu          /* of a chunk: a hole */

#define LAY_EROFS_COMPAT_CHECKSUM 1u
#define LAY_EROFS_COMPAT_MTIME 2u
#define LAY_EROFS_INCOMPAT_CHUNKED 4u
#define LAY_EROFS_INCOMPAT_DEVICES 8u

/* Fields of the superblock. */
#define LAY_EROFS_AT_CHECKSUM 4
#define LAY_EROFS_AT_COMPAT 8
#define LAY_EROFS_AT_BITS 12
#define LAY_EROFS_AT_ROOT 14
#define LAY_EROFS_AT_INODES 16
#define LAY_EROFS_AT_BLOCKS 36
#define LAY_EROFS_AT_META 40
#define LAY_EROFS_AT_UUID 48
#define LAY_EROFS_AT_NAME 64
#define LAY_EROFS_NAME_SIZE 16
#define LAY_EROFS_AT_INCOMPAT 80
#define LAY_EROFS_AT_DEVICES 86
#define LAY_EROFS_AT_DEVICE_SLOT 88

/* Inodes. Extended ones only are written. */
#define LAY_EROFS_INODE 64
#define LAY_EROFS_EXTENDED 1u                   /* bit 0 of the format; the layout stands in bits 1 to 3 */
#define LAY_EROFS_FLAT 0u
#define LAY_EROFS_INLINE 2u
#define LAY_EROFS_CHUNKED 4u
#define LAY_EROFS_CHUNK_BITS 31u                /* of a chunk's format: log2 of its blocks */
#define LAY_EROFS_CHUNK_INDEXES 0x20u           /* 8 bytes a chunk */
#define LAY_EROFS_XATTR_HEADER 12
#define LAY_EROFS_DIRENT 12

/* A device slot. */
#define LAY_EROFS_DEVICE 128
#define LAY_EROFS_DEVICE_BLOCKS 64
#define LAY_EROFS_DEVICE_UNI 68

static inline void lay_put16(uint8_t *p, uint16_t v) { p[0] = (uint8_t)v; p[1] = (uint8_t)(v >> 8); }
static inline void lay_put32(uint8_t *p, uint32_t v) { lay_put16(p, (uint16_t)v); lay_put16(p + 2, (uint16_t)(v >> 16)); }
static inline void lay_put64(uint8_t *p, uint64_t v) { lay_put32(p, (uint32_t)v); lay_put32(p + 4, (uint32_t)(v >> 32)); }
static inline uint16_t lay_get16(const uint8_t *p) { return (uint16_t)(p[0] | p[1] << 8); }
static inline uint32_t lay_get32(const uint8_t *p) { return lay_get16(p) | (uint32_t)lay_get16(p + 2) << 16; }
static inline uint64_t lay_get64(const uint8_t *p) { return lay_get32(p) | (uint64_t)lay_get32(p + 4) << 32; }

/* CRC-32C from 0xFFFFFFFF on, not inverted at the end, over the block at p, a block of `size` bytes (at most 1024 are
 * behind the superblock's place) whose field of the checksum counts as 0. */
uint32_t lay_erofs_checksum(const uint8_t *superblock, size_t size);

typedef struct lay_erofs_super {
    uint32_t root, blocks, meta, incompat;      /* the root's number; blocks of the image; where slot 0 is */
    uint64_t inodes;
    uint16_t devices, device_slot;
    const uint8_t *diff_id;                     /* 32 bytes, whose beginning is the uuid */
    int64_t tar_size;                           /* for the volume's name; -1: there is no tar */
} lay_erofs_super;
/* The header of an image, LAY_EROFS_HEADER bytes, as we write it. */
void lay_erofs_put_super(uint8_t *header, const lay_erofs_super *s);
/* The uuid of the image of a layer: the beginning of its DiffID. */
void lay_erofs_uuid(const uint8_t diff_id[32], uint8_t uuid[16]);
/* "tar:<bytes>", NUL-padded; empty where there is no room for it, and of no tar (-1). */
void lay_erofs_volume_name(int64_t tar_size, uint8_t name[LAY_EROFS_NAME_SIZE]);
/* What such a name says, or -1. */
int64_t lay_erofs_tar_size(const uint8_t name[LAY_EROFS_NAME_SIZE]);

/* The prefix of an extended attribute: its number, and how much of the name it takes; 0: none can hold it. */
uint8_t lay_erofs_prefix(const char *name, size_t n, size_t *taken);
/* That prefix by its number, or NULL. */
const char *lay_erofs_prefix_text(uint8_t number);
/* What an attribute takes of the bytes behind its inode, n of its name left. */
static inline size_t lay_erofs_xattr_size(size_t n, size_t value) { return (4 + n + value + 3) & ~(size_t)3; }

/* The type byte of a directory's entry for a mode; 0: there is none. */
uint8_t lay_erofs_file_type(uint32_t mode);

#endif
