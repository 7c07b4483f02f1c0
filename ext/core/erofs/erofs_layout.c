/* erofs_layout.c - a walk over the tree gives every inode its place, then every directory and every long link. */
#include "erofs/erofs_layout.h"

#include "base/grow.h"
#include "erofs/erofs_walk.h"

#include <sys/stat.h>

#define TAIL_MOST 256                        /* a directory of more takes a block: with its inode it would waste more than that saves */
#define CHUNK_TABLE_MOST (1 << 20)           /* bytes of a sparse file's table; one that needs more is expanded */
#define EXPANDED_ALIGN 4096                  /* so that the holes of a file stay holes */
#define IMAGE_MOST (LAY_EROFS_MOST_BLOCKS * LAY_EROFS_BLOCK)

static int64_t align(int64_t at, int64_t to) { return (at + to - 1) & -to; }

/* ---- names ------------------------------------------------------------------------------------------------------- */

lay_enames lay_elayout_names(const lay_etree *t, uint32_t directory, uint32_t parent)
{
    lay_enames e = { .t = t, .self = directory, .parent = parent };
    e.names = lay_etree_children(t, directory, &e.count);
    for (; e.before_dots < e.count; e.before_dots++) {
        lay_ename name;
        lay_etree_name(t, e.names[e.before_dots], &name);
        const uint8_t *text = (const uint8_t *)name.text;
        if (text[0] > '.' || (text[0] == '.' && name.len > 1 && text[1] >= '.'))
            break;
        e.before_dot += text[0] < '.';
    }
    return e;
}

bool lay_elayout_next(lay_enames *e, lay_ename *name)
{
    if (!e->dot && e->next == e->before_dot) {
        e->dot = true;
        *name = (lay_ename){ ".", 1, e->self, S_IFDIR };
    } else if (!e->dots && e->next == e->before_dots) {
        e->dots = true;
        *name = (lay_ename){ "..", 2, e->parent, S_IFDIR };
    } else if (e->next < e->count) {
        lay_etree_name(e->t, e->names[e->next++], name);
    } else {
        return false;
    }
    return true;
}

/* Bytes of its entries: none goes over the end of a block. */
static lay_code measure(const lay_elayout *l, lay_edir *d, lay_error *err)
{
    int64_t blocks = 0;
    size_t used = 0;
    lay_ename name;
    for (lay_enames e = lay_elayout_names(l->t, d->node, d->parent); lay_elayout_next(&e, &name);) {
        size_t n = LAY_EROFS_DIRENT + name.len;
        if (used + n > LAY_EROFS_BLOCK) {
            blocks++;
            used = 0;
        }
        used += n;
        d->dirs += S_ISDIR(name.mode);
    }
    d->dirs -= 2;                             /* "." and ".." */
    int64_t size = blocks * LAY_EROFS_BLOCK + (int64_t)used;
    if (size > UINT32_MAX)
        return lay_fail(err, LAY_E_LIMIT, "a directory with more names than an image can have");
    d->size = (uint32_t)size;
    return LAY_OK;
}

/* ---- shapes ------------------------------------------------------------------------------------------------------ */

/* Least k with 2^k >= n. */
static unsigned log2_above(int64_t n)
{
    unsigned k = 0;
    while (k < 62 && INT64_C(1) << k < n)
        k++;
    return k;
}

/* Chunks can show it if its pieces begin and end with blocks, in the file and in the tar; but at the file's end. */
static bool in_chunks(const lay_enode *n, unsigned *bits, size_t *count)
{
    uint64_t all = 0;
    for (uint32_t i = 0; i < n->npieces; i++) {
        const lay_epiece *p = &n->pieces[i];
        all |= (uint64_t)p->file_offset | (uint64_t)(p->tar_offset % LAY_EROFS_BLOCK);
        if (p->file_offset + p->n < n->size)
            all |= (uint64_t)(p->file_offset + p->n);
    }
    if (all % LAY_EROFS_BLOCK)
        return false;
    int64_t blocks = n->size / LAY_EROFS_BLOCK + (n->size % LAY_EROFS_BLOCK != 0);
    unsigned most = log2_above(blocks), even = all ? (unsigned)__builtin_ctzll(all) - LAY_EROFS_BITS : most;
    *bits = even < most ? even : most;
    *bits = *bits < LAY_EROFS_CHUNK_BITS ? *bits : LAY_EROFS_CHUNK_BITS;
    int64_t chunks = ((blocks - 1) >> *bits) + 1;
    *count = (size_t)chunks;
    return chunks <= CHUNK_TABLE_MOST / 8;
}

lay_eshape lay_elayout_shape(const lay_enode *n, int64_t *tables, unsigned *bits, size_t *count)
{
    *count = 0;
    if (S_ISLNK(n->mode))
        return n->size < LAY_EROFS_BLOCK && n->size <= LAY_EROFS_BLOCK - lay_elayout_inode(n) % LAY_EROFS_SLOT ? LAY_E_TAIL : LAY_E_OWN;
    if (!S_ISREG(n->mode) || n->data >= 0 || !n->size)
        return LAY_E_PLAIN;
    if (!in_chunks(n, bits, count) || (int64_t)*count * 8 > *tables) {
        *count = 0;
        return LAY_E_OWN;
    }
    *tables -= (int64_t)*count * 8;
    return LAY_E_CHUNKS;
}

/* ---- places ------------------------------------------------------------------------------------------------------ */

static lay_code too_large(lay_error *err) { return lay_fail_os(err, EFBIG, NULL, "an image of this layer would have more than 2 TiB"); }

