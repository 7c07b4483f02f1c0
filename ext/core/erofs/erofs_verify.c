/* erofs_verify.c - all of an image that its root leads to: is it so that any reader shows the same, and comes to an end?
 *
 * No recursion. Directories and lists that inodes have may lie in each other in an image that others made; together they
 * are never longer than the image, so that what overlaps is told before it costs anything.
 */
#include "base/grow.h"
#include "base/text.h"
#include "erofs/erofs_image_state.h"
#include "tree/trail.h"

#include <inttypes.h>
#include <limits.h>
#include <string.h>

typedef struct level {
    lay_einode dir;
    uint64_t parent;
    int64_t block; size_t entry;                /* what comes next */
    uint32_t below;                             /* directories in it */
    bool self, up;                              /* "." and ".." were seen */
    size_t path_len, last_at, last_len;         /* its path; the name before, in `names` */
    lay_eblock b;
} level;

typedef struct linked { uint64_t nid; int64_t at; uint32_t nlink, seen; } linked;

typedef struct verify {
    const lay_erofs *e;
    level *levels; size_t depth, cap;
    lay_text path, names;
    uint8_t *met;                               /* a bit a slot */
    lay_inodes inodes;                          /* those with more names than one, numbers in links */
    linked *links; size_t nlinks, links_cap;
    uint64_t count;
    int64_t spent;                              /* bytes of directories and of what stands behind inodes */
    int64_t tar_end;                            /* of our images; 0: it is none */
} verify;

static int spend(verify *v, const lay_einode *i, int64_t n)
{
    return n > v->e->limit || __builtin_add_overflow(v->spent, n, &v->spent) || v->spent > v->e->limit
        ? lay_erofs_bad(v->e, i->at, "parts of it overlap") : 0;
}

/* ---- inodes ---- */

static int check_xattrs(verify *v, const lay_einode *i)
{
    lay_exattrs each;
    lay_exattr x;
    int got;
    if (spend(v, i, i->xattrs) < 0 || lay_exattrs_begin(&each, v->e, i) < 0)
        return -1;
    while ((got = lay_exattrs_next(&each, &x)) > 0)
        if (x.prefix[0] != 's' && x.infix_len + x.name_len == 0)
            return lay_erofs_bad(v->e, i->at, "an extended attribute has no name");
    return got < 0 || each.at == each.end ? got : lay_erofs_bad(v->e, i->at, "an extended attribute goes beyond its inode");
}

/* Of our images a file lies in the tar, or behind the metadata. */
static int check_bytes(verify *v, const lay_einode *i)
{
    lay_eextent x;
    int64_t chunks = i->layout == LAY_EROFS_CHUNKED ? (i->size >> (v->e->bits + (i->start & LAY_EROFS_CHUNK_BITS))) + 1 : 0;
    if (chunks > v->e->limit || spend(v, i, 4 * chunks) < 0)
        return lay_erofs_bad(v->e, i->at, "an inode's chunks are not in it");
    for (int64_t offset = 0; offset < i->size; offset += x.n) {
        if (lay_erofs_extent(v->e, i, offset, &x) < 0)
            return -1;
        if (v->tar_end == 0 || x.device == NULL || !S_ISREG(i->mode))
            continue;
        if (x.from < LAY_EROFS_HEADER || (x.from < v->tar_end && x.n > v->tar_end - x.from) || (x.from >= v->tar_end && x.from < v->e->meta))
            return lay_erofs_bad(v->e, i->at, "a file's bytes are not in the tar");
    }
    return 0;
}

static int check_inode(verify *v, const lay_einode *i)
{
    char text[PATH_MAX];
    if (check_xattrs(v, i) < 0)
        return -1;
    if (S_ISLNK(i->mode) && lay_erofs_readlink(v->e, i, text) < 0)
        return -1;
    if (S_ISREG(i->mode) || S_ISLNK(i->mode))
        return check_bytes(v, i);
    return S_ISDIR(i->mode) || i->size == 0 ? 0 : lay_erofs_bad(v->e, i->at, "what has no bytes has a size");
}

