/* erofs_xattrs.c - extended attributes as setxattr(2) would have set them on ext4, but without its bounds of a block.
 *
 * All of an inode are one piece, in the form and order of the image. Equal pieces are kept once: where a policy labels
 * every file, there are few labels.
 * Source: fs/xattr.c, fs/posix_acl.c, security/commoncap.c, and the description of the format.
 */
#include "erofs/erofs_xattrs.h"

#include "base/grow.h"
#include "base/large.h"
#include "tree/attributes.h"
#include "tree/whiteout.h"

#include <stdio.h>

#define NAME_MOST 255u              /* with the prefix */
#define VALUE_MOST 65536u           /* setxattr's own bound; */
#define VALUE_STORED 65535u         /* what the format holds of one */
#define ALL_STORED 262136u          /* and of one inode, without the header */
#define ALL_KEPT (256u << 20)       /* of different ones in one tree, in memory; real layers have some KiB */
#define ENTRY_HEADER 4u

enum { USER = 1, ACL_ACCESS = 2, ACL_DEFAULT = 3, TRUSTED = 4, SECURITY = 6 };

/* By full name, which is the order in an image. */
static const struct { const char *prefix; uint8_t index; } prefixes[] = {
    { "security.", SECURITY }, { LAY_ACL_ACCESS, ACL_ACCESS }, { LAY_ACL_DEFAULT, ACL_DEFAULT }, { "trusted.", TRUSTED }, { "user.", USER },
};
#define PREFIXES (sizeof prefixes / sizeof *prefixes)

/* ---- pieces ---- */

static size_t padded(size_t n) { return (n + 3) & ~(size_t)3; }

const uint8_t *lay_exattrs_at(const lay_etree *t, uint32_t number, uint32_t *len)
{
    const lay_erec *r = lay_erec_at(t, number);
    uint32_t at = t->more[r->more].xattrs;
    *len = 0;
    if (!at)
        return NULL;
    const uint8_t *p = t->xattrs + (size_t)at * 4;
    memcpy(len, p - 4, 4);
    return p;
}

static bool is_piece(const lay_etree *t, uint32_t at, const lay_text *piece)
{
    const uint8_t *p = t->xattrs + (size_t)at * 4;
    uint32_t len;
    memcpy(&len, p - 4, 4);
    return len == piece->len && !memcmp(p, piece->p, len);
}

static uint32_t *piece_slot(const lay_etree *t, uint32_t *slots, size_t mask, const lay_text *piece)
{
    size_t i = (size_t)lay_nameset_hash(&t->key, piece->p, piece->len) & mask;
    while (slots[i] && !is_piece(t, slots[i], piece))
        i = (i + 1) & mask;
    return &slots[i];
}

static lay_code double_piece_slots(lay_etree *t, lay_error *err)
{
    size_t mask = t->piece_slots ? t->piece_mask * 2 + 1 : 63;
    uint32_t *slots = calloc(mask + 1, sizeof *slots);
    if (!slots)
        return lay_fail_nomem(err);
    for (size_t i = 0; t->piece_slots && i <= t->piece_mask; i++) {
        uint32_t at = t->piece_slots[i], len;
        if (!at)
            continue;
        memcpy(&len, t->xattrs + (size_t)at * 4 - 4, 4);
        const lay_text piece = { .p = (char *)t->xattrs + (size_t)at * 4, .len = len };
        *piece_slot(t, slots, mask, &piece) = at;
    }
    free(t->piece_slots);
    t->piece_slots = slots;
    t->piece_mask = mask;
    return LAY_OK;
}

