/* erofs_write.c - a layout becomes bytes, piece by piece in the order in which they lie.
 *
 *   inodes (attributes, tail or table behind each) ──► directories ──► long links
 */
#include "erofs/erofs_write.h"

#include "base/grow.h"
#include "erofs/erofs_layout.h"
#include "erofs/erofs_walk.h"

#include <sys/stat.h>

#define PIECE (256u << 10)                   /* bytes made at once, and those of the last inode beyond */

struct lay_eimage {
    lay_elayout l;
    uint8_t *p; size_t n, cap;              /* the bytes being made */
    int64_t at;                             /* of p[0] in the metadata */
    size_t inode, dir, link, file;          /* the next ones */
    lay_ewalk walk; int64_t last;           /* to the next inode; where the one before is */
    lay_enames names; lay_ename name;       /* of the directory being made: those that come behind this one */
    int64_t block, end;                     /* where its next block is, and where the last one ends */
    int64_t tables, tables_left;            /* bytes for tables, as the layout was given them */
};

/* Room for n bytes at `at` of the metadata; zero, as is what lies between. */
static uint8_t *room(lay_eimage *m, int64_t at, size_t n, lay_error *err)
{
    size_t to = (size_t)(at - m->at) + n;
    if (lay_reserve(&m->p, &m->cap, to, 1, err))
        return NULL;
    memset(m->p + m->n, 0, to - m->n);
    m->n = to;
    return m->p + to - n;
}

/* ---- directories ------------------------------------------------------------------------------------------------- */

/* The entries of one block; *name: the first of them, then of the next block's. */
static void put_block(const lay_elayout *l, lay_enames *e, lay_ename *name, uint8_t *to)
{
    lay_enames first = *e;
    lay_ename one = *name;
    size_t count = 0;
    bool more = true;
    for (size_t used = 0; more; count++, more = lay_elayout_next(e, name)) {
        used += LAY_EROFS_DIRENT + name->len;
        if (used > LAY_EROFS_BLOCK)
            break;
    }
    size_t at = count * LAY_EROFS_DIRENT;
    for (size_t i = 0; i < count; i++) {
        uint8_t *b = to + i * LAY_EROFS_DIRENT;
        lay_put64(b, lay_etree_note(l->t, one.node));
        lay_put16(b + 8, (uint16_t)at);
        b[10] = lay_erofs_file_type(one.mode);
        memcpy(to + at, one.text, one.len);
        at += one.len;
        lay_elayout_next(&first, &one);
    }
}

static void begin_directory(lay_eimage *m, const lay_edir *d, int64_t at)
{
    m->names = lay_elayout_names(m->l.t, d->node, d->parent);
    lay_elayout_next(&m->names, &m->name);    /* there are two at least */
    m->block = at;
    m->end = at + d->size;
}

static lay_code put_part(lay_eimage *m, lay_error *err)
{
    int64_t left = m->end - m->block, n = left < LAY_EROFS_BLOCK ? left : LAY_EROFS_BLOCK;
    uint8_t *to = room(m, m->block, (size_t)n, err);
    if (to)
        put_block(&m->l, &m->names, &m->name, to);
    m->block += n;
    return err->code;
}

/* ---- inodes ------------------------------------------------------------------------------------------------------ */

static void put_chunks(const lay_enode *n, int64_t begin, unsigned bits, size_t count, uint8_t *to)
{
    uint32_t piece = 0;
    for (size_t i = 0; i < count; i++, to += 8) {
        int64_t at = (int64_t)i << (bits + LAY_EROFS_BITS);
        while (piece < n->npieces && n->pieces[piece].file_offset + n->pieces[piece].n <= at)
            piece++;
        const lay_epiece *p = piece < n->npieces ? &n->pieces[piece] : NULL;
        bool data = p && p->file_offset <= at;
        lay_put32(to + 4, data ? (uint32_t)((begin + p->tar_offset + (at - p->file_offset)) / LAY_EROFS_BLOCK) : LAY_EROFS_NO_BLOCK);
    }
}

static uint32_t block_of(const lay_elayout *l, int64_t at) { return (uint32_t)((l->base + at) / LAY_EROFS_BLOCK); }

/* The fields of a directory's inode that say where it lies. */
static void put_directory_place(const lay_elayout *l, const lay_edir *d, uint8_t *b)
{
    bool tail = d->at < 0;
    lay_put16(b, (uint16_t)(LAY_EROFS_EXTENDED | (tail ? LAY_EROFS_INLINE : LAY_EROFS_FLAT) << 1));
    lay_put64(b + 8, d->size);
    lay_put32(b + 16, tail ? LAY_EROFS_NO_BLOCK : block_of(l, d->at));
    lay_put32(b + 44, 2 + d->dirs);
}

