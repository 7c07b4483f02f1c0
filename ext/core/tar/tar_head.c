/* tar_head.c - a header block, with the extensions before it, becomes an entry.
 * Source: Go's archive/tar, reader.go (next, readHeader, parsePAX, mergePAX). */
#include "base/grow.h"
#include "tar/tar_number.h"
#include "tar/tar_state.h"

#include <string.h>

typedef enum magic { MAGIC_V7, MAGIC_USTAR, MAGIC_STAR, MAGIC_GNU } magic;

bool lay_tar_is_header(const uint8_t b[LAY_TAR_BLOCK])
{
    if (lay_tar_is_zero(b))
        return true;
    int64_t want;
    if (!lay_tar_number(b + 148, 8, &want) || b[148] & 0x80)
        return false;
    /* Eight bytes at a time, in sums of 16 bits; read as signed, each with its top bit set is 256 less. */
    const uint64_t even = 0x00ff00ff00ff00ffu, ones = 0x0101010101010101u;
    uint64_t sums = 0, tops = 0, w;
    int64_t plain = 8 * ' ', negative = 0;
    for (size_t i = 0; i < LAY_TAR_BLOCK; i += sizeof w) {
        memcpy(&w, b + i, sizeof w);
        sums += (w & even) + (w >> 8 & even);
        tops += w >> 7 & ones;
    }
    for (size_t i = 0; i < 64; i += 16)
        plain += (int64_t)(sums >> i & 0xffff);
    for (size_t i = 0; i < 64; i += 8)
        negative += (int64_t)(tops >> i & 0xff);
    for (size_t i = 148; i < 156; i++) {      /* the field itself counts as blanks */
        plain -= b[i];
        negative -= b[i] >> 7;
    }
    return want == plain || want == plain - 256 * negative;
}

static magic find_magic(const uint8_t *b)
{
    if (!memcmp(b + 257, "ustar\0", 6))
        return memcmp(b + 508, "tar\0", 4) ? MAGIC_USTAR : MAGIC_STAR;
    if (!memcmp(b + 257, "ustar  \0", 8))
        return MAGIC_GNU;
    return MAGIC_V7;
}

static lay_code set_name(lay_tar *t, const uint8_t *b, size_t prefix_room, lay_error *err)
{
    size_t prefix = prefix_room ? lay_field_len(b + 345, prefix_room) : 0, name = lay_field_len(b, 100);
    char whole[155 + 1 + 100];
    size_t n = 0;
    if (prefix) {
        memcpy(whole, b + 345, prefix);
        n = prefix;
        whole[n++] = '/';
    }
    memcpy(whole + n, b, name);
    return lay_text_set(&t->name, whole, n + name, err);
}

static lay_code parse_block(lay_tar *t, int64_t at, lay_error *err)
{
    const uint8_t *b = t->block;
    lay_tar_entry *e = &t->entry;
    int64_t started = t->pending ? e->offset : at;
    *e = (lay_tar_entry){ .offset = started, .ordinal = t->ordinal };
    t->nruns = 0;
    if (!lay_tar_is_header(b)) {
        t->name.len = 0;
        return lay_tar_invalid(t, at, "the checksum does not match", err);
    }
    magic m = find_magic(b);
    size_t prefix = m == MAGIC_USTAR ? 155 : m == MAGIC_STAR ? 131 : 0;
    if (set_name(t, b, prefix, err) || lay_text_set(&t->link, (const char *)b + 157, lay_field_len(b + 157, 100), err))
        return err->code;
    e->name_len = t->name.len;
    e->type = (char)b[156];
    int64_t mtime = 0, time = 0;
    if (!lay_tar_number(b + 100, 8, &e->mode))
        return lay_tar_invalid(t, at, "the mode is no number", err);
    if (!lay_tar_number(b + 108, 8, &e->uid) || !lay_tar_number(b + 116, 8, &e->gid))
        return lay_tar_invalid(t, at, "an owner is no number", err);
    if (!lay_tar_number(b + 124, 12, &e->size))
        return lay_tar_invalid(t, at, "the size is no number", err);
    if (!lay_tar_number(b + 136, 12, &mtime))
        return lay_tar_invalid(t, at, "the time is no number", err);
    e->mtime.sec = mtime;
    if (m != MAGIC_V7 && (!lay_tar_number(b + 329, 8, &e->dev_major) || !lay_tar_number(b + 337, 8, &e->dev_minor)))
        return lay_tar_invalid(t, at, "a device number is no number", err);
    if (m == MAGIC_STAR) {
        if (!lay_tar_number(b + 476, 12, &time))
            return lay_tar_invalid(t, at, "the access time is no number", err);
        e->atime.sec = time;
        e->has_atime = true;
        if (!lay_tar_number(b + 488, 12, &time))
            return lay_tar_invalid(t, at, "the change time is no number", err);
    }
    if (m == MAGIC_GNU) {
        /* Go before 1.8 wrote a prefix where GNU has two times: take it for one if it cannot be times. */
        bool times = true;
        if (b[345]) {
            times = lay_tar_number(b + 345, 12, &time);
            e->atime.sec = time;
            e->has_atime = times;
        }
        if (b[357])
            times = lay_tar_number(b + 357, 12, &time) && times;
        if (!times) {
            e->has_atime = false;
            size_t n = lay_field_len(b + 345, 155);
            bool ascii = true;
            for (size_t i = 0; i < n; i++)
                ascii = ascii && b[345 + i] < 0x80;
            if (ascii && set_name(t, b, 155, err))
                return err->code;
        }
    }
    return LAY_OK;
}

