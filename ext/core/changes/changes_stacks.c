/* changes_stacks.c - how overlays differ that are stacks of layers: several upper directories over their lowers, and two
 * whole stacks.
 *
 * Two stacks are walked side by side, as two trees are (changes.c). Of a directory in both, what the same layers make of
 * it at the end is left unread: only a name that a layer before has can differ, and each such name is looked up there. So
 * the cost is what differs, whatever the stacks stand on.
 */
#include "base/grow.h"
#include "changes/changes.h"
#include "tree/whiteout.h"
#include "union/union.h"
#include "union/union_state.h"

#include <fcntl.h>
#include <string.h>

#define AWAKE 2u        /* directories on the way down that keep open what they have */

/* ---- several uppers ---- */

lay_code lay_changes_overlay(lay_changes **out, const lay_shown *uppers, size_t m, const lay_shown *lowers, size_t n, unsigned flags, lay_error *err)
{
    lay_error_clear(err);
    bool user = (flags & LAY_CHANGES_USERXATTR) != 0;
    lay_union *u = NULL;
    lay_lowers below = { 0 };
    lay_lower upper;
    if (m == 1)
        upper = uppers->lower != NULL ? *uppers->lower : lay_lower_lent(uppers->fd);
    else if (lay_union_open_at(&u, uppers, m, NULL, 0, user ? LAY_UNION_USERXATTR : 0, err))
        return err->code;
    else
        upper = lay_union_lower(u);
    if (!lay_lowers_open(&below, lowers, n, user, err))
        lay_changes_over(out, &upper, &below, (flags & LAY_CHANGES_CONTENTS) != 0, err);
    lay_lowers_free(&below);
    lay_union_free(u);
    return err->code;
}

/* ---- two stacks ---- */

typedef struct gone { const char *name; size_t len; } gone;

/* One directory of the new stack, and the old one's of that path, if it has one. */
typedef struct level {
    lay_union_dir *fresh, *old;
    size_t next, old_next;              /* of what they show by the layers that were read */
    gone *gone; size_t count, cap;      /* names that only the old one has */
} level;

typedef struct stacks {
    lay_differ differ;
    lay_union *fresh, *old;
    size_t *twin;                       /* of each of the new stack's layers: which of the old one's is the same directory */
    bool contents;
    level *levels; size_t depth, cap;
} stacks;

/* What a side has under one name. */
typedef struct view { bool there; lay_thing thing; struct stat st; size_t layer; } view;

static bool same_layer(const stacks *s, size_t fresh, size_t old) { return s->twin[fresh] == old; }

/* How many of the last layers of both directories are the same. */
static size_t shared(const stacks *s, const lay_union_dir *fresh, const lay_union_dir *old)
{
    size_t n = 0;
    while (n < fresh->nparts && n < old->nparts
           && same_layer(s, fresh->parts[fresh->nparts - 1 - n].layer, old->parts[old->nparts - 1 - n].layer))
        n++;
    return n;
}

static lay_code enter(stacks *s, lay_union_dir *fresh, lay_union_dir *old, lay_error *err)
{
    if (lay_grow(&s->levels, &s->cap, s->depth, sizeof *s->levels, err)) {
        if (s->depth > 0) {             /* a root is its union's */
            lay_union_dir_free(fresh);
            lay_union_dir_free(old);
        }
        return err->code;
    }
    s->levels[s->depth++] = (level){ .fresh = fresh, .old = old };
    if (s->depth > AWAKE) {
        level *above = &s->levels[s->depth - 1 - AWAKE];
        lay_union_dir_rest(above->fresh);
        if (above->old != NULL)
            lay_union_dir_rest(above->old);
    }
    size_t same = old != NULL ? shared(s, fresh, old) : 0;
    if (!lay_union_dir_read_first(fresh, fresh->nparts - same, err) && (old == NULL || !lay_union_dir_read_first(old, old->nparts - same, err)))
        return LAY_OK;
    return fresh->path_len > 0 ? lay_error_path(err, fresh->path, fresh->path_len) : err->code;
}

