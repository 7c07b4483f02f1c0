/* erofs_order.c - the tree is complete: what is gone leaves, names are counted, put in order and given out. */
#include "erofs/erofs_order.h"

#include "base/large.h"
#include "erofs/erofs_tree.h"
#include "erofs/erofs_xattrs.h"

#define NSEC 1000000000

/* What lies in a directory that went is gone, too. A record comes behind that of its directory. */
static void bury(lay_etree *t)
{
    for (size_t i = 1; i < t->nrecs; i++)
        t->recs[i].flags |= t->recs[t->recs[i].parent].flags & LAY_EREC_GONE;
}

static void count_names(lay_etree *t)
{
    for (size_t i = 1; i < t->nmore; i++)
        t->more[i].names = 0;
    for (uint32_t i = 0; i < t->nrecs; i++) {
        uint32_t more = t->recs[lay_estate_inode(t, i)].more;
        if (more && !(t->recs[i].flags & LAY_EREC_GONE))
            t->more[more].names++;
    }
}

/* How many names an inode has that is no directory. */
static uint32_t names_of(const lay_etree *t, uint32_t number)
{
    const lay_erec *r = &t->recs[number];
    if (r->flags & LAY_EREC_LINK)
        return 0;
    return r->more ? t->more[r->more].names : !(r->flags & LAY_EREC_GONE);
}

static int64_t size_of(const lay_etree *t, uint32_t number)
{
    const lay_erec *r = &t->recs[number];
    if (!S_ISREG(r->mode) && !S_ISLNK(r->mode))
        return 0;
    return r->flags & LAY_EREC_WIDE ? t->more[r->more].size : r->size;
}

lay_code lay_etree_end(lay_etree *t, lay_applied *out, lay_error *err)
{
    bool open = t->recs[LAY_ETREE_ROOT].flags & LAY_EREC_OPAQUE;
    (void)err;
    bury(t);
    count_names(t);
    out->size = 0;
    for (uint32_t i = 1; i < t->nrecs; i++) {
        open |= (t->recs[i].flags & (LAY_EREC_IMPLIED | LAY_EREC_GONE)) == LAY_EREC_IMPLIED;
        if (names_of(t, i))
            out->size += size_of(t, i);
    }
    out->entries = (int64_t)t->taken.entries;
    out->left_out = 0;
    out->first_left_out = "";
    out->unsettled = open ? "below" : NULL;
    out->unsettled_len = open ? strlen("below") : 0;
    return LAY_OK;
}

/* ---- order ---- */

static int compare(const lay_etree *t, uint32_t a, uint32_t b)
{
    const char *x = t->names.p + t->recs[a].text, *y = t->names.p + t->recs[b].text;
    uint8_t m = (uint8_t)x[0], n = (uint8_t)y[0];
    int c = memcmp(x + 1, y + 1, m < n ? m : n);
    return c ? c : m - n;
}

/* Merges two sorted runs, list[0..half) and list[half..n); spare has room for half. */
static void merge(const lay_etree *t, uint32_t *list, size_t half, size_t n, uint32_t *spare)
{
    size_t a = 0, b = half, to = 0;
    if (compare(t, list[half - 1], list[half]) < 0)
        return;
    memcpy(spare, list, half * sizeof *list);
    while (a < half)
        list[to++] = b < n && compare(t, list[b], spare[a]) < 0 ? list[b++] : spare[a++];
}

static void sort(const lay_etree *t, uint32_t *list, size_t n, uint32_t *spare)
{
    for (size_t run = 1; run < n; run *= 2)
        for (size_t at = 0; at + run < n; at += 2 * run)
            merge(t, list + at, run, n - at < 2 * run ? n - at : 2 * run, spare);
}

