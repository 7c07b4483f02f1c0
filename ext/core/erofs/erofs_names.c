/* erofs_names.c - from the cleaned name of an entry to its directory in the tree.
 *
 * Where a symbolic link stands in the way, the parent is followed as text, as if the root were "/", and then entered. The
 * directory of the entry before, and the way to the last link, are remembered: what is added to a tree changes no way that
 * was found, only what is taken away does.
 * Source: apply/unpack_names.c, whose decisions these are.
 */
#include "erofs/erofs_names.h"

#include "base/grow.h"
#include "tree/tree.h"

#define LINKS_MAX 255

static size_t component(const char *path, size_t n, size_t at)
{
    const char *slash = memchr(path + at, '/', n - at);
    return slash ? (size_t)(slash - path) - at : n - at;
}

static lay_code add_step(lay_etree *t, size_t end, uint32_t number, lay_error *err)
{
    if (lay_grow(&t->steps, &t->steps_cap, t->nsteps, sizeof *t->steps, err))
        return err->code;
    t->steps[t->nsteps++] = (lay_estep){ (uint32_t)end, number };
    return LAY_OK;
}

/* The steps to the directory entered before that lead to this one, too, are kept; the last of them. */
static lay_estep last_common(lay_etree *t, const char *path, size_t n)
{
    const lay_text *way = &t->way;
    size_t same = 0;
    while (same < n && same < way->len && path[same] == way->p[same])
        same++;
    while (t->nsteps && (t->steps[t->nsteps - 1].end > same || (t->steps[t->nsteps - 1].end < n && path[t->steps[t->nsteps - 1].end] != '/')))
        t->nsteps--;
    return t->nsteps ? t->steps[t->nsteps - 1] : (lay_estep){ 0, LAY_ETREE_ROOT };
}

/* The directory at a path without links. *linked: a link, or what is no directory, stands in the way. */
static lay_code enter(lay_etree *t, const char *path, size_t n, uint32_t *directory, bool *linked, lay_error *err)
{
    lay_estep from = last_common(t, path, n);
    uint32_t here = from.number;
    bool made = false;
    *linked = false;
    if (lay_text_set(&t->way, path, n, err))
        return err->code;
    for (size_t at = from.end + (from.end > 0); at < n;) {
        size_t len = component(path, n, at);
        if (len > NAME_MAX)
            return lay_fail_os(err, ENAMETOOLONG, NULL, made ? NULL : "cannot open the parent directory");
        uint32_t next = 0;
        if (!made && lay_estate_find_directory(t, here, path + at, len, &next, err))
            return err->code;
        if (!next) {
            if (lay_estate_imply(t, here, path + at, len, &next, err))
                return err->code;
            made = true;
        }
        const lay_erec *r = lay_erec_at(t, lay_estate_inode(t, next));
        if (!S_ISDIR(r->mode)) {
            *linked = true;
            return lay_fail_os(err, S_ISLNK(r->mode) && at + len < n ? ELOOP : ENOTDIR, NULL, "cannot open the parent directory");
        }
        here = next;
        if (add_step(t, at + len, here, err))
            return err->code;
        at += len + 1;
    }
    *directory = here;
    return LAY_OK;
}

/* The inode of a name in what `above` is, if that is a directory; 0: there is none. */
static lay_code look_below(lay_etree *t, uint32_t above, const char *part, size_t len, uint32_t *inode, lay_error *err)
{
    *inode = 0;
    if (!S_ISDIR(lay_erec_at(t, above)->mode))
        return LAY_OK;
    if (lay_estate_find(t, above, part, len, inode, err))
        return err->code;
    *inode = lay_estate_inode(t, *inode);
    return LAY_OK;
}

/* What is at a path, as lstat finds it; 0: nothing, or the root. */
static lay_code look(lay_etree *t, const char *path, size_t n, uint32_t *inode, lay_error *err)
{
    *inode = LAY_ETREE_ROOT;
    for (size_t at = 0, len; at < n; at += len + 1) {
        len = component(path, n, at);
        if (look_below(t, *inode, path + at, len, inode, err) || !*inode)
            return err->code;
    }
    return LAY_OK;
}

/* Follow the links of a parent; t->resolved is where it leads. A relative link that climbs out is refused, unless an
 * absolute one came before it. Missing parts stay as they are. *tail: so many bytes at the end of parent hold no link. */
