/* split_text.c - base64 and JSON text for tar-split lines.
 *
 * The writer's bytes are those of Go's encoding/json (HTML escapes, \u2028, lower-case hex), because
 * records are compared with dockerd's line by line. The reader takes any JSON that Go would take.
 */
#include "tarsplit/split_text.h"

#include <string.h>
#include <strings.h>

static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

void lay_base64_encode(const uint8_t *p, size_t n, char *out)
{
    for (; n >= 3; n -= 3, p += 3, out += 4) {
        uint32_t v = (uint32_t)p[0] << 16 | (uint32_t)p[1] << 8 | p[2];
        out[0] = alphabet[v >> 18];
        out[1] = alphabet[v >> 12 & 63];
        out[2] = alphabet[v >> 6 & 63];
        out[3] = alphabet[v & 63];
    }
    if (n) {
        uint32_t v = (uint32_t)p[0] << 16 | (n == 2 ? (uint32_t)p[1] << 8 : 0);
        out[0] = alphabet[v >> 18];
        out[1] = alphabet[v >> 12 & 63];
        out[2] = n == 2 ? alphabet[v >> 6 & 63] : '=';
        out[3] = '=';
    }
}

/* 0-63, or 64 and more for what is no letter of the alphabet. */
static const uint8_t value_of[256] = {
#define X 64
#define X8 X, X, X, X, X, X, X, X
    X8, X8, X8, X8,
    X8, X, X, X, 62, X, X, X, 63,
    52, 53, 54, 55, 56, 57, 58, 59, 60, 61, X, X, X, X, X, X,
    X, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14,
    15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, X, X, X, X, X,
    X, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40,
    41, 42, 43, 44, 45, 46, 47, 48, 49, 50, 51, X, X, X, X, X,
    X8, X8, X8, X8, X8, X8, X8, X8, X8, X8, X8, X8, X8, X8, X8, X8
#undef X8
#undef X
};

bool lay_base64_decode(const char *text, size_t n, uint8_t *out, size_t *len)
{
    const uint8_t *p = (const uint8_t *)text;
    *len = 0;
    if (n % 4)
        return false;
    if (!n)
        return true;
    size_t pad = p[n - 1] == '=' ? (p[n - 2] == '=' ? 2u : 1u) : 0u;
    size_t whole = n / 4 - (pad ? 1 : 0);
    uint8_t bad = 0;
    uint8_t *o = out;
    for (size_t i = 0; i < whole; i++, p += 4, o += 3) {
        uint8_t a = value_of[p[0]], b = value_of[p[1]], c = value_of[p[2]], d = value_of[p[3]];
        bad |= a | b | c | d;
        o[0] = (uint8_t)(a << 2 | b >> 4);
        o[1] = (uint8_t)(b << 4 | c >> 2);
        o[2] = (uint8_t)(c << 6 | d);
    }
    if (pad) {
        uint8_t a = value_of[p[0]], b = value_of[p[1]], c = pad == 1 ? value_of[p[2]] : 0;
        bad |= a | b | c;
        *o++ = (uint8_t)(a << 2 | b >> 4);
        if (pad == 1)
            *o++ = (uint8_t)(b << 4 | c >> 2);
    }
    *len = (size_t)(o - out);
    return bad < 64;
}

/* Length of the valid sequence at p, 0 if there is none. */
static size_t utf8_sequence(const uint8_t *p, size_t n)
{
    uint8_t c = p[0];
    if (c < 0x80)
        return 1;
    size_t len = c >= 0xc2 && c <= 0xdf ? 2 : (c & 0xf0) == 0xe0 ? 3 : c >= 0xf0 && c <= 0xf4 ? 4 : 0;
    if (!len || len > n)
        return 0;
    for (size_t i = 1; i < len; i++)
        if ((p[i] & 0xc0) != 0x80)
            return 0;
    if ((c == 0xe0 && p[1] < 0xa0) || (c == 0xed && p[1] > 0x9f) || (c == 0xf0 && p[1] < 0x90) || (c == 0xf4 && p[1] > 0x8f))
        return 0;
    return len;
}

bool lay_utf8_valid(const char *text, size_t n)
{
    const uint8_t *p = (const uint8_t *)text;
    while (n) {
        size_t len = utf8_sequence(p, n);
        if (!len)
            return false;
        p += len;
        n -= len;
    }
    return true;
}

size_t lay_json_escape(const char *p, size_t n, char *out)
{
    static const char hex[] = "0123456789abcdef";
    char *o = out;
    for (size_t i = 0; i < n; i++) {
        uint8_t c = (uint8_t)p[i];
        char named = c == '"' || c == '\\' ? (char)c : c == '\n' ? 'n' : c == '\r' ? 'r' : c == '\t' ? 't' : c == '\b' ? 'b' : c == '\f' ? 'f' : 0;
        if (named) {
            *o++ = '\\';
            *o++ = named;
        } else if (c < 0x20 || c == '<' || c == '>' || c == '&') {
            memcpy(o, "\\u00", 4);
            o[4] = hex[c >> 4];
            o[5] = hex[c & 15];
            o += 6;
        } else if (c == 0xe2 && n - i >= 3 && (uint8_t)p[i + 1] == 0x80 && ((uint8_t)p[i + 2] & 0xfe) == 0xa8) {
            memcpy(o, "\\u202", 5);
            o[5] = (uint8_t)p[i + 2] == 0xa8 ? '8' : '9';
            o += 6;
            i += 2;
        } else {
            *o++ = (char)c;
        }
    }
    return (size_t)(o - out);
}

