/* inflate.c - gzip and zstd windows in, plain bytes out.
 *
 *   member = 1f 8b 08 flags mtime(4) xfl os [xlen extra] [name NUL] [comment NUL] [crc16] deflate crc32 isize
 *
 * Header and trailer are parsed here, byte by byte, so that ISA-L and zlib both see raw deflate only and
 * agree on every stream, cut anywhere. An error comes after the bytes the library gave before it.
 * Source: RFC 1952; gzip(1) for what may follow the last member.
 */
#include "codec/inflate.h"
#include "base/limit.h"
#include "codec/pack.h"
#include "tar/tar.h"

#include <endian.h>
#include <string.h>

#ifdef HAVE_ISAL
#include <isa-l.h>
#else
#include <zlib.h>
#endif
#ifdef HAVE_ZSTD
#include <zstd.h>
#include <zstd_errors.h>
#endif

#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)

const char *lay_build_gzip(void)
{
#ifdef HAVE_ISAL
    return "isa-l " TEXT(ISAL_MAJOR_VERSION) "." TEXT(ISAL_MINOR_VERSION);
#else
    return "zlib " ZLIB_VERSION;
#endif
}

const char *lay_build_zstd(void)
{
#ifdef HAVE_ZSTD
    return "libzstd " ZSTD_VERSION_STRING;
#else
    return "";
#endif
}

/* A tar may begin with a name that looks like a compressor's mark. But a blank checksum counts as 0, and bytes that
 * are mostly zero, as of compressed zeros, may add up to that when they are taken as signed: it proves nothing. */
static bool is_tar(const uint8_t *p, size_t n)
{
    if (n < LAY_TAR_BLOCK || !lay_tar_is_header(p))
        return false;
    for (size_t i = 148; i < 156; i++)
        if (p[i] >= '0' && p[i] <= '7')
            return true;
    return false;
}

lay_format lay_format_guess(const uint8_t *p, size_t n)
{
    static const struct { lay_format format; uint8_t n; uint8_t magic[6]; } known[] = {
        { LAY_FORMAT_GZIP, 3, { 0x1f, 0x8b, 0x08 } },
        { LAY_FORMAT_ZSTD, 4, { 0x28, 0xb5, 0x2f, 0xfd } },
        { LAY_FORMAT_BZIP2, 3, { 'B', 'Z', 'h' } },
        { LAY_FORMAT_XZ, 6, { 0xfd, '7', 'z', 'X', 'Z', 0x00 } },
        { LAY_FORMAT_LZ4, 4, { 0x04, 0x22, 0x4d, 0x18 } },
    };
    if (is_tar(p, n))
        return LAY_FORMAT_PLAIN;
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (n >= known[i].n && memcmp(p, known[i].magic, known[i].n) == 0)
            return known[i].format;
    /* zstd and lz4 share their skippable frames; as in moby such a stream is taken for zstd. */
    if (n >= 4 && (p[0] & 0xf0) == 0x50 && p[1] == 0x2a && p[2] == 0x4d && p[3] == 0x18)
        return LAY_FORMAT_ZSTD;
    return LAY_FORMAT_PLAIN;
}

/* ---- raw deflate, by either library ---- */

#ifdef HAVE_ISAL
typedef struct inflate_state engine;
#else
typedef z_stream engine;
#endif

typedef enum step {
    IN_HEADER, IN_EXTRA_LENGTH, IN_EXTRA, IN_NAME, IN_COMMENT, IN_HEADER_CRC, IN_BODY, IN_TRAILER,
    OVER      /* what follows the last member is not inflated */
} step;

#define HAS_HEADER_CRC 0x02u
#define HAS_EXTRA 0x04u
#define HAS_NAME 0x08u
#define HAS_COMMENT 0x10u
#define RESERVED 0xe0u

#define HEADER_SIZE 10u
#define TRAILER_SIZE 8u