static lay_code look_up(stacks *s, lay_union_dir *d, const char *name, view *v, lay_error *err)
{
    size_t part;
    *v = (view){ .there = false };
    if (d == NULL)
        return LAY_OK;
    int found = lay_union_dir_find(d, name, &part);
    lay_lower_dir in = found < 0 ? -1 : lay_union_dir_part(d, part);
    if (in >= 0) {
        v->layer = d->parts[part].layer;
        v->thing = (lay_thing){ lay_union_layer(d->of, v->layer), in, name, &v->st };
        if (v->thing.layer->ops->stat(v->thing.layer, in, name, &v->st) == 0) {
            v->there = !lay_stat_is_whiteout(v->st.st_mode, v->st.st_rdev);
            return LAY_OK;
        }
    }
    return lay_tree_gone(errno) ? LAY_OK : lay_differ_fail(&s->differ, errno, name, "cannot stat it", err);
}

/* Into a directory, unless the same layers make it up on both sides. */
static lay_code go_down(stacks *s, const char *name, size_t n, bool was_dir, bool recorded, lay_error *err)
{
    level *here = &s->levels[s->depth - 1];
    lay_union_dir *old = NULL, *fresh = lay_union_dir_down(here->fresh, name, n);
    if (fresh == NULL)                  /* a tree in use: gone since it was listed */
        return lay_tree_gone(errno) ? LAY_OK : lay_differ_fail(&s->differ, errno, name, "cannot open the directory", err);
    if (was_dir)
        old = lay_union_dir_down(here->old, name, n);
    if (was_dir && old == NULL && !lay_tree_gone(errno)) {
        lay_union_dir_free(fresh);
        return lay_differ_fail(&s->differ, errno, name, "cannot open the directory", err);
    }
    if (old != NULL && fresh->nparts == old->nparts && shared(s, fresh, old) == old->nparts) {
        lay_union_dir_free(fresh);
        lay_union_dir_free(old);
        return LAY_OK;
    }
    if (lay_differ_enter(&s->differ, name, n, recorded, err)) {
        lay_union_dir_free(fresh);
        lay_union_dir_free(old);
        return err->code;
    }
    return enter(s, fresh, old, err);
}

static lay_code compare_name(stacks *s, const char *name, size_t n, lay_error *err)
{
    level *here = &s->levels[s->depth - 1];
    view now, was;
    if (look_up(s, here->fresh, name, &now, err) || look_up(s, here->old, name, &was, err))
        return err->code;
    if (!now.there) {
        if (was.there) {
            if (lay_grow(&here->gone, &here->cap, here->count, sizeof *here->gone, err))
                return err->code;
            here->gone[here->count++] = (gone){ name, n };
        }
        return LAY_OK;
    }
    bool same = was.there && same_layer(s, now.layer, was.layer);
    int differs = same ? 0 : was.there ? lay_things_differ(s->contents, &now.thing, &was.thing) : 1;
    if (differs < 0 && lay_tree_gone(errno))
        return LAY_OK;
    if (differs < 0)
        return lay_differ_fail(&s->differ, errno, name, "cannot compare it", err);
    if (differs > 0 && lay_differ_record(&s->differ, was.there ? LAY_CHANGE_MODIFY : LAY_CHANGE_ADD, name, n, err))
        return err->code;
    return S_ISDIR(now.st.st_mode) ? go_down(s, name, n, was.there && S_ISDIR(was.st.st_mode), differs > 0, err) : LAY_OK;
}

static const lay_union_entry *shown_at(const lay_union_dir *d, size_t i)
{
    return d != NULL && i < d->nshown ? &d->entries[d->shown[i]] : NULL;
}

/* What was only in the old one, then up. */
static lay_code leave(stacks *s, lay_error *err)
{
    level *here = &s->levels[s->depth - 1];
    lay_code code = LAY_OK;
    for (size_t i = 0; i < here->count && code == LAY_OK && !here->fresh->gone; i++)
        code = lay_differ_record(&s->differ, LAY_CHANGE_DELETE, here->gone[i].name, here->gone[i].len, err);
    if (s->depth > 1)
        lay_differ_leave(&s->differ);
    return code;
}

