/* apply.c - a layer tar comes in: its input half, and the face of the pipeline.
 *
 *   push, lend, pump, draw ──► inflate ──► pipeline ──► split, unpack, image, digest
 *
 * A constructor says which sinks there are. Plain input goes into the pipeline as it lies, or is read right into its
 * block. Where names came more than once, the end makes a second pass over the record (exact.c).
 *
 * Before inflate, in the caller's thread, the bytes pass the digest of the source, if one is asked for. A plain tar's
 * SHA-256 is its DiffID: then the sink's serves for both.
 */
#include "apply/exact.h"
#include "apply/pipeline.h"
#include "base/clock.h"
#include "base/limit.h"
#include "codec/inflate.h"
#include "erofs/erofs_store.h"

#include <poll.h>
#include <string.h>

#define GUESS 512u
#define INPUT_BLOCK (256u << 10)

struct lay_apply {
    lay_limits limits;
    lay_pipeline *pipeline;
    lay_split_sink split; lay_unpack_sink unpack; lay_erofs_sink erofs; lay_digest_sink digest;   /* those that the constructor added */
    uint8_t head[GUESS]; size_t head_len; bool guessed;
    lay_inflate *z; uint8_t *input;
    int64_t taken;
    lay_digest_kind source_kind; lay_digest source;   /* what is asked for; what is added to, once the format is known */
    const uint8_t *lent; size_t lent_n; bool lent_whole;
    bool finished;
    lay_error failure;                    /* the first; every later call tells it again */
};

/* ---- input ----------------------------------------------------------------------------------------------------- */

/* Every byte of the input, but the head, passes here as it came (compressed, if it was), in order. */
static void came(lay_apply *a, const uint8_t *p, size_t n)
{
    a->taken += (int64_t)n;
    lay_digest_add(&a->source, p, n);
}

/* The format is known. */
static void know(lay_apply *a)
{
    bool shared = !a->z && a->digest.sink.ops && a->source_kind == LAY_DIGEST_SHA256;
    a->guessed = true;
    lay_digest_start(&a->source, shared ? LAY_DIGEST_NONE : a->source_kind);
    lay_digest_add(&a->source, a->head, a->head_len);
}

static lay_code put_plain(lay_apply *a, const uint8_t *p, size_t n, lay_error *err)
{
    while (n) {
        uint8_t *to;
        size_t room;
        if (lay_pipeline_room(a->pipeline, &to, &room, err))
            return err->code;
        size_t part = n < room ? n : room;
        memcpy(to, p, part);
        lay_pipeline_fill(a->pipeline, part);
        p += part;
        n -= part;
    }
    return LAY_OK;
}

static lay_code put_packed(lay_apply *a, const uint8_t *p, size_t n, lay_error *err)
{
    lay_inflate_feed(a->z, p, n);
    for (;;) {
        uint8_t *to;
        size_t room, got;
        if (lay_pipeline_room(a->pipeline, &to, &room, err))
            return err->code;
        if (lay_inflate_next(a->z, to, room, &got, err))
            return err->code;
        if (!got)
            return LAY_OK;
        lay_pipeline_fill(a->pipeline, got);
    }
}

static lay_code put(lay_apply *a, const uint8_t *p, size_t n, lay_error *err)
{
    return a->z ? put_packed(a, p, n, err) : put_plain(a, p, n, err);
}

static lay_code guess(lay_apply *a, lay_error *err)
{
    lay_format format = lay_format_guess(a->head, a->head_len);
    if (format == LAY_FORMAT_GZIP || format == LAY_FORMAT_ZSTD) {
        if (lay_inflate_open(&a->z, format, err))
            return err->code;
        lay_inflate_limit(a->z, a->limits.window);
    } else if (format != LAY_FORMAT_PLAIN) {
        return lay_fail(err, LAY_E_UNSUPPORTED, "the stream is compressed with %s, which the core does not know",
                        format == LAY_FORMAT_BZIP2 ? "bzip2" : format == LAY_FORMAT_XZ ? "xz" : "lz4");
    }
    know(a);
    return put(a, a->head, a->head_len, err);
}

/* Collects the first bytes until the format is known; the rest goes straight on. */
static lay_code take_bytes(lay_apply *a, const uint8_t *p, size_t n, lay_error *err)
{
    if (!a->guessed) {
        size_t part = GUESS - a->head_len < n ? GUESS - a->head_len : n;
        memcpy(a->head + a->head_len, p, part);
        a->head_len += part;
        a->taken += (int64_t)part;
        p += part;
        n -= part;
        if (a->head_len == GUESS && guess(a, err))
            return err->code;
    }
    came(a, p, n);
    return n ? put(a, p, n, err) : LAY_OK;
}

