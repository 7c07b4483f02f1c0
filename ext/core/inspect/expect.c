/* expect.c - names in a tree of fixed records, found by a table of hashes; entries change it as unpacking changed the disk.
 *
 * Nothing is ever taken out of the tables: a name that went keeps its place and gets it again when it comes back. A
 * directory's list is emptied when it goes, so that all the replacing in a tar costs no more than its entries.
 * Source: unpack.c and unpack_names.c, whose decisions these are.
 */
#include "inspect/expect.h"

#include "tree/tree.h"
#include "tree/whiteout.h"
#include "inspect/xattrs.h"

#include <limits.h>
#include <string.h>

#define LINKS_MAX 255
#define STEPS_MAX (64 << 10)      /* of one name through links: more than any limit that is in use allows */

/* What one extended attribute adds to the sum of its thing; the parts of one thing are a list. */
typedef struct part { lay_xattr_part is; uint32_t next; } part;
#define NO_PART UINT32_MAX

struct lay_expect {
    lay_want *wants; size_t nwants, wants_cap;
    lay_made *things; size_t nthings, things_cap;
    part *parts; size_t nparts, parts_cap;
    uint64_t capability;               /* the hash of that xattr's name */
    uint32_t *slots; size_t mask;      /* want + 1; 0: empty */
    lay_nameset key;
    lay_text names;
    lay_text clean, rest, next;        /* scratch: the entry's name; what is left of it, with links */
    lay_text missing;                  /* components that are not there yet, each with a NUL */
    lay_xattr_scope scope;
};

/* ---- tables ------------------------------------------------------------------------------------------ */

static lay_code grow(void *list, size_t *cap, size_t count, size_t size, lay_error *err)
{
    void **p = list;
    if (count < *cap)
        return LAY_OK;
    size_t more = *cap ? 2 * *cap : 64;
    void *grown = reallocarray(*p, more, size);
    if (!grown)
        return lay_fail_nomem(err);
    *p = grown;
    *cap = more;
    return LAY_OK;
}

static uint64_t mix(uint64_t hash, uint32_t parent) { return hash ^ (parent + UINT64_C(1)) * UINT64_C(0x9e3779b97f4a7c15); }

static uint64_t hash_of(const lay_expect *x, uint32_t parent, const char *name, size_t n)
{
    return mix(lay_nameset_hash(&x->key, name, n), parent);
}

/* The slot of a name, or the empty one where it belongs. */
static size_t slot_of(const lay_expect *x, uint32_t parent, const char *name, size_t n)
{
    size_t i = (size_t)hash_of(x, parent, name, n) & x->mask;
    for (; x->slots[i]; i = (i + 1) & x->mask) {
        const lay_want *w = &x->wants[x->slots[i] - 1];
        if (w->parent == parent && w->name_len == n && !memcmp(x->names.p + w->name, name, n))
            break;
    }
    return i;
}

static lay_code double_slots(lay_expect *x, lay_error *err)
{
    size_t count = x->slots ? 2 * (x->mask + 1) : 256;
    uint32_t *slots = calloc(count, sizeof *slots);
    if (!slots)
        return lay_fail_nomem(err);
    free(x->slots);
    x->slots = slots;
    x->mask = count - 1;
    for (size_t k = 1; k < x->nwants; k++) {
        const lay_want *w = &x->wants[k];
        size_t i = (size_t)hash_of(x, w->parent, x->names.p + w->name, w->name_len) & x->mask;
        while (x->slots[i])
            i = (i + 1) & x->mask;
        x->slots[i] = (uint32_t)k + 1;
    }
    return LAY_OK;
}

static uint32_t find_any(const lay_expect *x, uint32_t directory, const char *name, size_t n)
{
    uint32_t slot = n <= NAME_MAX ? x->slots[slot_of(x, directory, name, n)] : 0;
    return slot ? slot - 1 : LAY_NO_WANT;
}

uint32_t lay_expect_find(const lay_expect *x, uint32_t directory, const char *name, size_t n)
{
    uint32_t w = find_any(x, directory, name, n);
    return w == LAY_NO_WANT || x->wants[w].flags & LAY_WANT_GONE ? LAY_NO_WANT : w;
}

