/* digest.c - SHA-2 by libcrypto, CRC-64/ISO by ISA-L or by our own carry-less multiplication.
 *
 * Bytes enter as spans, digests leave. The low-level SHA256_ and SHA512_ calls are taken on purpose: they allocate
 * nothing, cannot fail and pull 38 KB out of libcrypto.a, where EVP would pull the whole of it.
 * Every CRC variant continues from any value, so spans may be cut anywhere.
 */
#define OPENSSL_SUPPRESS_DEPRECATED
#include "base/digest.h"

#include <assert.h>
#include <endian.h>
#include <string.h>

#include <openssl/opensslv.h>
#include <openssl/sha.h>

#ifdef HAVE_ISAL
#include <isa-l.h>
#elif defined __x86_64__
#define OWN_PCLMUL 1
#include <immintrin.h>
#endif

/* ---- SHA-256 ---- */

static_assert(sizeof(SHA256_CTX) <= sizeof(lay_sha256), "lay_sha256 has no room for a SHA256_CTX");
static_assert(_Alignof(SHA256_CTX) <= _Alignof(lay_sha256), "lay_sha256 is not aligned for a SHA256_CTX");
static_assert(SHA256_DIGEST_LENGTH == LAY_SHA256_SIZE, "SHA-256 has 32 bytes");

/* Only libcrypto looks inside: here the struct is storage of the right size and alignment. */
static SHA256_CTX *context(lay_sha256 *s) { return (void *)s; }

#ifdef LIBCRYPTO_STATIC
/* libcrypto.a finds the CPU's features from an .init section, which a linker without crti.o leaves uncalled: SHA-256
 * is then three times slower, without a warning. A second call is harmless. */
void OPENSSL_cpuid_setup(void);
__attribute__((constructor)) static void find_cpu_features(void) { OPENSSL_cpuid_setup(); }
#endif

void lay_sha256_start(lay_sha256 *s)
{
    SHA256_Init(context(s));
}

void lay_sha256_add(lay_sha256 *s, const void *p, size_t n)
{
    if (n > 0)
        SHA256_Update(context(s), p, n);
}

void lay_sha256_end(lay_sha256 *s, uint8_t out[LAY_SHA256_SIZE])
{
    SHA256_Final(out, context(s));
}

/* ---- any of them ---- */

static_assert(sizeof(SHA512_CTX) <= sizeof((lay_digest *)NULL)->state, "lay_digest has no room for a SHA512_CTX");
static_assert(_Alignof(SHA512_CTX) <= _Alignof(uint64_t), "lay_digest is not aligned for a SHA512_CTX");
static_assert(sizeof(lay_sha256) <= sizeof((lay_digest *)NULL)->state, "lay_digest has no room for a lay_sha256");
static_assert(SHA512_DIGEST_LENGTH == LAY_DIGEST_MOST, "SHA-512 has 64 bytes");

void lay_digest_start(lay_digest *d, lay_digest_kind kind)
{
    void *state = d->state;
    d->kind = kind;
    if (kind == LAY_DIGEST_SHA256)
        lay_sha256_start(state);
    else if (kind == LAY_DIGEST_SHA384)
        SHA384_Init(state);
    else if (kind == LAY_DIGEST_SHA512)
        SHA512_Init(state);
}

void lay_digest_add(lay_digest *d, const void *p, size_t n)
{
    void *state = d->state;
    if (d->kind == LAY_DIGEST_SHA256)
        lay_sha256_add(state, p, n);
    else if (d->kind != LAY_DIGEST_NONE && n > 0)
        SHA512_Update(state, p, n);           /* SHA-384 is it, begun otherwise and cut */
}

size_t lay_digest_end(lay_digest *d, uint8_t out[LAY_DIGEST_MOST])
{
    void *state = d->state;
    switch (d->kind) {
    case LAY_DIGEST_SHA256: lay_sha256_end(state, out); return SHA256_DIGEST_LENGTH;
    case LAY_DIGEST_SHA384: SHA384_Final(out, state); return SHA384_DIGEST_LENGTH;
    case LAY_DIGEST_SHA512: SHA512_Final(out, state); return SHA512_DIGEST_LENGTH;
    case LAY_DIGEST_NONE: break;
    }
    return 0;
}

const char *lay_build_sha256(void)
{
#ifdef OPENSSL_VERSION_STR
    return "libcrypto " OPENSSL_VERSION_STR;
#else
    return "libcrypto, " OPENSSL_VERSION_TEXT;
#endif
}