static void pop(stacks *s)
{
    level *here = &s->levels[--s->depth];
    if (s->depth > 0) {
        lay_union_dir_free(here->fresh);
        lay_union_dir_free(here->old);
    }
    free(here->gone);
}

/* The next name that a layer of either side has. */
static lay_code step(stacks *s, lay_error *err)
{
    level *here = &s->levels[s->depth - 1];
    const lay_union_entry *a = shown_at(here->fresh, here->next), *b = shown_at(here->old, here->old_next);
    if (a == NULL && b == NULL) {
        lay_code code = leave(s, err);
        pop(s);
        return code;
    }
    int order = a == NULL ? 1 : b == NULL ? -1 : memcmp(a->name, b->name, a->len < b->len ? a->len : b->len);
    if (order == 0)
        order = (a->len > b->len) - (a->len < b->len);
    here->next += order <= 0;
    here->old_next += order >= 0;
    const lay_union_entry *e = order <= 0 ? a : b;
    return compare_name(s, e->name, e->len, err);
}

static lay_code stat_root(const lay_shown *layer, struct stat *st, lay_error *err)
{
    if (layer->lower == NULL)
        return fstat(layer->fd, st) < 0 ? lay_fail_fd(err, errno, layer->fd, "cannot stat it") : LAY_OK;
    const lay_lower *l = layer->lower;
    return l->ops->stat(l, l->root, ".", st) < 0 ? lay_fail_os(err, errno, NULL, "cannot stat a layer") : LAY_OK;
}

/* Which layers of both are the same directory. */
static lay_code find_twins(stacks *s, const lay_shown *fresh, size_t n, const lay_shown *before, size_t m, bool any, lay_error *err)
{
    LAY_AUTO_FREE struct stat *old = calloc(m + 1, sizeof *old);
    s->twin = calloc(n + 1, sizeof *s->twin);
    if (old == NULL || s->twin == NULL)
        return lay_fail_nomem(err);
    for (size_t i = 0; i < m; i++)
        if (stat_root(&before[i], &old[i], err))
            return err->code;
    for (size_t i = 0; i < n; i++) {
        struct stat st;
        if (stat_root(&fresh[i], &st, err))
            return err->code;
        s->twin[i] = SIZE_MAX;
        for (size_t k = 0; k < m && any; k++)
            if (st.st_ino == old[k].st_ino && st.st_dev == old[k].st_dev)
                s->twin[i] = k;
    }
    return LAY_OK;
}

static lay_code open_side(lay_union **out, const lay_shown *layers, size_t n, bool user, lay_error *err)
{
    return lay_union_open_at(out, layers, n, NULL, 0, LAY_UNION_UNREAD | (user ? LAY_UNION_USERXATTR : 0), err);
}

lay_code lay_changes_stacks(lay_changes **out, const lay_shown *fresh, size_t n, const lay_shown *old, size_t m, unsigned flags, lay_error *err)
{
    lay_error_clear(err);
    bool user = (flags & LAY_CHANGES_USERXATTR) != 0, old_user = (flags & LAY_CHANGES_OLD_USERXATTR) != 0;
    stacks s = { .contents = (flags & LAY_CHANGES_CONTENTS) != 0 };
    if (!lay_differ_open(&s.differ, err) && !find_twins(&s, fresh, n, old, m, user == old_user, err)
        && !open_side(&s.fresh, fresh, n, user, err) && !open_side(&s.old, old, m, old_user, err)
        && !enter(&s, lay_union_root(s.fresh), lay_union_root(s.old), err))
        while (s.depth > 0 && err->code == LAY_OK)
            step(&s, err);
    if (err->code == LAY_OK)
        *out = lay_steal(s.differ.out);
    while (s.depth > 0)
        pop(&s);
    free(s.levels);
    free(s.twin);
    lay_union_free(s.fresh);
    lay_union_free(s.old);
    lay_differ_free(&s.differ);
    return err->code;
}
