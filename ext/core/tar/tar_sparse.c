/* tar_sparse.c - where the stored bytes of a sparse file belong: maps of old GNU tar, of PAX 0.0 and 0.1
 * (in the records) and of PAX 1.0 (at the start of the data). Source: Go's archive/tar, reader.go. */
#include "base/grow.h"
#include "tar/tar_number.h"
#include "tar/tar_state.h"

#include <string.h>

static lay_code map_too_long(const lay_tar *t, int64_t at, lay_error *err)
{
    lay_fail_limit(err, at, "max_extents", t->limits->extents, "pieces", "archive/tar: sparse map too long");
    lay_error_path(err, t->name.p ? t->name.p : "", t->name.len);
    return err->code;
}

static lay_code add_run(lay_tar *t, int64_t offset, int64_t length, lay_error *err)
{
    if (lay_is_over((int64_t)t->nruns + 1, t->limits->extents))
        return map_too_long(t, t->offset, err);
    if (lay_grow(&t->runs, &t->runs_cap, t->nruns, sizeof *t->runs, err))
        return err->code;
    t->runs[t->nruns++] = (lay_sparse_run){ offset, length };
    return LAY_OK;
}

lay_code lay_sparse_gnu(lay_tar *t, const uint8_t *b, size_t entries, bool *more, int64_t at, lay_error *err)
{
    for (size_t i = 0; i < entries && b[i * 24]; i++) {
        int64_t offset, length;
        if (!lay_tar_number(b + i * 24, 12, &offset) || !lay_tar_number(b + i * 24 + 12, 12, &length))
            return lay_tar_invalid(t, at, "the sparse map holds no number", err);
        if (add_run(t, offset, length, err))
            return err->code;
    }
    *more = b[entries * 24] > 0;
    return LAY_OK;
}

/* "offset,length,offset,length" or, of version 0.0, records GNU.sparse.offset and .numbytes in turn. */
static lay_code pax_sparse_runs_0(lay_tar *t, int64_t at, lay_error *err)
{
    static const char why[] = "the sparse map is malformed";
    const record *count = lay_tar_record(t, "GNU.sparse.numblocks");
    int64_t want;
    if (!count || !lay_tar_decimal(count->value, count->len, &want) || want < 0)
        return lay_tar_invalid(t, at, "GNU.sparse.numblocks is no number", err);
    int64_t offset = 0, number;
    bool half = false, pairs = false;
    for (size_t i = 0; i < t->nrecords; i++) {
        const record *r = &t->records[i];
        bool is_length = !strcmp(r->key, "GNU.sparse.numbytes");
        if (!is_length && strcmp(r->key, "GNU.sparse.offset") != 0)
            continue;
        pairs = true;
        if (is_length != half || !lay_tar_decimal(r->value, r->len, &number))
            return lay_tar_invalid(t, at, why, err);
        if (is_length && add_run(t, offset, number, err))
            return err->code;
        offset = number;
        half = !half;
    }
    const record *map = pairs ? NULL : lay_tar_record(t, "GNU.sparse.map");
    if (map && map->len) {
        for (const char *p = map->value, *end = p + map->len; p <= end;) {
            const char *comma = memchr(p, ',', (size_t)(end - p));
            const char *stop = comma ? comma : end;
            if (!lay_tar_decimal(p, (size_t)(stop - p), &number))
                return lay_tar_invalid(t, at, why, err);
            if (half && add_run(t, offset, number, err))
                return err->code;
            offset = number;
            half = !half;
            p = stop + 1;
        }
    }
    if (half || (uint64_t)want != t->nruns)
        return lay_tar_invalid(t, at, why, err);
    return LAY_OK;
}

