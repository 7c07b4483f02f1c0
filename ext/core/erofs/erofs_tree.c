/* erofs_tree.c - entries of a tar become names and inodes.
 *
 * Source: apply/unpack.c and tree/place.c, whose decisions these are, in their order.
 */
#include "erofs/erofs_tree.h"

#include "base/large.h"
#include "erofs/erofs_names.h"
#include "erofs/erofs_xattrs.h"
#include "tree/place.h"
#include "tree/whiteout.h"

#include <stdio.h>
#include <sys/sysmacros.h>

#define NSEC 1000000000
#define PIECES_MOST (4u << 20)     /* of all sparse files, in memory */

lay_code lay_etree_new(lay_etree **out, const lay_limits *limits, lay_error *err)
{
    lay_etree *t = calloc(1, sizeof *t);
    if (!t)
        return lay_fail_nomem(err);
    t->limits = limits ? *limits : *lay_limits_default();
    t->taken.limits = &t->limits;
    if (lay_estate_init(t, err)) {
        lay_etree_free(t);
        return err->code;
    }
    *out = t;
    return LAY_OK;
}

void lay_etree_free(lay_etree *t)
{
    if (!t)
        return;
    lay_estate_free(t);
    free(t);
}

/* ---- what an entry says of an inode ---- */

static lay_code set_size(lay_etree *t, uint32_t number, int64_t size, lay_error *err)
{
    lay_emore *more;
    if (size <= UINT32_MAX) {
        lay_erec_at(t, number)->size = (uint32_t)size;
        return LAY_OK;
    }
    if (lay_estate_more(t, number, &more, err))
        return err->code;
    more->size = size;
    lay_erec_at(t, number)->flags |= LAY_EREC_WIDE;
    return LAY_OK;
}

static void set_time(lay_etree *t, uint32_t number, const lay_meta *m)
{
    lay_erec_at(t, number)->mtime = (int64_t)m->times[1].tv_sec * NSEC + m->times[1].tv_nsec;
}

/* Of what was made just now, or of a directory that stays. */
static lay_code set_meta(lay_etree *t, uint32_t number, const lay_meta *m, lay_exattrs_had had, lay_error *err)
{
    lay_erec *r = lay_erec_at(t, number);
    r->mode = (uint16_t)((r->mode & S_IFMT) | (S_ISLNK(r->mode) ? 0777 : m->mode));
    set_time(t, number, m);
    return lay_estate_set_owner(t, number, m->uid, m->gid, err) || lay_exattrs_set(t, number, m, had, false, err) ? err->code : LAY_OK;
}

/* ---- by type ---- */

/* A name of a directory, and what has it; 0: nothing. */
typedef struct spot { uint32_t directory, there; const char *name; size_t n; } spot;

static lay_code make(lay_etree *t, const spot *at, mode_t type, const lay_meta *m, uint32_t *number, lay_error *err)
{
    bool reborn = at->there && S_ISDIR(type) && !S_ISDIR(lay_erec_at(t, lay_estate_inode(t, at->there))->mode);
    if (at->there)
        lay_estate_drop(t, at->there);
    if (lay_estate_add(t, at->directory, at->name, at->n, number, err))
        return err->code;
    lay_erec *r = lay_erec_at(t, *number);
    r->mode = (uint16_t)type;
    r->flags = reborn ? LAY_EREC_OPAQUE : 0;
    return set_meta(t, *number, m, LAY_EXATTRS_NEW, err);
}

static lay_code make_file(lay_etree *t, const lay_tar_entry *e, uint32_t number, int64_t payload, lay_error *err)
{
    if (e->sparse) {
        lay_emore *more;
        if (lay_estate_more(t, number, &more, err))
            return err->code;
        more->pieces = t->npieces;
        lay_erec_at(t, number)->flags |= LAY_EREC_SPARSE;
        t->sparse = number;
    } else if (e->size) {
        int64_t block = payload / LAY_TAR_BLOCK;
        if (payload < 0 || payload % LAY_TAR_BLOCK || block >= UINT32_MAX)
            return lay_fail(err, LAY_E_UNSUPPORTED, "an image cannot hold a file beyond 2 TiB of the tar");
        lay_erec_at(t, number)->data = (uint32_t)block;
    }
    return set_size(t, number, e->size, err);
}

static lay_code make_symlink(lay_etree *t, const lay_tar_entry *e, uint32_t number, lay_error *err)
{
    size_t text = t->names.len;
    if (e->link_len >= PATH_MAX)
        return lay_fail_os(err, ENAMETOOLONG, NULL, "cannot make the symbolic link");
    if (text > UINT32_MAX - PATH_MAX)
        return lay_fail(err, LAY_E_LIMIT, "the tar has more names than one image can hold");
    lay_erec_at(t, number)->data = (uint32_t)text;
    lay_erec_at(t, number)->size = (uint32_t)e->link_len;
    return lay_estate_text(t, e->link, e->link_len, err);
}