static lay_made_kind kind_at(const lay_expect *x, uint32_t want)
{
    return want == LAY_NO_WANT ? LAY_MADE_NONE : (lay_made_kind)x->things[x->wants[want].thing].kind;
}

/* A name that stands in its directory from now on, with no thing yet. */
static lay_code add_want(lay_expect *x, uint32_t parent, const char *name, size_t n, uint32_t *want, lay_error *err)
{
    uint32_t w = find_any(x, parent, name, n);
    if (w == LAY_NO_WANT) {
        if (x->nwants >= UINT32_MAX - 1)
            return lay_fail(err, LAY_E_LIMIT, "the record has more names than can be compared");
        if (grow(&x->wants, &x->wants_cap, x->nwants, sizeof *x->wants, err)
            || (x->nwants * 4 >= (x->mask + 1) * 3 && double_slots(x, err)))
            return err->code;
        size_t slot = slot_of(x, parent, name, n);
        w = (uint32_t)x->nwants;
        lay_want made = { .name = x->names.len, .parent = parent, .first = LAY_NO_WANT, .name_len = (uint16_t)n, .flags = LAY_WANT_GONE };
        if (lay_text_add(&x->names, name, n, err))
            return err->code;
        x->wants[w] = made;
        x->slots[slot] = w + 1;
        x->nwants++;
    }
    lay_want *made = &x->wants[w];
    if (made->flags & LAY_WANT_GONE) {
        made->flags = 0;
        made->first = LAY_NO_WANT;
        made->next = x->wants[parent].first;
        x->wants[parent].first = w;
    }
    *want = w;
    return LAY_OK;
}

static lay_code add_thing(lay_expect *x, const lay_made *thing, uint32_t *id, lay_error *err)
{
    if (x->nthings >= UINT32_MAX - 1)
        return lay_fail(err, LAY_E_LIMIT, "the record has more entries than can be compared");
    if (grow(&x->things, &x->things_cap, x->nthings, sizeof *x->things, err))
        return err->code;
    *id = (uint32_t)x->nthings;
    x->things[x->nthings++] = *thing;
    return LAY_OK;
}

/* All below a directory goes. */
static void empty(lay_expect *x, uint32_t top)
{
    for (uint32_t at = top;;) {
        uint32_t child = x->wants[at].first;
        if (child == LAY_NO_WANT) {
            if (at == top)
                return;
            x->things[x->wants[at].thing].names--;
            at = x->wants[at].parent;
            continue;
        }
        x->wants[at].first = x->wants[child].next;
        x->wants[child].flags = LAY_WANT_GONE;
        at = child;
    }
}

/* ---- open, close, look ---------------------------------------------------------------------------------- */

lay_code lay_expect_new(lay_expect **out, lay_xattr_scope scope, lay_error *err)
{
    lay_expect *x = calloc(1, sizeof *x);
    if (!x)
        return lay_fail_nomem(err);
    x->scope = scope;
    lay_made root = { .kind = LAY_MADE_DIRECTORY, .flags = LAY_MADE_IMPLIED, .names = 1, .parts = NO_PART };
    uint32_t id;
    if (lay_nameset_init(&x->key, err) || lay_text_room(&x->names, 256, err) || grow(&x->wants, &x->wants_cap, 0, sizeof *x->wants, err)
        || double_slots(x, err) || add_thing(x, &root, &id, err)) {
        lay_expect_free(x);
        return err->code;
    }
    x->wants[x->nwants++] = (lay_want){ .parent = LAY_NO_WANT, .first = LAY_NO_WANT, .next = LAY_NO_WANT, .thing = id };
    x->capability = lay_nameset_hash(&x->key, "security.capability", strlen("security.capability"));
    *out = x;
    return LAY_OK;
}

void lay_expect_free(lay_expect *x)
{
    if (!x)
        return;
    lay_nameset_free(&x->key);
    free(x->wants);
    free(x->things);
    free(x->parts);
    free(x->slots);
    free(x->names.p);
    free(x->clean.p);
    free(x->rest.p);
    free(x->next.p);
    free(x->missing.p);
    free(x);
}

