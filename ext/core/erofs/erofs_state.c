/* erofs_state.c - records of names and inodes.
 *
 * No record is ever taken out: what is replaced is marked as gone. What lay in a directory that went is not touched before the
 * end: no name leads to it.
 * Most tars have the names of a directory in their order. While they come so, a name that sorts behind the last one is new, and
 * that is known without looking it up. A table of hashes is filled when another name is asked for: of directories alone, as most
 * are asked for as parents, and of all names when that does not tell.
 */
#include "erofs/erofs_state.h"

#include "base/large.h"
#include "tree/whiteout.h"

#define FIRST_SLOTS 256u

static uint64_t hash_of(const lay_etree *t, uint32_t directory, const char *name, size_t n)
{
    return lay_nameset_hash(&t->key, name, n) ^ (directory + UINT64_C(1)) * UINT64_C(0x9e3779b97f4a7c15);
}

/* The slot of a name, or the empty one where it belongs. */
static uint32_t *slot_of(const lay_etree *t, const lay_etable *table, uint32_t directory, const char *name, size_t n)
{
    size_t i = (size_t)hash_of(t, directory, name, n) & table->mask;
    for (; table->slots[i]; i = (i + 1) & table->mask) {
        const lay_erec *r = &t->recs[table->slots[i] - 1];
        const char *text = t->names.p + r->text;
        if (r->parent == directory && (uint8_t)text[0] == n && !memcmp(text + 1, name, n))
            break;
    }
    return &table->slots[i];
}

void lay_estate_free_table(lay_etable *table)
{
    lay_large_free(table->slots, table->mask + 1, sizeof *table->slots);
    *table = (lay_etable){ 0 };
}

/* Twice the room; it is filled anew. */
static lay_code make_room(lay_etable *table, lay_error *err)
{
    size_t count = table->slots ? 2 * (table->mask + 1) : FIRST_SLOTS;
    uint32_t *slots = lay_large_zeros(count, sizeof *slots);
    if (!slots)
        return lay_fail_nomem(err);
    lay_estate_free_table(table);
    *table = (lay_etable){ .slots = slots, .mask = count - 1, .indexed = 1 };
    return LAY_OK;
}

static lay_code fill(const lay_etree *t, lay_etable *table, lay_error *err)
{
    if (!table->slots && make_room(table, err))
        return err->code;
    while (table->indexed < t->nrecs) {
        const lay_erec *r = &t->recs[table->indexed];
        const char *text = t->names.p + r->text;
        if (r->flags & LAY_EREC_GONE || (table == &t->directories && !S_ISDIR(r->mode))) {
            table->indexed++;
        } else if (table->used * 4 >= (table->mask + 1) * 3) {
            if (make_room(table, err))
                return err->code;
        } else {
            uint32_t *slot = slot_of(t, table, r->parent, text + 1, (uint8_t)text[0]);
            table->used += !*slot;
            *slot = (uint32_t)++table->indexed;
        }
    }
    return LAY_OK;
}

/* What has a name of a directory, as far as the table tells; 0: nothing. */
static lay_code look_up(const lay_etree *t, lay_etable *table, uint32_t directory, const char *name, size_t n, uint32_t *number, lay_error *err)
{
    if (fill(t, table, err))
        return err->code;
    uint32_t found = *slot_of(t, table, directory, name, n);
    *number = found && !(t->recs[found - 1].flags & LAY_EREC_GONE) ? found - 1 : 0;
    return LAY_OK;
}

/* A name beside that of a record. */
static int compare(const lay_etree *t, const char *name, size_t n, uint32_t number)
{
    const char *text = t->names.p + t->recs[number].text;
    size_t len = (uint8_t)text[0];
    int c = memcmp(name, text + 1, n < len ? n : len);
    return c ? c : (n > len) - (n < len);
}