struct lay_inflate {
    lay_format format;
    const uint8_t *p; size_t n;     /* the window, what is left of it */
    int64_t given;                  /* plain bytes, over all members */
    lay_code failed; char why[160]; /* sticky; told when the bytes before it are given */
    bool begun;                     /* a first member or frame is complete */
    bool left_over;                 /* something other than zeros follows the last member */

    step step;                      /* gzip */
    uint8_t held[HEADER_SIZE]; size_t nheld;   /* of a fixed field that may straddle windows */
    unsigned flags; size_t extra_left;
    uint32_t header_crc, crc, length;
    engine engine;
#ifdef HAVE_ZSTD
    ZSTD_DCtx *zstd;
    int64_t window;                 /* the most there may be; 0: no limit of ours */
    bool in_frame;                  /* a frame is begun and not complete */
#endif
};

/* What one call of the engine came to. */
typedef enum outcome { GOES_ON, BODY_ENDS, BODY_BROKEN } outcome;

/* Neither library counts beyond 32 bits. */
static uint32_t at_most_1g(size_t n) { return n < 1u << 30 ? (uint32_t)n : 1u << 30; }

#ifdef HAVE_ISAL
static bool engine_open(engine *e)
{
    isal_inflate_init(e);
    return true;
}

static void engine_begin(engine *e)
{
    isal_inflate_reset(e);
    e->crc_flag = ISAL_DEFLATE;
}

static void engine_close(engine *e) { (void)e; }

static outcome engine_step(lay_inflate *z)
{
    engine *e = &z->engine;
    int result = isal_inflate(e);
    if (result < 0 || result == ISAL_NEED_DICT)
        return BODY_BROKEN;
    if (e->block_state != ISAL_BLOCK_FINISH)
        return GOES_ON;
    /* It reads up to 7 bytes ahead into its bit register, perhaps out of windows that are gone: they
     * are the first of the trailer. */
    uint64_t ahead = e->read_in >> (e->read_in_length % 8);
    for (int bits = e->read_in_length; bits >= 8; bits -= 8, ahead >>= 8)
        z->held[z->nheld++] = (uint8_t)ahead;
    return BODY_ENDS;
}
#else
static bool engine_open(engine *e)
{
    memset(e, 0, sizeof *e);
    return inflateInit2(e, -MAX_WBITS) == Z_OK;
}

static void engine_begin(engine *e) { inflateReset(e); }
static void engine_close(engine *e) { inflateEnd(e); }

static outcome engine_step(lay_inflate *z)
{
    int result = inflate(&z->engine, Z_NO_FLUSH);
    if (result == Z_STREAM_END)
        return BODY_ENDS;
    return result == Z_OK || result == Z_BUF_ERROR ? GOES_ON : BODY_BROKEN;
}
#endif

static outcome engine_run(lay_inflate *z, uint8_t *out, size_t room, size_t *got)
{
    engine *e = &z->engine;
    e->next_in = (uint8_t *)(uintptr_t)z->p;   /* never written */
    e->avail_in = at_most_1g(z->n);
    e->next_out = out;
    e->avail_out = at_most_1g(room);
    size_t had_in = e->avail_in, had_out = e->avail_out;
    outcome how = engine_step(z);
    if (how == BODY_BROKEN) {   /* what it says of its input is no longer to be trusted */
        z->n = 0;
        *got = 0;
        return how;
    }
    z->p += had_in - e->avail_in;
    z->n -= had_in - e->avail_in;
    *got = had_out - e->avail_out;
    return how;
}

/* ---- gzip ---- */

static void break_off(lay_inflate *z, lay_code code, const char *what, const char *detail)
{
    lay_error e;
    lay_fail(&e, code, "%s%s", what, detail);
    z->failed = code;
    memcpy(z->why, e.text, sizeof z->why - 1);
    z->why[sizeof z->why - 1] = '\0';
}

/* Fills held up to want bytes; true when it has them. */
static bool gather(lay_inflate *z, size_t want)
{
    size_t n = want - z->nheld < z->n ? want - z->nheld : z->n;
    if (n > 0) {
        memcpy(z->held + z->nheld, z->p, n);
        z->nheld += n;
        z->p += n;
        z->n -= n;
    }
    return z->nheld == want;
}