lay_want *lay_expect_want(lay_expect *x, uint32_t want) { return &x->wants[want]; }
lay_made *lay_expect_made(lay_expect *x, uint32_t want) { return &x->things[x->wants[want].thing]; }
const char *lay_expect_name(const lay_expect *x, uint32_t want) { return x->names.p + x->wants[want].name; }
const char *lay_expect_text(const lay_expect *x, const lay_made *link) { return x->names.p + link->text; }
const lay_nameset *lay_expect_key(const lay_expect *x) { return &x->key; }

lay_code lay_expect_path(const lay_expect *x, uint32_t want, lay_text *path, lay_error *err)
{
    size_t n = 0;
    for (uint32_t w = want; w != LAY_ROOT; w = x->wants[w].parent)
        n += x->wants[w].name_len + 1u;
    if (lay_text_room(path, n, err))
        return err->code;
    lay_text_cut(path, n ? n - 1 : 0);
    for (uint32_t w = want; w != LAY_ROOT; w = x->wants[w].parent) {
        n -= x->wants[w].name_len + 1u;
        memcpy(path->p + n, x->names.p + x->wants[w].name, x->wants[w].name_len);
        if (n)
            path->p[n - 1] = '/';
    }
    return LAY_OK;
}

/* ---- where a name leads ----------------------------------------------------------------------------------- */

static lay_code unfit(const lay_tar_entry *e, const char *why, lay_error *err)
{
    lay_fail(err, LAY_E_SPLIT, "the tar-split record holds an entry that cannot have been unpacked: %s", why);
    lay_error_path(err, e->name, e->name_len);
    return err->code;
}

/* A link's text comes in front of what is left of the way. */
static lay_code turn(lay_expect *x, const lay_made *link, size_t at, lay_error *err)
{
    const char *text = x->names.p + link->text;
    size_t n = (size_t)link->size, left = at < x->rest.len ? x->rest.len - at : 0;
    if (lay_text_set(&x->next, text, n, err) || (left && (lay_text_add(&x->next, "/", 1, err) || lay_text_add(&x->next, x->rest.p + at, left, err))))
        return err->code;
    lay_text was = x->rest;
    x->rest = x->next;
    x->next = was;
    return LAY_OK;
}

/* One component further, which may not be there. *at: where the next one begins in x->rest. */
static lay_code go(lay_expect *x, const lay_tar_entry *e, uint32_t *here, size_t *at, unsigned *links, bool *absolute, lay_error *err)
{
    const char *name = x->rest.p + *at, *slash = memchr(name, '/', x->rest.len - *at);
    size_t n = slash ? (size_t)(slash - name) : x->rest.len - *at;
    *at += n + 1;
    if (n == 0 || (n == 1 && name[0] == '.'))
        return LAY_OK;
    if (n == 2 && name[0] == '.' && name[1] == '.') {
        if (x->missing.len) {
            size_t end = x->missing.len - 1;
            while (end && x->missing.p[end - 1])
                end--;
            lay_text_cut(&x->missing, end);
        } else if (*here != LAY_ROOT) {
            *here = x->wants[*here].parent;
        } else if (!*absolute) {
            return unfit(e, "it leaves the layer", err);
        }
        return LAY_OK;
    }
    if (n > NAME_MAX)
        return unfit(e, "a name in it is too long", err);
    uint32_t child = x->missing.len ? LAY_NO_WANT : lay_expect_find(x, *here, name, n);
    lay_made_kind kind = kind_at(x, child);
    if (kind == LAY_MADE_DIRECTORY) {
        *here = child;
        return LAY_OK;
    }
    if (kind == LAY_MADE_NONE)
        return lay_text_add(&x->missing, name, n, err) || lay_text_add(&x->missing, "", 1, err) ? err->code : LAY_OK;
    if (kind != LAY_MADE_SYMLINK)
        return unfit(e, "it lies in what is no directory", err);
    const lay_made *link = &x->things[x->wants[child].thing];
    if (++*links > LINKS_MAX)
        return unfit(e, "it leads through too many links", err);
    if (x->names.p[link->text] == '/') {
        *absolute = true;
        *here = LAY_ROOT;
    }
    if (turn(x, link, *at, err))
        return err->code;
    *at = 0;
    return LAY_OK;
}

