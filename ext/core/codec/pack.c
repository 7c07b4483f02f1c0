/* pack.c - plain bytes in, one gzip member or one zstd frame out, a piece at a time; or a small member in one go.
 *
 * No name and no time goes into either: the same bytes, cut in the same places, give the same stream by the same library.
 * Source: RFC 1952; RFC 8878.
 */
#include "codec/pack.h"

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

#define GZIP_LEVEL 6   /* zlib's; of ISA-L it is the highest, 3 */
#define ZSTD_LEVEL 3
#define AT_MOST (1u << 30)

#ifdef HAVE_ISAL
typedef struct gzipper { struct isal_zstream stream; uint8_t level[ISAL_DEF_LVL3_DEFAULT]; } gzipper;

static bool gzip_open(gzipper *g)
{
    isal_deflate_init(&g->stream);
    g->stream.level = 3;
    g->stream.level_buf = g->level;
    g->stream.level_buf_size = sizeof g->level;
    g->stream.gzip_flag = IGZIP_GZIP;
    return true;
}

static void gzip_close(gzipper *g) { (void)g; }

/* false: the library refuses, which by what it is given it never should. */
static bool gzip_run(gzipper *g, const uint8_t *p, uint32_t *n, bool last, uint8_t *out, uint32_t *room, bool *done)
{
    struct isal_zstream *s = &g->stream;
    s->next_in = (uint8_t *)(uintptr_t)p;   /* never written */
    s->avail_in = *n;
    s->next_out = out;
    s->avail_out = *room;
    s->end_of_stream = last;
    bool good = isal_deflate(s) == COMP_OK;
    *n -= s->avail_in;
    *room -= s->avail_out;
    *done = s->internal_state.state == ZSTATE_END;
    return good;
}
#else
typedef struct gzipper { z_stream stream; } gzipper;

static bool gzip_open(gzipper *g)
{
    return deflateInit2(&g->stream, GZIP_LEVEL, Z_DEFLATED, MAX_WBITS + 16, 8, Z_DEFAULT_STRATEGY) == Z_OK;
}

static void gzip_close(gzipper *g) { deflateEnd(&g->stream); }

static bool gzip_run(gzipper *g, const uint8_t *p, uint32_t *n, bool last, uint8_t *out, uint32_t *room, bool *done)
{
    z_stream *s = &g->stream;
    s->next_in = (uint8_t *)(uintptr_t)p;   /* never written */
    s->avail_in = *n;
    s->next_out = out;
    s->avail_out = *room;
    int how = deflate(s, last ? Z_FINISH : Z_NO_FLUSH);
    *n -= s->avail_in;
    *room -= s->avail_out;
    *done = how == Z_STREAM_END;
    return how == Z_OK || how == Z_STREAM_END || how == Z_BUF_ERROR;
}
#endif

struct lay_packer {
    lay_packing how;
    bool done;
    gzipper gzip;
#ifdef HAVE_ZSTD
    ZSTD_CCtx *zstd;
#endif
};

lay_code lay_packer_open(lay_packer **out, lay_packing how, lay_error *err)
{
    *out = NULL;
#ifndef HAVE_ZSTD
    if (how == LAY_PACK_ZSTD)
        return lay_fail(err, LAY_E_UNSUPPORTED, "zstd: this build has no libzstd");
#endif
    lay_packer *k = calloc(1, sizeof *k);
    if (k == NULL)
        return lay_fail_nomem(err);
    k->how = how;
    bool made = false;
    if (how == LAY_PACK_GZIP)
        made = gzip_open(&k->gzip);
#ifdef HAVE_ZSTD
    else if ((k->zstd = ZSTD_createCCtx()) != NULL)
        made = !ZSTD_isError(ZSTD_CCtx_setParameter(k->zstd, ZSTD_c_compressionLevel, ZSTD_LEVEL))
            && !ZSTD_isError(ZSTD_CCtx_setParameter(k->zstd, ZSTD_c_checksumFlag, 1));
#endif
    if (!made) {
        free(k);
        return lay_fail_nomem(err);
    }
    *out = k;
    return LAY_OK;
}

static lay_code run_gzip(lay_packer *k, const uint8_t *p, size_t n, bool end, uint8_t *out, size_t room, size_t *used, size_t *got, lay_error *err)
{
    uint32_t in = n < AT_MOST ? (uint32_t)n : AT_MOST, space = room < AT_MOST ? (uint32_t)room : AT_MOST;
    if (!gzip_run(&k->gzip, p, &in, end && in == n, out, &space, &k->done))
        return lay_fail(err, LAY_E_STATE, "gzip: the library refuses to deflate");
    *used = in;
    *got = space;
    return LAY_OK;
}

#ifdef HAVE_ZSTD
static lay_code run_zstd(lay_packer *k, const uint8_t *p, size_t n, bool end, uint8_t *out, size_t room, size_t *used, size_t *got, lay_error *err)
{
    ZSTD_inBuffer from = { p, n, 0 };
    ZSTD_outBuffer to = { out, room, 0 };
    size_t left = ZSTD_compressStream2(k->zstd, &to, &from, end ? ZSTD_e_end : ZSTD_e_continue);
    if (ZSTD_isError(left)) {
        if (ZSTD_getErrorCode(left) == ZSTD_error_memory_allocation)
            return lay_fail_nomem(err);
        return lay_fail(err, LAY_E_STATE, "zstd: %s", ZSTD_getErrorName(left));
    }
    *used = from.pos;
    *got = to.pos;
    k->done = end && left == 0;
    return LAY_OK;
}
#endif

