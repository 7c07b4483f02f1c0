/* nameset.c - a set of 64-bit name hashes: open addressing, linear probing, doubled at three quarters.
 *
 * The hash is SipHash-1-3 under a key drawn for each set, so that no tar can be made whose names
 * collide. A slot of 0 is an empty one; the hash 0 itself is kept as a flag.
 * Source: Aumasson and Bernstein, "SipHash: a fast short-input PRF".
 */
#include "base/nameset.h"

#include <string.h>
#include <sys/random.h>

#define FIRST_SLOTS 256u

lay_code lay_nameset_init(lay_nameset *s, lay_error *err)
{
    memset(s, 0, sizeof *s);
    size_t have = 0;
    while (have < sizeof s->key) {
        ssize_t n = getrandom((uint8_t *)s->key + have, sizeof s->key - have, 0);
        if (n < 0 && errno != EINTR)
            return lay_fail_os(err, errno, NULL, "cannot draw random bytes");
        if (n > 0)
            have += (size_t)n;
    }
    s->slots = calloc(FIRST_SLOTS, sizeof *s->slots);
    if (!s->slots)
        return lay_fail_nomem(err);
    s->mask = FIRST_SLOTS - 1;
    return LAY_OK;
}

typedef struct sip { uint64_t a, b, c, d; } sip;

static inline uint64_t rotate(uint64_t x, int k) { return x << k | x >> (64 - k); }

static inline void sip_round(sip *v)
{
    v->a += v->b; v->b = rotate(v->b, 13) ^ v->a; v->a = rotate(v->a, 32);
    v->c += v->d; v->d = rotate(v->d, 16) ^ v->c;
    v->a += v->d; v->d = rotate(v->d, 21) ^ v->a;
    v->c += v->b; v->b = rotate(v->b, 17) ^ v->c; v->c = rotate(v->c, 32);
}

static inline void sip_word(sip *v, uint64_t m)
{
    v->d ^= m;
    sip_round(v);
    v->a ^= m;
}

uint64_t lay_nameset_hash(const lay_nameset *s, const char *name, size_t n)
{
    sip v = {
        s->key[0] ^ 0x736f6d6570736575u, s->key[1] ^ 0x646f72616e646f6du,
        s->key[0] ^ 0x6c7967656e657261u, s->key[1] ^ 0x7465646279746573u,
    };
    size_t i = 0;
    uint64_t m;
    for (; n - i >= 8; i += 8) {
        memcpy(&m, name + i, 8);
        sip_word(&v, m);
    }
    m = 0;
    if (i < n)
        memcpy(&m, name + i, n - i);
    sip_word(&v, m ^ (uint64_t)n << 56);
    v.c ^= 0xff;
    for (int k = 0; k < 3; k++)
        sip_round(&v);
    return v.a ^ v.b ^ v.c ^ v.d;
}

/* The slot that holds hash, or the empty one where it belongs. hash is not 0. */
static size_t find(const uint64_t *slots, size_t mask, uint64_t hash)
{
    size_t i = (size_t)hash & mask;
    while (slots[i] != 0 && slots[i] != hash)
        i = (i + 1) & mask;
    return i;
}

bool lay_nameset_has(const lay_nameset *s, uint64_t hash)
{
    if (hash == 0)
        return s->has_zero;
    return s->slots[find(s->slots, s->mask, hash)] == hash;
}

static lay_code grow(lay_nameset *s, lay_error *err)
{
    if (s->mask > SIZE_MAX / (2 * sizeof *s->slots) - 1)
        return lay_fail_nomem(err);
    size_t mask = s->mask * 2 + 1;
    uint64_t *slots = calloc(mask + 1, sizeof *slots);
    if (!slots)
        return lay_fail_nomem(err);
    for (size_t i = 0; i <= s->mask; i++)
        if (s->slots[i] != 0)
            slots[find(slots, mask, s->slots[i])] = s->slots[i];
    free(s->slots);
    s->slots = slots;
    s->mask = mask;
    return LAY_OK;
}

lay_code lay_nameset_add(lay_nameset *s, uint64_t hash, bool *seen, lay_error *err)
{
    if (hash == 0) {
        *seen = s->has_zero;
        if (!s->has_zero)
            s->count++;
        s->has_zero = true;
        return LAY_OK;
    }
    size_t at = find(s->slots, s->mask, hash);
    *seen = s->slots[at] == hash;
    if (*seen)
        return LAY_OK;
    if (s->count + 1 > (s->mask + 1) / 4 * 3) {
        if (grow(s, err))
            return err->code;
        at = find(s->slots, s->mask, hash);
    }
    s->slots[at] = hash;
    s->count++;
    return LAY_OK;
}

void lay_nameset_free(lay_nameset *s)
{
    free(s->slots);
    s->slots = NULL;
    s->mask = s->count = 0;
    s->has_zero = false;
}
