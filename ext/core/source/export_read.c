/* export_read.c - an export as a source: header blocks, payload and padding leave on demand.
 *
 * Payload goes from the file straight into the caller's buffer. The header promises a size, so what a
 * file has grown meanwhile is left out, and a file that has shrunk is an error: never padding that was not there.
 */
#include "source/export.h"

#include "base/grow.h"

#include <stdio.h>
#include <string.h>

static ssize_t read_file(lay_export *x, uint8_t *to, size_t n)
{
    if (x->file_of == NULL)
        return read(x->file_fd, to, n);
    ssize_t r = x->file_of->ops->read(x->file_of, x->file, S_IFREG, to, n, x->file_at);
    x->file_at += r > 0 ? r : 0;
    return r;
}

static void close_file(lay_export *x)
{
    if (x->file_of != NULL)
        lay_lower_leave(x->file_of, x->file);
    x->file_of = NULL;
    lay_close_owner(&x->file_fd);
    x->file_fd = -1;
}

static lay_code read_payload(lay_export *x, uint8_t *to, size_t n, size_t *got, lay_error *err)
{
    if ((uint64_t)x->file_left < n)
        n = (size_t)x->file_left;
    ssize_t r;
    do
        r = read_file(x, to, n);
    while (r < 0 && errno == EINTR);
    if (r < 0) {
        lay_fail_os(err, errno, x->name.p + x->plain.prefix, "cannot read it");
        return x->file_of != NULL ? lay_export_damaged(x->file_of, err) : err->code;
    }
    if (r == 0) {
        char what[80];
        snprintf(what, sizeof what, "the file became %lld bytes shorter while it was read", (long long)x->file_left);
        return lay_export_changed(x, err, what);
    }
    *got = (size_t)r;
    x->file_left -= r;
    if (x->file_left == 0)
        close_file(x);
    return LAY_OK;
}

static lay_code next_entry(lay_export *x, lay_error *err)
{
    bool end = false;
    x->head_at = x->head_len = 0;
    if (x->next(x, &end, err))
        return err->code;
    if (!end)
        return LAY_OK;
    if (lay_reserve(&x->head, &x->head_cap, LAY_TAR_END_BLOCKS, 1, err))
        return err->code;
    memset(x->head, 0, LAY_TAR_END_BLOCKS);
    x->head_len = LAY_TAR_END_BLOCKS;
    x->ended = true;
    return LAY_OK;
}

static lay_code export_some(lay_export *x, uint8_t *to, size_t n, size_t *got, lay_error *err)
{
    *got = 0;
    if (x->head_at < x->head_len) {
        size_t left = x->head_len - x->head_at;
        *got = left < n ? left : n;
        memcpy(to, x->head + x->head_at, *got);
        x->head_at += *got;
    } else if (x->file_left > 0) {
        return read_payload(x, to, n, got, err);
    } else if (x->padding > 0) {
        *got = x->padding < n ? x->padding : n;
        memset(to, 0, *got);
        x->padding -= *got;
    } else if (!x->ended) {
        return next_entry(x, err);
    }
    return LAY_OK;
}

static lay_code export_read(lay_source *s, void *buf, size_t n, size_t *got, lay_error *err)
{
    lay_export *x = (lay_export *)s;
    *got = 0;
    while (*got < n && !x->failed) {
        bool last = x->ended && x->head_at == x->head_len;
        size_t some = 0;
        if (last)
            return LAY_OK;
        x->failed = export_some(x, (uint8_t *)buf + *got, n - *got, &some, &x->failure) != LAY_OK;
        *got += some;
    }
    if (!x->failed || *got > 0)     /* all good bytes come before the error */
        return LAY_OK;
    *err = x->failure;
    return x->failure.code;
}

static lay_code export_size(lay_source *s, int64_t *size, lay_error *err)
{
    lay_export *x = (lay_export *)s, *dry = NULL;
    int64_t sum = LAY_TAR_END_BLOCKS;
    bool end = false;
    lay_code code = x->twin(x, &dry, err);
    while (code == LAY_OK) {
        dry->head_at = dry->head_len = 0;
        dry->file_left = 0;
        dry->padding = 0;
        code = dry->next(dry, &end, err);
        if (code != LAY_OK || end)
            break;
        if (__builtin_add_overflow(sum, dry->file_left, &sum)
            || __builtin_add_overflow(sum, (int64_t)(dry->head_len + dry->padding), &sum))
            code = lay_fail(err, LAY_E_LIMIT, "the tar would be longer than 2^63 bytes");
    }
    if (code == LAY_OK) {
        lay_left_out_free(&x->surveyed);
        x->surveyed = dry->left;
        dry->left = (lay_left_out){ 0 };
        *size = sum;
    }
    if (dry != NULL)
        lay_export_ops.free(&dry->source);
    return code;
}

static void export_free(lay_source *s)
{
    lay_export *x = (lay_export *)s;
    close_file(x);
    x->done(x);
    free(x->head);
    free(x->block);
    free(x->names);
    lay_attributes_free(&x->attributes);
    lay_left_out_free(&x->left);
    lay_left_out_free(&x->surveyed);
    lay_inodes_free(&x->inodes);
    free(x->name.p);
    free(x->shown.p);
    free(x);
}

const lay_source_ops lay_export_ops = { .read = export_read, .size = export_size, .free = export_free };

static const lay_left_out *left_out(const lay_source *s)
{
    static const lay_left_out nothing;
    const lay_export *x = (const lay_export *)s;
    return s->ops != &lay_export_ops ? &nothing : x->ended ? &x->left : &x->surveyed;
}

int64_t lay_export_files_size(const lay_source *s)
{
    return s->ops == &lay_export_ops ? ((const lay_export *)s)->files_size : 0;
}

int64_t lay_export_left_out(const lay_source *s, int kind)
{
    return kind >= 0 && kind < LAY_LEFT_KINDS ? left_out(s)->count[kind] : 0;
}

const char *lay_export_left_path(const lay_source *s, int kind, size_t i)
{
    return kind >= 0 && kind < LAY_LEFT_KINDS && i < LAY_LEFT_NAMED ? left_out(s)->paths[kind][i] : NULL;
}