/* One more name of an inode. *first: it had none before. */
static lay_code meet(verify *v, const lay_einode *i, bool *first, int *failed, lay_error *err)
{
    uint8_t bit = (uint8_t)(1u << (i->nid & 7)), *at = &v->met[i->nid >> 3];
    bool seen;
    size_t number = v->nlinks;
    *first = (*at & bit) == 0;
    *at |= bit;
    v->count += *first;
    if (S_ISDIR(i->mode) || i->nlink == 1) {
        *failed = *first ? 0 : lay_erofs_bad(v->e, i->at, "it has more names than it knows of");
        return LAY_OK;
    }
    if (lay_inodes_add(&v->inodes, 0, i->nid, &number, &seen, err))
        return err->code;
    if (!seen) {
        if (lay_grow(&v->links, &v->links_cap, v->nlinks, sizeof *v->links, err))
            return err->code;
        v->links[v->nlinks++] = (linked){ .nid = i->nid, .at = i->at, .nlink = i->nlink };
    }
    v->links[number].seen++;
    return LAY_OK;
}

/* ---- directories ---- */

static lay_code enter(verify *v, const lay_einode *dir, uint64_t parent, int *failed, lay_error *err)
{
    if (lay_grow(&v->levels, &v->cap, v->depth, sizeof *v->levels, err))
        return err->code;
    *failed = spend(v, dir, dir->size);
    lay_erofs_let_go(v->e, 4 * dir->size);                  /* with the inodes */
    v->levels[v->depth++] = (level){ .dir = *dir, .parent = parent, .path_len = v->path.len, .last_at = v->names.len };
    return LAY_OK;
}

static int leave(verify *v)
{
    const level *here = &v->levels[v->depth - 1];
    if (!here->self || !here->up)
        return lay_erofs_bad(v->e, here->dir.at, "a directory has no name %s", here->self ? ".." : ".");
    if (here->dir.nlink != here->below + 2)
        return lay_erofs_bad(v->e, here->dir.at, "a directory has %" PRIu32 " links, and %" PRIu32 " directories in it", here->dir.nlink, here->below);
    lay_text_cut(&v->names, here->last_at);
    if (--v->depth > 0)
        lay_text_cut(&v->path, here[-1].path_len);
    return 0;
}

/* Behind the one before? */
static lay_code check_order(verify *v, level *here, const lay_edirent *d, int *failed, lay_error *err)
{
    const char *last = v->names.p != NULL ? v->names.p + here->last_at : "";
    int r = memcmp(last, d->name, here->last_len < d->len ? here->last_len : d->len);
    *failed = r < 0 || (r == 0 && here->last_len < d->len) ? 0 : lay_erofs_bad(v->e, here->b.at, "names of a directory are out of order");
    lay_text_cut(&v->names, here->last_at);
    here->last_len = d->len;
    return lay_text_add(&v->names, d->name, d->len, err);
}

static bool is_named(const lay_edirent *d, const char *name) { return d->len == strlen(name) && memcmp(d->name, name, d->len) == 0; }

static int check_dot(verify *v, level *here, const lay_edirent *d)
{
    bool self = d->len == 1;
    *(self ? &here->self : &here->up) = true;
    if (d->type != lay_erofs_file_type(S_IFDIR))
        return lay_erofs_bad(v->e, here->b.at, "the name %s of a directory is no directory's", self ? "." : "..");
    return d->nid == (self ? here->dir.nid : here->parent) ? 0 : lay_erofs_bad(v->e, here->dir.at, "a directory's name %s leads elsewhere", self ? "." : "..");
}

static lay_code check_name(verify *v, level *here, const lay_edirent *d, int *failed, lay_error *err)
{
    lay_einode i;
    bool first = false;
    if (lay_text_push(&v->path, d->name, d->len, err))
        return err->code;
    *failed = lay_erofs_inode(v->e, d->nid, &i);
    if (*failed == 0 && d->type != lay_erofs_file_type(i.mode))
        *failed = lay_erofs_bad(v->e, i.at, "it is of another type than its name");
    if (*failed == 0 && meet(v, &i, &first, failed, err))
        return err->code;
    if (*failed == 0 && first)
        *failed = check_inode(v, &i);
    if (*failed != 0)
        return LAY_OK;
    if (!S_ISDIR(i.mode)) {
        lay_text_cut(&v->path, here->path_len);
        return LAY_OK;
    }
    here->below++;
    return enter(v, &i, here->dir.nid, failed, err);
}

