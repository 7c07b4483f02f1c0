/* tar_read.c - spans in, events out.
 *
 * Enters: windows of a tar, cut anywhere. Leaves: RAW, ENTRY, DATA, DONE, END (see tar.h).
 * Payload is never copied; headers are gathered in one block, extensions in one bounded buffer. The
 * parser stops at any byte and keeps where it is in `state`; no state is named for code, all for grammar.
 * Source: Go's archive/tar reader.go and strconv.go, whose readings of odd numbers, names and sizes
 * decide what dockerd would have seen.
 */
#include "tar/tar_state.h"

#include <string.h>

/* ---- small things --------------------------------------------------------------------------- */

static lay_tar_event bad(lay_tar *t, lay_error *err)
{
    t->state = IN_ERROR;
    if (t->failure.code == LAY_OK)
        t->failure = *err;
    return LAY_TAR_BAD;
}

static void forget_extensions(lay_tar *t)
{
    t->has_pax = t->has_long_name = t->has_long_link = t->pending = t->repeated = false;
    t->nrecords = 0;
    t->headers = 0;
}

/* ---- the verbs -------------------------------------------------------------------------------------- */

lay_tar *lay_tar_new(void)
{
    lay_tar *t = calloc(1, sizeof *t);
    if (t)
        t->limits = lay_limits_default();
    return t;
}

void lay_tar_limit(lay_tar *t, const lay_limits *limits) { t->limits = limits; }

void lay_tar_free(lay_tar *t)
{
    if (!t)
        return;
    free(t->ext.p);
    free(t->pax.p);
    free(t->records);
    free(t->long_name.p);
    free(t->long_link.p);
    free(t->name.p);
    free(t->link.p);
    free(t->map.p);
    free(t->xattrs);
    free(t->runs);
    free(t);
}

void lay_tar_feed(lay_tar *t, const void *p, size_t n)
{
    t->p = p;
    t->n = n;
}

bool lay_tar_omit(lay_tar *t)
{
    if (t->state == IN_PAX_MAP && !t->have)
        lay_tar_complete(t);
    else if (t->state != IN_DATA)
        return false;
    t->left = 0;
    return true;
}

int64_t lay_tar_pass(lay_tar *t)
{
    int64_t over = t->left + (int64_t)t->pad;
    size_t here = over < (int64_t)t->n ? (size_t)over : t->n;
    t->p += here;
    t->n -= here;
    t->offset += over;
    t->left = 0;
    t->pad = 0;
    t->state = IN_HEADER;
    return t->offset;
}

const lay_sparse_run *lay_tar_runs(const lay_tar *t, size_t *count)
{
    *count = t->nruns;
    return t->runs;
}

int64_t lay_tar_offset(const lay_tar *t) { return t->offset; }
bool lay_tar_ended(const lay_tar *t) { return t->ended; }

static lay_tar_event take(lay_tar *t, size_t n, lay_tar_event event, lay_tar_item *item)
{
    item->p = t->p;
    item->n = n;
    t->p += n;
    t->n -= n;
    t->offset += (int64_t)n;
    return event;
}

static size_t at_most(int64_t want, size_t have) { return want < (int64_t)have ? (size_t)want : have; }

/* Gathers a block; the state moves on when it is whole. */
static lay_tar_event take_block(lay_tar *t, state then, lay_tar_item *item)
{
    size_t n = LAY_TAR_BLOCK - t->have < t->n ? LAY_TAR_BLOCK - t->have : t->n;
    memcpy(t->block + t->have, t->p, n);
    t->have += n;
    if (t->have == LAY_TAR_BLOCK) {
        t->have = 0;
        t->state = then;
    }
    return take(t, n, LAY_TAR_RAW, item);
}