lay_code lay_sparse_pax(lay_tar *t, bool *map_in_data, int64_t at, lay_error *err)
{
    lay_tar_entry *e = &t->entry;
    const record *major = lay_tar_record(t, "GNU.sparse.major"), *minor = lay_tar_record(t, "GNU.sparse.minor");
    const record *offsets = lay_tar_record(t, "GNU.sparse.offset"), *lengths = lay_tar_record(t, "GNU.sparse.numbytes");
    const record *name = lay_tar_record(t, "GNU.sparse.name"), *size = lay_tar_record(t, "GNU.sparse.size");
    bool has_map = lay_tar_given(lay_tar_record(t, "GNU.sparse.map")) || offsets || lengths;
    *map_in_data = false;
    if (lay_tar_given(major) || lay_tar_given(minor)) {
        if (!lay_tar_given(major) || !lay_tar_given(minor))
            return LAY_OK;
        bool v0 = !strcmp(major->value, "0") && (!strcmp(minor->value, "0") || !strcmp(minor->value, "1"));
        bool v1 = !strcmp(major->value, "1") && !strcmp(minor->value, "0");
        if (!v0 && !v1)
            return LAY_OK;                       /* an unknown version: an ordinary file, as in Go */
        *map_in_data = v1;
    } else if (!has_map) {
        return LAY_OK;
    }
    if (lay_tar_given(name) && memchr(name->value, 0, name->len))
        return lay_tar_invalid(t, at, "GNU.sparse.name holds a NUL", err);
    if (lay_tar_given(name) && lay_text_set(&t->name, name->value, name->len, err))
        return err->code;
    if (!lay_tar_given(size))
        size = lay_tar_record(t, "GNU.sparse.realsize");
    if (lay_tar_given(size) && !lay_tar_decimal(size->value, size->len, &e->size))
        return lay_tar_invalid(t, at, "the sparse file's size is no number", err);
    if (!lay_tar_type_has_data(e->type))
        return lay_tar_invalid(t, at, "a type without data has a sparse map", err);
    e->sparse = true;
    return *map_in_data ? LAY_OK : pax_sparse_runs_0(t, at, err);
}

lay_code lay_sparse_check(lay_tar *t, int64_t at, lay_error *err)
{
    lay_tar_entry *e = &t->entry;
    int64_t end = 0, sum = 0;
    if (e->size < 0)
        return lay_tar_invalid(t, at, "the sparse file's size is negative", err);
    for (size_t i = 0; i < t->nruns; i++) {
        int64_t offset = t->runs[i].offset, length = t->runs[i].length;
        if (offset < end || length < 0 || __builtin_add_overflow(offset, length, &end) || end > e->size)
            return lay_tar_invalid(t, at, "the sparse map is out of order or leaves the file", err);
        sum += length;
    }
    if (sum != e->stored)
        return lay_tar_invalid(t, at, "the sparse map and the stored size do not agree", err);
    e->sparse = true;
    t->run = 0;
    t->run_pos = 0;
    return LAY_OK;
}

/* One more block of a PAX 1.0 map: count lines until all are there, then read the numbers. */
lay_code lay_sparse_pax_block(lay_tar *t, bool *whole, int64_t at, lay_error *err)
{
    if (lay_is_over((int64_t)t->map.len + LAY_TAR_BLOCK, t->limits->header)) {
        lay_fail_limit(err, at, "max_header", t->limits->header, "bytes", "archive/tar: sparse map too long");
        lay_error_path(err, t->name.p ? t->name.p : "", t->name.len);
        return err->code;
    }
    if (lay_text_add(&t->map, t->block, LAY_TAR_BLOCK, err))
        return err->code;
    for (size_t i = 0; i < LAY_TAR_BLOCK; i++)
        if (t->block[i] == '\n') {
            t->map_lines++;
            if (t->map_lines == 1) {
                int64_t count;
                const char *stop = memchr(t->map.p, '\n', t->map.len);
                if (!lay_tar_decimal(t->map.p, (size_t)(stop - t->map.p), &count) || count < 0)
                    return lay_tar_invalid(t, at, "the sparse map is malformed", err);
                if (lay_is_over(count, t->limits->extents))
                    return map_too_long(t, at, err);
                t->map_want = 1 + 2 * (size_t)count;
            }
            if (t->map_lines == t->map_want)
                break;
        }
    *whole = t->map_lines > 0 && t->map_lines == t->map_want;
    if (!*whole)
        return LAY_OK;
    const char *p = (const char *)memchr(t->map.p, '\n', t->map.len) + 1;
    for (size_t i = 1; i < t->map_want; i += 2) {
        const char *mid = memchr(p, '\n', t->map.len - (size_t)(p - t->map.p));
        const char *end = memchr(mid + 1, '\n', t->map.len - (size_t)(mid + 1 - t->map.p));
        int64_t offset, length;
        if (!lay_tar_decimal(p, (size_t)(mid - p), &offset) || !lay_tar_decimal(mid + 1, (size_t)(end - mid - 1), &length))
            return lay_tar_invalid(t, at, "the sparse map is malformed", err);
        if (add_run(t, offset, length, err))
            return err->code;
        p = end + 1;
    }
    return LAY_OK;
}
