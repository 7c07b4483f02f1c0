/* erofs_scan.c - windows of a file, from one header to the next, go through the reader of tars. */
#include "erofs/erofs_scan.h"

#include "base/clock.h"
#include "tree/entry.h"

#define WINDOW (64u << 10)
#define NEAR 4096u                           /* behind a payload that was passed over; all of it only where headers lie close */

struct lay_escan {
    int fd;
    int64_t offset, size;
    lay_limits limits;
    lay_tar *tar;
    lay_etree *t;
    size_t wanted;                           /* of the window, next */
    uint8_t window[WINDOW];
};

lay_code lay_etree_given(lay_etree *t, const lay_tar *tar, const lay_tar_entry *e, lay_error *err)
{
    int64_t at = lay_tar_offset(tar);
    size_t count = 0;
    if (lay_etree_entry(t, e, at, err))
        return err->code;
    const lay_sparse_run *runs = e->sparse ? lay_tar_runs(tar, &count) : NULL;
    for (size_t i = 0; i < count; i++) {
        if (runs[i].length && lay_etree_piece(t, runs[i].offset, at, runs[i].length, err))
            return lay_entry_failed(e, err);
        at += runs[i].length;
    }
    return LAY_OK;
}

lay_code lay_escan_open(lay_escan **out, int fd, int64_t offset, int64_t size, const lay_limits *limits, lay_error *err)
{
    lay_escan *s = malloc(sizeof *s);
    if (!s)
        return lay_fail_nomem(err);
    s->fd = fd;
    s->offset = offset;
    s->size = size;
    s->limits = limits ? *limits : *lay_limits_default();
    s->wanted = NEAR;
    s->t = NULL;
    s->tar = lay_tar_new();
    if (!s->tar) {
        lay_fail_nomem(err);
    } else {
        lay_tar_limit(s->tar, &s->limits);
        lay_etree_new(&s->t, &s->limits, err);
    }
    if (err->code)
        lay_escan_free(s);
    else
        *out = s;
    return err->code;
}

void lay_escan_free(lay_escan *s)
{
    if (!s)
        return;
    lay_tar_free(s->tar);
    lay_etree_free(s->t);
    free(s);
}

lay_etree *lay_escan_take(lay_escan *s) { return lay_steal(s->t); }

/* The next bytes, from where the reader is; none: the tar is over. */
static lay_code fill(lay_escan *s, size_t *n, lay_error *err)
{
    int64_t at = lay_tar_offset(s->tar), left = s->size - at;
    size_t want = left < (int64_t)s->wanted ? (size_t)(left > 0 ? left : 0) : s->wanted;
    for (*n = 0; *n < want;) {
        ssize_t got = pread(s->fd, s->window + *n, want - *n, s->offset + at + (int64_t)*n);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return lay_fail_fd(err, errno, s->fd, "cannot read the layer's tar");
        if (!got)
            return lay_fail_at(err, LAY_E_TRUNCATED, at + (int64_t)*n, "unexpected EOF: the file ends inside the tar");
        *n += (size_t)got;
    }
    return LAY_OK;
}

/* The window's entries. */
static lay_code take(lay_escan *s, size_t n, lay_error *err)
{
    lay_tar_item item;
    lay_tar_event event;
    int64_t end = lay_tar_offset(s->tar) + (int64_t)n;
    lay_tar_feed(s->tar, s->window, n);
    while ((event = lay_tar_next(s->tar, &item, err)) > LAY_TAR_NEED && event != LAY_TAR_END)
        if (event == LAY_TAR_ENTRY) {
            if (lay_etree_given(s->t, s->tar, item.entry, err))
                return err->code;
            if (item.entry->stored > s->size - lay_tar_offset(s->tar)) {
                lay_fail_at(err, LAY_E_TRUNCATED, s->size, "unexpected EOF: the tar ends inside a file's data");
                return lay_error_path(err, item.entry->name, item.entry->name_len);
            }
            lay_tar_pass(s->tar);
        }
    s->wanted = lay_tar_offset(s->tar) > end ? NEAR : WINDOW;
    return err->code;
}

lay_code lay_escan_run(lay_escan *s, int max_ms, bool *end, lay_error *err)
{
    lay_applied ignored;
    int64_t stop = lay_now_ms() + max_ms;
    *end = false;
    while (!lay_tar_ended(s->tar)) {
        size_t n;
        if (lay_now_ms() >= stop)
            return LAY_OK;
        if (fill(s, &n, err))
            return err->code;
        if (!n) {
            if (lay_tar_eof(s->tar, err))
                return err->code;
            break;
        }
        if (take(s, n, err))
            return err->code;
    }
    *end = true;
    return lay_etree_end(s->t, &ignored, err);
}