/* The directory of a cleaned name, made with its parents if it is missing. base: the last component, in x->clean. */
static lay_code enter(lay_expect *x, const lay_tar_entry *e, uint32_t *directory, size_t *base, lay_error *err)
{
    *base = lay_path_base(x->clean.p, x->clean.len);
    uint32_t here = LAY_ROOT;
    unsigned links = 0;
    bool absolute = false;
    if (lay_text_set(&x->rest, x->clean.p, *base ? *base - 1 : 0, err) || lay_text_set(&x->missing, "", 0, err))
        return err->code;
    size_t steps = 0;
    for (size_t at = 0; at < x->rest.len;) {
        if (++steps > STEPS_MAX)
            return unfit(e, "it leads through too many links", err);
        if (go(x, e, &here, &at, &links, &absolute, err))
            return err->code;
    }
    for (size_t at = 0; at < x->missing.len;) {
        size_t n = strlen(x->missing.p + at);
        lay_made made = { .kind = LAY_MADE_DIRECTORY, .flags = LAY_MADE_IMPLIED, .names = 1, .parts = NO_PART };
        uint32_t id;
        if (add_thing(x, &made, &id, err) || add_want(x, here, x->missing.p + at, n, &here, err))
            return err->code;
        x->wants[here].thing = id;
        at += n + 1;
    }
    *directory = here;
    return LAY_OK;
}

/* ---- entries -------------------------------------------------------------------------------------------------- */

static lay_made_kind kind_of(const lay_tar_entry *e)
{
    switch (e->type) {
    case '0':
    case 'S':
        return LAY_MADE_FILE;
    case '2':
        return LAY_MADE_SYMLINK;
    case '3':
        return LAY_MADE_CHARACTER;
    case '4':
        return LAY_MADE_BLOCK;
    case '5':
        return LAY_MADE_DIRECTORY;
    case '6':
        return LAY_MADE_FIFO;
    default:
        return LAY_MADE_NONE;
    }
}

/* One extended attribute has this value now. */
static lay_code set_part(lay_expect *x, lay_made *t, const lay_xattr_part *is, lay_error *err)
{
    uint32_t at = t->parts;
    while (at != NO_PART && x->parts[at].is.name != is->name)
        at = x->parts[at].next;
    if (at == NO_PART) {
        if (x->nparts >= NO_PART)
            return lay_fail(err, LAY_E_LIMIT, "the record has more extended attributes than can be compared");
        if (grow(&x->parts, &x->parts_cap, x->nparts, sizeof *x->parts, err))
            return err->code;
        at = (uint32_t)x->nparts++;
        x->parts[at] = (part){ { is->name, 0 }, t->parts };
        t->parts = at;
    }
    t->xattrs += is->sum - x->parts[at].is.sum;
    x->parts[at].is.sum = is->sum;
    return LAY_OK;
}

/* A hard link adds to what its file has; any other entry says what there is. */
static lay_code set_xattrs(lay_expect *x, lay_made *t, const lay_tar_entry *e, lay_error *err)
{
    LAY_AUTO_FREE lay_xattr_part *parts = NULL;
    size_t n;
    if (e->type != '1') {
        t->parts = NO_PART;
        t->xattrs = 0;
    }
    if (lay_xattrs_of_entry(&x->key, e, (lay_made_kind)t->kind, x->scope, &parts, &n, err))
        return err->code;
    for (size_t i = 0; i < n; i++)
        if (set_part(x, t, &parts[i], err))
            return err->code;
    return LAY_OK;
}

bool lay_made_keeps(lay_time t) { return t.sec >= 0 && (t.sec < 9223372036 || (t.sec == 9223372036 && t.nsec <= 854775807)); }

