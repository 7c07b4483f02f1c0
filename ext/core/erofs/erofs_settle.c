/* erofs_settle.c - the tree comes to stand on others: what its tar left open is settled, and it can be looked at.
 *
 * A directory without an entry takes its owner, extended attributes and mode from the one that the layers below show there: an
 * overlay shows the topmost. Its time stays 0, so that an image does not depend on more than it must. Going down, the layers
 * that a name is looked for in only grow fewer. An opaque mark at the top, which overlayfs does not look at, becomes marks of
 * each name below.
 * Source: apply/stand.c, whose decisions these are but for the time.
 */
#include "erofs/erofs_order.h"
#include "erofs/erofs_tree.h"
#include "erofs/erofs_xattrs.h"

#include "base/grow.h"
#include "tree/attributes.h"

#define XATTR_MOST (64u << 10)    /* the kernel's bound */

/* A directory of the tree, and the lowers where it is looked for: of `active`, count from `first` on. */
typedef struct spot { uint32_t number, first, count; } spot;

typedef struct settling {
    lay_etree *t;
    const lay_lowers *lowers;
    spot *spots; size_t count, cap;           /* by number; the root is the first */
    uint16_t *active; size_t nactive, active_cap;
    lay_text path;
} settling;

static bool is_implied(const lay_erec *r) { return (r->flags & (LAY_EREC_IMPLIED | LAY_EREC_GONE)) == LAY_EREC_IMPLIED; }

/* Implied directories, and those that they lie in. */
static lay_code add_spots(settling *s, lay_error *err)
{
    const lay_etree *t = s->t;
    LAY_AUTO_FREE uint8_t *needed = calloc(t->nrecs / 8 + 1, 1);
    if (!needed)
        return lay_fail_nomem(err);
    needed[0] = 1;
    for (size_t i = t->nrecs; i-- > 1;) {     /* what lies in a directory comes behind it */
        uint32_t above = t->recs[i].parent;
        if (needed[i / 8] >> i % 8 & 1 || is_implied(&t->recs[i])) {
            needed[i / 8] |= (uint8_t)(1u << i % 8);
            needed[above / 8] |= (uint8_t)(1u << above % 8);
        }
    }
    for (uint32_t i = 0; i < t->nrecs; i++) {
        if (!(needed[i / 8] >> i % 8 & 1))
            continue;
        if (lay_grow(&s->spots, &s->cap, s->count, sizeof *s->spots, err))
            return err->code;
        s->spots[s->count++] = (spot){ .number = i };
    }
    return LAY_OK;
}

static const spot *spot_of(const settling *s, uint32_t number)
{
    size_t low = 0, high = s->count;
    while (high - low > 1) {
        size_t mid = low + (high - low) / 2;
        if (s->spots[mid].number <= number)
            low = mid;
        else
            high = mid;
    }
    return &s->spots[low];
}

static lay_code add_active(settling *s, uint16_t lower, lay_error *err)
{
    if (lay_grow(&s->active, &s->active_cap, s->nactive, sizeof *s->active, err))
        return err->code;
    s->active[s->nactive++] = lower;
    return LAY_OK;
}

/* Reads the extended attributes that the directory has below into m, whose bytes lie in values. */
static lay_code read_xattrs(const lay_lower *l, lay_lower_dir in, lay_meta *m, lay_xattr *list, lay_text *names, lay_text *values, lay_error *err)
{
    size_t n = 0;
    for (const char *name = names->p; name < names->p + names->len; name += strlen(name) + 1) {
        if (lay_attribute_is_overlays(name))
            continue;
        if (lay_text_room(values, values->len + XATTR_MOST, err))
            return err->code;
        ssize_t len = l->ops->xattr(l, in, ".", name, values->p + values->len, XATTR_MOST);
        if (len < 0 || (len == 0 && errno != 0))
            continue;
        list[n++] = (lay_xattr){ .name = name, .len = (size_t)len };
        m->acl |= !strcmp(name, LAY_ACL_ACCESS);
        values->len += (size_t)len;
    }
    const uint8_t *at = (const uint8_t *)values->p;       /* where it stays now */
    for (size_t i = 0; i < n; i++) {
        list[i].value = at;
        at += list[i].len;
    }
    m->xattrs = list;
    m->nxattrs = n;
    return LAY_OK;
}

static lay_code copy_meta(settling *s, uint32_t number, const lay_lower *l, lay_lower_dir in, lay_error *err)
{
    struct stat st;
    LAY_AUTO_FREE lay_text names = { 0 }, values = { 0 };
    if (l->ops->stat(l, in, ".", &st) != 0)
        return lay_fail_os(err, errno, NULL, "cannot look at the directory below");
    if (lay_text_room(&names, XATTR_MOST, err))
        return err->code;
    ssize_t len = l->ops->xattr(l, in, ".", NULL, names.p, XATTR_MOST);
    if (len < 0)
        return lay_fail_os(err, errno, NULL, "cannot list xattrs");
    lay_text_cut(&names, (size_t)len);
    size_t count = 0;
    for (const char *name = names.p; name < names.p + len; name += strlen(name) + 1)
        count++;
    LAY_AUTO_FREE lay_xattr *list = malloc((count + 1) * sizeof *list);
    lay_meta meta = { .mode = st.st_mode & 07777 };
    if (!list)
        return lay_fail_nomem(err);
    if (read_xattrs(l, in, &meta, list, &names, &values, err))
        return err->code;
    lay_erec *r = lay_erec_at(s->t, number);
    r->mode = (uint16_t)(S_IFDIR | meta.mode);
    return lay_estate_set_owner(s->t, number, st.st_uid, st.st_gid, err) || lay_exattrs_set(s->t, number, &meta, LAY_EXATTRS_ADDED, false, err) ? err->code : LAY_OK;
}