/* ---- extensions ---------------------------------------------------------------------------------- */

static lay_code merge_pax(lay_tar *t, int64_t at, lay_error *err)
{
    lay_tar_entry *e = &t->entry;
    const record *path = NULL, *linkpath = NULL, *uid = NULL, *gid = NULL, *size = NULL, *mtime = NULL, *atime = NULL, *ctime = NULL;
    size_t nxattrs = 0;
    for (size_t i = 0; i < t->nrecords; i++) {
        const record *r = &t->records[i];
        if (!strncmp(r->key, "SCHILY.xattr.", 13)) {
            if (lay_grow(&t->xattrs, &t->xattrs_cap, nxattrs, sizeof *t->xattrs, err))
                return err->code;
            t->xattrs[nxattrs++] = (lay_xattr){ r->key + 13, (const uint8_t *)r->value, r->len };
            continue;
        }
        const record **slot = !strcmp(r->key, "path") ? &path : !strcmp(r->key, "linkpath") ? &linkpath :
            !strcmp(r->key, "uid") ? &uid : !strcmp(r->key, "gid") ? &gid : !strcmp(r->key, "size") ? &size :
            !strcmp(r->key, "mtime") ? &mtime : !strcmp(r->key, "atime") ? &atime : !strcmp(r->key, "ctime") ? &ctime : NULL;
        if (slot)
            *slot = r;
    }
    e->xattrs = t->xattrs;
    e->nxattrs = nxattrs;
    lay_time changed;
    if (lay_tar_given(path) && lay_text_set(&t->name, path->value, path->len, err))
        return err->code;
    if (lay_tar_given(linkpath) && lay_text_set(&t->link, linkpath->value, linkpath->len, err))
        return err->code;
    if ((lay_tar_given(uid) && !lay_tar_decimal(uid->value, uid->len, &e->uid)) || (lay_tar_given(gid) && !lay_tar_decimal(gid->value, gid->len, &e->gid)))
        return lay_tar_invalid(t, at, "a PAX owner is no number", err);
    if (lay_tar_given(size) && !lay_tar_decimal(size->value, size->len, &e->size))
        return lay_tar_invalid(t, at, "a PAX size is no number", err);
    if ((lay_tar_given(mtime) && !lay_tar_seconds(mtime->value, mtime->len, &e->mtime)) || (lay_tar_given(atime) && !lay_tar_seconds(atime->value, atime->len, &e->atime))
        || (lay_tar_given(ctime) && !lay_tar_seconds(ctime->value, ctime->len, &changed)))
        return lay_tar_invalid(t, at, "a PAX time is no number", err);
    if (lay_tar_given(atime))
        e->has_atime = true;
    return LAY_OK;
}

/* ---- from header to entry ------------------------------------------------------------------------- */

/* A negative owner is the number of 32 bits that has the same bits: -2, a user of some systems, is 4294967294. */
static int64_t owner_of(int64_t id)
{
    return id < 0 && id >= INT32_MIN ? id + UINT32_MAX + 1 : id;
}

void lay_tar_complete(lay_tar *t)
{
    lay_tar_entry *e = &t->entry;
    e->uid = owner_of(e->uid);
    e->gid = owner_of(e->gid);
    e->name = t->name.p;
    e->name_len = t->name.len;
    e->link = t->link.p;
    e->link_len = t->link.len;
    t->data_pos = 0;
    t->left = e->stored;
    t->pad = lay_tar_padding(t->left);
    t->state = AT_ENTRY;
}