/* A field of the header is in held: count it in and make room for the next. */
static void field_done(lay_inflate *z)
{
    z->header_crc = lay_crc32_add(z->header_crc, z->held, z->nheld);
    z->nheld = 0;
}

/* The first step at or after s that this member's flags ask for. */
static step next_field(const lay_inflate *z, step s)
{
    if (s <= IN_EXTRA_LENGTH && z->flags & HAS_EXTRA)
        return IN_EXTRA_LENGTH;
    if (s <= IN_NAME && z->flags & HAS_NAME)
        return IN_NAME;
    if (s <= IN_COMMENT && z->flags & HAS_COMMENT)
        return IN_COMMENT;
    if (s <= IN_HEADER_CRC && z->flags & HAS_HEADER_CRC)
        return IN_HEADER_CRC;
    return IN_BODY;
}

/* Skips n bytes of the window, which belong to the header. */
static void skip(lay_inflate *z, size_t n)
{
    z->header_crc = lay_crc32_add(z->header_crc, z->p, n);
    z->p += n;
    z->n -= n;
}

static void read_header(lay_inflate *z)
{
    /* The magic decides before the rest is there: behind a member, two other bytes are no cut member. */
    if (z->nheld < 2 && !gather(z, 2) && (z->nheld == 0 || z->held[0] == 0x1f))
        return;
    if (z->held[0] != 0x1f || z->held[1] != 0x8b) {
        if (z->begun) {
            z->step = OVER;
            for (size_t i = 0; i < z->nheld; i++)
                z->left_over = z->left_over || z->held[i];
        } else
            break_off(z, LAY_E_TAR, "gzip: ", "no gzip member at the start of the stream");
        return;
    }
    if (!gather(z, HEADER_SIZE))
        return;
    z->flags = z->held[3];
    if (z->held[2] != 8 || z->flags & RESERVED) {
        break_off(z, LAY_E_TAR, "gzip: ", z->held[2] != 8 ? "the compression method is not deflate" : "reserved header flags are set");
        return;
    }
    z->header_crc = 0;
    field_done(z);
    z->step = next_field(z, IN_EXTRA_LENGTH);
}

static void read_text(lay_inflate *z)
{
    const uint8_t *end = memchr(z->p, 0, z->n);
    skip(z, end ? (size_t)(end - z->p) + 1 : z->n);
    if (end)
        z->step = next_field(z, z->step + 1);
}

static uint32_t held_u32(const lay_inflate *z, size_t at)
{
    uint32_t v;
    memcpy(&v, z->held + at, sizeof v);
    return le32toh(v);
}

static void read_trailer(lay_inflate *z)
{
    if (!gather(z, TRAILER_SIZE))
        return;
    if (held_u32(z, 0) != z->crc)
        break_off(z, LAY_E_TAR, "gzip: ", "the CRC-32 does not match");
    else if (held_u32(z, 4) != z->length)
        break_off(z, LAY_E_TAR, "gzip: ", "the length does not match");
    z->nheld = 0;
    z->begun = true;
    z->step = IN_HEADER;
}

static void read_field(lay_inflate *z)
{
    size_t n;
    switch (z->step) {
    case IN_HEADER:
        read_header(z);
        break;
    case IN_EXTRA_LENGTH:
        if (gather(z, 2)) {
            z->extra_left = (size_t)z->held[0] | (size_t)z->held[1] << 8;
            field_done(z);
            z->step = IN_EXTRA;
        }
        break;
    case IN_EXTRA:
        n = z->extra_left < z->n ? z->extra_left : z->n;
        skip(z, n);
        z->extra_left -= n;
        if (z->extra_left == 0)
            z->step = next_field(z, IN_NAME);
        break;
    case IN_NAME:
    case IN_COMMENT:
        read_text(z);
        break;
    case IN_HEADER_CRC:
        if (gather(z, 2)) {
            if (((uint32_t)z->held[0] | (uint32_t)z->held[1] << 8) != (z->header_crc & 0xffff))
                break_off(z, LAY_E_TAR, "gzip: ", "the CRC-16 of a header does not match");
            z->nheld = 0;
            z->step = IN_BODY;
        }
        break;
    case IN_TRAILER:
        read_trailer(z);
        break;
    case OVER:
        for (size_t i = 0; i < z->n && !z->left_over; i++)
            z->left_over = z->p[i];
        z->n = 0;
        break;
    case IN_BODY:
        break;
    }
    if (z->step == IN_BODY) {
        z->crc = z->length = 0;
        engine_begin(&z->engine);
    }
}

