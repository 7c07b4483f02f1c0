/* pack.c - plain bytes in, one gzip member or one zstd frame out, a piece at a time.
 *
 * No name and no time goes into either: the same bytes, cut in the same places, give the same stream by the same library.
 * Source: RFC 1952; RFC 8878.
 */
#include "error.h"

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
