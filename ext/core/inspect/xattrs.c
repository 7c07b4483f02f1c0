/* xattrs.c - extended attributes of a tar's entry, or of a file, become one keyed number.
 * Source: acl(5), posix_acl_xattr.h and capability.h of the kernel; place.c sets them.
 */
#include "inspect/xattrs.h"

#include "tree/tree.h"
#include "tree/whiteout.h"

#include <endian.h>
#include <string.h>

#define ACL_USER 0x02
#define ACL_GROUP_OBJ 0x04
#define ACL_GROUP 0x08
#define ACL_MASK 0x10
#define ACL_FOLLOWS_MODE (0x01 | ACL_MASK | 0x20)     /* owner, mask, others */

/* True if unpacking sets it, and a file system returns it as it was. */
static bool is_compared(const char *name, lay_made_kind kind, lay_xattr_scope scope)
{
    bool userns = scope == LAY_XATTRS_USERNS;
    if (scope == LAY_XATTRS_FRESH)
        return !strcmp(name, LAY_CAPABILITY);
    if (lay_begins(name, "user."))
        return (kind == LAY_MADE_FILE || kind == LAY_MADE_DIRECTORY) && !lay_begins(name, "user.overlay.");
    if (lay_begins(name, "trusted."))
        return !userns && !lay_begins(name, "trusted.overlay.");
    if (lay_begins(name, "security.")) {              /* what the host itself keeps there is no layer's */
        static const char *const host[] = { "selinux", "ima", "evm", "apparmor", "SMACK64" };
        for (size_t i = 0; i < sizeof host / sizeof *host; i++)
            if (lay_begins(name + 9, host[i]))
                return false;
        return !userns || !strcmp(name + 9, "capability");
    }
    if (!strcmp(name, LAY_ACL_DEFAULT))
        return kind == LAY_MADE_DIRECTORY;
    return !strcmp(name, LAY_ACL_ACCESS) && kind != LAY_MADE_SYMLINK;
}

static uint32_t u32_at(const uint8_t *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return le32toh(v);
}

static uint16_t u16_at(const uint8_t *p)
{
    uint16_t v;
    memcpy(&v, p, sizeof v);
    return le16toh(v);
}

/* *any false: nothing is left that a file system would keep. */
static uint64_t acl_sum(const lay_nameset *key, const uint8_t *value, size_t len, bool access, bool *any)
{
    uint64_t sum = 0;
    bool masked = false;
    *any = false;
    for (size_t at = 4; at + 8 <= len; at += 8)
        masked = masked || u16_at(value + at) == ACL_MASK;
    for (size_t at = 4; at + 8 <= len; at += 8) {
        uint16_t tag = u16_at(value + at);
        if (access && (tag & ACL_FOLLOWS_MODE || (tag == ACL_GROUP_OBJ && !masked)))
            continue;
        uint32_t id = tag == ACL_USER || tag == ACL_GROUP ? u32_at(value + at + 4) : UINT32_MAX;
        uint32_t entry[3] = { tag, u16_at(value + at + 2) & 7u, id };
        sum += lay_nameset_hash(key, (const char *)entry, sizeof entry);
        *any = true;
    }
    return sum;
}

static uint64_t value_sum(const lay_nameset *key, lay_xattr_scope scope, const char *name, const uint8_t *value, size_t len, bool *any)
{
    *any = true;
    if (lay_begins(name, "system.posix_acl_"))
        return acl_sum(key, value, len, !strcmp(name, LAY_ACL_ACCESS), any);
    uint8_t second[20];
    /* The kernel returns the third version of capabilities without a namespace as the second; a fresh tar has that always. */
    if (!strcmp(name, LAY_CAPABILITY) && len == 24 && u32_at(value) >> 24 == 3
        && (u32_at(value + 20) == 0 || scope == LAY_XATTRS_FRESH)) {
        memcpy(second, value, sizeof second);
        second[3] = 2;
        value = second;
        len = sizeof second;
    }
    return lay_nameset_hash(key, (const char *)value, len);
}

static uint64_t term(const lay_nameset *key, lay_xattr_scope scope, const char *name, const uint8_t *value, size_t len)
{
    bool any;
    uint64_t pair[2] = { lay_nameset_hash(key, name, strlen(name)), value_sum(key, scope, name, value, len, &any) };
    return any ? lay_nameset_hash(key, (const char *)pair, sizeof pair) : 0;
}

