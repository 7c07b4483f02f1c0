/* export_union.c - layers stacked as a tar: what the export of the one directory would give that merging them makes.
 *
 * The union says which layer shows a name, and whether a directory hides what is below; the rest is export.c's. A layer
 * may be no directory.
 */
#include "source/export.h"
#include "union/union.h"
#include "union/union_state.h"

#include <string.h>

typedef struct union_export {
    lay_export x;              /* first */
    lay_union *stacked;
    bool borrowed;             /* a twin's */
    lay_union_walk *walk;
} union_export;

/* What failed may be that one of the layers is damaged. */
static lay_code fail(const union_export *t, lay_error *err)
{
    const lay_lowers *below = t->stacked->below;
    for (size_t i = 0; i < t->stacked->count; i++)
        lay_export_damaged(&t->stacked->layers[i], err);
    for (size_t i = 0; below != NULL && i < below->count; i++)
        lay_export_damaged(&below->list[i], err);
    return err->code;
}

static lay_code union_next(lay_export *x, bool *end, lay_error *err)
{
    union_export *t = (union_export *)x;
    lay_union_found found;
    for (;;) {
        if (lay_union_walk_next(t->walk, &found, err))
            return fail(t, err);
        *end = found.path == NULL;
        if (*end)
            return LAY_OK;
        struct stat st;
        lay_text_cut(&x->name, 0);
        x->opaque = found.opaque;
        x->of = &t->stacked->layers[found.layer];
        if (lay_lower_is_directory(x->of))
            x->of = NULL;
        if (lay_text_add(&x->name, found.path, found.path_len, err) || lay_export_entry(x, found.in, found.name, &st, err))
            return fail(t, err);
        if (!S_ISDIR(st.st_mode))
            lay_union_walk_pass(t->walk);       /* gone, left out, or another thing by now */
        if (st.st_mode != 0 || x->head_len > 0)
            return LAY_OK;
    }
}

static void union_done(lay_export *x)
{
    union_export *t = (union_export *)x;
    lay_union_walk_free(t->walk);
    if (!t->borrowed)
        lay_union_free(t->stacked);
}

static lay_code union_twin(const lay_export *x, lay_export **out, lay_error *err);

/* stacked stays the caller's if this fails. */
static lay_code union_new(lay_export **out, lay_union *stacked, unsigned flags, lay_error *err)
{
    union_export *t = calloc(1, sizeof *t);
    if (t == NULL)
        return lay_fail_nomem(err);
    lay_export_init(&t->x, flags);
    t->x.next = union_next;
    t->x.twin = union_twin;
    t->x.done = union_done;
    t->stacked = stacked;
    t->borrowed = true;
    if (lay_union_walk_open(&t->walk, stacked, err)) {
        lay_source_free(&t->x.source);
        return err->code;
    }
    *out = &t->x;
    return LAY_OK;
}

static lay_code union_twin(const lay_export *x, lay_export **out, lay_error *err)
{
    if (union_new(out, ((const union_export *)x)->stacked, lay_export_flags(x), err))
        return err->code;
    (*out)->dry = true;
    return LAY_OK;
}

lay_code lay_export_stack_open(lay_source **out, const lay_shown *layers, size_t n, const lay_shown *below, size_t nbelow, unsigned flags, lay_error *err)
{
    lay_union *stacked = NULL;
    lay_export *x = NULL;
    flags |= LAY_EXPORT_OVERLAY;
    lay_error_clear(err);
    if (n == 1 && below == NULL && layers->lower == NULL)
        return lay_export_tree_open(out, layers->fd, flags, err);
    unsigned marks = flags & LAY_EXPORT_USERXATTR ? LAY_UNION_USERXATTR : 0;
    if (lay_union_open_at(&stacked, layers, n, below, nbelow, marks | LAY_UNION_KEEP, err))
        return err->code;
    if (union_new(&x, stacked, flags, err)) {
        lay_union_free(stacked);
        return err->code;
    }
    ((union_export *)x)->borrowed = false;
    *out = &x->source;
    return LAY_OK;
}
