/* tar_number.c - octal, base-256, decimal and fractional seconds. */
#include "tar/tar_number.h"

bool lay_tar_number(const uint8_t *b, size_t n, int64_t *out)
{
    if (b[0] & 0x80) {
        uint8_t inv = b[0] & 0x40 ? 0xff : 0;
        uint64_t x = 0;
        for (size_t i = 0; i < n; i++) {
            uint8_t c = b[i] ^ inv;
            if (i == 0)
                c &= 0x7f;
            if (x >> 56)
                return false;
            x = x << 8 | c;
        }
        if (x >> 63)
            return false;
        *out = inv ? (int64_t)~x : (int64_t)x;
        return true;
    }
    while (n && (b[0] == ' ' || b[0] == 0)) { b++; n--; }
    while (n && (b[n - 1] == ' ' || b[n - 1] == 0)) n--;
    n = lay_field_len(b, n);
    uint64_t x = 0;
    for (size_t i = 0; i < n; i++) {
        if (b[i] < '0' || b[i] > '7' || x >> 61)
            return false;
        x = x << 3 | (uint64_t)(b[i] - '0');
    }
    *out = (int64_t)x;
    return true;
}

bool lay_tar_decimal(const char *s, size_t n, int64_t *out)
{
    bool negative = false;
    if (n && (*s == '-' || *s == '+')) {
        negative = *s == '-';
        s++;
        n--;
    }
    if (!n)
        return false;
    int64_t x = 0;
    for (size_t i = 0; i < n; i++) {
        if (s[i] < '0' || s[i] > '9')
            return false;
        int64_t d = s[i] - '0';
        if (__builtin_mul_overflow(x, 10, &x) || __builtin_sub_overflow(x, d, &x))
            return false;                       /* counts down: the most negative number has no positive twin */
    }
    if (!negative && x == INT64_MIN)
        return false;
    *out = negative ? x : -x;
    return true;
}

bool lay_tar_seconds(const char *s, size_t n, lay_time *out)
{
    const char *dot = memchr(s, '.', n);
    size_t whole = dot ? (size_t)(dot - s) : n;
    if (!lay_tar_decimal(s, whole, &out->sec))
        return false;
    out->nsec = 0;
    if (!dot)
        return true;
    int32_t nsec = 0;
    size_t digits = n - whole - 1;
    for (size_t i = 0; i < digits || i < 9; i++) {
        char c = i < digits ? dot[1 + i] : '0';
        if (c < '0' || c > '9')
            return false;
        if (i < 9)
            nsec = nsec * 10 + (c - '0');
    }
    if (s[0] == '-' && nsec) {                  /* -1.25 is one and a quarter before the epoch */
        if (__builtin_sub_overflow(out->sec, 1, &out->sec))
            return false;
        nsec = 1000000000 - nsec;
    }
    out->nsec = nsec;
    return true;
}
