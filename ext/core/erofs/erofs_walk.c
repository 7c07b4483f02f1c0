/* erofs_walk.c - a stack of the directories on the way, each with what it has given. */
#include "erofs/erofs_walk.h"

#include "base/grow.h"

#include <sys/stat.h>

static lay_code enter(lay_ewalk *w, uint32_t node, lay_error *err)
{
    lay_evisit v = { .node = node };
    if (lay_grow(&w->stack, &w->cap, w->depth, sizeof *w->stack, err))
        return err->code;
    v.names = lay_etree_children(w->t, node, &v.count);
    w->stack[w->depth++] = v;
    return LAY_OK;
}

lay_code lay_ewalk_begin(lay_ewalk *w, lay_error *err)
{
    w->depth = 0;
    return enter(w, LAY_ETREE_ROOT, err);
}

lay_code lay_ewalk_next(lay_ewalk *w, lay_ename *name, uint32_t *parent, bool *more, lay_error *err)
{
    while (w->depth && w->stack[w->depth - 1].next == w->stack[w->depth - 1].count)
        w->depth--;
    *more = w->depth > 0;
    if (!*more)
        return LAY_OK;
    lay_evisit *v = &w->stack[w->depth - 1];
    lay_etree_name(w->t, v->names[v->next++], name);
    *parent = v->node;
    return S_ISDIR(name->mode) ? enter(w, name->node, err) : LAY_OK;
}

lay_code lay_ewalk_path(const lay_ewalk *w, lay_text *path, lay_error *err)
{
    if (lay_text_set(path, "", 0, err))
        return err->code;
    for (size_t i = 0; i < w->depth && w->stack[i].next; i++) {       /* a directory that has just come has given none */
        lay_ename name;
        lay_etree_name(w->t, w->stack[i].names[w->stack[i].next - 1], &name);
        if (lay_text_push(path, name.text, name.len, err))
            return err->code;
    }
    return LAY_OK;
}
