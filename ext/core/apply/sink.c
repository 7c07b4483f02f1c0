/* sink.c - digest, split, unpack and the image as sinks: what each does with a span, and what it says at the end. */
#include "apply/sink.h"

#include "base/write_all.h"
#include "erofs/erofs_format.h"
#include "erofs/erofs_scan.h"
#include "erofs/erofs_store.h"

#include <fcntl.h>

/* Our own of two descriptors that were lent; -1 stays -1. */
static lay_code keep(int *a, int *b, lay_error *err)
{
    int lent_a = *a, lent_b = *b;
    *a = lent_a < 0 ? -1 : fcntl(lent_a, F_DUPFD_CLOEXEC, 0);
    *b = lent_b < 0 ? -1 : fcntl(lent_b, F_DUPFD_CLOEXEC, 0);
    bool kept = (lent_a < 0 || *a >= 0) && (lent_b < 0 || *b >= 0);
    return kept ? LAY_OK : lay_fail_os(err, errno, NULL, "cannot keep a descriptor");
}

/* ---- digest ---------------------------------------------------------------------------------------------------- */

static lay_code digest_take(lay_sink *s, const lay_span *span, lay_error *err)
{
    (void)err;
    lay_sha256_add(&((lay_digest_sink *)s)->sha, span->p, span->n);
    return LAY_OK;
}

static lay_code digest_end(lay_sink *s, lay_applied *out, lay_error *err)
{
    (void)err;
    lay_sha256_end(&((lay_digest_sink *)s)->sha, out->diff_id);
    return LAY_OK;
}

void lay_sink_digest(lay_digest_sink *s)
{
    static const lay_sink_ops ops = { .take = digest_take, .end = digest_end };
    s->sink.ops = &ops;
    lay_sha256_start(&s->sha);
}

/* ---- split ----------------------------------------------------------------------------------------------------- */

static lay_code split_take(lay_sink *sink, const lay_span *span, lay_error *err)
{
    lay_split_sink *s = (lay_split_sink *)sink;
    int e = s->again_fd >= 0 && s->again_offset < 0 ? lay_write_all(s->again_fd, span->p, span->n, span->offset) : 0;
    return e ? lay_fail_fd(err, e, s->again_fd, "cannot keep a copy of the tar") : lay_split_add(s->split, span->p, span->n, err);
}

static lay_code split_end(lay_sink *sink, lay_applied *out, lay_error *err)
{
    lay_split_sink *s = (lay_split_sink *)sink;
    out->entries = (int64_t)lay_split_entries(s->split);
    return lay_split_end(s->split, err);
}

static void split_free(lay_sink *sink)
{
    lay_split_sink *s = (lay_split_sink *)sink;
    lay_split_free(s->split);
    lay_close_owner(&s->record_fd);
    lay_close_owner(&s->again_fd);
}

lay_code lay_sink_split(lay_split_sink *s, bool gzip, const lay_limits *limits, lay_error *err)
{
    static const lay_sink_ops ops = { .take = split_take, .end = split_end, .free = split_free };
    s->sink.ops = &ops;
    if (keep(&s->record_fd, &s->again_fd, err) || lay_split_open(&s->split, s->record_fd, gzip, NULL, err))
        return err->code;
    lay_split_limit(s->split, limits);
    return LAY_OK;
}

/* ---- unpack ---------------------------------------------------------------------------------------------------- */

static lay_code unpack_open(lay_sink *sink, lay_ring *ring, lay_error *err)
{
    lay_unpack_sink *s = (lay_unpack_sink *)sink;
    lay_unpack_options o = s->options;
    o.ring = ring;
    o.threads = ring ? o.threads : 0;
    return lay_unpack_open(&s->unpack, &o, err);
}

static lay_code unpack_take(lay_sink *s, const lay_span *span, lay_error *err)
{
    return lay_unpack_add(((lay_unpack_sink *)s)->unpack, span, err);
}

static lay_code unpack_end(lay_sink *s, lay_applied *out, lay_error *err)
{
    return lay_unpack_end(((lay_unpack_sink *)s)->unpack, out, err);
}

static bool unpack_sated(const lay_sink *sink)
{
    const lay_unpack_sink *s = (const lay_unpack_sink *)sink;
    return s->stops && lay_unpack_ended(s->unpack);
}

static void unpack_free(lay_sink *sink)
{
    lay_unpack_sink *s = (lay_unpack_sink *)sink;
    lay_unpack_free(s->unpack);
    lay_close_owner(&s->options.root_fd);
    lay_close_owner(&s->options.scratch_fd);
}