/* As the format has it. */
static uint32_t number_of(dev_t dev) { return (minor(dev) & 0xff) | major(dev) << 8 | (minor(dev) & ~0xffu) << 12; }

/* There is a whiteout in this directory: where no other layer has it, overlayfs would list that. */
static void expect_whiteouts(lay_etree *t, uint32_t directory)
{
    if (directory != LAY_ETREE_ROOT)
        lay_erec_at(t, directory)->flags |= LAY_EREC_WHITEOUTS;
}

/* t->resolved: the path of a name in a directory. */
static lay_code resolve(lay_etree *t, const spot *at, lay_error *err)
{
    return lay_estate_path(t, at->directory, &t->resolved, err) || lay_text_push(&t->resolved, at->name, at->n, err) ? err->code : LAY_OK;
}

/* A file is made when its bytes are there, by then known by where it lies. */
static lay_code file_failed(lay_etree *t, const lay_tar_entry *e, const spot *at, lay_error *err)
{
    lay_error ignored;
    if (err->code == LAY_E_OS && !e->sparse && !resolve(t, at, &ignored))
        lay_error_path(err, t->resolved.p, t->resolved.len);
    return err->code;
}

static lay_code whiteout_failed(lay_etree *t, const spot *at, lay_error *err)
{
    char what[LAY_ERROR_TEXT];
    if (resolve(t, at, err))
        return err->code;
    snprintf(what, sizeof what, "failed to mknod('%.300s', S_IFCHR, 0)", t->resolved.p);
    return lay_fail_os(err, EEXIST, NULL, what);
}

static lay_code whiteout(lay_etree *t, const lay_tar_entry *e, const spot *at, lay_error *err)
{
    lay_meta meta;
    if (lay_meta_of(&meta, e, err))
        return err->code;
    uint32_t inode = lay_estate_inode(t, at->there);
    if (at->there && !lay_estate_is_whiteout(t, inode))
        return whiteout_failed(t, at, err);
    if (!at->there) {
        if (lay_estate_add(t, at->directory, at->name, at->n, &inode, err))
            return err->code;
        lay_erec_at(t, inode)->mode = S_IFCHR;
    }
    expect_whiteouts(t, at->directory);
    set_time(t, inode, &meta);
    return meta.uid || meta.gid ? lay_estate_set_owner(t, inode, meta.uid, meta.gid, err) : LAY_OK;
}

/* ---- hard links ---- */

/* The name that the link is to; 0: it is not there. */
static lay_code find_target(lay_etree *t, const lay_tar_entry *e, uint32_t *target, lay_error *err)
{
    uint32_t directory;
    size_t base;
    *target = 0;
    if (lay_enames_enter(t, &t->target, &directory, &base, err))
        return err->code == LAY_E_OS ? lay_entry_link_failed(e, err->sys_errno, err) : err->code;
    return lay_estate_find(t, directory, t->target.p + base, t->target.len - base, target, err);
}

/* A hard link says of the inode what any entry says; the kernel takes a capability away with the owner. */
static lay_code link_meta(lay_etree *t, uint32_t inode, const lay_meta *m, lay_error *err)
{
    lay_erec *r = lay_erec_at(t, inode);
    lay_eowner owner = lay_estate_owner(t, inode);
    bool chowned = owner.uid != m->uid || owner.gid != m->gid;
    if (!S_ISLNK(r->mode)) {
        r->mode = (uint16_t)((r->mode & S_IFMT) | m->mode);
        set_time(t, inode, m);
    }
    return (chowned && lay_estate_set_owner(t, inode, m->uid, m->gid, err)) || lay_exattrs_set(t, inode, m, LAY_EXATTRS_ADDED, chowned, err) ? err->code : LAY_OK;
}

static lay_code make_link(lay_etree *t, const lay_tar_entry *e, const spot *at, const lay_meta *m, lay_error *err)
{
    uint32_t target, number;
    lay_emore *more;
    if (lay_entry_target(e, &t->target, err))
        return err->code;
    if (at->there) {
        if (find_target(t, e, &target, err))
            return err->code;
        uint32_t inode = lay_estate_inode(t, at->there);
        if (target == at->there && !S_ISDIR(lay_erec_at(t, inode)->mode) && !lay_estate_is_whiteout(t, inode))
            return LAY_OK;                    /* to itself: it stays what it is */
        lay_estate_drop(t, at->there);
    }
    if (find_target(t, e, &target, err))
        return err->code;
    if (!target || S_ISDIR(lay_erec_at(t, lay_estate_inode(t, target))->mode))
        return lay_entry_link_failed(e, target ? EPERM : ENOENT, err);
    uint32_t inode = lay_estate_inode(t, target);
    if (lay_estate_add(t, at->directory, at->name, at->n, &number, err) || lay_estate_more(t, inode, &more, err))
        return err->code;
    lay_erec_at(t, number)->flags = LAY_EREC_LINK;
    lay_erec_at(t, number)->data = inode;
    if (lay_estate_is_whiteout(t, inode)) {
        expect_whiteouts(t, at->directory);
        return LAY_OK;
    }
    return link_meta(t, inode, m, err);
}

