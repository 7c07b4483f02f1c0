/* paths.c - a tree of names in flat memory, and a hash table over (directory, name). */
#include "apply/paths.h"

#include "base/grow.h"

#include <string.h>

#define FIRST_SLOTS 64u

lay_code lay_paths_init(lay_paths *p, lay_error *err)
{
    *p = (lay_paths){ 0 };
    if (lay_nameset_init(&p->key, err))
        return err->code;
    p->nodes = calloc(FIRST_SLOTS, sizeof *p->nodes);
    p->slots = calloc(FIRST_SLOTS, sizeof *p->slots);
    if (!p->nodes || !p->slots)
        return lay_fail_nomem(err);
    p->cap = FIRST_SLOTS;
    p->mask = FIRST_SLOTS - 1;
    p->count = 1;                             /* the root, which no slot names: 0 is an empty one */
    return LAY_OK;
}

void lay_paths_free(lay_paths *p)
{
    lay_nameset_free(&p->key);
    free(p->nodes);
    free(p->slots);
    free(p->names.p);
    *p = (lay_paths){ 0 };
}

static size_t place_of(const lay_paths *p, uint32_t above, const char *name, size_t n)
{
    uint64_t h = lay_nameset_hash(&p->key, name, n) + above * 0x9e3779b97f4a7c15u;
    return (size_t)(h ^ h >> 32);
}

/* The slot of this name, or the empty one where it belongs. */
static size_t find(const lay_paths *p, uint32_t above, const char *name, size_t n)
{
    for (size_t i = place_of(p, above, name, n);; i++) {
        uint32_t id = p->slots[i & p->mask];
        const lay_path_node *node = &p->nodes[id];
        if (!id || (node->above == above && node->len == n && !memcmp(p->names.p + node->name, name, n)))
            return i & p->mask;
    }
}

static lay_code grow(lay_paths *p, lay_error *err)
{
    if (p->count == UINT32_MAX)
        return lay_fail_nomem(err);
    if (lay_grow(&p->nodes, &p->cap, p->count, sizeof *p->nodes, err))
        return err->code;
    if (p->count <= p->mask / 4 * 3)
        return LAY_OK;
    size_t mask = 2 * p->mask + 1;
    uint32_t *slots = calloc(mask + 1, sizeof *slots);
    if (!slots)
        return lay_fail_nomem(err);
    free(p->slots);
    p->slots = slots;
    p->mask = mask;
    for (uint32_t id = 1; id < p->count; id++) {
        const lay_path_node *node = &p->nodes[id];
        slots[find(p, node->above, p->names.p + node->name, node->len)] = id;
    }
    return LAY_OK;
}

lay_code lay_paths_add(lay_paths *p, const char *path, size_t n, uint32_t *id, lay_error *err)
{
    uint32_t at = LAY_PATHS_ROOT;
    for (size_t from = 0; from < n;) {
        const char *slash = memchr(path + from, '/', n - from);
        size_t len = slash ? (size_t)(slash - path) - from : n - from;
        if (grow(p, err))
            return err->code;
        size_t slot = find(p, at, path + from, len);
        if (!p->slots[slot]) {
            uint64_t name = p->names.len;
            if (lay_text_add(&p->names, path + from, len, err))
                return err->code;
            p->nodes[p->count] = (lay_path_node){ name, at, (uint32_t)len };
            p->slots[slot] = (uint32_t)p->count++;
        }
        at = p->slots[slot];
        from += len + 1;
    }
    *id = at;
    return LAY_OK;
}

bool lay_paths_below(const lay_paths *p, uint32_t above, const char *name, size_t n, uint32_t *id)
{
    *id = p->slots[find(p, above, name, n)];
    return *id != 0;
}

lay_code lay_paths_get(const lay_paths *p, uint32_t id, lay_text *out, lay_error *err)
{
    size_t n = 0;
    for (uint32_t at = id; at; at = p->nodes[at].above)
        n += p->nodes[at].len + 1;
    if (lay_text_set(out, "", 0, err) || !n)
        return err->code;
    n--;                                      /* no '/' before the first */
    if (lay_text_room(out, n + 1, err))
        return err->code;
    lay_text_cut(out, n);
    for (uint32_t at = id; at; at = p->nodes[at].above) {
        const lay_path_node *node = &p->nodes[at];
        n -= node->len;
        memcpy(out->p + n, p->names.p + node->name, node->len);
        if (n)
            out->p[--n] = '/';
    }
    return LAY_OK;
}