/* Where t->piece is kept, from now on or already. */
static lay_code keep_piece(lay_etree *t, uint32_t *at, lay_error *err)
{
    const lay_text *piece = &t->piece;
    *at = 0;
    if (!piece->len)
        return LAY_OK;
    if ((!t->piece_slots || t->npieces_kept * 2 > t->piece_mask) && double_piece_slots(t, err))
        return err->code;
    uint32_t *slot = piece_slot(t, t->piece_slots, t->piece_mask, piece);
    if (!*slot) {
        uint32_t len = (uint32_t)piece->len;
        size_t end = t->xattrs_len + 4 + len;
        if (end > ALL_KEPT)
            return lay_fail(err, LAY_E_LIMIT, "the tar has too many different extended attributes for an image: more than %u bytes", ALL_KEPT);
        if (lay_large_reserve(&t->xattrs, &t->xattrs_cap, end, 1, err))
            return err->code;
        memcpy(t->xattrs + t->xattrs_len, &len, 4);
        memcpy(t->xattrs + t->xattrs_len + 4, piece->p, len);
        *slot = (uint32_t)((t->xattrs_len + 4) / 4);
        t->xattrs_len = end;
        t->npieces_kept++;
    }
    *at = *slot;
    return LAY_OK;
}

/* ---- the attributes of one inode, as a list ---- */

static size_t bytes_of(const lay_eheld *x) { return padded(ENTRY_HEADER + x->name_len + x->len); }

static int order(const lay_eheld *a, uint8_t row, const char *name, size_t n)
{
    if (a->row != row)
        return a->row < row ? -1 : 1;
    int c = memcmp(a->name, name, a->name_len < n ? a->name_len : n);
    return c ? c : (a->name_len > n) - (a->name_len < n);
}