/* ---- entries ---- */

static lay_code place(lay_etree *t, const lay_tar_entry *e, const spot *at, int64_t payload, lay_error *err)
{
    lay_meta meta;
    uint32_t number;
    dev_t dev;
    if (lay_meta_of(&meta, e, err))
        return err->code;
    switch (e->type) {
    case '0':
    case 'S':
        if (lay_taken_size(&t->taken, e->size, err))
            return err->code;
        if (make(t, at, S_IFREG, &meta, &number, err))
            return file_failed(t, e, at, err);
        return make_file(t, e, number, payload, err);
    case '5':
        if (!at->there || !S_ISDIR(lay_erec_at(t, lay_estate_inode(t, at->there))->mode))
            return make(t, at, S_IFDIR, &meta, &number, err);
        lay_erec_at(t, at->there)->flags &= (uint8_t)~LAY_EREC_IMPLIED;
        return set_meta(t, at->there, &meta, LAY_EXATTRS_KEPT, err);
    case '2':
        if (lay_entry_text(e, err) || lay_taken_size(&t->taken, (int64_t)e->link_len, err) || make(t, at, S_IFLNK, &meta, &number, err))
            return err->code;
        return make_symlink(t, e, number, err);
    case '1':
        return make_link(t, e, at, &meta, err);
    case '6':
        return make(t, at, S_IFIFO, &meta, &number, err);
    case '3':
    case '4':
        if (lay_entry_device(e, &dev, err) || make(t, at, e->type == '3' ? S_IFCHR : S_IFBLK, &meta, &number, err))
            return err->code;
        lay_erec_at(t, number)->data = number_of(dev);
        if (lay_estate_is_whiteout(t, number))
            expect_whiteouts(t, at->directory);
        return LAY_OK;
    default:
        return lay_entry_unhandled(e, err);
    }
}

static lay_code entry(lay_etree *t, const lay_tar_entry *e, int64_t payload, lay_error *err)
{
    lay_wh wh;
    spot at;
    size_t base;
    if (lay_taken_entry(&t->taken, e, err) || e->type == 'g')
        return err->code;
    if (lay_entry_name(e, &t->clean, &wh, err) || lay_entry_is_root(&t->clean))
        return err->code;
    if (lay_enames_enter(t, &t->clean, &at.directory, &base, err))
        return err->code;
    if (wh == LAY_WH_OPAQUE_DIR) {
        lay_erec_at(t, at.directory)->flags |= LAY_EREC_OPAQUE;
        return LAY_OK;
    }
    base += wh == LAY_WH_NAME ? LAY_WH_PREFIX_LEN : 0;
    at.name = t->clean.p + base;
    at.n = t->clean.len - base;
    if (lay_estate_find(t, at.directory, at.name, at.n, &at.there, err))
        return err->code;
    return wh == LAY_WH_NAME ? whiteout(t, e, &at, err) : place(t, e, &at, payload, err);
}

lay_code lay_etree_entry(lay_etree *t, const lay_tar_entry *e, int64_t payload, lay_error *err)
{
    t->sparse = 0;
    return entry(t, e, payload, err) ? lay_entry_failed(e, err) : LAY_OK;
}

lay_code lay_etree_piece(lay_etree *t, int64_t file_offset, int64_t tar_offset, int64_t n, lay_error *err)
{
    if (!t->sparse || n <= 0)
        return LAY_OK;
    lay_emore *more = &t->more[lay_erec_at(t, t->sparse)->more];
    lay_epiece *last = more->npieces ? &t->pieces[t->npieces - 1] : NULL;
    if (last && last->file_offset + last->n == file_offset && last->tar_offset + last->n == tar_offset) {
        last->n += n;
        return LAY_OK;
    }
    if (t->npieces == PIECES_MOST)
        return lay_fail(err, LAY_E_LIMIT, "the sparse files of the tar have too many pieces for an image: more than %u", PIECES_MOST);
    if (lay_large_reserve(&t->pieces, &t->pieces_cap, t->npieces + 1, sizeof *t->pieces, err))
        return err->code;
    t->pieces[t->npieces++] = (lay_epiece){ file_offset, tar_offset, n };
    more->npieces++;
    return LAY_OK;
}