/* Gives the inode its slot; tail: bytes behind it that must not go over the end of a block; table: bytes behind it, aligned to 8. */
static lay_code take_slot(lay_elayout *l, uint32_t node, int64_t inode, int64_t tail, int64_t table, lay_error *err)
{
    int64_t at = align(l->inodes_end, LAY_EROFS_SLOT), into = (at + inode) % LAY_EROFS_BLOCK;
    if (tail && into + tail > LAY_EROFS_BLOCK)
        at = align(at + (LAY_EROFS_BLOCK - into), LAY_EROFS_SLOT);
    if (at / LAY_EROFS_SLOT > UINT32_MAX)
        return too_large(err);
    lay_etree_set_note(l->t, node, (uint32_t)(at / LAY_EROFS_SLOT));
    l->inodes++;
    l->inodes_end = at + (table ? align(inode, 8) + table : inode + tail);
    return LAY_OK;
}

static lay_code own(lay_eowns *to, uint32_t node, int64_t size, lay_error *err)
{
    if (lay_grow(&to->list, &to->cap, to->count, sizeof *to->list, err))
        return err->code;
    to->list[to->count++] = (lay_eown){ .node = node, .size = size };
    return LAY_OK;
}

static lay_code place_other(lay_elayout *l, uint32_t node, int64_t *tables, lay_error *err)
{
    lay_enode n;
    unsigned bits;
    size_t count = 0;
    if (lay_etree_note(l->t, node))                      /* another name of it came before */
        return LAY_OK;
    lay_etree_node(l->t, node, &n);
    lay_eshape shape = lay_elayout_shape(&n, tables, &bits, &count);
    l->chunked |= shape == LAY_E_CHUNKS;
    if (take_slot(l, node, lay_elayout_inode(&n), shape == LAY_E_TAIL ? n.size : 0, (int64_t)count * 8, err) || shape != LAY_E_OWN)
        return err->code;
    if (S_ISLNK(n.mode))
        return own(&l->links, node, n.size, err);
    if (n.size > IMAGE_MOST - l->base - l->files_size)
        return too_large(err);
    l->files_size += align(n.size, EXPANDED_ALIGN);
    return own(&l->files, node, n.size, err);
}

static lay_code place_directory(lay_elayout *l, uint32_t node, uint32_t parent, lay_error *err)
{
    lay_edir d = { .node = node, .parent = parent };
    lay_enode n;
    if (measure(l, &d, err) || lay_grow(&l->dirs, &l->dirs_cap, l->ndirs, sizeof d, err))
        return err->code;
    lay_etree_node(l->t, node, &n);
    bool tail = d.size <= TAIL_MOST;
    d.at = tail ? -1 : 0;                     /* its place comes later */
    l->dirs[l->ndirs++] = d;
    return take_slot(l, node, lay_elayout_inode(&n), tail ? d.size : 0, 0, err);
}

/* ---- the walk ---------------------------------------------------------------------------------------------------- */

static void name_failure(const lay_ewalk *w, lay_error *err)
{
    LAY_AUTO_FREE lay_text path = { 0 };
    lay_error ignored;
    if (!lay_ewalk_path(w, &path, &ignored))
        lay_error_path(err, path.p, path.len);
}

static lay_code walk(lay_elayout *l, lay_ewalk *w, int64_t tables, lay_error *err)
{
    lay_ename name;
    uint32_t parent;
    bool more;
    if (place_directory(l, LAY_ETREE_ROOT, LAY_ETREE_ROOT, err) || lay_ewalk_begin(w, err))
        return err->code;
    while (!lay_ewalk_next(w, &name, &parent, &more, err) && more)
        if (S_ISDIR(name.mode) ? place_directory(l, name.node, parent, err) : place_other(l, name.node, &tables, err)) {
            name_failure(w, err);
            return err->code;
        }
    return err->code;
}

/* Behind the inodes: directories, links, files. */
static lay_code place_blocks(lay_elayout *l, lay_error *err)
{
    int64_t at = align(l->inodes_end, LAY_EROFS_BLOCK);
    for (lay_edir *d = l->dirs; d < l->dirs + l->ndirs; d++)
        if (d->at >= 0) {
            d->at = at;
            at += align(d->size, LAY_EROFS_BLOCK);
        }
    for (size_t i = 0; i < l->links.count; i++) {
        lay_eown *k = &l->links.list[i];
        k->at = at;
        at += align(k->size, LAY_EROFS_BLOCK);
    }
    l->end = at;
    for (size_t i = 0; i < l->files.count; i++) {
        lay_eown *k = &l->files.list[i];
        k->at = align(l->base + at, EXPANDED_ALIGN) - l->base;
        at = k->at + align(k->size, LAY_EROFS_BLOCK);
    }
    l->size = l->base + at;
    return l->size > IMAGE_MOST ? too_large(err) : LAY_OK;
}

lay_code lay_elayout_make(lay_elayout *l, const lay_etree *t, int64_t tar_size, int64_t tables, lay_error *err)
{
    lay_ewalk w = { .t = t };
    *l = (lay_elayout){ .t = t, .tar_size = tar_size, .inodes_end = LAY_EROFS_SLOT, .data = LAY_EROFS_HEADER };      /* number 0 is none's */
    if (tar_size > IMAGE_MOST - LAY_EROFS_HEADER)
        return too_large(err);
    l->base = align(LAY_EROFS_HEADER + tar_size, LAY_EROFS_BLOCK);
    walk(l, &w, tables, err);
    free(w.stack);
    return err->code ? err->code : place_blocks(l, err);
}

void lay_elayout_free(lay_elayout *l)
{
    free(l->dirs);
    free(l->links.list);
    free(l->files.list);
    *l = (lay_elayout){ 0 };
}
