/* union_walk.c - all that a union shows, entry for entry, in the order of a tar; no recursion, a bounded number of descriptors. */
#include "base/grow.h"
#include "base/text.h"
#include "tree/whiteout.h"
#include "union/union.h"
#include "union/union_state.h"

#include <dirent.h>
#include <string.h>

#define AWAKE 4u        /* directories on the way down that keep open what they have */

typedef struct level { lay_union_dir *dir; size_t next; } level;
struct lay_union_walk {
    lay_text path;
    level *levels; size_t depth, cap;
    lay_union_dir *down;        /* the directory that was given last: its names come next */
};

static lay_code go_down(lay_union_walk *w, lay_union_dir *d, lay_error *err)
{
    if (lay_grow(&w->levels, &w->cap, w->depth, sizeof *w->levels, err)) {
        lay_union_dir_free(d);
        return err->code;
    }
    w->levels[w->depth++] = (level){ .dir = d };
    if (w->depth > AWAKE)
        lay_union_dir_rest(w->levels[w->depth - 1 - AWAKE].dir);
    return lay_union_dir_read(d, err) && d->path_len > 0 ? lay_error_path(err, d->path, d->path_len) : err->code;
}

lay_code lay_union_walk_open(lay_union_walk **out, const lay_union *u, lay_error *err)
{
    lay_union_walk *w = calloc(1, sizeof *w);
    if (w == NULL)
        return lay_fail_nomem(err);
    lay_union_dir *root = lay_union_dir_open(lay_union_root(u), "", 0);
    lay_error_clear(err);
    if (root == NULL ? lay_fail_os(err, errno, NULL, "cannot open the directory") : go_down(w, root, err)) {
        lay_union_walk_free(w);
        return err->code;
    }
    *out = w;
    return LAY_OK;
}

static lay_code fail(lay_union_walk *w, const char *what, lay_error *err) { return lay_fail_os(err, errno, w->path.p, what); }

static lay_code require_data(lay_union_walk *w, const lay_union_dir *d, const lay_union_found *found, lay_error *err)
{
    const lay_lower *l = lay_union_layer(d->of, found->layer);
    char value[64];
    ssize_t n = l->ops->xattr(l, found->in, found->name, d->of->userxattr ? LAY_METACOPY_USER : LAY_METACOPY_TRUSTED, value, sizeof value);
    if (n < 0 && errno != ERANGE)
        return lay_tree_gone(errno) ? LAY_OK : fail(w, "cannot read the metacopy mark", err);
    if (n == 0 && errno != 0)
        return LAY_OK;
    lay_fail(err, LAY_E_UNSUPPORTED, "a file without its data (metacopy): only a mount can tell what is there");
    return lay_error_path(err, w->path.p, w->path.len);
}

/* The next name of the directory it stands in; nothing is found where that is gone meanwhile. */
static lay_code look_at(lay_union_walk *w, level *here, lay_union_found *found, lay_error *err)
{
    lay_union_dir *d = here->dir;
    const lay_union_entry *e = &d->entries[d->shown[here->next++]];
    lay_union_dir *child = NULL;
    lay_text_cut(&w->path, d->path_len);
    if (lay_text_push(&w->path, e->name, e->len, err))
        return err->code;
    if (e->type == DT_DIR) {
        child = lay_union_dir_down(d, e->name, e->len);
        if (child == NULL)
            return lay_tree_gone(errno) ? LAY_OK : fail(w, "cannot open the directory", err);
    }
    *found = (lay_union_found){
        .path = w->path.p, .path_len = w->path.len, .name = e->name, .depth = w->depth, .layer = d->parts[e->part].layer,
        .in = lay_union_dir_part(d, e->part), .type = e->type, .opaque = child != NULL && child->opaque,
    };
    w->down = child;
    if (found->in >= 0)
        return d->of->whole && e->type == DT_REG ? require_data(w, d, found, err) : LAY_OK;
    found->path = NULL;
    lay_union_walk_pass(w);
    return lay_tree_gone(errno) ? LAY_OK : fail(w, "cannot open its directory", err);
}

lay_code lay_union_walk_next(lay_union_walk *w, lay_union_found *found, lay_error *err)
{
    *found = (lay_union_found){ .in = -1 };
    lay_error_clear(err);
    if (w->down != NULL && go_down(w, lay_steal(w->down), err))
        return err->code;
    while (w->depth > 0 && found->path == NULL) {
        level *here = &w->levels[w->depth - 1];
        if (here->next < here->dir->nshown) {
            if (look_at(w, here, found, err))
                return err->code;
            continue;
        }
        lay_union_dir_free(here->dir);
        w->depth--;
    }
    return LAY_OK;
}

void lay_union_walk_pass(lay_union_walk *w) { lay_union_dir_free(lay_steal(w->down)); }

void lay_union_walk_free(lay_union_walk *w)
{
    if (w == NULL)
        return;
    lay_union_walk_pass(w);
    while (w->depth > 0)
        lay_union_dir_free(w->levels[--w->depth].dir);
    free(w->levels);
    free(w->path.p);
    free(w);
}