/* One lower of the spot above. *last: none further down is asked. */
static lay_code ask(settling *s, spot *to, uint16_t lower, bool *found, bool *last, lay_error *err)
{
    const lay_lower *l = &s->lowers->list[lower];
    const lay_erec *r = lay_erec_at(s->t, to->number);
    lay_lower_dir in = l->ops->open(l, l->root, s->path.p, s->path.len);
    if (in < 0) {
        *last = errno == ENOTDIR || errno == ELOOP;      /* a whiteout, or another thing that is none: what is below is hidden */
        return *last || errno == ENOENT ? LAY_OK : lay_fail_os(err, errno, s->path.p, "cannot open the directory below");
    }
    if (!*found && is_implied(r) && copy_meta(s, to->number, l, in, err))
        lay_error_path(err, s->path.p, s->path.len);
    *found = true;
    *last = r->flags & LAY_EREC_OPAQUE || lay_lower_is_opaque(l, in, s->lowers->userxattr);
    lay_lower_leave(l, in);
    if (err->code || r->flags & LAY_EREC_OPAQUE)          /* what is in it below is hidden; what it is itself is not */
        return err->code;
    to->count++;
    return add_active(s, lower, err);
}

static lay_code settle_one(settling *s, spot *to, lay_error *err)
{
    const spot *above = spot_of(s, lay_erec_at(s->t, to->number)->parent);
    bool found = false, last = false;
    if (!above->count)
        return LAY_OK;                        /* nothing is below that could show */
    if (lay_estate_path(s->t, to->number, &s->path, err))
        return err->code;
    to->first = (uint32_t)s->nactive;
    for (uint32_t i = 0; i < above->count && !last; i++)
        if (ask(s, to, s->active[above->first + i], &found, &last, err))
            return err->code;
    if (to->count == above->count) {          /* the same ones */
        s->nactive = to->first;
        to->first = above->first;
    }
    return LAY_OK;
}

/* ---- an opaque mark at the top ---- */

static lay_code hide_name(lay_etree *t, const char *name, size_t n, lay_error *err)
{
    uint32_t there;
    if (lay_estate_find(t, LAY_ETREE_ROOT, name, n, &there, err))
        return err->code;
    if (there) {
        lay_erec *r = lay_erec_at(t, there);
        r->flags |= S_ISDIR(r->mode) ? LAY_EREC_OPAQUE : 0;
        return LAY_OK;
    }
    if (lay_estate_add(t, LAY_ETREE_ROOT, name, n, &there, err))
        return err->code;
    lay_erec_at(t, there)->mode = S_IFCHR;
    return LAY_OK;
}

static lay_code hide_all(lay_etree *t, const lay_lowers *lowers, lay_error *err)
{
    lay_code code = LAY_OK;
    for (size_t i = 0; i < lowers->count && !code; i++) {
        const lay_lower *l = &lowers->list[i];
        lay_names names;
        code = l->ops->list(l, l->root, &names, err);
        for (size_t k = 0; k < names.count && !code; k++)
            code = hide_name(t, names.text + names.list[k].at, names.list[k].len, err);
        lay_names_free(&names);
    }
    return code;
}

/* ---- all of it ---- */

static lay_code settle(settling *s, lay_error *err)
{
    size_t n = s->lowers->count;
    if (lay_erec_at(s->t, LAY_ETREE_ROOT)->flags & LAY_EREC_OPAQUE)
        return hide_all(s->t, s->lowers, err);    /* and so nothing is below that could show */
    if (n > UINT16_MAX)
        return lay_fail(err, LAY_E_STATE, "too many layers below");
    if (add_spots(s, err))
        return err->code;
    for (size_t i = 0; i < n; i++)
        if (add_active(s, (uint16_t)i, err))
            return err->code;
    s->spots[0].count = (uint32_t)n;
    for (size_t i = 1; i < s->count; i++)
        if (settle_one(s, &s->spots[i], err))
            return err->code;
    return LAY_OK;
}

lay_code lay_etree_settle(lay_etree *t, const lay_lowers *lowers, lay_error *err)
{
    const unsigned marks = LAY_EREC_OPAQUE | LAY_EREC_WHITEOUTS;
    settling s = { .t = t, .lowers = lowers };
    if (lowers && lowers->count)
        settle(&s, err);
    free(s.spots);
    free(s.active);
    free(s.path.p);
    for (uint32_t i = 0; i < t->nrecs && !err->code; i++)
        if (t->recs[i].flags & marks && !(t->recs[i].flags & LAY_EREC_GONE))
            lay_exattrs_mark(t, i, err);
    return err->code ? err->code : lay_eorder_set(t, err);
}