/* Go takes the last of two extensions of one kind, Python the first; of a PAX path and a GNU long name each takes its
 * own; and Python and GNU tar let 'X' (Solaris) and 'g' speak of what follows. */
static const char *doubt_about(const lay_tar *t)
{
    if (t->repeated)
        return "an extension of its header comes twice";
    if (t->has_pax && ((t->has_long_name && lay_tar_given(lay_tar_record(t, "path"))) || (t->has_long_link && lay_tar_given(lay_tar_record(t, "linkpath")))))
        return "its name or target is in a PAX record and in a GNU one";
    if (t->entry.type == 'X')
        return "its header is one that some take for an extension of the next";
    return NULL;
}

static const char *doubt_about_global(const lay_tar *t)
{
    if (t->has_pax || t->has_long_name || t->has_long_link)
        return "a global header stands between an entry and its extension";
    for (size_t i = 0; i < t->nrecords; i++) {
        const char *key = t->records[i].key;
        if (!strcmp(key, "path") || !strcmp(key, "linkpath") || !strcmp(key, "size") || !strncmp(key, "GNU.sparse.", 11))
            return "a global header names a path, a target or a size";
    }
    return NULL;
}

/* An ordinary header is whole, with its extensions before it. */
static lay_code begin_entry(lay_tar *t, int64_t at, lay_error *err)
{
    lay_tar_entry *e = &t->entry;
    if (t->has_pax && merge_pax(t, at, err))
        return err->code;
    if (t->has_long_name && t->long_name.len && lay_text_set(&t->name, t->long_name.p, t->long_name.len, err))
        return err->code;
    if (t->has_long_link && t->long_link.len && lay_text_set(&t->link, t->long_link.p, t->long_link.len, err))
        return err->code;
    e->name_len = t->name.len;
    e->doubt = doubt_about(t);
    if (e->type == '\0')
        e->type = t->name.len && t->name.p[t->name.len - 1] == '/' ? '5' : '0';
    bool data = lay_tar_type_has_data(e->type);
    if (data && e->size < 0)
        return lay_tar_invalid(t, at, "the size is negative", err);
    e->stored = data ? e->size : 0;
    if (e->type == 'S') {
        if (find_magic(t->block) != MAGIC_GNU)
            return lay_tar_invalid(t, at, "a sparse file without GNU's magic", err);
        bool more;
        if (!lay_tar_number(t->block + 483, 12, &e->size))
            return lay_tar_invalid(t, at, "the sparse file's size is no number", err);
        if (lay_sparse_gnu(t, t->block + 386, 4, &more, at, err))
            return err->code;
        if (more) {
            t->state = IN_GNU_SPARSE;
            return LAY_OK;
        }
        if (lay_sparse_check(t, at, err))
            return err->code;
        lay_tar_complete(t);
        return LAY_OK;
    }
    bool map_in_data = false;
    if (t->has_pax && lay_sparse_pax(t, &map_in_data, at, err))
        return err->code;
    if (map_in_data) {
        t->map.len = 0;
        t->map_lines = t->map_want = 0;
        t->state = IN_PAX_MAP;
        return LAY_OK;
    }
    if (e->sparse && lay_sparse_check(t, at, err))
        return err->code;
    lay_tar_complete(t);
    return LAY_OK;
}

/* An extension's header is whole: may its payload come? */
static lay_code announced(lay_tar *t, int64_t at, lay_error *err)
{
    static const char too_long[] = "archive/tar: header field too long";
    const lay_limits *l = t->limits;
    int64_t *sum = t->entry.type == 'g' ? &t->global_headers : &t->headers, size = t->entry.size;
    if (lay_is_over(size, l->header))
        return lay_fail_limit(err, at, "max_header", l->header, "bytes in one", too_long);
    if (__builtin_add_overflow(*sum, size, sum) || __builtin_add_overflow(*sum, LAY_TAR_BLOCK, sum))
        *sum = INT64_MAX;
    if (t->entry.type == 'g')
        return lay_is_over(*sum, l->global_headers) ? lay_fail_limit(err, at, "max_global_headers", l->global_headers, "bytes of global ones", too_long) : LAY_OK;
    return lay_is_over(*sum, l->headers) ? lay_fail_limit(err, at, "max_headers", l->headers, "bytes for one entry", too_long) : LAY_OK;
}

/* Components, as they stand: neither "." nor nothing between two slashes. */
static int64_t depth_of(const lay_text *path)
{
    int64_t depth = 0;
    for (size_t at = 0; at < path->len;) {
        const char *slash = memchr(path->p + at, '/', path->len - at);
        size_t n = slash ? (size_t)(slash - path->p) - at : path->len - at;
        depth += n > 1 || (n == 1 && path->p[at] != '.');
        at += n + 1;
    }
    return depth;
}