/* By counting; then those of one directory are sorted. */
lay_code lay_eorder_set(lay_etree *t, lay_error *err)
{
    uint32_t most = 0, next = 0;
    count_names(t);
    lay_estate_free_table(&t->all);
    lay_estate_free_table(&t->directories);
    t->order = lay_large_zeros(t->nrecs, sizeof *t->order);
    if (!t->order)
        return lay_fail_nomem(err);
    for (size_t i = 0; i < t->nrecs; i++)
        if (S_ISDIR(t->recs[i].mode))
            t->recs[i].size = 0;
    for (size_t i = 1; i < t->nrecs; i++)
        if (!(t->recs[i].flags & LAY_EREC_GONE))
            t->recs[t->recs[i].parent].size++;
    for (size_t i = 0; i < t->nrecs; i++) {
        lay_erec *r = &t->recs[i];
        if (!S_ISDIR(r->mode))
            continue;
        r->data = next;
        next += r->size;
        most = r->size > most ? r->size : most;
        r->size = 0;
    }
    for (uint32_t i = 1; i < t->nrecs; i++) {
        lay_erec *above = &t->recs[t->recs[i].parent];
        if (!(t->recs[i].flags & LAY_EREC_GONE))
            t->order[above->data + above->size++] = i;
    }
    uint32_t *spare = lay_large_zeros(most + 1u, sizeof *spare);
    if (!spare)
        return lay_fail_nomem(err);
    for (size_t i = 0; i < t->nrecs; i++)
        if (S_ISDIR(t->recs[i].mode))
            sort(t, t->order + t->recs[i].data, t->recs[i].size, spare);
    lay_large_free(spare, most + 1u, sizeof *spare);
    for (size_t i = 0; i < t->nrecs; i++)
        t->recs[i].parent = 0;                /* a note from now on */
    return LAY_OK;
}

/* ---- for the writer ---- */

uint32_t lay_etree_count(const lay_etree *t) { return (uint32_t)t->nrecs; }

const uint32_t *lay_etree_children(const lay_etree *t, uint32_t directory, uint32_t *count)
{
    *count = t->recs[directory].size;
    return t->order + t->recs[directory].data;
}

uint32_t lay_etree_note(const lay_etree *t, uint32_t number) { return t->recs[number].parent; }
void lay_etree_set_note(const lay_etree *t, uint32_t number, uint32_t note) { t->recs[number].parent = note; }

static uint32_t directories_in(const lay_etree *t, uint32_t directory)
{
    uint32_t n, found = 0;
    const uint32_t *list = lay_etree_children(t, directory, &n);
    for (uint32_t i = 0; i < n; i++)
        found += S_ISDIR(t->recs[list[i]].mode);
    return found;
}

bool lay_etree_node(const lay_etree *t, uint32_t number, lay_enode *out)
{
    const lay_erec *r = &t->recs[number];
    const lay_emore *more = &t->more[r->more];
    uint32_t names = names_of(t, number);
    lay_eowner owner = lay_estate_owner(t, number);
    if (!names)
        return false;
    bool holes = r->flags & LAY_EREC_SPARSE;
    *out = (lay_enode){
        .mode = r->mode, .uid = owner.uid, .gid = owner.gid, .nlink = S_ISDIR(r->mode) ? 2 + directories_in(t, number) : names,
        .rdev = S_ISCHR(r->mode) || S_ISBLK(r->mode) ? r->data : 0, .mtime_sec = r->mtime / NSEC, .mtime_nsec = (uint32_t)(r->mtime % NSEC),
        .size = size_of(t, number), .data = -1, .sparse = holes, .npieces = more->npieces,
    };
    out->xattrs = lay_exattrs_at(t, number, &out->xattrs_len);
    if (S_ISREG(r->mode) && !holes && out->size)
        out->data = (int64_t)r->data * LAY_TAR_BLOCK;
    if (S_ISLNK(r->mode))
        out->text = t->names.p + r->data;
    if (out->npieces)
        out->pieces = t->pieces + more->pieces;
    return true;
}

void lay_etree_name(const lay_etree *t, uint32_t name, lay_ename *out)
{
    const char *text = t->names.p + t->recs[name].text;
    uint32_t node = lay_estate_inode(t, name);
    *out = (lay_ename){ .text = text + 1, .len = (uint8_t)text[0], .node = node, .mode = t->recs[node].mode };
}