/* Where a name is in the list, or would be. */
static size_t place_of(const lay_etree *t, uint8_t row, const char *name, size_t n, bool *found)
{
    size_t low = 0, high = t->nheld;
    *found = false;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        int c = order(&t->held[mid], row, name, n);
        if (!c) {
            *found = true;
            return mid;
        }
        if (c < 0)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

static void take_out(lay_etree *t, uint8_t row, const char *name, size_t n)
{
    bool found;
    size_t at = place_of(t, row, name, n, &found);
    if (!found)
        return;
    t->held_bytes -= bytes_of(&t->held[at]);
    memmove(t->held + at, t->held + at + 1, (--t->nheld - at) * sizeof *t->held);
}

/* ENOSPC and the like come back as a number: the caller knows what was tried. */
static int put(lay_etree *t, const lay_eheld *x, lay_error *err)
{
    bool found;
    size_t at = place_of(t, x->row, x->name, x->name_len, &found);
    size_t bytes = t->held_bytes - (found ? bytes_of(&t->held[at]) : 0) + bytes_of(x);
    if (bytes > ALL_STORED)
        return ENOSPC;
    if (!found) {
        if (lay_grow(&t->held, &t->held_cap, t->nheld, sizeof *t->held, err))
            return ENOMEM;
        memmove(t->held + at + 1, t->held + at, (t->nheld++ - at) * sizeof *t->held);
    }
    t->held[at] = *x;
    t->held_bytes = bytes;
    return 0;
}

/* What of the attributes that there were stays. */
static bool stays(const lay_eheld *x, lay_exattrs_had had, bool chowned)
{
    bool capability = prefixes[x->row].index == SECURITY && x->name_len == 10 && !memcmp(x->name, "capability", 10);
    if (had == LAY_EXATTRS_KEPT)
        return prefixes[x->row].index == SECURITY && !capability;
    return had == LAY_EXATTRS_ADDED && !(chowned && capability);
}

static lay_code read_held(lay_etree *t, uint32_t number, lay_exattrs_had had, bool chowned, lay_error *err)
{
    uint32_t len;
    const uint8_t *p = lay_exattrs_at(t, number, &len), *end = len ? p + len : p;
    t->nheld = t->held_bytes = 0;
    while (p < end) {
        lay_eheld x = { .name = (const char *)p + ENTRY_HEADER, .name_len = p[0], .len = p[2] | (uint32_t)p[3] << 8 };
        x.value = p + ENTRY_HEADER + x.name_len;
        while (prefixes[x.row].index != p[1])
            x.row++;
        p += bytes_of(&x);
        if (stays(&x, had, chowned) && put(t, &x, err))
            return err->code;
    }
    return LAY_OK;
}

static lay_code write_held(lay_etree *t, uint32_t number, lay_error *err)
{
    static const char zeros[4];
    lay_emore *more;
    uint32_t at;
    lay_text_cut(&t->piece, 0);
    for (size_t i = 0; i < t->nheld; i++) {
        const lay_eheld *x = &t->held[i];
        const uint8_t head[ENTRY_HEADER] = { x->name_len, prefixes[x->row].index, (uint8_t)x->len, (uint8_t)(x->len >> 8) };
        if (lay_text_add(&t->piece, head, sizeof head, err) || lay_text_add(&t->piece, x->name, x->name_len, err) || lay_text_add(&t->piece, x->value, x->len, err)
            || lay_text_add(&t->piece, zeros, padded(t->piece.len) - t->piece.len, err))
            return err->code;
    }
    if (keep_piece(t, &at, err) || (!at && !lay_erec_at(t, number)->more) || lay_estate_more(t, number, &more, err))
        return err->code;
    more->xattrs = at;
    return LAY_OK;
}

/* ---- ACLs: a version, then entries of a tag, rights and an id ---- */

#define ACL_VERSION 2u
#define ACL_HEADER 4u
#define ACL_ENTRY 8u

enum { USER_OBJ = 1, NAMED_USER = 2, GROUP_OBJ = 4, NAMED_GROUP = 8, MASK = 16, OTHER = 32 };

static unsigned u16(const uint8_t *p) { return p[0] | (unsigned)p[1] << 8; }

/* May this entry come when `state` is what came last? The state after it; 0: it may not. */
static unsigned after(unsigned state, unsigned tag, bool *needs_mask)
{
    *needs_mask |= tag == NAMED_USER || tag == NAMED_GROUP;
    switch (tag) {
    case USER_OBJ:
        return state ? 0 : USER_OBJ;
    case NAMED_USER:
        return state == USER_OBJ ? USER_OBJ : 0;
    case GROUP_OBJ:
        return state == USER_OBJ ? GROUP_OBJ : 0;
    case NAMED_GROUP:
        return state == GROUP_OBJ ? GROUP_OBJ : 0;
    case MASK:
        return state == GROUP_OBJ ? MASK : 0;
    case OTHER:
        return state == MASK || (state == GROUP_OBJ && !*needs_mask) ? OTHER : 0;
    default:
        return 0;
    }
}

static bool is_named(unsigned tag) { return tag == NAMED_USER || tag == NAMED_GROUP; }

/* Is it well formed, as far as that is known before the inode is looked at? */
static int parse_acl(const lay_xattr *x, size_t *count)
{
    const uint8_t *p = x->value;
    *count = 0;
    if (!x->len)
        return 0;
    if (x->len < ACL_HEADER)
        return EINVAL;
    if (u16(p) != ACL_VERSION || u16(p + 2))
        return EOPNOTSUPP;
    if ((x->len - ACL_HEADER) % ACL_ENTRY)
        return EINVAL;
    *count = (x->len - ACL_HEADER) / ACL_ENTRY;
    for (const uint8_t *e = p + ACL_HEADER; e < p + x->len; e += ACL_ENTRY) {
        unsigned tag = u16(e);
        bool known = tag && tag <= OTHER && !(tag & (tag - 1));
        if (!known || (is_named(tag) && !memcmp(e + 4, "\xff\xff\xff\xff", 4)))
            return EINVAL;
    }
    return 0;
}

static bool is_valid_acl(const lay_xattr *x, bool *says_more)
{
    unsigned state = 0;
    bool needs_mask = false;
    *says_more = false;
    for (const uint8_t *e = x->value + ACL_HEADER; e < x->value + x->len; e += ACL_ENTRY) {
        unsigned tag = u16(e);
        state = u16(e + 2) & ~7u ? 0 : after(state, tag, &needs_mask);
        if (!state)
            return false;
        *says_more |= is_named(tag) || tag == MASK;
    }
    return state == OTHER;
}

/* As the kernel tells it: only who has a name has an id. */
static lay_code normal_acl(lay_text *acl, const lay_xattr *x, lay_error *err)
{
    if (lay_text_set(acl, x->value, x->len, err))
        return err->code;
    for (size_t at = ACL_HEADER; at < x->len; at += ACL_ENTRY)
        if (!is_named(u16(x->value + at)))
            memset(acl->p + at + 4, 0xff, 4);
    return LAY_OK;
}

static int put_acl(lay_etree *t, mode_t mode, uint8_t row, const lay_xattr *x, lay_error *err)
{
    bool access = prefixes[row].index == ACL_ACCESS, says_more;
    lay_text *acl = &t->acls[access];
    size_t count;
    int failed = parse_acl(x, &count);
    if (failed)
        return failed;
    if (S_ISLNK(mode))
        return EOPNOTSUPP;
    if (!access && !S_ISDIR(mode))
        return count ? EACCES : 0;
    if (count && !is_valid_acl(x, &says_more))
        return EINVAL;
    if (!count || (access && !says_more)) {
        take_out(t, row, "", 0);
        return 0;
    }
    if (x->len > VALUE_STORED)
        return ENOSPC;
    if (normal_acl(acl, x, err))
        return ENOMEM;
    return put(t, &(lay_eheld){ .name = "", .row = row, .value = (const uint8_t *)acl->p, .len = (uint32_t)x->len }, err);
}

/* chmod: the rights of the owner, of the mask (or else of the group) and of others are those of the mode. */
static lay_code fit_acl(lay_etree *t, mode_t mode, lay_error *err)
{
    bool found;
    uint8_t row = 1;
    size_t at = place_of(t, row, "", 0, &found);
    if (!found)
        return LAY_OK;
    lay_eheld *held = &t->held[at];
    lay_text *acl = &t->acls[1];
    uint8_t *group = NULL, *mask = NULL;
    if ((const uint8_t *)acl->p != held->value && lay_text_set(acl, held->value, held->len, err))
        return err->code;
    held->value = (const uint8_t *)acl->p;
    for (uint8_t *e = (uint8_t *)acl->p + ACL_HEADER; e < held->value + held->len; e += ACL_ENTRY) {
        unsigned tag = u16(e);
        if (tag == USER_OBJ)
            e[2] = mode >> 6 & 7;
        else if (tag == OTHER)
            e[2] = mode & 7;
        else if (tag == GROUP_OBJ)
            group = e;
        else if (tag == MASK)
            mask = e;
    }
    if (mask || group)
        (mask ? mask : group)[2] = mode >> 3 & 7;
    return LAY_OK;
}

/* ---- setting ---- */

#define CAPABILITY_2 20u
#define CAPABILITY_3 24u            /* with the user who is root where it counts */

/* One for root of the host is what it is without saying so, and the kernel tells it without: so it is kept. */
static int put_capability(lay_etree *t, uint8_t row, const lay_xattr *x, lay_error *err)
{
    lay_eheld held = { .name = LAY_CAPABILITY + strlen("security."), .name_len = 10, .row = row, .value = x->value, .len = (uint32_t)x->len };
    if (x->len != CAPABILITY_2 && x->len != CAPABILITY_3)
        return EINVAL;
    unsigned revision = x->len == CAPABILITY_2 ? 2 : 3;
    if (x->value[0] & ~1u || x->value[1] || x->value[2] || x->value[3] != revision)
        return EINVAL;
    if (revision == 3 && !memcmp(x->value + CAPABILITY_2, "\xff\xff\xff\xff", 4))
        return EINVAL;
    if (revision == 3 && !memcmp(x->value + CAPABILITY_2, "\0\0\0\0", 4)) {
        memcpy(t->capability, x->value, CAPABILITY_2);
        t->capability[3] = 2;
        held.value = t->capability;
        held.len = CAPABILITY_2;
    }
    return put(t, &held, err);
}

/* 0, or an errno; EPERM is what a tar may ask for and is not done. */
static int set_one(lay_etree *t, mode_t mode, const lay_xattr *x, lay_error *err)
{
    size_t n = strlen(x->name);
    if (!n || n > NAME_MOST)
        return ERANGE;
    if (x->len > VALUE_MOST)
        return E2BIG;
    uint8_t row = 0;
    while (row < PREFIXES && !lay_begins(x->name, prefixes[row].prefix))
        row++;
    if (row == PREFIXES)
        return EOPNOTSUPP;
    size_t prefix = strlen(prefixes[row].prefix);
    switch (prefixes[row].index) {
    case ACL_ACCESS:
    case ACL_DEFAULT:
        return n == prefix ? put_acl(t, mode, row, x, err) : EOPNOTSUPP;
    case USER:
        if (!S_ISREG(mode) && !S_ISDIR(mode))
            return EPERM;
        break;
    case SECURITY:
        if (x->len && !strcmp(x->name, LAY_CAPABILITY))
            return put_capability(t, row, x, err);
        break;
    default:
        break;
    }
    if (n == prefix)
        return EINVAL;
    if (x->len > VALUE_STORED)
        return ENOSPC;
    return put(t, &(lay_eheld){ .name = x->name + prefix, .name_len = (uint8_t)(n - prefix), .row = row, .value = x->value, .len = (uint32_t)x->len }, err);
}

lay_code lay_exattrs_set(lay_etree *t, uint32_t number, const lay_meta *m, lay_exattrs_had had, bool chowned, lay_error *err)
{
    mode_t mode = lay_erec_at(t, number)->mode;
    uint32_t len;
    if (!m->nxattrs && !lay_exattrs_at(t, number, &len))
        return LAY_OK;
    if (read_held(t, number, had, chowned, err))
        return err->code;
    for (size_t i = 0; i < m->nxattrs; i++) {
        const lay_xattr *x = &m->xattrs[i];
        int failed = lay_attribute_is_overlays(x->name) ? 0 : set_one(t, mode, x, err);
        if (failed == ENOMEM)
            return err->code;
        if (failed && failed != EPERM) {
            char what[300];
            snprintf(what, sizeof what, "cannot set xattr %.200s", x->name);
            return lay_fail_os(err, failed, NULL, what);
        }
    }
    if (!S_ISLNK(mode) && fit_acl(t, mode, err))
        return err->code;
    return write_held(t, number, err);
}

lay_code lay_exattrs_mark(lay_etree *t, uint32_t number, lay_error *err)
{
    static const struct { const char *name, *value; unsigned flag; } marks[] = {
        { LAY_OPAQUE_TRUSTED, "y", LAY_EREC_OPAQUE }, { LAY_ORIGIN_TRUSTED, "", LAY_EREC_WHITEOUTS },
    };
    const mode_t mode = lay_erec_at(t, number)->mode;
    if (read_held(t, number, LAY_EXATTRS_ADDED, false, err))
        return err->code;
    for (size_t i = 0; i < sizeof marks / sizeof *marks; i++) {
        const lay_xattr x = { marks[i].name, (const uint8_t *)marks[i].value, strlen(marks[i].value) };
        int failed = lay_erec_at(t, number)->flags & marks[i].flag ? set_one(t, mode, &x, err) : 0;
        if (failed == ENOMEM)
            return err->code;
        if (failed && (lay_estate_path(t, number, &t->resolved, err) || lay_fail_os(err, failed, t->resolved.p, "cannot mark the directory")))
            return err->code;
    }
    return write_held(t, number, err);
}