/* One run of the engine; false when it can do nothing more with this window. */
static bool read_body(lay_inflate *z, uint8_t *out, size_t room, size_t *got)
{
    size_t before = z->n;
    outcome o = engine_run(z, out, room, got);
    z->crc = lay_crc32_add(z->crc, out, *got);
    z->length += (uint32_t)*got;
    if (o == BODY_BROKEN)
        break_off(z, LAY_E_TAR, "gzip: ", "the compressed data is broken");
    else if (o == BODY_ENDS)
        z->step = IN_TRAILER;
    else if (z->n == before && *got == 0) {
        if (z->n > 0)
            break_off(z, LAY_E_TAR, "gzip: ", "the compressed data is incomplete");
        return false;
    }
    return true;
}

static size_t next_gzip(lay_inflate *z, uint8_t *out, size_t n)
{
    size_t have = 0;
    bool moving = true;
    while (have < n && moving && z->failed == LAY_OK) {
        if (z->step == IN_BODY) {   /* even with the window spent: the engine may hold bytes back */
            size_t got;
            moving = read_body(z, out + have, n - have, &got);
            have += got;
        } else if (z->n > 0 || (z->step == IN_TRAILER && z->nheld == TRAILER_SIZE)) {
            read_field(z);
        } else {
            moving = false;
        }
    }
    return have;
}

/* ---- zstd ---- */

#ifdef HAVE_ZSTD
static void window_too_large(lay_inflate *z)
{
    lay_error e;
    if (z->window > 0)
        lay_fail_limit(&e, z->given, "max_window", z->window, "bytes", "the frame looks back too far");
    else
        lay_fail(&e, LAY_E_LIMIT, "the frame looks back further than this build can");
    break_off(z, LAY_E_LIMIT, "zstd: ", e.text);
}

static size_t next_zstd(lay_inflate *z, uint8_t *out, size_t n)
{
    ZSTD_outBuffer to = { out, n, 0 };
    /* Between frames it is asked only with input: it would begin the next frame on nothing. */
    while (to.pos < n && (z->n > 0 || z->in_frame)) {
        ZSTD_inBuffer from = { z->p, z->n, 0 };
        size_t before = to.pos, result = ZSTD_decompressStream(z->zstd, &to, &from);
        if (ZSTD_isError(result)) {
            ZSTD_ErrorCode e = ZSTD_getErrorCode(result);
            if (e == ZSTD_error_prefix_unknown)
                break_off(z, LAY_E_TAR, "zstd: ", z->begun ? "no zstd frame behind the last one" : "no zstd frame at the start of the stream");
            else if (e == ZSTD_error_frameParameter_windowTooLarge)
                window_too_large(z);
            else
                break_off(z, e == ZSTD_error_memory_allocation ? LAY_E_NOMEM : LAY_E_TAR, "zstd: ", ZSTD_getErrorName(result));
            break;
        }
        z->p += from.pos;
        z->n -= from.pos;
        z->in_frame = result != 0;
        z->begun = z->begun || result == 0;
        if (from.pos == 0 && to.pos == before)
            break;
    }
    return to.pos;
}
#endif

/* ---- the verbs ---- */