lay_tar_event lay_tar_next(lay_tar *t, lay_tar_item *item, lay_error *err)
{
    lay_tar_entry *e = &t->entry;
    item->entry = e;
    for (;;) {
        size_t n;
        switch (t->state) {
        case IN_HEADER:
            return t->n ? take_block(t, AT_HEADER, item) : LAY_TAR_NEED;
        case AT_HEADER:
            if (lay_tar_at_header(t, err))
                return bad(t, err);
            break;
        case IN_EXTENSION:
            if (!t->n)
                return LAY_TAR_NEED;
            n = at_most(t->left, t->n);
            if (lay_text_add(&t->ext, t->p, n, err))
                return bad(t, err);
            t->left -= (int64_t)n;
            if (!t->left)
                t->state = AT_EXTENSION;
            return take(t, n, LAY_TAR_RAW, item);
        case AT_EXTENSION:
            if (lay_tar_at_extension(t, err))
                return bad(t, err);
            break;
        case IN_EXTENSION_PAD:
        case IN_PADDING:
            if (!t->pad) {
                t->state = IN_HEADER;
                break;
            }
            if (!t->n)
                return LAY_TAR_NEED;
            n = at_most((int64_t)t->pad, t->n);
            t->pad -= n;
            return take(t, n, LAY_TAR_RAW, item);
        case IN_GNU_SPARSE:
            if (!t->n)
                return LAY_TAR_NEED;
            take_block(t, IN_GNU_SPARSE, item);
            if (!t->have) {
                bool more;
                int64_t at = t->offset - LAY_TAR_BLOCK;
                if (lay_sparse_gnu(t, t->block, 21, &more, at, err) || (!more && lay_sparse_check(t, at, err)))
                    return bad(t, err);
                if (!more)
                    lay_tar_complete(t);
            }
            return LAY_TAR_RAW;
        case IN_PAX_MAP:
            if (e->stored < LAY_TAR_BLOCK) {
                lay_tar_invalid(t, t->offset, "the sparse map is cut", err);
                return bad(t, err);
            }
            if (!t->n)
                return LAY_TAR_NEED;
            take_block(t, IN_PAX_MAP, item);
            if (!t->have) {
                bool whole;
                e->stored -= LAY_TAR_BLOCK;
                if (lay_sparse_pax_block(t, &whole, t->offset - LAY_TAR_BLOCK, err) || (whole && lay_sparse_check(t, t->offset - LAY_TAR_BLOCK, err)))
                    return bad(t, err);
                if (whole)
                    lay_tar_complete(t);
            }
            return LAY_TAR_RAW;
        case AT_ENTRY:
            if (lay_tar_within(t, err))
                return bad(t, err);
            t->state = IN_DATA;
            forget_extensions(t);
            t->ordinal++;
            return LAY_TAR_ENTRY;
        case IN_DATA:
            if (!t->left) {
                t->state = AT_DONE;
                break;
            }
            if (!t->n)
                return LAY_TAR_NEED;
            n = at_most(t->left, t->n);
            if (e->sparse) {
                while (t->run_pos == t->runs[t->run].length) {
                    t->run++;
                    t->run_pos = 0;
                }
                n = at_most(t->runs[t->run].length - t->run_pos, n);
                item->file_offset = t->runs[t->run].offset + t->run_pos;
                t->run_pos += (int64_t)n;
            } else {
                item->file_offset = t->data_pos;
            }
            t->data_pos += (int64_t)n;
            t->left -= (int64_t)n;
            return take(t, n, LAY_TAR_DATA, item);
        case AT_DONE:
            t->state = IN_PADDING;
            return LAY_TAR_DONE;
        case IN_SECOND_ZERO:
            return t->n ? take_block(t, AT_SECOND_ZERO, item) : LAY_TAR_NEED;
        case AT_SECOND_ZERO:
            if (!lay_tar_is_zero(t->block)) {
                lay_fail_at(err, LAY_E_TAR, t->offset - LAY_TAR_BLOCK, LAY_TAR_INVALID "a header follows a single zero block");
                return bad(t, err);
            }
            t->state = AT_END;
            break;
        case AT_END:
            t->ended = true;
            t->state = IN_TRAILER;
            return LAY_TAR_END;
        case IN_TRAILER:
            return t->n ? take(t, t->n, LAY_TAR_RAW, item) : LAY_TAR_NEED;
        case IN_ERROR:
            *err = t->failure;
            return LAY_TAR_BAD;
        }
    }
}

lay_code lay_tar_eof(lay_tar *t, lay_error *err)
{
    switch (t->state) {
    case IN_ERROR:
        *err = t->failure;
        return err->code;
    case IN_HEADER:
    case IN_SECOND_ZERO:
        if (!t->have)
            return LAY_OK;
        break;
    case IN_EXTENSION_PAD:
    case IN_PADDING:
    case IN_TRAILER:
        return LAY_OK;
    default:
        break;
    }
    lay_fail_at(err, LAY_E_TRUNCATED, t->offset, "unexpected EOF: the tar ends inside %s",
                t->state == IN_DATA ? "a file's data" : t->state == IN_HEADER || t->state == IN_SECOND_ZERO ? "a header block" : "a header's extension");
    if (t->state != IN_HEADER && t->state != IN_SECOND_ZERO)
        lay_error_path(err, t->name.p ? t->name.p : "", t->name.len);
    return err->code;
}
