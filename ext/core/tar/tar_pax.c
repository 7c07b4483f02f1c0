/* tar_pax.c - the payload of a PAX header becomes records; and how the reader refuses a header.
 * Source: Go's archive/tar, strconv.go (parsePAXRecord). */
#include "base/grow.h"
#include "tar/tar_number.h"
#include "tar/tar_state.h"

#include <string.h>

lay_code lay_tar_invalid(lay_tar *t, int64_t offset, const char *why, lay_error *err)
{
    lay_fail_at(err, LAY_E_TAR, offset, LAY_TAR_INVALID "%s", why);
    if (t->pending || t->entry.name_len)
        lay_error_path(err, t->name.p ? t->name.p : "", t->name.len);
    return LAY_E_TAR;
}

static lay_code add_record(lay_tar *t, char *key, char *value, size_t len, lay_error *err)
{
    if (lay_grow(&t->records, &t->records_cap, t->nrecords, sizeof *t->records, err))
        return err->code;
    t->records[t->nrecords++] = (record){ key, value, len };
    return LAY_OK;
}

lay_code lay_tar_cut_pax(lay_tar *t, int64_t at, lay_error *err)
{
    char *p = t->pax.p;
    size_t n = t->pax.len;
    t->nrecords = 0;
    while (n) {
        char *blank = memchr(p, ' ', n < 20 ? n : 20);
        int64_t len;
        if (!blank || !lay_tar_decimal(p, (size_t)(blank - p), &len) || len < 5 || (uint64_t)len > n)
            return lay_tar_invalid(t, at, "a PAX record has a wrong length", err);
        char *end = p + len, *key = blank + 1;
        if (key >= end || end[-1] != '\n')
            return lay_tar_invalid(t, at, "a PAX record does not end in a newline", err);
        char *equals = memchr(key, '=', (size_t)(end - key) - 1);
        if (!equals || equals == key)
            return lay_tar_invalid(t, at, "a PAX record has no key", err);
        char *value = equals + 1;
        size_t value_len = (size_t)(end - 1 - value);
        *equals = end[-1] = '\0';
        size_t key_len = (size_t)(equals - key);
        bool plain_text = !strcmp(key, "path") || !strcmp(key, "linkpath") || !strcmp(key, "uname") || !strcmp(key, "gname");
        if (plain_text ? memchr(value, 0, value_len) != NULL : strlen(key) != key_len)
            return lay_tar_invalid(t, at, "a PAX record holds a NUL", err);
        if (add_record(t, key, value, value_len, err))
            return err->code;
        p = end;
        n -= (size_t)len;
    }
    return LAY_OK;
}

const record *lay_tar_record(const lay_tar *t, const char *key)
{
    for (size_t i = t->nrecords; i-- > 0;)        /* the last one counts */
        if (!strcmp(t->records[i].key, key))
            return &t->records[i];
    return NULL;
}