lay_code lay_sink_unpack(lay_unpack_sink *s, lay_error *err)
{
    static const lay_sink_ops ops = { unpack_open, unpack_take, unpack_end, unpack_sated, unpack_free };
    s->sink.ops = &ops;
    return keep(&s->options.root_fd, &s->options.scratch_fd, err);
}

/* ---- image ----------------------------------------------------------------------------------------------------- */

/* More than so many bytes of a tar leave no room for the metadata. */
#define TAR_MOST (LAY_EROFS_MOST_BLOCKS * LAY_EROFS_BLOCK - LAY_EROFS_HEADER)

/* The tree of a large layer takes memory; what the ring holds more helps only a sink that waits for files. */
#define RING_WIDTH 4u

static lay_code erofs_open(lay_sink *s, lay_ring *ring, lay_error *err)
{
    (void)s;
    (void)err;
    if (ring)
        lay_ring_narrow(ring, RING_WIDTH);
    return LAY_OK;
}

static lay_code keep_span(const lay_erofs_sink *s, const lay_span *span, lay_error *err)
{
    bool fits = span->offset <= TAR_MOST - (int64_t)span->n;
    int failed = !fits ? EFBIG : s->present ? 0 : lay_write_all(s->fd, span->p, span->n, LAY_EROFS_HEADER + span->offset);
    return failed ? lay_fail_fd(err, failed, s->fd, fits ? "cannot write the layer's image" : "the tar is too large for an image") : LAY_OK;
}

static lay_code erofs_take(lay_sink *sink, const lay_span *span, lay_error *err)
{
    lay_erofs_sink *s = (lay_erofs_sink *)sink;
    lay_tar_item item;
    lay_tar_event event = LAY_TAR_END;
    s->size = span->offset + (int64_t)span->n;
    if (!lay_tar_ended(s->tar)) {
        lay_tar_feed(s->tar, span->p, span->n);
        while ((event = lay_tar_next(s->tar, &item, err)) > LAY_TAR_NEED && event != LAY_TAR_END)
            if (event == LAY_TAR_ENTRY && lay_etree_given(s->tree, s->tar, item.entry, err))
                return err->code;
    }
    return event == LAY_TAR_BAD ? err->code : keep_span(s, span, err);
}

/* What the tree says of itself outlives it. */
static lay_code keep_words(lay_erofs_sink *s, lay_applied *out, lay_error *err)
{
    const char *first = out->first_left_out ? out->first_left_out : "";
    if (lay_text_set(&s->unsettled, out->unsettled, out->unsettled_len, err) || lay_text_set(&s->left_out, first, strlen(first), err))
        return err->code;
    out->unsettled = s->unsettled.p;
    out->first_left_out = s->left_out.p;
    return LAY_OK;
}

static lay_code erofs_end(lay_sink *sink, lay_applied *out, lay_error *err)
{
    lay_erofs_sink *s = (lay_erofs_sink *)sink;
    if ((!lay_tar_ended(s->tar) && lay_tar_eof(s->tar, err)) || lay_etree_end(s->tree, out, err) || keep_words(s, out, err))
        return err->code;
    if (lay_etree_settle(s->tree, &s->lowers, err) || lay_eimage_layout(&s->image, s->tree, s->size, LAY_EIMAGE_TABLES(s->size), err))
        return err->code;
    return lay_eimage_store(s->image, s->tree, s->fd, s->size, err);
}

static void erofs_free(lay_sink *sink)
{
    lay_erofs_sink *s = (lay_erofs_sink *)sink;
    lay_eimage_free(s->image);
    lay_etree_free(s->tree);
    lay_tar_free(s->tar);
    lay_lowers_free(&s->lowers);
    free(s->unsettled.p);
    free(s->left_out.p);
    lay_close_owner(&s->fd);
}

lay_code lay_sink_erofs(lay_erofs_sink *s, const lay_shown *lowers, size_t n, const lay_limits *limits, lay_error *err)
{
    static const lay_sink_ops ops = { .open = erofs_open, .take = erofs_take, .end = erofs_end, .free = erofs_free };
    int none = -1;
    s->sink.ops = &ops;
    if (keep(&s->fd, &none, err) || lay_lowers_open(&s->lowers, lowers, n, false, err) || lay_lowers_keep(&s->lowers, err))
        return err->code;
    s->tar = lay_tar_new();
    if (!s->tar)
        return lay_fail_nomem(err);
    lay_tar_limit(s->tar, limits);
    return lay_etree_new(&s->tree, limits, err);
}