static lay_code check_within(lay_tar *t, lay_error *err)
{
    const lay_limits *l = t->limits;
    const lay_tar_entry *e = &t->entry;
    int64_t longest = (int64_t)(t->name.len > t->link.len ? t->name.len : t->link.len), bytes = 0;
    t->names += (int64_t)(t->name.len + t->link.len);
    for (size_t i = 0; i < e->nxattrs; i++)
        bytes += (int64_t)(strlen(e->xattrs[i].name) + e->xattrs[i].len);
    if (lay_is_over((int64_t)e->ordinal + 1, l->entries))
        return lay_fail_limit(err, e->offset, "max_entries", l->entries, "entries", "the tar has too many entries");
    if (lay_is_over(longest, l->path))
        return lay_fail_limit(err, e->offset, "max_path", l->path, "bytes", "a name or link target is too long");
    if (lay_is_over(depth_of(&t->name), l->depth) || (e->type == '1' && lay_is_over(depth_of(&t->link), l->depth)))
        return lay_fail_limit(err, e->offset, "max_depth", l->depth, "components", "a name is too deep");
    if (lay_is_over(t->names, l->names))
        return lay_fail_limit(err, e->offset, "max_names", l->names, "bytes", "the names in the tar are too long together");
    if (lay_is_over((int64_t)e->nxattrs, l->xattrs))
        return lay_fail_limit(err, e->offset, "max_xattrs", l->xattrs, "of them", "an entry has too many extended attributes");
    if (lay_is_over(bytes, l->xattr_size))
        return lay_fail_limit(err, e->offset, "max_xattr_size", l->xattr_size, "bytes", "the extended attributes of an entry are too large");
    return LAY_OK;
}

lay_code lay_tar_within(lay_tar *t, lay_error *err)
{
    if (check_within(t, err))
        lay_error_path(err, t->name.p, t->name.len);
    return err->code;
}

lay_code lay_tar_at_header(lay_tar *t, lay_error *err)
{
    int64_t at = t->offset - LAY_TAR_BLOCK;
    if (lay_tar_is_zero(t->block)) {
        t->state = IN_SECOND_ZERO;
        return LAY_OK;
    }
    if (parse_block(t, at, err))
        return err->code;
    char type = t->entry.type;
    if (type != 'x' && type != 'g' && type != 'L' && type != 'K')
        return begin_entry(t, at, err);
    if (t->entry.size < 0)
        return lay_tar_invalid(t, at, "the size is negative", err);
    if (announced(t, at, err)) {
        lay_error_path(err, t->name.p, t->name.len);
        return err->code;
    }
    t->ext_type = type;
    t->ext.len = 0;
    t->left = t->entry.size;
    t->pad = lay_tar_padding(t->left);
    t->pending = true;
    t->state = t->left ? IN_EXTENSION : AT_EXTENSION;
    return LAY_OK;
}

lay_code lay_tar_at_extension(lay_tar *t, lay_error *err)
{
    int64_t at = t->offset - (int64_t)t->ext.len;
    const char *p = t->ext.p ? t->ext.p : "";
    size_t text_len = lay_field_len((const uint8_t *)p, t->ext.len);
    switch (t->ext_type) {
    case 'L':
        t->repeated = t->repeated || t->has_long_name;
        t->has_long_name = true;
        t->state = IN_EXTENSION_PAD;
        return lay_text_set(&t->long_name, p, text_len, err);
    case 'K':
        t->repeated = t->repeated || t->has_long_link;
        t->has_long_link = true;
        t->state = IN_EXTENSION_PAD;
        return lay_text_set(&t->long_link, p, text_len, err);
    case 'x':
        if (lay_text_set(&t->pax, p, t->ext.len, err) || lay_tar_cut_pax(t, at, err))
            return err->code;
        t->repeated = t->repeated || t->has_pax;
        t->has_pax = true;
        t->state = IN_EXTENSION_PAD;
        return LAY_OK;
    default: /* 'g': an entry of its own, which forgets what stood before it; its padding follows */
        if (lay_text_set(&t->pax, p, t->ext.len, err) || lay_tar_cut_pax(t, at, err) || merge_pax(t, at, err))
            return err->code;
        t->entry.doubt = doubt_about_global(t);
        t->entry.type = 'g';
        t->entry.size = t->entry.stored = 0;
        size_t pad = t->pad;
        lay_tar_complete(t);
        t->pad = pad;
        return LAY_OK;
    }
}