lay_code lay_packer_run(lay_packer *k, const void *p, size_t n, int end, void *out, size_t room, size_t *used, size_t *got, int *done, lay_error *err)
{
    *used = *got = 0;
    *done = k->done;
    if (k->done)
        return n == 0 ? LAY_OK : lay_fail(err, LAY_E_STATE, "packing is over");
    lay_code code = LAY_OK;
    if (k->how == LAY_PACK_GZIP)
        code = run_gzip(k, p, n, end != 0, out, room, used, got, err);
#ifdef HAVE_ZSTD
    else
        code = run_zstd(k, p, n, end != 0, out, room, used, got, err);
#endif
    *done = k->done;
    return code;
}

void lay_packer_free(lay_packer *k)
{
    if (k == NULL)
        return;
    if (k->how == LAY_PACK_GZIP)
        gzip_close(&k->gzip);
#ifdef HAVE_ZSTD
    ZSTD_freeCCtx(k->zstd);
#endif
    free(k);
}

/* ---- a member in one go ---- */

#define HAS_EXTRA 0x04u
#define HEADER_SIZE 10u
#define TRAILER_SIZE 8u
#define STORED_MAX 65535u   /* of one stored block, which has 5 bytes of its own */
#define STORED_HEAD 5u

uint32_t lay_crc32_add(uint32_t crc, const void *p, size_t n)
{
    if (n == 0)
        return crc;
#ifdef HAVE_ISAL
    return crc32_gzip_refl(crc, p, n);
#else
    return (uint32_t)crc32_z(crc, p, n);
#endif
}

static size_t stored_size(size_t n) { return n + STORED_HEAD * (n / STORED_MAX + 1); }

size_t lay_gzip_bound(size_t n)
{
    return HEADER_SIZE + 2 + stored_size(n) + TRAILER_SIZE;
}

static uint8_t *put_u16(uint8_t *out, size_t v)
{
    out[0] = (uint8_t)v;
    out[1] = (uint8_t)(v >> 8);
    return out + 2;
}

static uint8_t *put_u32(uint8_t *out, uint32_t v)
{
    return put_u16(put_u16(out, v), v >> 16);
}

/* Deflates at the fastest level that looks for matches into room bytes; *len stays 0 when it does not fit. */
static lay_code deflate_fast(const uint8_t *p, uint32_t n, uint8_t *out, uint32_t room, size_t *len, lay_error *err)
{
#ifdef HAVE_ISAL
    struct memory { struct isal_zstream stream; uint8_t level[ISAL_DEF_LVL1_DEFAULT]; };
    LAY_AUTO_FREE struct memory *m = malloc(sizeof *m);
    if (!m)
        return lay_fail_nomem(err);
    isal_deflate_stateless_init(&m->stream);
    m->stream.hist_bits = 0;      /* the whole window; that function leaves what the memory held */
    m->stream.level = 1;
    m->stream.level_buf = m->level;
    m->stream.level_buf_size = sizeof m->level;
    m->stream.end_of_stream = 1;
    m->stream.flush = NO_FLUSH;
    m->stream.gzip_flag = IGZIP_DEFLATE;
    m->stream.next_in = (uint8_t *)(uintptr_t)p;   /* never written */
    m->stream.avail_in = n;
    m->stream.next_out = out;
    m->stream.avail_out = room;
    if (isal_deflate_stateless(&m->stream) == COMP_OK && m->stream.avail_in == 0)
        *len = room - m->stream.avail_out;
#else
    z_stream s = { .next_in = (uint8_t *)(uintptr_t)p, .avail_in = n, .next_out = out, .avail_out = room };
    if (deflateInit2(&s, 1, Z_DEFLATED, -MAX_WBITS, 8, Z_DEFAULT_STRATEGY) != Z_OK)
        return lay_fail_nomem(err);
    if (deflate(&s, Z_FINISH) == Z_STREAM_END)
        *len = room - s.avail_out;
    deflateEnd(&s);
#endif
    return LAY_OK;
}

static size_t store(const uint8_t *p, size_t n, uint8_t *out)
{
    uint8_t *at = out;
    do {
        size_t piece = n < STORED_MAX ? n : STORED_MAX;
        *at++ = piece == n;
        at = put_u16(put_u16(at, piece), ~piece);
        if (piece > 0)
            memcpy(at, p, piece);
        at += piece;
        p += piece;
        n -= piece;
    } while (n > 0);
    return (size_t)(at - out);
}

lay_code lay_gzip_member(const void *p, size_t n, const void *extra, size_t extra_len, void *out, size_t room, size_t *len, lay_error *err)
{
    static const uint8_t header[HEADER_SIZE] = { 0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff };
    if (extra_len > 0xffff || n > 1u << 30)
        return lay_fail(err, LAY_E_LIMIT, "gzip: a member of %zu bytes with a field of %zu", n, extra_len);
    if (room < lay_gzip_bound(n) + extra_len)
        return lay_fail(err, LAY_E_STATE, "gzip: %zu bytes are too few for a member of %zu", room, n);
    uint8_t *at = out;
    memcpy(at, header, sizeof header);
    at += sizeof header;
    if (extra_len > 0) {
        ((uint8_t *)out)[3] = HAS_EXTRA;
        at = put_u16(at, extra_len);
        memcpy(at, extra, extra_len);
        at += extra_len;
    }
    /* Never more room than the stored form takes: what does not fit is not worth deflating. */
    size_t stored = stored_size(n), packed = 0;
    if (deflate_fast(p, (uint32_t)n, at, (uint32_t)stored, &packed, err))
        return err->code;
    at += packed > 0 ? packed : store(p, n, at);
    at = put_u32(at, lay_crc32_add(0, p, n));
    at = put_u32(at, (uint32_t)n);
    *len = (size_t)(at - (uint8_t *)out);
    return LAY_OK;
}