/* Those of others. */
static void put_place(lay_eimage *m, const lay_enode *n, lay_eshape shape, unsigned bits, uint8_t *b)
{
    static const uint32_t layouts[] = { LAY_EROFS_FLAT, LAY_EROFS_INLINE, LAY_EROFS_CHUNKED, LAY_EROFS_FLAT };
    uint32_t where = n->rdev;
    if (shape == LAY_E_TAIL)
        where = LAY_EROFS_NO_BLOCK;
    else if (shape == LAY_E_CHUNKS)
        where = bits | LAY_EROFS_CHUNK_INDEXES;
    else if (shape == LAY_E_OWN)
        where = block_of(&m->l, S_ISLNK(n->mode) ? m->l.links.list[m->link++].at : m->l.files.list[m->file++].at);
    else if (S_ISREG(n->mode))
        where = n->size ? (uint32_t)((m->l.data + n->data) / LAY_EROFS_BLOCK) : 0;
    lay_put16(b, (uint16_t)(LAY_EROFS_EXTENDED | layouts[shape] << 1));
    lay_put64(b + 8, (uint64_t)n->size);
    lay_put32(b + 16, where);
    lay_put32(b + 44, n->nlink);
}

static int64_t place_of(const lay_elayout *l, uint32_t node) { return (int64_t)lay_etree_note(l->t, node) * LAY_EROFS_SLOT; }

/* One more name of an inode leads back to where that lies. */
static lay_code find_inode(lay_eimage *m, uint32_t *node, lay_error *err)
{
    lay_ename name = { .node = LAY_ETREE_ROOT };
    uint32_t parent;
    bool more = true;
    if (!m->inode)
        lay_ewalk_begin(&m->walk, err);
    else
        while (!lay_ewalk_next(&m->walk, &name, &parent, &more, err) && more && place_of(&m->l, name.node) <= m->last)
            ;
    m->last = place_of(&m->l, name.node);
    *node = name.node;
    return err->code;
}

static lay_code put_inode(lay_eimage *m, lay_error *err)
{
    const lay_elayout *l = &m->l;
    uint32_t node;
    lay_enode n;
    unsigned bits = 0;
    size_t count = 0;
    if (find_inode(m, &node, err))
        return err->code;
    lay_etree_node(l->t, node, &n);
    const lay_edir *d = S_ISDIR(n.mode) ? &l->dirs[m->dir++] : NULL;
    lay_eshape shape = d ? LAY_E_PLAIN : lay_elayout_shape(&n, &m->tables_left, &bits, &count);
    int64_t at = m->last, end = at + lay_elayout_inode(&n);
    uint8_t *b = room(m, at, (size_t)(end - at), err);
    if (!b)
        return err->code;
    if (d)
        put_directory_place(l, d, b);
    else
        put_place(m, &n, shape, bits, b);
    lay_put16(b + 2, n.xattrs_len ? (uint16_t)(1 + n.xattrs_len / 4) : 0);
    lay_put16(b + 4, (uint16_t)n.mode);
    lay_put32(b + 20, (uint32_t)++m->inode);
    lay_put32(b + 24, n.uid);
    lay_put32(b + 28, n.gid);
    lay_put64(b + 32, (uint64_t)n.mtime_sec);
    lay_put32(b + 40, n.mtime_nsec);
    if (n.xattrs_len)
        memcpy(b + LAY_EROFS_INODE + LAY_EROFS_XATTR_HEADER, n.xattrs, n.xattrs_len);
    if (d && d->at < 0)
        begin_directory(m, d, end);
    if (d)
        return LAY_OK;
    if (shape == LAY_E_TAIL && (b = room(m, end, (size_t)n.size, err)))
        memcpy(b, n.text, (size_t)n.size);
    else if (shape == LAY_E_CHUNKS && (b = room(m, (end + 7) & -8, count * 8, err)))
        put_chunks(&n, l->data, bits, count, b);
    return err->code;
}

/* ---- in pieces --------------------------------------------------------------------------------------------------- */

/* One more inode, block of a directory, or link; none: the end. */
static lay_code put_next(lay_eimage *m, bool *more, lay_error *err)
{
    const lay_elayout *l = &m->l;
    *more = true;
    if (m->block < m->end)
        return put_part(m, err);
    if (m->inode < l->inodes) {
        if (put_inode(m, err))
            return err->code;
        if (m->inode == l->inodes)                /* of the links and directories, the blocks come now */
            m->link = m->dir = 0;
        return LAY_OK;
    }
    while (m->dir < l->ndirs && l->dirs[m->dir].at < 0)
        m->dir++;
    if (m->dir < l->ndirs) {
        const lay_edir *d = &l->dirs[m->dir++];
        begin_directory(m, d, d->at);
        return put_part(m, err);
    }
    if (m->link < l->links.count) {
        const lay_eown *own = &l->links.list[m->link++];
        lay_enode n;
        lay_etree_node(l->t, own->node, &n);
        uint8_t *to = room(m, own->at, (size_t)n.size, err);
        if (to)
            memcpy(to, n.text, (size_t)n.size);
        return err->code;
    }
    *more = false;
    return room(m, l->end, 0, err) ? LAY_OK : err->code;
}