static lay_code lend(lay_apply *a, const uint8_t *p, size_t n, lay_error *err)
{
    bool first = a->taken == 0;
    a->lent = p;
    if (!a->guessed) {
        size_t part = n < GUESS ? n : GUESS;
        if (take_bytes(a, p, part, err))
            return err->code;
        p += part;
        n -= part;
    }
    a->lent_whole = first && (!a->guessed || !a->z);
    a->lent_n = (size_t)a->taken + n;
    if (a->z || !a->guessed || n < LAY_RING_BLOCK)
        return n ? take_bytes(a, p, n, err) : LAY_OK;
    size_t taken;
    lay_code code = lay_pipeline_lend(a->pipeline, p, n, &taken, err);
    came(a, p, taken);
    return code;
}

static ssize_t read_some(int fd, int64_t *offset, void *to, size_t n)
{
    ssize_t got = *offset >= 0 ? pread(fd, to, n, *offset) : read(fd, to, n);
    if (got > 0 && *offset >= 0)
        *offset += got;
    return got;
}

/* Where the next bytes go: plain ones right into the pipeline's block. */
static lay_code input_room(lay_apply *a, uint8_t **to, size_t *room, bool *straight, lay_error *err)
{
    *straight = a->guessed && !a->z;
    if (*straight)
        return lay_pipeline_room(a->pipeline, to, room, err);
    if (!a->input && !(a->input = malloc(INPUT_BLOCK)))
        return lay_fail_nomem(err);
    *to = a->input;
    *room = INPUT_BLOCK;
    return LAY_OK;
}

static lay_code input_filled(lay_apply *a, const uint8_t *p, size_t n, bool straight, lay_error *err)
{
    if (!straight)
        return take_bytes(a, p, n, err);
    lay_pipeline_fill(a->pipeline, n);
    came(a, p, n);
    return LAY_OK;
}

static lay_code pump(lay_apply *a, int fd, int64_t *offset, int64_t max_bytes, int max_ms, int *end, lay_error *err)
{
    int64_t stop = lay_now_ms() + max_ms, limit = a->taken + max_bytes;
    while (a->taken < limit && lay_now_ms() < stop) {
        uint8_t *to;
        size_t room;
        bool straight;
        *end = lay_pipeline_sated(a->pipeline);
        if (*end)
            return LAY_OK;
        if (input_room(a, &to, &room, &straight, err))
            return err->code;
        if (room > (size_t)(limit - a->taken))        /* what follows may be another reader's */
            room = (size_t)(limit - a->taken);
        struct pollfd p = { .fd = fd, .events = POLLIN };
        int64_t left = stop - lay_now_ms();
        if (*offset < 0 && poll(&p, 1, left > 0 ? (int)left : 0) <= 0)
            return LAY_OK;                            /* an idle pipe: the caller may stop now */
        ssize_t n = read_some(fd, offset, to, room);
        if (n < 0 && errno == EINTR)
            return LAY_OK;                            /* let the caller look at its signals */
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            continue;
        if (n < 0)
            return lay_fail_fd(err, errno, fd, "cannot read the layer's tar");
        *end = n == 0;
        if (*end)
            return LAY_OK;
        if (input_filled(a, to, (size_t)n, straight, err))
            return err->code;
    }
    return LAY_OK;
}

static lay_code draw(lay_apply *a, lay_source *s, int64_t max_bytes, int max_ms, int *end, lay_error *err)
{
    int64_t stop = lay_now_ms() + max_ms, limit = a->taken + max_bytes;
    if (!a->guessed && !a->head_len)
        know(a);                                      /* a source gives a plain tar, whatever its first name looks like */
    while (a->taken < limit && lay_now_ms() < stop) {
        uint8_t *to;
        size_t room, got;
        bool straight;
        *end = lay_pipeline_sated(a->pipeline);
        if (*end)
            return LAY_OK;
        if (input_room(a, &to, &room, &straight, err) || lay_source_read(s, to, room, &got, err))
            return err->code;
        *end = got == 0;
        if (*end || input_filled(a, to, got, straight, err))
            return err->code;
    }
    return LAY_OK;
}

/* ---- the end --------------------------------------------------------------------------------------------------- */