/* What an entry says of owner, mode, times and xattrs; a hard link says it of the thing it names. */
static lay_code set_meta(lay_expect *x, lay_made *t, const lay_tar_entry *e, lay_error *err)
{
    bool no_time = x->scope != LAY_XATTRS_FRESH && !lay_made_keeps(e->mtime);
    bool link = e->type == '1', other = t->uid != (uint32_t)e->uid || t->gid != (uint32_t)e->gid;
    lay_xattr_part none = { x->capability, 0 };
    if ((link && other && t->parts != NO_PART && set_part(x, t, &none, err)) || set_xattrs(x, t, e, err))
        return err->code;                     /* the kernel takes a capability away with the owner */
    t->uid = (uint32_t)e->uid;
    t->gid = (uint32_t)e->gid;
    if (link && t->kind == LAY_MADE_SYMLINK)
        return LAY_OK;
    t->mode = (uint16_t)(e->mode & 07777);
    t->mtime_sec = no_time ? 0 : e->mtime.sec;       /* as moby bounds them */
    t->mtime_nsec = no_time ? 0 : e->mtime.nsec;
    return LAY_OK;
}

/* The name must be free: what is there goes. */
static void make_way(lay_expect *x, uint32_t want)
{
    lay_made *t = &x->things[x->wants[want].thing];
    if (t->kind == LAY_MADE_DIRECTORY)
        empty(x, want);
    t->names--;
}

/* To overlayfs every device of no number is one; unpacking leaves its owner, mode and times as they are. */
static bool is_whiteout(const lay_made *t)
{
    return t->kind == LAY_MADE_WHITEOUT || (t->kind == LAY_MADE_CHARACTER && !t->major && !t->minor);
}

static lay_code hard_link(lay_expect *x, const lay_tar_entry *e, uint32_t directory, const char *base, size_t n, uint32_t *want, lay_error *err)
{
    char name[NAME_MAX + 1];
    memcpy(name, base, n);                    /* x->clean serves the target now */
    uint32_t target_directory, target;
    size_t target_base;
    /* What stood there is gone by the time the target is looked for. */
    uint32_t there = lay_expect_find(x, directory, name, n);
    if (lay_path_relative(&x->clean, e->link, e->link_len, err))
        return err->code;
    if (lay_path_leaves(&x->clean) || (x->clean.len == 1 && x->clean.p[0] == '.'))
        return unfit(e, "its target is outside of the layer", err);
    if (enter(x, e, &target_directory, &target_base, err))
        return err->code;
    target = lay_expect_find(x, target_directory, x->clean.p + target_base, x->clean.len - target_base);
    lay_made_kind kind = kind_at(x, target);
    bool hidden = kind != LAY_MADE_NONE && is_whiteout(&x->things[x->wants[target].thing]);
    if (target == there && kind != LAY_MADE_NONE && kind != LAY_MADE_DIRECTORY && !hidden)
        return LAY_OK;                        /* linked to itself: it stays what it is */
    if (target == there || kind == LAY_MADE_NONE || kind == LAY_MADE_DIRECTORY)
        return unfit(e, "its target is not there", err);
    uint32_t id = x->wants[target].thing;
    if (!hidden && set_meta(x, &x->things[id], e, err))
        return err->code;
    if (there != LAY_NO_WANT)
        make_way(x, there);
    if (add_want(x, directory, name, n, want, err))
        return err->code;
    x->wants[*want].thing = id;
    x->things[id].names++;
    return LAY_OK;
}

static lay_code whiteout(lay_expect *x, const lay_tar_entry *e, uint32_t directory, const char *name, size_t n, uint32_t *want, lay_error *err)
{
    uint32_t there = lay_expect_find(x, directory, name, n), id;
    if (there != LAY_NO_WANT && kind_at(x, there) != LAY_MADE_WHITEOUT)
        return unfit(e, "it hides what came before it", err);
    if (there == LAY_NO_WANT) {
        lay_made made = { .kind = LAY_MADE_WHITEOUT, .names = 1, .parts = NO_PART };
        if (add_thing(x, &made, &id, err) || add_want(x, directory, name, n, &there, err))
            return err->code;
        x->wants[there].thing = id;
    }
    *want = there;
    return LAY_OK;
}