static int by_name(const void *a, const void *b)
{
    const lay_xattr *x = *(const lay_xattr *const *)a, *y = *(const lay_xattr *const *)b;
    int c = strcmp(x->name, y->name);
    return c ? c : (x > y) - (x < y);
}

lay_code lay_xattrs_of_entry(const lay_nameset *key, const lay_tar_entry *e, lay_made_kind kind, lay_xattr_scope scope, lay_xattr_part **parts, size_t *n, lay_error *err)
{
    *parts = NULL;
    *n = 0;
    if (!e->nxattrs)
        return LAY_OK;
    LAY_AUTO_FREE const lay_xattr **sorted = calloc(e->nxattrs, sizeof *sorted);
    *parts = calloc(e->nxattrs, sizeof **parts);
    if (!sorted || !*parts)
        return lay_fail_nomem(err);
    for (size_t i = 0; i < e->nxattrs; i++)
        sorted[i] = &e->xattrs[i];
    qsort(sorted, e->nxattrs, sizeof *sorted, by_name);
    for (size_t i = 0; i < e->nxattrs; i++) {
        const lay_xattr *x = sorted[i];
        bool again = i + 1 < e->nxattrs && !strcmp(x->name, sorted[i + 1]->name);       /* the last one counts */
        if (!again && is_compared(x->name, kind, scope))
            (*parts)[(*n)++] = (lay_xattr_part){ lay_nameset_hash(key, x->name, strlen(x->name)), term(key, scope, x->name, x->value, x->len) };
    }
    return LAY_OK;
}

static bool is_opaque(int dir_fd, const char *name, const char *xattr)
{
    char value;
    return lay_tree_getxattr(dir_fd, name, xattr, &value, 1) == 1 && value == 'y';
}

static unsigned mark_of(const char *name)
{
    static const struct { const char *name; unsigned mark; } marks[] = {
        { LAY_OPAQUE_TRUSTED, LAY_MARK_OPAQUE_TRUSTED }, { LAY_OPAQUE_USER, LAY_MARK_OPAQUE_USER },
        { LAY_XWHITEOUT_TRUSTED, LAY_MARK_WHITEOUT }, { LAY_XWHITEOUT_USER, LAY_MARK_WHITEOUT },
        { LAY_REDIRECT_TRUSTED, LAY_MARK_OTHER }, { LAY_REDIRECT_USER, LAY_MARK_OTHER },
        { LAY_METACOPY_TRUSTED, LAY_MARK_OTHER }, { LAY_METACOPY_USER, LAY_MARK_OTHER },
    };
    for (size_t i = 0; i < sizeof marks / sizeof *marks; i++)
        if (!strcmp(name, marks[i].name))
            return marks[i].mark;
    return 0;
}

lay_code lay_xattrs_of_file(const lay_nameset *key, lay_attributes *room, int dir_fd, const char *name, lay_made_kind kind, lay_xattr_scope scope, lay_found_xattrs *found, lay_error *err)
{
    const lay_bearer thing = { .fd = -1, .dir_fd = dir_fd, .name = name };
    found->sum = 0;
    found->marks = 0;
    if (lay_attributes_list(room, &thing, err))
        return err->code;
    for (const char *at = room->list; at < room->list + room->len; at += strlen(at) + 1) {
        unsigned mark = mark_of(at);
        ssize_t len;
        if (mark & (LAY_MARK_OPAQUE_TRUSTED | LAY_MARK_OPAQUE_USER) && !is_opaque(dir_fd, name, at))
            mark = 0;                 /* "x" hides nothing */
        found->marks |= mark;
        if (!is_compared(at, kind, scope))
            continue;
        room->values_len = 0;
        if (lay_attributes_value(room, &thing, at, &len, err))
            return err->code;
        if (len >= 0)                 /* or else it went meanwhile */
            found->sum += term(key, scope, at, room->values, (size_t)len);
    }
    bool masked = scope == LAY_XATTRS_FRESH && kind != LAY_MADE_SYMLINK && lay_attributes_has(room, LAY_ACL_ACCESS);
    return masked ? lay_mode_without_acl(&thing, &found->mode, err) : LAY_OK;
}