static lay_code step(verify *v, int *failed, lay_error *err)
{
    level *here = &v->levels[v->depth - 1];
    if (here->entry == 0 && here->block >= lay_erofs_dir_blocks(v->e, &here->dir)) {
        *failed = leave(v);
        return LAY_OK;
    }
    lay_edirent d;
    *failed = here->entry == 0 ? lay_erofs_dir_block(v->e, &here->dir, here->block, &here->b) : 0;
    if (*failed == 0)
        *failed = lay_erofs_dirent(v->e, &here->b, here->entry, &d);
    if (*failed != 0)
        return LAY_OK;
    if (++here->entry == here->b.count) {
        here->entry = 0;
        here->block++;
    }
    if (check_order(v, here, &d, failed, err))
        return err->code;
    if (*failed != 0)
        return LAY_OK;
    if (is_named(&d, ".") || is_named(&d, "..")) {
        *failed = check_dot(v, here, &d);
        return LAY_OK;
    }
    return check_name(v, here, &d, failed, err);
}

/* ---- all of it ---- */

static int check_counts(verify *v)
{
    for (size_t i = 0; i < v->nlinks; i++)
        if (v->links[i].seen != v->links[i].nlink)
            return lay_erofs_bad(v->e, v->links[i].at, "an inode has %" PRIu32 " links, and %" PRIu32 " names", v->links[i].nlink, v->links[i].seen);
    uint64_t said = lay_get64(v->e->map + LAY_EROFS_SUPER + LAY_EROFS_AT_INODES);
    if (v->tar_end > 0 && said != v->count)
        return lay_erofs_bad(v->e, LAY_EROFS_SUPER + LAY_EROFS_AT_INODES, "it says that there are %" PRIu64 " inodes, and %" PRIu64 " are", said, v->count);
    return 0;
}

static lay_code walk(verify *v, int *failed, lay_error *err)
{
    lay_einode root;
    bool first;
    *failed = lay_erofs_inode(v->e, v->e->root, &root);
    if (*failed != 0)
        return LAY_OK;
    if (meet(v, &root, &first, failed, err) || enter(v, &root, root.nid, failed, err))
        return err->code;
    if (*failed == 0)
        *failed = check_xattrs(v, &root);
    while (v->depth > 0 && *failed == 0)
        if (step(v, failed, err))
            return err->code;
    if (*failed == 0)
        *failed = check_counts(v);
    return LAY_OK;
}

lay_code lay_erofs_verify(const lay_erofs *image, lay_error *err)
{
    lay_erofs own;                              /* what others have said of it is not told here */
    memcpy(&own, image, offsetof(lay_erofs, seen));
    atomic_init(&own.damaged, 0);
    atomic_init(&own.seen, 0);
    const lay_erofs *e = &own;
    int64_t tar = lay_erofs_tar_size(e->map + LAY_EROFS_SUPER + LAY_EROFS_AT_NAME);
    verify v = { .e = e };
    int failed = 0;
    lay_error_clear(err);
    if (tar >= 0 && e->bits == LAY_EROFS_BITS && e->ndevices == 1 && e->meta >= LAY_EROFS_HEADER && tar <= e->meta - LAY_EROFS_HEADER)
        v.tar_end = LAY_EROFS_HEADER + (tar + LAY_EROFS_BLOCK - 1) / LAY_EROFS_BLOCK * LAY_EROFS_BLOCK;
    v.met = calloc((size_t)((e->limit - e->meta) / LAY_EROFS_SLOT / 8 + 1), 1);
    if (v.met == NULL)
        lay_fail_nomem(err);
    else
        walk(&v, &failed, err);
    if (err->code == LAY_OK && failed != 0) {
        lay_fail(err, LAY_E_MISMATCH, "%s", e->damage);
        lay_error_path(err, v.path.len > 0 ? v.path.p : ".", v.path.len > 0 ? v.path.len : 1);
    }
    lay_inodes_free(&v.inodes);
    free(v.met);
    free(v.links);
    free(v.levels);
    free(v.path.p);
    free(v.names.p);
    return err->code;
}
