/* digest.h - SHA-256, SHA-384, SHA-512 (OpenSSL's libcrypto) and CRC-64/ISO (ISA-L, or our own) over spans. */
#ifndef LAY_DIGEST_H
#define LAY_DIGEST_H

#include "base/error.h"

#define LAY_SHA256_SIZE 32

typedef struct lay_sha256 { uint64_t state[16]; } lay_sha256;   /* room for libcrypto's SHA256_CTX (112 bytes) */

void lay_sha256_start(lay_sha256 *s);
void lay_sha256_add(lay_sha256 *s, const void *p, size_t n);
void lay_sha256_end(lay_sha256 *s, uint8_t out[LAY_SHA256_SIZE]);   /* s is spent */

/* One of those that LAY_DIGESTS lists. */
typedef struct lay_digest { lay_digest_kind kind; uint64_t state[27]; } lay_digest;   /* room for a SHA512_CTX (216 bytes) */

void lay_digest_start(lay_digest *d, lay_digest_kind kind);
void lay_digest_add(lay_digest *d, const void *p, size_t n);
size_t lay_digest_end(lay_digest *d, uint8_t out[LAY_DIGEST_MOST]);   /* bytes of out that are set; d is spent */

/* CRC-64/ISO as Go's crc64.ISO table gives it: start with 0, add spans; stored big-endian in a record. */
uint64_t lay_crc64_add(uint64_t crc, const void *p, size_t n);
/* As if n bytes of zero were added. */
uint64_t lay_crc64_zeros(uint64_t crc, uint64_t n);
/* The plain variant, of shifts alone, which every other must agree with. */
uint64_t lay_crc64_plain(uint64_t crc, const void *p, size_t n);

#endif