static lay_code walk_links(lay_etree *t, const char *parent, size_t n, size_t *tail, lay_error *err)
{
    lay_text *resolved = &t->resolved, *rest = &t->rest;
    unsigned links = 0;
    int64_t steps = 0;
    uint32_t here = LAY_ETREE_ROOT;
    bool absolute = false;
    *tail = n;
    if (lay_text_set(resolved, "", 0, err) || lay_text_set(rest, parent, n, err))
        return err->code;
    for (size_t at = 0; at < rest->len;) {
        const char *part = rest->p + at;
        size_t len = component(rest->p, rest->len, at), before = resolved->len;
        at += len + 1;
        if (len == 0 || (len == 1 && part[0] == '.'))
            continue;
        if (lay_is_over(++steps, t->limits.depth))
            return lay_fail_limit(err, -1, "max_depth", t->limits.depth, "components", "a name is too deep, with the links it leads through");
        if (len == 2 && part[0] == '.' && part[1] == '.') {
            if (!before && !absolute)
                return lay_fail(err, LAY_E_BREAKOUT, "path escapes from parent");
            size_t cut = lay_path_base(resolved->p, before);
            lay_text_cut(resolved, cut ? cut - 1 : 0);
            if (here && S_ISDIR(lay_erec_at(t, here)->mode))
                here = lay_erec_at(t, here)->parent;
            else if (look(t, resolved->p, resolved->len, &here, err))
                return err->code;
            continue;
        }
        uint32_t found = 0;
        if ((here || !before) && look_below(t, here, part, len, &found, err))
            return err->code;
        if (!found || !S_ISLNK(lay_erec_at(t, found)->mode)) {
            if (lay_text_push(resolved, part, len, err))
                return err->code;
            here = found;
            continue;
        }
        if (++links > LINKS_MAX)
            return lay_fail_os(err, ELOOP, NULL, "too many links");
        const lay_erec *link = lay_erec_at(t, found);
        const char *text = t->names.p + link->data;
        size_t left = at < rest->len ? rest->len - at : 0;
        if (text[0] == '/') {
            absolute = true;
            lay_text_cut(resolved, 0);
            here = LAY_ETREE_ROOT;
        }
        if (left < *tail)
            *tail = left;
        if (lay_text_set(&t->next, text, link->size, err) || (left && (lay_text_add(&t->next, "/", 1, err) || lay_text_add(&t->next, rest->p + at, left, err))))
            return err->code;
        lay_text passed = *rest;
        *rest = t->next;
        t->next = passed;
        at = 0;
    }
    return LAY_OK;
}

static lay_code enter_by_links(lay_etree *t, const char *parent, size_t n, const lay_error *first, uint32_t *directory, lay_error *err)
{
    bool linked;
    size_t tail;
    t->linked_known = false;
    if (walk_links(t, parent, n, &tail, err))
        return err->code;
    const lay_text *to = &t->resolved;
    if (to->len == n && !memcmp(to->p, parent, n)) {
        *err = *first;                        /* no link: a file where a directory should be */
        return err->code;
    }
    if (enter(t, to->p, to->len, directory, &linked, err) || lay_text_set(&t->linked, parent, tail ? n - tail - 1 : n, err))
        return err->code;
    if (look(t, to->p, !tail ? to->len : to->len > tail ? to->len - tail - 1 : 0, &t->linked_at, err))
        return err->code;
    t->linked_known = true;
    return LAY_OK;
}

/* Enter by the way that is remembered. *known: it was one, and no other link comes behind it. */
static lay_code enter_as_before(lay_etree *t, const char *parent, size_t n, uint32_t *directory, bool *known, lay_error *err)
{
    const lay_text *from = &t->linked;
    *known = t->linked_known && from->len <= n && !memcmp(from->p, parent, from->len) && (from->len == n || parent[from->len] == '/');
    if (!*known)
        return LAY_OK;
    bool linked;
    if (lay_estate_path(t, t->linked_at, &t->resolved, err))
        return err->code;
    size_t skip = from->len + (from->len < n);
    if ((skip < n && lay_text_push(&t->resolved, parent + skip, n - skip, err)) || !enter(t, t->resolved.p, t->resolved.len, directory, &linked, err) || !linked)
        return err->code;
    *known = false;
    lay_error_clear(err);
    return LAY_OK;
}

static lay_code find_directory(lay_etree *t, const char *parent, size_t n, uint32_t *directory, lay_error *err)
{
    bool known, linked;
    if (enter_as_before(t, parent, n, directory, &known, err) || known || !enter(t, parent, n, directory, &linked, err) || !linked)
        return err->code;
    lay_error first = *err;
    lay_error_clear(err);
    return enter_by_links(t, parent, n, &first, directory, err);
}

lay_code lay_enames_enter(lay_etree *t, const lay_text *clean, uint32_t *directory, size_t *base, lay_error *err)
{
    if (lay_entry_base(clean, base, err))
        return err->code;
    size_t n = *base ? *base - 1 : 0;
    if (t->near_known && t->near.len == n && !memcmp(t->near.p, clean->p, n)) {
        *directory = t->near_at;
        return LAY_OK;
    }
    t->near_known = false;
    if (find_directory(t, clean->p, n, directory, err) || lay_text_set(&t->near, clean->p, n, err))
        return err->code;
    t->near_at = *directory;
    t->near_known = true;
    return LAY_OK;
}