static lay_code second_pass(lay_apply *a, const lay_applied *done, lay_error *err)
{
    const lay_split_sink *s = &a->split;
    lay_unpack *tree = a->unpack.unpack;
    if (!s->split || (!lay_split_has_repeats(s->split) && !(tree && lay_unpack_irregular(tree))))
        return LAY_OK;
    lay_exact x = { .record_fd = s->record_fd, .scratch_fd = a->unpack.options.scratch_fd, .gzip = tree != NULL, .first = s->split,
                    .tree = tree, .again = { .fd = -1 }, .diff_id = done->diff_id, .tar_size = done->tar_size, .limits = &a->limits };
    if (s->again_fd >= 0 && (s->again_offset < 0 || !a->z))
        x.again = (lay_again){ .fd = s->again_fd, .offset = s->again_offset < 0 ? 0 : s->again_offset };
    else if (a->lent_whole && !a->z)
        x.again = (lay_again){ .fd = -1, .p = a->lent, .n = a->lent_n };
    else if (!tree)
        return lay_fail(err, LAY_E_UNSUPPORTED, "names come more than once in this tar: to record it, it must be readable twice");
    return lay_exact_rewrite(&x, err);
}

static void end_source(lay_apply *a, lay_applied *done)
{
    bool shared = a->source_kind && !a->source.kind;
    done->source_size = a->taken;
    done->source_digest_len = shared ? sizeof done->diff_id : lay_digest_end(&a->source, done->source_digest);
    if (shared)
        memcpy(done->source_digest, done->diff_id, sizeof done->diff_id);
}

static lay_code finish(lay_apply *a, lay_applied *out, lay_error *err)
{
    lay_applied done;
    if ((!a->guessed && guess(a, err)) || (a->z && lay_inflate_eof(a->z, err)) || lay_pipeline_end(a->pipeline, &done, err))
        return err->code;
    bool ended = a->split.split ? lay_split_ended(a->split.split) : a->erofs.tar ? lay_tar_ended(a->erofs.tar) : lay_unpack_ended(a->unpack.unpack);
    if (a->z && !ended && lay_inflate_left_over(a->z))
        return lay_fail_at(err, LAY_E_TAR, done.tar_size, "gzip: what follows is no member, and the tar has not come to its end");
    if (second_pass(a, &done, err) || (a->erofs.image && lay_eimage_seal(a->erofs.image, a->erofs.fd, done.diff_id, err)))
        return err->code;
    end_source(a, &done);
    a->finished = true;
    *out = done;
    return LAY_OK;
}

/* ---- the face -------------------------------------------------------------------------------------------------- */

static bool usable(const lay_apply *a, lay_error *err)
{
    lay_error_clear(err);
    if (a->failure.code)
        *err = a->failure;
    else if (a->finished)
        lay_fail(err, LAY_E_STATE, "the layer is already complete");
    return !err->code;
}

static lay_code sticky(lay_apply *a, lay_error *err)
{
    if (err->code)
        a->failure = *err;
    return err->code;
}

lay_code lay_apply_push(lay_apply *a, const void *bytes, size_t n, lay_error *err)
{
    if (!usable(a, err))
        return err->code;
    a->lent_whole = false;
    take_bytes(a, bytes, n, err);
    return sticky(a, err);
}

lay_code lay_apply_lend(lay_apply *a, const void *bytes, size_t n, lay_error *err)
{
    if (!usable(a, err))
        return err->code;
    lend(a, bytes, n, err);
    return sticky(a, err);
}

lay_code lay_apply_pump(lay_apply *a, int fd, int64_t *offset, int64_t max_bytes, int max_ms, int *end, lay_error *err)
{
    *end = 0;
    if (!usable(a, err))
        return err->code;
    a->lent_whole = false;
    pump(a, fd, offset, max_bytes, max_ms, end, err);
    return sticky(a, err);
}

lay_code lay_apply_draw(lay_apply *a, lay_source *s, int64_t max_bytes, int max_ms, int *end, lay_error *err)
{
    *end = 0;
    if (!usable(a, err))
        return err->code;
    a->lent_whole = false;
    draw(a, s, max_bytes, max_ms, end, err);
    return sticky(a, err);
}

lay_code lay_apply_finish(lay_apply *a, lay_applied *out, lay_error *err)
{
    if (!usable(a, err))
        return err->code;
    finish(a, out, err);
    return sticky(a, err);
}

int64_t lay_apply_taken(const lay_apply *a) { return a->taken; }
int lay_apply_sated(const lay_apply *a) { return lay_pipeline_sated(a->pipeline); }

void lay_apply_free(lay_apply *a)
{
    if (!a)
        return;
    lay_pipeline_free(a->pipeline);
    lay_inflate_free(a->z);
    free(a->input);
    free(a);
}

/* ---- constructors: sinks are added in the order that settles ties ---------------------------------------------- */

/* Of the pool. One processor is the hash's. On two, a second worker only took turns with the first (measured: 0.81 s with
 * two, 0.65 with one, for 100,000 tiny files). */