/* ---- reading ---------------------------------------------------------------------------------- */

typedef struct cursor { const char *p, *end; } cursor;

static void blanks(cursor *c)
{
    while (c->p < c->end && (*c->p == ' ' || *c->p == '\n' || *c->p == '\t' || *c->p == '\r'))
        c->p++;
}

/* The first byte from p on that is no plain part of a string; eight at a time, as most of a record is such text. */
static const char *plain_end(const char *p, const char *end)
{
    const uint64_t ones = 0x0101010101010101u, tops = 0x8080808080808080u;
    uint64_t w;
    for (; end - p >= (ptrdiff_t)sizeof w; p += sizeof w) {
        memcpy(&w, p, sizeof w);
        uint64_t quote = w ^ ones * '"', backslash = w ^ ones * '\\';
        /* a byte below its limit borrows: then the loop below looks, which only costs where it was none */
        if ((((quote - ones) & ~quote) | ((backslash - ones) & ~backslash) | ((w - ones * 0x20) & ~w)) & tops)
            break;
    }
    while (p < end && *p != '"' && *p != '\\' && (uint8_t)*p >= 0x20)
        p++;
    return p;
}

static int hex_digit(char ch)
{
    return ch >= '0' && ch <= '9' ? ch - '0' : ch >= 'a' && ch <= 'f' ? ch - 'a' + 10 : ch >= 'A' && ch <= 'F' ? ch - 'A' + 10 : -1;
}

/* After the opening quote: to the closing one. */
static lay_json string_end(cursor *c, const char **text, size_t *len)
{
    const char *start = c->p;
    for (;;) {
        c->p = plain_end(c->p, c->end);
        if (c->p == c->end)
            return LAY_JSON_MORE;
        if (*c->p == '"') {
            *text = start;
            *len = (size_t)(c->p++ - start);
            return LAY_JSON_OK;
        }
        if (*c->p != '\\')
            return LAY_JSON_BAD;
        if (c->end - c->p < 2)
            return LAY_JSON_MORE;
        if (!strchr("\"\\/bfnrtu", c->p[1]) || !c->p[1])
            return LAY_JSON_BAD;
        if (c->p[1] == 'u') {                   /* four digits follow: an escape is never shorter than what it stands for */
            for (size_t i = 2; i < 6; i++) {
                if ((size_t)(c->end - c->p) <= i)
                    return LAY_JSON_MORE;
                if (hex_digit(c->p[i]) < 0)
                    return LAY_JSON_BAD;
            }
            c->p += 4;
        }
        c->p += 2;
    }
}

/* Pass over any value; depth counts brackets, no recursion. */
static lay_json skip_value(cursor *c)
{
    unsigned depth = 0;
    const char *text;
    size_t len;
    do {
        blanks(c);
        if (c->p == c->end)
            return LAY_JSON_MORE;
        char ch = *c->p++;
        if (ch == '"') {
            lay_json j = string_end(c, &text, &len);
            if (j)
                return j;
        } else if (ch == '{' || ch == '[') {
            depth++;
        } else if (ch == '}' || ch == ']') {
            if (!depth)
                return LAY_JSON_BAD;
            depth--;
        } else if (ch == ',' || ch == ':') {
            if (!depth)
                return LAY_JSON_BAD;
        } else {
            while (c->p < c->end && !strchr(" \n\t\r,:{}[]\"", *c->p))
                c->p++;
            if (c->p == c->end)
                return LAY_JSON_MORE;
        }
    } while (depth);
    return LAY_JSON_OK;
}

static lay_json number(cursor *c, int64_t *out)
{
    bool negative = c->p < c->end && *c->p == '-';
    const char *q = c->p + negative;
    int64_t x = 0;
    while (q < c->end && *q >= '0' && *q <= '9') {
        if (__builtin_mul_overflow(x, 10, &x) || __builtin_add_overflow(x, *q - '0', &x))
            return LAY_JSON_BAD;
        q++;
    }
    if (q == c->end)
        return LAY_JSON_MORE;
    if (q == c->p + negative || *q == '.' || *q == 'e' || *q == 'E')
        return LAY_JSON_BAD;
    c->p = q;
    *out = negative ? -x : x;
    return LAY_JSON_OK;
}

static lay_json null(cursor *c)
{
    size_t have = (size_t)(c->end - c->p);
    if (memcmp(c->p, "null", have < 4 ? have : 4) != 0)
        return LAY_JSON_BAD;
    if (have < 4)
        return LAY_JSON_MORE;
    c->p += 4;
    return LAY_JSON_OK;
}