lay_code lay_eimage_next(lay_eimage *m, const uint8_t **p, size_t *n, int64_t *at, lay_error *err)
{
    bool more = true;
    m->at += (int64_t)m->n;
    m->n = 0;
    while (more && m->n < PIECE)
        if (put_next(m, &more, err))
            return err->code;
    *p = m->p;
    *n = m->n;
    *at = m->l.base + m->at;
    return LAY_OK;
}

void lay_eimage_rewind(lay_eimage *m)
{
    m->n = m->inode = m->dir = m->link = m->file = 0;
    m->at = m->block = m->end = 0;
    m->tables_left = m->tables;
}

/* ---- the face ---------------------------------------------------------------------------------------------------- */

lay_code lay_eimage_layout(lay_eimage **out, const lay_etree *t, int64_t tar_size, int64_t tables, lay_error *err)
{
    lay_eimage *m = calloc(1, sizeof *m);
    if (!m)
        return lay_fail_nomem(err);
    if (lay_elayout_make(&m->l, t, tar_size, tables, err)) {
        lay_eimage_free(m);
        return err->code;
    }
    m->tables = tables;
    m->walk.t = t;
    lay_eimage_rewind(m);
    *out = m;
    return LAY_OK;
}

void lay_eimage_free(lay_eimage *m)
{
    if (!m)
        return;
    lay_elayout_free(&m->l);
    free(m->walk.stack);
    free(m->p);
    free(m);
}

int64_t lay_eimage_size(const lay_eimage *m) { return m->l.size; }
int64_t lay_eimage_base(const lay_eimage *m) { return m->l.base; }

bool lay_eimage_expanded(const lay_eimage *m, size_t i, uint32_t *node, int64_t *at)
{
    if (i >= m->l.files.count)
        return false;
    *node = m->l.files.list[i].node;
    *at = m->l.base + m->l.files.list[i].at;
    return true;
}

/* The last inode that begins at or before `at`. */
static lay_code inode_at(lay_ewalk *w, const lay_elayout *l, int64_t at, uint32_t *node, lay_error *err)
{
    lay_ename name;
    uint32_t parent;
    bool more;
    int64_t last = place_of(l, *node = LAY_ETREE_ROOT);
    if (lay_ewalk_begin(w, err))
        return err->code;
    while (!lay_ewalk_next(w, &name, &parent, &more, err) && more && place_of(l, name.node) <= at)
        if (place_of(l, name.node) > last)
            last = place_of(l, *node = name.node);
    return err->code;
}

/* What has the last blocks that begin at or before `at`. */
static uint32_t blocks_at(const lay_elayout *l, int64_t at)
{
    uint32_t node = LAY_ETREE_ROOT;
    for (size_t i = 0; i < l->ndirs && l->dirs[i].at <= at; i++)
        node = l->dirs[i].at >= 0 ? l->dirs[i].node : node;
    for (size_t i = 0; i < l->links.count && l->links.list[i].at <= at; i++)
        node = l->links.list[i].node;
    return node;
}

static lay_code path_of(lay_ewalk *w, uint32_t node, lay_text *path, lay_error *err)
{
    lay_ename name;
    uint32_t parent;
    bool more = node != LAY_ETREE_ROOT;
    if (lay_text_set(path, "", 0, err) || lay_ewalk_begin(w, err))
        return err->code;
    while (more && !lay_ewalk_next(w, &name, &parent, &more, err) && more)
        if (name.node == node)
            return lay_ewalk_path(w, path, err);
    return err->code;
}

lay_code lay_eimage_path_at(const lay_eimage *m, int64_t at, lay_text *path, lay_error *err)
{
    const lay_elayout *l = &m->l;
    lay_ewalk w = { .t = l->t };
    uint32_t node = blocks_at(l, at - l->base);
    if (at - l->base >= l->inodes_end || !inode_at(&w, l, at - l->base, &node, err))
        path_of(&w, node, path, err);
    free(w.stack);
    return err->code;
}

lay_code lay_eimage_path(const lay_eimage *m, uint32_t node, lay_text *path, lay_error *err)
{
    lay_ewalk w = { .t = m->l.t };
    path_of(&w, node, path, err);
    free(w.stack);
    return err->code;
}

void lay_eimage_move_data(lay_eimage *m, int64_t at) { m->l.data = at; }

void lay_eimage_super(const lay_eimage *m, lay_erofs_super *s)
{
    const lay_elayout *l = &m->l;
    *s = (lay_erofs_super){ .root = lay_etree_note(l->t, LAY_ETREE_ROOT), .blocks = (uint32_t)(l->size / LAY_EROFS_BLOCK),
                            .meta = (uint32_t)(l->base / LAY_EROFS_BLOCK), .inodes = l->inodes, .tar_size = l->tar_size,
                            .incompat = l->chunked ? LAY_EROFS_INCOMPAT_CHUNKED : 0 };
}

void lay_eimage_header(const lay_eimage *m, const uint8_t diff_id[32], uint8_t *header)
{
    lay_erofs_super s;
    lay_eimage_super(m, &s);
    s.diff_id = diff_id;
    lay_erofs_put_super(header, &s);
}