static int threads_for(int workers)
{
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    return workers >= 0 ? workers : cpus > 5 ? 4 : cpus < 3 ? 1 : (int)cpus - 1;
}

static lay_apply *begin(const lay_apply_options *o, lay_error *err)
{
    lay_error_clear(err);
    lay_apply *a = calloc(1, sizeof *a);
    if (!a) {
        lay_fail_nomem(err);
        return NULL;
    }
    a->limits = o->limits ? *o->limits : *lay_limits_default();
    a->source_kind = o->digest;
    if (!lay_pipeline_new(&a->pipeline, threads_for(o->workers) > 0, a->limits.tar_size, err))
        return a;
    free(a);
    return NULL;
}

static lay_code add_split(lay_apply *a, lay_split_sink given, bool gzip, lay_error *err)
{
    a->split = given;
    lay_code code = lay_sink_split(&a->split, gzip, &a->limits, err);
    lay_pipeline_add(a->pipeline, &a->split.sink);
    return code;
}

static lay_code add_unpack(lay_apply *a, lay_unpack_sink given, const lay_apply_options *o, lay_error *err)
{
    a->unpack = given;
    a->unpack.options.flags = o->flags;
    a->unpack.options.threads = threads_for(o->workers);
    a->unpack.options.limits = &a->limits;
    lay_code code = lay_sink_unpack(&a->unpack, err);
    lay_pipeline_add(a->pipeline, &a->unpack.sink);
    return code;
}

static void add_digest(lay_apply *a)
{
    lay_sink_digest(&a->digest);
    lay_pipeline_add(a->pipeline, &a->digest.sink);
}

static lay_code opened(lay_apply **out, lay_apply *a, const lay_error *err)
{
    if (err->code)
        lay_apply_free(a);
    else
        *out = a;
    return err->code;
}

lay_code lay_apply_register(lay_apply **out, int root_fd, int scratch_fd, int record_fd, const lay_apply_options *o, lay_error *err)
{
    lay_apply *a = begin(o, err);
    if (!a)
        return err->code;
    if (!add_split(a, (lay_split_sink){ .record_fd = record_fd, .again_fd = -1 }, true, err))
        add_unpack(a, (lay_unpack_sink){ .options = { .root_fd = root_fd, .scratch_fd = scratch_fd } }, o, err);
    add_digest(a);
    return opened(out, a, err);
}

lay_code lay_apply_erofs(lay_apply **out, int fd, const lay_shown *lowers, size_t n, const lay_apply_options *o, lay_error *err)
{
    lay_apply *a = begin(o, err);
    if (!a)
        return err->code;
    a->erofs.fd = fd;
    a->erofs.present = o->flags & LAY_APPLY_PRESENT;
    lay_sink_erofs(&a->erofs, lowers, n, &a->limits, err);
    lay_pipeline_add(a->pipeline, &a->erofs.sink);
    add_digest(a);
    return opened(out, a, err);
}

lay_code lay_apply_record(lay_apply **out, int record_fd, const lay_apply_options *o, lay_error *err)
{
    lay_apply *a = begin(o, err);
    if (!a)
        return err->code;
    add_split(a, (lay_split_sink){ .record_fd = record_fd, .again_fd = -1 }, true, err);
    add_digest(a);
    return opened(out, a, err);
}

lay_code lay_apply_disassemble(lay_apply **out, int record_fd, int again_fd, int64_t again_offset, const lay_apply_options *o, lay_error *err)
{
    lay_apply *a = begin(o, err);
    if (!a)
        return err->code;
    if (!add_split(a, (lay_split_sink){ .record_fd = record_fd, .again_fd = again_fd, .again_offset = again_offset }, false, err))
        lay_split_alone(a->split.split, err);
    add_digest(a);
    return opened(out, a, err);
}

static lay_code over(lay_apply **out, int root_fd, bool own_links, bool stops, const lay_apply_options *o, lay_error *err)
{
    lay_apply *a = begin(o, err);
    if (!a)
        return err->code;
    lay_unpack_options options = { .root_fd = root_fd, .scratch_fd = -1, .merged = true, .own_links = own_links };
    add_unpack(a, (lay_unpack_sink){ .options = options, .stops = stops }, o, err);
    return opened(out, a, err);
}

lay_code lay_apply_over_tree(lay_apply **out, int root_fd, const lay_apply_options *o, lay_error *err)
{
    return over(out, root_fd, true, false, o, err);
}

lay_code lay_apply_over_mount(lay_apply **out, int root_fd, const lay_apply_options *o, lay_error *err)
{
    return over(out, root_fd, false, true, o, err);
}