lay_code lay_estate_init(lay_etree *t, lay_error *err)
{
    if (lay_nameset_init(&t->key, err) || lay_large_reserve(&t->recs, &t->recs_cap, FIRST_SLOTS, sizeof *t->recs, err) || lay_estate_text(t, "", 1, err)
        || lay_large_reserve(&t->more, &t->more_cap, 1, sizeof *t->more, err))
        return err->code;
    t->more[t->nmore++] = (lay_emore){ 0 };
    t->owners[t->nowners++] = (lay_eowner){ 0, 0 };
    t->recs[t->nrecs++] = (lay_erec){ .mode = S_IFDIR | 0755, .flags = LAY_EREC_IMPLIED };
    return LAY_OK;
}

void lay_estate_free(lay_etree *t)
{
    lay_nameset_free(&t->key);
    lay_large_free(t->recs, t->recs_cap, sizeof *t->recs);
    lay_large_free(t->more, t->more_cap, sizeof *t->more);
    lay_large_free(t->names.p, t->names.cap, 1);
    lay_large_free(t->xattrs, t->xattrs_cap, 1);
    free(t->piece_slots);
    free(t->held);
    free(t->piece.p);
    free(t->acls[0].p);
    free(t->acls[1].p);
    lay_large_free(t->pieces, t->pieces_cap, sizeof *t->pieces);
    lay_estate_free_table(&t->all);
    lay_estate_free_table(&t->directories);
    lay_large_free(t->order, t->nrecs, sizeof *t->order);
    free(t->clean.p);
    free(t->target.p);
    free(t->resolved.p);
    free(t->rest.p);
    free(t->next.p);
    free(t->near.p);
    free(t->way.p);
    free(t->steps);
    free(t->linked.p);
}

/* Without a table, if that is possible. */
static bool find_last(const lay_etree *t, uint32_t directory, const char *name, size_t n, uint32_t *number)
{
    const lay_erec *d = &t->recs[directory];
    *number = 0;
    if (n > NAME_MAX || !d->data)
        return true;
    int c = compare(t, name, n, d->data);
    if (!c && !(t->recs[d->data].flags & LAY_EREC_GONE))
        *number = d->data;
    return !c || (c > 0 && !(d->flags & LAY_EREC_MIXED));
}

lay_code lay_estate_find(lay_etree *t, uint32_t directory, const char *name, size_t n, uint32_t *number, lay_error *err)
{
    return find_last(t, directory, name, n, number) ? LAY_OK : look_up(t, &t->all, directory, name, n, number, err);
}

lay_code lay_estate_find_directory(lay_etree *t, uint32_t directory, const char *name, size_t n, uint32_t *number, lay_error *err)
{
    if (find_last(t, directory, name, n, number) || look_up(t, &t->directories, directory, name, n, number, err) || *number)
        return err->code;
    return look_up(t, &t->all, directory, name, n, number, err);
}

lay_code lay_estate_text(lay_etree *t, const void *p, size_t n, lay_error *err)
{
    if (lay_large_reserve(&t->names.p, &t->names.cap, t->names.len + n, 1, err))
        return err->code;
    memcpy(t->names.p + t->names.len, p, n);
    t->names.len += n;
    return LAY_OK;
}

lay_code lay_estate_add(lay_etree *t, uint32_t directory, const char *name, size_t n, uint32_t *number, lay_error *err)
{
    const uint8_t len = (uint8_t)n;
    size_t text = t->names.len;
    if (t->nrecs >= UINT32_MAX - 1 || text > UINT32_MAX - NAME_MAX - 1)
        return lay_fail(err, LAY_E_LIMIT, "the tar has more names than one image can hold");
    if (lay_large_reserve(&t->recs, &t->recs_cap, t->nrecs + 1, sizeof *t->recs, err) || lay_estate_text(t, &len, 1, err) || lay_estate_text(t, name, n, err))
        return err->code;
    lay_erec *d = &t->recs[directory];
    if (d->data && compare(t, name, n, d->data) < 0)
        d->flags |= LAY_EREC_MIXED;
    *number = d->data = (uint32_t)t->nrecs;
    t->recs[t->nrecs++] = (lay_erec){ .text = (uint32_t)text, .parent = directory };
    return LAY_OK;
}