static bool key_is(const char *key, size_t n, const char *want)
{
    return n == strlen(want) && !strncasecmp(key, want, n);
}

static lay_json member(cursor *c, lay_json_line *line)
{
    const char *key, *text;
    size_t key_len, len;
    if (*c->p++ != '"')
        return LAY_JSON_BAD;
    lay_json j = string_end(c, &key, &key_len);
    if (j)
        return j;
    blanks(c);
    if (c->p == c->end)
        return LAY_JSON_MORE;
    if (*c->p++ != ':')
        return LAY_JSON_BAD;
    blanks(c);
    if (c->p == c->end)
        return LAY_JSON_MORE;
    bool is_type = key_is(key, key_len, "type"), is_size = key_is(key, key_len, "size");
    if (is_type || is_size)
        return *c->p == 'n' ? null(c) : number(c, is_type ? &line->type : &line->size);
    const char **slot = NULL;
    size_t *slot_len = NULL;
    if (key_is(key, key_len, "payload"))
        slot = &line->payload, slot_len = &line->payload_len;
    else if (key_is(key, key_len, "name"))
        slot = &line->name, slot_len = &line->name_len;
    else if (key_is(key, key_len, "name_raw"))
        slot = &line->name_raw, slot_len = &line->name_raw_len;
    if (!slot)
        return skip_value(c);
    if (*c->p == 'n')
        return null(c);
    if (*c->p++ != '"')
        return LAY_JSON_BAD;
    j = string_end(c, &text, &len);
    if (j)
        return j;
    *slot = text;
    *slot_len = len;
    return LAY_JSON_OK;
}

lay_json lay_json_object(const char *p, size_t n, lay_json_line *line, size_t *used)
{
    cursor c = { p, p + n };
    *line = (lay_json_line){ 0 };
    blanks(&c);
    if (c.p == c.end)
        return LAY_JSON_MORE;
    if (*c.p++ != '{')
        return LAY_JSON_BAD;
    for (bool first = true;; first = false) {
        blanks(&c);
        if (c.p == c.end)
            return LAY_JSON_MORE;
        if (*c.p == '}') {
            c.p++;
            *used = (size_t)(c.p - p);
            return LAY_JSON_OK;
        }
        if (!first) {
            if (*c.p++ != ',')
                return LAY_JSON_BAD;
            blanks(&c);
            if (c.p == c.end)
                return LAY_JSON_MORE;
        }
        lay_json j = member(&c, line);
        if (j)
            return j;
    }
}

static int hex4(const char *p)
{
    int v = 0;
    for (int i = 0; i < 4; i++) {
        int d = hex_digit(p[i]);
        if (d < 0)
            return -1;
        v = v << 4 | d;
    }
    return v;
}

static char *put_utf8(char *o, uint32_t u)
{
    if (u < 0x80) {
        *o++ = (char)u;
    } else if (u < 0x800) {
        *o++ = (char)(0xc0 | u >> 6);
        *o++ = (char)(0x80 | (u & 63));
    } else if (u < 0x10000) {
        *o++ = (char)(0xe0 | u >> 12);
        *o++ = (char)(0x80 | (u >> 6 & 63));
        *o++ = (char)(0x80 | (u & 63));
    } else {
        *o++ = (char)(0xf0 | u >> 18);
        *o++ = (char)(0x80 | (u >> 12 & 63));
        *o++ = (char)(0x80 | (u >> 6 & 63));
        *o++ = (char)(0x80 | (u & 63));
    }
    return o;
}

bool lay_json_unescape(const char *p, size_t n, char *out, size_t *len)
{
    char *o = out;
    const char *end = p + n;
    *len = 0;
    while (p < end) {
        if (*p != '\\') {
            *o++ = *p++;
            continue;
        }
        if (end - p < 2)
            return false;
        char ch = p[1];
        p += 2;
        if (ch != 'u') {
            *o++ = ch == 'b' ? '\b' : ch == 'f' ? '\f' : ch == 'n' ? '\n' : ch == 'r' ? '\r' : ch == 't' ? '\t' : ch;
            continue;
        }
        int u = end - p >= 4 ? hex4(p) : -1;
        if (u < 0)
            return false;
        p += 4;
        if (u >= 0xd800 && u < 0xe000) {        /* a pair of surrogates is one character, a lone one none */
            int low = u < 0xdc00 && end - p >= 6 && p[0] == '\\' && p[1] == 'u' ? hex4(p + 2) : -1;
            if (low >= 0xdc00 && low < 0xe000) {
                p += 6;
                o = put_utf8(o, 0x10000u + (((uint32_t)u - 0xd800u) << 10) + ((uint32_t)low - 0xdc00u));
            } else {
                o = put_utf8(o, 0xfffd);
            }
            continue;
        }
        o = put_utf8(o, (uint32_t)u);
    }
    *len = (size_t)(o - out);
    return true;
}