static lay_code place(lay_expect *x, const lay_tar_entry *e, uint32_t directory, const char *name, size_t n, uint32_t *want, lay_error *err)
{
    lay_made made = { .kind = (uint8_t)kind_of(e), .names = 1, .parts = NO_PART };
    if (made.kind == LAY_MADE_NONE)
        return unfit(e, "its type is unknown", err);
    if (made.kind == LAY_MADE_SYMLINK && !e->link_len)
        return unfit(e, "a symbolic link without a target", err);
    uint32_t there = lay_expect_find(x, directory, name, n), id;
    if (made.kind == LAY_MADE_DIRECTORY && kind_at(x, there) == LAY_MADE_DIRECTORY) {
        lay_made *t = &x->things[x->wants[there].thing];
        t->flags &= (uint8_t)~LAY_MADE_IMPLIED;
        *want = there;
        return set_meta(x, t, e, err);
    }
    made.size = e->size;
    if (made.kind == LAY_MADE_SYMLINK) {
        made.size = (int64_t)e->link_len;
        made.text = x->names.len;
        if (lay_text_add(&x->names, e->link, e->link_len + 1, err))
            return err->code;
    } else if (made.kind != LAY_MADE_FILE) {
        made.size = 0;
    }
    if (made.kind == LAY_MADE_CHARACTER || made.kind == LAY_MADE_BLOCK) {
        made.major = (uint32_t)e->dev_major;
        made.minor = (uint32_t)e->dev_minor;
    }
    if (made.kind == LAY_MADE_DIRECTORY && there != LAY_NO_WANT)
        made.flags |= LAY_MADE_REBORN;
    if (set_meta(x, &made, e, err) || add_thing(x, &made, &id, err))
        return err->code;
    if (there != LAY_NO_WANT)
        make_way(x, there);
    if (add_want(x, directory, name, n, want, err))
        return err->code;
    x->wants[*want].thing = id;
    return LAY_OK;
}

lay_code lay_expect_hide(lay_expect *x, const char *name, size_t n, lay_error *err)
{
    uint32_t there = lay_expect_find(x, LAY_ROOT, name, n), id;
    if (there != LAY_NO_WANT) {
        if (kind_at(x, there) == LAY_MADE_DIRECTORY)
            x->things[x->wants[there].thing].flags |= LAY_MADE_REBORN;
        return LAY_OK;
    }
    lay_made made = { .kind = LAY_MADE_WHITEOUT, .names = 1, .parts = NO_PART };
    if (add_thing(x, &made, &id, err) || add_want(x, LAY_ROOT, name, n, &there, err))
        return err->code;
    x->wants[there].thing = id;
    x->wants[there].flags |= LAY_WANT_DERIVED;
    return LAY_OK;
}

lay_code lay_expect_entry(lay_expect *x, const lay_tar_entry *e, uint32_t *want, lay_error *err)
{
    *want = LAY_NO_WANT;
    if (e->type == 'g')
        return LAY_OK;
    if (lay_path_relative(&x->clean, e->name, e->name_len, err))
        return err->code;
    if (x->clean.len == 1 && x->clean.p[0] == '.')
        return LAY_OK;
    if (lay_path_leaves(&x->clean))
        return unfit(e, "it leaves the layer", err);
    uint32_t directory;
    size_t base = lay_path_base(x->clean.p, x->clean.len);
    lay_wh wh = lay_whiteout_kind(x->clean.p + base, x->clean.len - base);
    if (wh == LAY_WH_BAD)
        return unfit(e, "invalid whiteout entry", err);
    if (x->clean.len - base > NAME_MAX + (wh == LAY_WH_NAME ? LAY_WH_PREFIX_LEN : 0))
        return unfit(e, "a name in it is too long", err);
    bool owned = wh != LAY_WH_OPAQUE_DIR;     /* such a mark is an attribute, whose owner is not compared */
    if (owned && (e->uid < 0 || e->gid < 0 || e->uid >= UINT32_MAX || e->gid >= UINT32_MAX))
        return unfit(e, "its owner is out of range", err);
    if (enter(x, e, &directory, &base, err))
        return err->code;
    const char *name = x->clean.p + base;
    size_t n = x->clean.len - base;
    switch (wh) {
    case LAY_WH_OPAQUE_DIR:
        x->things[x->wants[directory].thing].flags |= LAY_MADE_OPAQUE;
        return LAY_OK;
    case LAY_WH_NAME:
        return whiteout(x, e, directory, name + LAY_WH_PREFIX_LEN, n - LAY_WH_PREFIX_LEN, want, err);
    default:
        return e->type == '1' ? hard_link(x, e, directory, name, n, want, err) : place(x, e, directory, name, n, want, err);
    }
}