void lay_estate_drop(lay_etree *t, uint32_t number)
{
    t->recs[number].flags |= LAY_EREC_GONE;
    t->near_known = t->linked_known = false;
    t->nsteps = 0;
}

uint32_t lay_estate_inode(const lay_etree *t, uint32_t name)
{
    const lay_erec *r = &t->recs[name];
    return r->flags & LAY_EREC_LINK ? r->data : name;
}

lay_code lay_estate_more(lay_etree *t, uint32_t number, lay_emore **more, lay_error *err)
{
    lay_erec *r = &t->recs[number];
    if (!r->more) {
        if (t->nmore >= UINT32_MAX)
            return lay_fail(err, LAY_E_LIMIT, "the tar has more entries than one image can hold");
        if (lay_large_reserve(&t->more, &t->more_cap, t->nmore + 1, sizeof *t->more, err))
            return err->code;
        t->more[t->nmore] = (lay_emore){ 0 };
        r->more = (uint32_t)t->nmore++;
    }
    *more = &t->more[r->more];
    return LAY_OK;
}

lay_code lay_estate_set_owner(lay_etree *t, uint32_t number, uint32_t uid, uint32_t gid, lay_error *err)
{
    const lay_eowner *last = &t->owners[t->owner];
    if (last->uid != uid || last->gid != gid) {
        unsigned i = 0;
        while (i < t->nowners && (t->owners[i].uid != uid || t->owners[i].gid != gid))
            i++;
        if (i == LAY_EREC_OWNERS) {
            lay_emore *more;
            if (lay_estate_more(t, number, &more, err))
                return err->code;
            more->uid = uid;
            more->gid = gid;
            t->recs[number].owner = LAY_EREC_OWNERS;
            return LAY_OK;
        }
        if (i == t->nowners)
            t->owners[t->nowners++] = (lay_eowner){ uid, gid };
        t->owner = i;
    }
    t->recs[number].owner = (uint8_t)t->owner;
    return LAY_OK;
}

lay_eowner lay_estate_owner(const lay_etree *t, uint32_t number)
{
    const lay_erec *r = &t->recs[number];
    if (r->owner < LAY_EREC_OWNERS)
        return t->owners[r->owner];
    return (lay_eowner){ t->more[r->more].uid, t->more[r->more].gid };
}

bool lay_estate_is_whiteout(const lay_etree *t, uint32_t number)
{
    return lay_stat_is_whiteout(t->recs[number].mode, t->recs[number].data);
}

lay_code lay_estate_imply(lay_etree *t, uint32_t directory, const char *name, size_t n, uint32_t *number, lay_error *err)
{
    if (lay_taken_implied(&t->taken, err) || lay_estate_add(t, directory, name, n, number, err))
        return err->code;
    t->recs[*number].mode = S_IFDIR | 0755;
    t->recs[*number].flags = LAY_EREC_IMPLIED;
    return LAY_OK;
}

lay_code lay_estate_path(const lay_etree *t, uint32_t directory, lay_text *path, lay_error *err)
{
    size_t n = 0;
    for (uint32_t at = directory; at; at = t->recs[at].parent)
        n += (uint8_t)t->names.p[t->recs[at].text] + 1u;
    if (lay_text_room(path, n, err))
        return err->code;
    lay_text_cut(path, n ? n - 1 : 0);
    for (uint32_t at = directory; at; at = t->recs[at].parent) {
        const char *text = t->names.p + t->recs[at].text;
        size_t len = (uint8_t)text[0];
        n -= len + 1;
        memcpy(path->p + n, text + 1, len);
        if (n)
            path->p[n - 1] = '/';
    }
    return LAY_OK;
}
