/* union_part.c - the layers' directories in a directory of a union, opened when they are asked for. */
#include "tree/whiteout.h"
#include "union/union_state.h"

#include <string.h>

lay_union_dir *lay_union_root(const lay_union *u) { return u->root; }
size_t lay_union_count(const lay_union *u) { return u->count; }
const lay_lower *lay_union_layer(const lay_union *u, size_t layer) { return &u->layers[layer]; }

lay_union_dir *lay_union_dir_new(const lay_union *u, size_t path_len, size_t nparts)
{
    lay_union_dir *d = calloc(1, sizeof *d + path_len + 1);
    lay_union_part *parts = calloc(nparts + 1, sizeof *parts);
    if (d == NULL || parts == NULL) {
        free(d);
        free(parts);
        errno = ENOMEM;
        return NULL;
    }
    d->of = u;
    d->parts = parts;
    d->path_len = path_len;
    return d;
}

void lay_union_part_close(lay_union_dir *d, size_t part)
{
    lay_union_part *p = &d->parts[part];
    lay_lower_leave(lay_union_layer(d->of, p->layer), p->in);
    p->in = -1;
}

void lay_union_parts_close(lay_union_dir *d, size_t stay)
{
    if (d == d->of->root)
        return;
    for (size_t i = stay; i < d->nparts; i++)
        lay_union_part_close(d, i);
    d->spare = d->nparts;
}

void lay_union_dir_rest(lay_union_dir *d) { lay_union_parts_close(d, 0); }

lay_lower_dir lay_union_dir_part(lay_union_dir *d, size_t part)
{
    lay_union_part *p = &d->parts[part];
    if (p->in >= 0)
        return p->in;
    const lay_lower *l = lay_union_layer(d->of, p->layer);
    p->in = l->ops->open(l, l->root, d->path, d->path_len);
    if (p->in >= 0 && part >= LAY_UNION_KEPT) {
        if (d->spare < d->nparts)
            lay_union_part_close(d, d->spare);
        d->spare = part;
    }
    return p->in;
}

int lay_union_is_whiteout(const lay_lower *l, lay_lower_dir in, const char *name)
{
    struct stat st;
    if (l->ops->stat(l, in, name, &st) < 0)
        return -1;
    return lay_stat_is_whiteout(st.st_mode, st.st_rdev);
}
