/* erofs_xattr.c - extended attributes: of an inode alone, and those that inodes share. */
#include "erofs/erofs_image_state.h"

#include "tree/whiteout.h"

#include <string.h>

#define LONG_PREFIX 0x80u                       /* of an entry's number: the rest numbers a long prefix */

int lay_exattrs_begin(lay_exattrs *x, const lay_erofs *e, const lay_einode *i)
{
    *x = (lay_exattrs){ .e = e, .at = i->body, .end = i->body };
    if (i->xattrs == 0)
        return 0;
    x->at = i->body - i->xattrs;
    x->shared = e->map[x->at + 4];
    x->ids = x->at + LAY_EROFS_XATTR_HEADER;
    x->at = x->ids + 4 * (int64_t)x->shared;
    return x->at <= x->end ? 0 : lay_erofs_bad(e, i->at, "an inode has no room for the numbers of shared attributes");
}

/* The entry at a place that ends by `end`; *size: the bytes it takes. */
static int read_entry(const lay_erofs *e, int64_t at, int64_t end, lay_exattr *out, int64_t *size)
{
    if (end - at < 4)
        return lay_erofs_bad(e, at, "an extended attribute is cut");
    const uint8_t *p = e->map + at;
    uint8_t number = p[1];
    *out = (lay_exattr){ .name = (const char *)p + 4, .name_len = p[0], .len = lay_get16(p + 2) };
    out->value = p + 4 + out->name_len;
    *size = (int64_t)lay_erofs_xattr_size(out->name_len, out->len);
    if (4 + (int64_t)(out->name_len + out->len) > end - at)
        return lay_erofs_bad(e, at, "an extended attribute goes beyond its inode");
    if (number & LONG_PREFIX) {
        number &= (uint8_t)~LONG_PREFIX;
        if (number >= e->ninfixes)
            return lay_erofs_bad(e, at, "an extended attribute has a prefix of no known number, %u", number);
        out->infix = e->infixes[number].text;
        out->infix_len = e->infixes[number].len;
        number = e->infixes[number].base;
    }
    out->prefix = lay_erofs_prefix_text(number);
    if (out->prefix == NULL)
        return lay_erofs_bad(e, at, "an extended attribute has a prefix of no known number, %u", number);
    if (memchr(out->name, '\0', out->name_len) != NULL)
        return lay_erofs_bad(e, at, "an extended attribute's name has a NUL");
    return 1;
}

int lay_exattrs_next(lay_exattrs *x, lay_exattr *out)
{
    const lay_erofs *e = x->e;
    int64_t size;
    if (x->shared > 0) {
        int64_t at = e->shared + 4 * (int64_t)lay_get32(e->map + x->ids);
        x->shared--;
        x->ids += 4;
        return lay_erofs_at(e, at, 4, "a shared attribute") == NULL ? -1 : read_entry(e, at, e->limit, out, &size);
    }
    if (x->at >= x->end)
        return 0;
    int got = read_entry(e, x->at, x->end, out, &size);
    if (got > 0)
        x->at += size;
    return got;
}

static bool is_named(const lay_exattr *x, const char *name, size_t n)
{
    size_t prefix = strlen(x->prefix);
    return n == prefix + x->infix_len + x->name_len && memcmp(name, x->prefix, prefix) == 0
        && (x->infix_len == 0 || memcmp(name + prefix, x->infix, x->infix_len) == 0) && memcmp(name + prefix + x->infix_len, x->name, x->name_len) == 0;
}

/* n bytes more of an answer; size 0: only how long it is. */
static bool put(void *buf, size_t size, size_t *have, const void *p, size_t n)
{
    if (size > 0 && n > size - *have) {
        errno = ERANGE;
        return false;
    }
    if (size > 0 && n > 0)
        memcpy((char *)buf + *have, p, n);
    *have += n;
    return true;
}

static ssize_t list_names(lay_exattrs *each, void *buf, size_t size)
{
    lay_exattr x;
    size_t have = 0;
    int got;
    while ((got = lay_exattrs_next(each, &x)) > 0) {
        bool opaque = is_named(&x, LAY_OPAQUE_TRUSTED, sizeof LAY_OPAQUE_TRUSTED - 1);
        if (!put(buf, size, &have, x.prefix, strlen(x.prefix)) || !put(buf, size, &have, x.infix, x.infix_len)
            || !put(buf, size, &have, x.name, x.name_len) || !put(buf, size, &have, "", 1)
            || (opaque && !put(buf, size, &have, LAY_OPAQUE_USER, sizeof LAY_OPAQUE_USER)))
            return -1;
    }
    if (got == 0)
        errno = 0;
    return got < 0 ? -1 : (ssize_t)have;
}

ssize_t lay_erofs_xattr(const lay_erofs *e, const lay_einode *i, const char *xattr, void *buf, size_t size)
{
    lay_exattrs each;
    lay_exattr x;
    size_t have = 0;
    int got;
    if (lay_exattrs_begin(&each, e, i) < 0)
        return -1;
    if (xattr == NULL)
        return list_names(&each, buf, size);
    if (strcmp(xattr, LAY_OPAQUE_USER) == 0)
        xattr = LAY_OPAQUE_TRUSTED;
    size_t n = strlen(xattr);
    while ((got = lay_exattrs_next(&each, &x)) > 0) {
        if (!is_named(&x, xattr, n))
            continue;
        errno = 0;
        return put(buf, size, &have, x.value, x.len) ? (ssize_t)have : -1;
    }
    if (got == 0)
        errno = ENODATA;
    return got;
}
