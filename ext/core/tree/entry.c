/* entry.c - the checks of an entry that need no tree. */
#include "tree/entry.h"

#include "tree/tree.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/sysmacros.h>

/* ---- what came so far ---- */

static lay_code count(const lay_taken *t, lay_error *err)
{
    int64_t most = t->limits->entries;
    return lay_is_over((int64_t)(t->entries + t->implied), most)
        ? lay_fail_limit(err, -1, "max_entries", most, "with the directories they imply", "the tar has too many entries") : LAY_OK;
}

lay_code lay_taken_entry(lay_taken *t, const lay_tar_entry *e, lay_error *err)
{
    t->entries++;
    if (count(t, err))
        return err->code;
    if (__builtin_add_overflow(t->header_sizes, e->size > 0 ? e->size : 0, &t->header_sizes))
        return lay_fail(err, LAY_E_LIMIT, "the total size of the entries exceeds 2^63 bytes");
    return LAY_OK;
}

lay_code lay_taken_implied(lay_taken *t, lay_error *err)
{
    t->implied++;
    return count(t, err);
}

lay_code lay_taken_size(lay_taken *t, int64_t size, lay_error *err)
{
    const lay_limits *l = t->limits;
    if (__builtin_add_overflow(t->size, size, &t->size))
        return lay_fail(err, LAY_E_LIMIT, "the total file size exceeds 2^63 bytes");
    if (lay_is_over(size, l->file_size))
        return lay_fail_limit(err, -1, "max_file_size", l->file_size, "bytes", "a file is too large");
    return lay_is_over(t->size, l->size) ? lay_fail_limit(err, -1, "max_size", l->size, "bytes", "the layer is too large") : LAY_OK;
}

/* ---- names ---- */

lay_code lay_entry_name(const lay_tar_entry *e, lay_text *clean, lay_wh *wh, lay_error *err)
{
    *wh = LAY_WH_PLAIN;
    if (lay_path_relative(clean, e->name, e->name_len, err) || lay_entry_is_root(clean))
        return err->code;
    if (lay_path_leaves(clean))
        return lay_fail(err, LAY_E_BREAKOUT, "invalid entry name \"%.400s\"", e->name);
    size_t base = lay_path_base(clean->p, clean->len);
    *wh = lay_whiteout_kind(clean->p + base, clean->len - base);
    return *wh == LAY_WH_BAD ? lay_fail(err, LAY_E_BREAKOUT, "invalid whiteout entry \"%.400s\"", e->name) : LAY_OK;
}

lay_code lay_entry_target(const lay_tar_entry *e, lay_text *clean, lay_error *err)
{
    if (lay_path_relative(clean, e->link, e->link_len, err))
        return err->code;
    bool breaks = lay_path_leaves(clean) || lay_entry_is_root(clean);
    return breaks ? lay_fail(err, LAY_E_BREAKOUT, "invalid hardlink target \"%.400s\"", e->link) : LAY_OK;
}

lay_code lay_entry_base(const lay_text *clean, size_t *base, lay_error *err)
{
    *base = lay_path_base(clean->p, clean->len);
    size_t len = clean->len - *base;
    bool hides = lay_whiteout_kind(clean->p + *base, len) == LAY_WH_NAME;
    return len > NAME_MAX + (hides ? LAY_WH_PREFIX_LEN : 0) ? lay_fail_os(err, ENAMETOOLONG, NULL, NULL) : LAY_OK;
}

/* ---- numbers and types ---- */

lay_code lay_entry_device(const lay_tar_entry *e, dev_t *dev, lay_error *err)
{
    /* mknod takes 12 bits of major and 20 of minor and drops the rest without a word. */
    if (e->dev_major < 0 || e->dev_minor < 0 || e->dev_major > 0xfff || e->dev_minor > 0xfffff)
        return lay_fail(err, LAY_E_TAR, "device number %lld:%lld for \"%.300s\" out of range: invalid archive",
                        (long long)e->dev_major, (long long)e->dev_minor, e->name);
    *dev = makedev((unsigned)e->dev_major, (unsigned)e->dev_minor);
    return LAY_OK;
}

lay_code lay_entry_text(const lay_tar_entry *e, lay_error *err)
{
    return e->link_len ? LAY_OK : lay_fail_at(err, LAY_E_TAR, e->offset, "archive/tar: invalid tar header: a symbolic link without a target");
}

lay_code lay_entry_unhandled(const lay_tar_entry *e, lay_error *err)
{
    return lay_fail_at(err, LAY_E_TAR, e->offset, "unhandled tar header type %d", (unsigned char)e->type);
}

/* ---- failures ---- */

lay_code lay_entry_link_failed(const lay_tar_entry *e, int sys_errno, lay_error *err)
{
    char what[LAY_ERROR_TEXT], target[sizeof err->target];
    snprintf(what, sizeof what, "cannot make the hard link to \"%.300s\"%s", e->link, sys_errno == ENOENT ? ", which is not there" : "");
    snprintf(target, sizeof target, "%s", e->link);
    lay_fail_os(err, sys_errno, NULL, what);
    memcpy(err->target, target, sizeof target);
    return err->code;
}

lay_code lay_entry_failed(const lay_tar_entry *e, lay_error *err)
{
    if (err->offset < 0)
        err->offset = e->offset;
    return lay_error_path(err, e->name, e->name_len);
}
