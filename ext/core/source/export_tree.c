/* export_tree.c - everything below a root as a tar: depth first, names in byte order, the root left out.
 *
 * Source: go-archive, archive.go (Tarballer.Do).
 */
#include "source/export.h"

#include "base/grow.h"

#include <string.h>

typedef struct frame { lay_names names; size_t next, path_len; } frame;
typedef struct tree_export {
    lay_export x;              /* first */
    lay_trail trail;
    frame *frames; size_t depth, cap;
    bool down;                 /* the entry just given is a directory: its names come next */
} tree_export;

/* Takes the names of the directory the trail stands in, whose path is x.name. */
static lay_code push_frame(tree_export *t, lay_error *err)
{
    if (lay_grow(&t->frames, &t->cap, t->depth, sizeof *t->frames, err))
        return err->code;
    frame *f = &t->frames[t->depth++];
    *f = (frame){ .path_len = t->x.name.len };
    if (!lay_names_read(&f->names, lay_trail_fd(&t->trail), err))
        return LAY_OK;
    return t->x.name.len > 0 ? lay_error_path(err, t->x.name.p, t->x.name.len) : err->code;
}

static lay_code go_down(tree_export *t, lay_error *err)
{
    const frame *f = &t->frames[t->depth - 1];
    t->down = false;
    if (lay_trail_down(&t->trail, f->names.text + f->names.list[f->next - 1].at) == 0)
        return push_frame(t, err);
    return lay_tree_gone(errno) ? LAY_OK : lay_fail_os(err, errno, t->x.name.p, "cannot open the directory");
}

static lay_code go_up(tree_export *t, lay_error *err)
{
    int r = 1;
    while (r > 0) {         /* the rest of a directory that has gone is skipped */
        lay_names_free(&t->frames[--t->depth].names);
        if (t->depth == 0)
            return LAY_OK;
        lay_text_cut(&t->x.name, t->frames[t->depth - 1].path_len);
        r = lay_trail_up(&t->trail, t->x.name.p, t->x.name.len);
    }
    return r < 0 ? lay_fail_os(err, errno, t->x.name.len ? t->x.name.p : ".", "cannot go back to the directory") : LAY_OK;
}

static lay_code tree_next(lay_export *x, bool *end, lay_error *err)
{
    tree_export *t = (tree_export *)x;
    if (t->down && go_down(t, err))
        return err->code;
    while (t->depth > 0) {
        frame *f = &t->frames[t->depth - 1];
        if (f->next == f->names.count) {
            if (go_up(t, err))
                return err->code;
            continue;
        }
        const lay_name *name = &f->names.list[f->next++];
        struct stat st;
        lay_text_cut(&x->name, f->path_len);
        if (lay_text_push(&x->name, f->names.text + name->at, name->len, err)
            || lay_export_entry(x, lay_trail_fd(&t->trail), f->names.text + name->at, &st, err))
            return err->code;
        if (st.st_mode != 0 || x->head_len > 0) {
            t->down = S_ISDIR(st.st_mode);
            return LAY_OK;
        }
    }
    *end = true;
    return LAY_OK;
}

static void tree_done(lay_export *x)
{
    tree_export *t = (tree_export *)x;
    while (t->depth > 0)
        lay_names_free(&t->frames[--t->depth].names);
    free(t->frames);
    lay_trail_free(&t->trail);
}

static lay_code tree_new(lay_export **out, int root_fd, unsigned flags, bool dry, lay_error *err);

static lay_code tree_twin(const lay_export *x, lay_export **out, lay_error *err)
{
    const tree_export *t = (const tree_export *)x;
    return tree_new(out, t->trail.root_fd, lay_export_flags(x), true, err);
}

static lay_code tree_new(lay_export **out, int root_fd, unsigned flags, bool dry, lay_error *err)
{
    tree_export *t = calloc(1, sizeof *t);
    if (t == NULL)
        return lay_fail_nomem(err);
    lay_export_init(&t->x, flags);
    t->x.next = tree_next;
    t->x.twin = tree_twin;
    t->x.done = tree_done;
    t->x.dry = dry;
    if (lay_trail_open(&t->trail, root_fd, false) < 0 ? lay_fail_fd(err, errno, root_fd, "cannot open the directory") : push_frame(t, err)) {
        lay_source_free(&t->x.source);
        return err->code;
    }
    *out = &t->x;
    return LAY_OK;
}

lay_code lay_export_tree_open(lay_source **out, int root_fd, unsigned flags, lay_error *err)
{
    lay_export *x = NULL;
    if (tree_new(&x, root_fd, flags, false, err))
        return err->code;
    *out = &x->source;
    return LAY_OK;
}