/* ---- CRC-64/ISO ----
 *
 * P = x^64 + x^4 + x^3 + x + 1, reflected: bit i of a register is the coefficient of x^(63-i). P is so
 * sparse that 64 bits are reduced by shifts alone: w * x^64 = w * (x^4 + x^3 + x + 1) mod P, and what
 * that pushes over the edge has at most four bits, which go through the same product once more. */

static inline uint64_t times_tail(uint64_t v) { return v ^ v >> 1 ^ v >> 3 ^ v >> 4; }

static inline uint64_t past_word(uint64_t w) { return times_tail(w ^ w << 60 ^ w << 61 ^ w << 63); }

static inline uint64_t past_byte(uint64_t crc, uint8_t b) { return crc >> 8 ^ times_tail((crc ^ b) << 56); }

/* raw: the register without the two complements. */
static uint64_t raw_plain(uint64_t raw, const uint8_t *p, size_t n)
{
    for (; n >= 8; p += 8, n -= 8) {
        uint64_t word;
        memcpy(&word, p, 8);
        raw = past_word(raw ^ le64toh(word));
    }
    for (; n > 0; p++, n--)
        raw = past_byte(raw, *p);
    return raw;
}

uint64_t lay_crc64_plain(uint64_t crc, const void *p, size_t n)
{
    return ~raw_plain(~crc, p, n);
}

/* a * b mod P. */
static uint64_t product(uint64_t a, uint64_t b)
{
    uint64_t sum = 0;
    for (int i = 63; i >= 0; i--) {
        if (b >> i & 1)
            sum ^= a;
        a = a >> 1 ^ (a & 1 ? UINT64_C(0xd800000000000000) : 0);
    }
    return sum;
}

uint64_t lay_crc64_zeros(uint64_t crc, uint64_t n)
{
    uint64_t raw = ~crc;
    for (uint64_t power = UINT64_C(1) << 55; n > 0; n >>= 1) {     /* x^8, x^16, x^32 ... */
        if (n & 1)
            raw = product(raw, power);
        power = product(power, power);
    }
    return ~raw;
}

#ifdef OWN_PCLMUL
/* A register of 128 bits, earlier half low, moves past t further bits by one product for each half:
 * low * (x^(t+63) mod P) + high * (x^(t-1) mod P); a reflected product is one bit short of the edge,
 * hence 63 and -1. */
#define FOLD_128 _mm_set_epi64x((int64_t)0xf500000000000001u, 0x6b70000000000001)
#define FOLD_512 _mm_set_epi64x((int64_t)0xb100010100000001u, 0x01b001b1b0000001)

__attribute__((target("pclmul")))
static inline __m128i fold(__m128i x, __m128i by, __m128i next)
{
    __m128i low = _mm_clmulepi64_si128(x, by, 0x00), high = _mm_clmulepi64_si128(x, by, 0x11);
    return _mm_xor_si128(_mm_xor_si128(low, high), next);
}

static inline __m128i load(const uint8_t *p) { return _mm_loadu_si128((const void *)p); }

/* n >= 64. Four registers hide the latency of the multiplier. */
__attribute__((target("pclmul")))
static uint64_t raw_pclmul(uint64_t raw, const uint8_t *p, size_t n)
{
    __m128i a = _mm_xor_si128(load(p), _mm_cvtsi64_si128((int64_t)raw));
    __m128i b = load(p + 16), c = load(p + 32), d = load(p + 48);
    for (p += 64, n -= 64; n >= 64; p += 64, n -= 64) {
        a = fold(a, FOLD_512, load(p));
        b = fold(b, FOLD_512, load(p + 16));
        c = fold(c, FOLD_512, load(p + 32));
        d = fold(d, FOLD_512, load(p + 48));
    }
    a = fold(fold(fold(a, FOLD_128, b), FOLD_128, c), FOLD_128, d);
    for (; n >= 16; p += 16, n -= 16)
        a = fold(a, FOLD_128, load(p));
    uint8_t rest[16];
    _mm_storeu_si128((void *)rest, a);
    return raw_plain(raw_plain(0, rest, sizeof rest), p, n);
}
#endif

uint64_t lay_crc64_add(uint64_t crc, const void *p, size_t n)
{
#ifdef HAVE_ISAL
    return n > 0 ? crc64_iso_refl(crc, p, n) : crc;
#else
#ifdef OWN_PCLMUL
    if (n >= 64 && __builtin_cpu_supports("pclmul"))
        return ~raw_pclmul(~crc, p, n);
#endif
    return lay_crc64_plain(crc, p, n);
#endif
}

const char *lay_build_crc64(void)
{
#ifdef HAVE_ISAL
    return "isa-l";
#else
#ifdef OWN_PCLMUL
    if (__builtin_cpu_supports("pclmul"))
        return "pclmul";
#endif
    return "plain";
#endif
}