lay_code lay_inflate_open(lay_inflate **out, lay_format format, lay_error *err)
{
#ifndef HAVE_ZSTD
    if (format == LAY_FORMAT_ZSTD)
        return lay_fail(err, LAY_E_UNSUPPORTED, "zstd: this build is without libzstd");
#endif
    if (format != LAY_FORMAT_GZIP && format != LAY_FORMAT_ZSTD)
        return lay_fail(err, LAY_E_UNSUPPORTED, "only gzip and zstd are inflated here");
    lay_inflate *z = malloc(sizeof *z);
    if (!z)
        return lay_fail_nomem(err);
    memset(z, 0, offsetof(lay_inflate, engine));
    z->format = format;
    bool good = true;
#ifdef HAVE_ZSTD
    z->zstd = NULL;
    z->in_frame = false;
    if (format == LAY_FORMAT_ZSTD)
        good = (z->zstd = ZSTD_createDCtx()) != NULL;
    if (format == LAY_FORMAT_ZSTD && good)
        lay_inflate_limit(z, lay_limits_default()->window);
#endif
    if (format == LAY_FORMAT_GZIP)
        good = engine_open(&z->engine);
    if (!good) {
        free(z);
        return lay_fail_nomem(err);
    }
    *out = z;
    return LAY_OK;
}

void lay_inflate_limit(lay_inflate *z, int64_t window)
{
#ifdef HAVE_ZSTD
    if (z->format != LAY_FORMAT_ZSTD)
        return;
    ZSTD_bounds log = ZSTD_dParam_getBounds(ZSTD_d_windowLogMax);
    int most = log.upperBound;
    while (window > 0 && most > log.lowerBound && (INT64_C(1) << most) > window)
        most--;
    z->window = window;
    ZSTD_DCtx_setParameter(z->zstd, ZSTD_d_windowLogMax, most);
#else
    (void)z;
    (void)window;
#endif
}

void lay_inflate_feed(lay_inflate *z, const void *p, size_t n)
{
    z->p = p;
    z->n = n;
}

lay_code lay_inflate_next(lay_inflate *z, void *out, size_t n, size_t *got, lay_error *err)
{
    *got = 0;
    if (z->failed == LAY_OK) {
#ifdef HAVE_ZSTD
        *got = z->format == LAY_FORMAT_ZSTD ? next_zstd(z, out, n) : next_gzip(z, out, n);
#else
        *got = next_gzip(z, out, n);
#endif
        z->given += (int64_t)*got;
    }
    return *got > 0 || z->failed == LAY_OK ? LAY_OK : lay_fail_at(err, z->failed, z->given, "%s", z->why);
}

lay_code lay_inflate_eof(lay_inflate *z, lay_error *err)
{
    if (z->failed != LAY_OK)
        return lay_fail_at(err, z->failed, z->given, "%s", z->why);
    if (z->format == LAY_FORMAT_ZSTD) {
#ifdef HAVE_ZSTD
        if (z->in_frame || !z->begun)
            return lay_fail_at(err, LAY_E_TRUNCATED, z->given, "zstd: the stream ends inside a frame");
#endif
        return LAY_OK;
    }
    /* Behind the last member a lone 1f is garbage as any other byte. */
    bool between = z->step == OVER || (z->step == IN_HEADER && z->begun && z->nheld < 2);
    return between ? LAY_OK : lay_fail_at(err, LAY_E_TRUNCATED, z->given, "gzip: the stream ends inside a member");
}

bool lay_inflate_is_between(const lay_inflate *z)
{
    return z->format == LAY_FORMAT_GZIP && !z->failed && z->begun && z->step == IN_HEADER && !z->nheld && !z->n;
}

bool lay_inflate_left_over(const lay_inflate *z)
{
    return z->left_over || (z->step == IN_HEADER && z->begun && z->nheld > 0);
}

void lay_inflate_free(lay_inflate *z)
{
    if (!z)
        return;
    if (z->format == LAY_FORMAT_GZIP)
        engine_close(&z->engine);
#ifdef HAVE_ZSTD
    ZSTD_freeDCtx(z->zstd);
#endif
    free(z);
}
