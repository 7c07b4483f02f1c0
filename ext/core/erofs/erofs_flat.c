/* erofs_flat.c - images of layers, stacked, as one image: an index that points into their files, or all of it in one file.
 *
 *   layers ──► union ──► tree, whose bytes lie one after the other ──► layout ──► header, metadata, (bytes)
 *
 * Iterator: each call works for a while and gives the next bytes of the new image, in their order, so that they may go into
 * a pipe. An index has the layers' files as devices, the lowest first, whose blocks count on behind its own.
 */
#include "base/clock.h"
#include "base/digest.h"
#include "base/grow.h"
#include "erofs/erofs_image_state.h"
#include "erofs/erofs_write.h"
#include "tree/trail.h"
#include "union/union.h"

#include <stdio.h>
#include <sys/sysmacros.h>

#define PIECE (1u << 20)
#define LINK_SIZE 4096u
#define VALUE_SIZE 65536u

typedef enum stage { WALK, LAYOUT, HEADER, METADATA, BYTES, OVER } stage;

/* n bytes of a file of a layer; where they come to lie, from the first byte behind the metadata on. */
typedef struct source { uint32_t layer; uint64_t ino; int64_t offset, n, at; } source;

struct lay_erofs_flat {
    stage stage;
    bool whole;
    const lay_erofs **layers; size_t count;  /* nearest first, held */
    lay_lower *lowers;
    int64_t *begins;                         /* of each layer's file, from behind the index on */
    lay_lowers nothing;
    lay_union *stacked;
    lay_union_walk *walk;
    lay_etree *tree;
    lay_eimage *image;
    lay_inodes inodes;
    lay_text firsts;                         /* paths of inodes with more names than one, each with its NUL */
    source *sources; size_t nsources, sources_cap, next;
    int64_t bytes;                           /* of all sources, or of the layers' files */
    int64_t at;                              /* BYTES: how many were given */
    lay_xattr *xattrs; size_t xattrs_cap;
    lay_text names, values;
    uint64_t ordinal;
    uint8_t *piece;
};

/* ---- what a layer has ---------------------------------------------------------------------------------------------- */

static lay_code attribute(const lay_erofs *e, uint64_t ino, const char *name, lay_text *to, size_t *got, lay_error *err)
{
    size_t room = VALUE_SIZE;
    for (;;) {
        if (lay_text_room(to, to->len + room, err))
            return err->code;
        if (lay_erofs_attribute(e, ino, name, to->p + to->len, room, got, err) == LAY_OK)
            return LAY_OK;
        if (err->code != LAY_E_OS || err->sys_errno != ERANGE || room > (1u << 24))
            return err->code;
        lay_error_clear(err);
        room *= 2;
    }
}

/* Those of an inode, which live until the next one's. */
static lay_code read_xattrs(lay_erofs_flat *f, const lay_erofs *e, uint64_t ino, lay_tar_entry *entry, lay_error *err)
{
    size_t n, count = 0;
    lay_text_cut(&f->names, 0);
    lay_text_cut(&f->values, 0);
    if (attribute(e, ino, NULL, &f->names, &n, err))
        return err->code;
    f->names.len = n;
    for (const char *name = f->names.p; name < f->names.p + n; name += strlen(name) + 1) {
        size_t got;
        if (lay_grow(&f->xattrs, &f->xattrs_cap, count, sizeof *f->xattrs, err) || attribute(e, ino, name, &f->values, &got, err))
            return err->code;
        f->xattrs[count++] = (lay_xattr){ .name = name, .len = got };
        f->values.len += got;
    }
    size_t at = 0;                            /* the values may have moved while there came more */
    for (size_t i = 0; i < count; i++) {
        f->xattrs[i].value = (const uint8_t *)f->values.p + at;
        at += f->xattrs[i].len;
    }
    entry->xattrs = f->xattrs;
    entry->nxattrs = count;
    return LAY_OK;
}

static lay_code not_blocks(lay_error *err)
{
    return lay_fail(err, LAY_E_UNSUPPORTED, "a file whose bytes do not lie in blocks of the image's own file: only images of layers can be stacked as one");
}

/* Where these bytes come to lie. */
static lay_code place(lay_erofs_flat *f, size_t layer, uint64_t ino, const lay_erofs_piece *p, int64_t *at, lay_error *err)
{
    if (p->device != 0 || p->at % LAY_EROFS_BLOCK)
        return not_blocks(err);
    *at = f->begins[layer] + p->at;
    if (!f->whole)
        return LAY_OK;
    if (lay_grow(&f->sources, &f->sources_cap, f->nsources, sizeof *f->sources, err))
        return err->code;
    *at = f->bytes;
    f->sources[f->nsources++] = (source){ .layer = (uint32_t)layer, .ino = ino, .offset = p->offset, .n = p->n, .at = *at };
    f->bytes += (p->n + LAY_EROFS_BLOCK - 1) & -LAY_EROFS_BLOCK;
    return LAY_OK;
}

/* A file goes into the tree: in one piece, or with holes. */
static lay_code add_file(lay_erofs_flat *f, size_t layer, uint64_t ino, lay_tar_entry *e, lay_error *err)
{
    lay_erofs_piece p = { 0 };
    int64_t at = 0;
    if (!e->size)
        return lay_etree_entry(f->tree, e, 0, err);
    if (lay_erofs_next_piece(f->layers[layer], ino, 0, &p, err))
        return err->code;
    e->sparse = p.n != e->size;
    if (p.n && place(f, layer, ino, &p, &at, err))
        return err->code;
    if (lay_etree_entry(f->tree, e, at, err))
        return err->code;
    while (e->sparse && p.n) {
        int64_t end = p.offset + p.n;
        if (lay_etree_piece(f->tree, p.offset, at, p.n, err))
            return err->code;
        if (end >= e->size)
            break;
        if (lay_erofs_next_piece(f->layers[layer], ino, end, &p, err) || (p.n && place(f, layer, ino, &p, &at, err)))
            return err->code;
    }
    return LAY_OK;
}

static char type_of(mode_t mode)
{
    return S_ISDIR(mode) ? '5' : S_ISLNK(mode) ? '2' : S_ISCHR(mode) ? '3' : S_ISBLK(mode) ? '4' : S_ISFIFO(mode) ? '6' : '0';
}

/* Has this inode come under another name? Then that is what the entry leads to. */
static lay_code find_first(lay_erofs_flat *f, const lay_union_found *found, const struct stat *st, lay_tar_entry *e, lay_error *err)
{
    bool seen = false;
    size_t first = f->firsts.len;
    if (S_ISDIR(st->st_mode) || st->st_nlink < 2)
        return LAY_OK;
    if (lay_inodes_add(&f->inodes, found->layer, st->st_ino, &first, &seen, err))
        return err->code;
    if (!seen)
        return lay_text_add(&f->firsts, found->path, found->path_len + 1, err);
    e->type = '1';
    e->link = f->firsts.p + first;
    e->link_len = strlen(e->link);
    return LAY_OK;
}

static lay_code add(lay_erofs_flat *f, const lay_union_found *found, lay_error *err)
{
    const lay_lower *l = &f->lowers[found->layer];
    const lay_erofs *image = f->layers[found->layer];
    struct stat st;
    char text[LINK_SIZE + 1];
    if (l->ops->stat(l, found->in, found->name, &st) != 0)
        return lay_fail_os(err, errno, NULL, "cannot read the image");
    lay_tar_entry e = {
        .name = found->path, .name_len = found->path_len, .link = "", .type = type_of(st.st_mode), .mode = st.st_mode & 07777,
        .uid = st.st_uid, .gid = st.st_gid, .mtime = { st.st_mtim.tv_sec, (int32_t)st.st_mtim.tv_nsec },
        .dev_major = major(st.st_rdev), .dev_minor = minor(st.st_rdev), .ordinal = f->ordinal++,
    };
    if (S_ISREG(st.st_mode))
        e.size = e.stored = st.st_size;
    if (find_first(f, found, &st, &e, err) || read_xattrs(f, image, st.st_ino, &e, err))
        return err->code;
    if (e.type == '2') {
        size_t n;
        if (lay_erofs_read(image, st.st_ino, text, LINK_SIZE, -1, &n, err))
            return err->code;
        text[n] = '\0';
        e.link = text;
        e.link_len = n;
    }
    return e.type == '0' ? add_file(f, found->layer, st.st_ino, &e, err) : lay_etree_entry(f->tree, &e, 0, err);
}

static lay_code walk(lay_erofs_flat *f, lay_error *err)
{
    lay_union_found found;
    if (lay_union_walk_next(f->walk, &found, err))
        return err->code;
    if (!found.path) {
        f->stage = LAYOUT;
        return LAY_OK;
    }
    return add(f, &found, err) ? lay_error_path(err, found.path, found.path_len) : LAY_OK;
}

/* ---- the new image ------------------------------------------------------------------------------------------------- */

static int64_t slots_size(const lay_erofs_flat *f) { return f->whole ? 0 : (int64_t)f->count * LAY_EROFS_DEVICE; }

static lay_code lay_out(lay_erofs_flat *f, lay_error *err)
{
    lay_applied ignored;
    uint32_t node;
    int64_t at;
    if (lay_etree_end(f->tree, &ignored, err) || lay_etree_settle(f->tree, NULL, err) || lay_eimage_layout(&f->image, f->tree, slots_size(f), INT64_MAX, err))
        return err->code;
    if (lay_eimage_expanded(f->image, 0, &node, &at))
        return not_blocks(err);
    int64_t size = lay_eimage_size(f->image);
    if (f->bytes > LAY_EROFS_MOST_BLOCKS * LAY_EROFS_BLOCK - size)
        return lay_fail_os(err, EFBIG, NULL, "the layers together are more than the 2 TiB that an image can show");
    lay_eimage_move_data(f->image, size);
    f->stage = HEADER;
    return LAY_OK;
}

/* Of layer i from below: its blocks, and where they begin in what all blocks count. */
static void put_device(const lay_erofs_flat *f, size_t i, uint8_t *slot)
{
    size_t layer = f->count - 1 - i;
    const lay_erofs *e = f->layers[layer];
    const uint8_t *uuid = e->map + LAY_EROFS_SUPER + LAY_EROFS_AT_UUID;
    for (size_t k = 0; k < 16; k++)
        snprintf((char *)slot + 2 * k, 3, "%02x", uuid[k]);
    lay_put32(slot + LAY_EROFS_DEVICE_BLOCKS, (uint32_t)(e->limit / LAY_EROFS_BLOCK));
    lay_put32(slot + LAY_EROFS_DEVICE_UNI, (uint32_t)((lay_eimage_size(f->image) + f->begins[layer]) / LAY_EROFS_BLOCK));
}

/* The same layers give the same uuid, and no image of one layer has it. */
static void digest_layers(const lay_erofs_flat *f, uint8_t digest[LAY_SHA256_SIZE])
{
    lay_sha256 sha;
    lay_sha256_start(&sha);
    lay_sha256_add(&sha, f->whole ? "whole" : "index", 5);
    for (size_t i = f->count; i--;)
        lay_sha256_add(&sha, f->layers[i]->map + LAY_EROFS_SUPER + LAY_EROFS_AT_UUID, 16);
    lay_sha256_end(&sha, digest);
}

/* The header, and behind it the devices' slots. */
static lay_code put_header(lay_erofs_flat *f, size_t *n, lay_error *err)
{
    uint8_t digest[LAY_SHA256_SIZE];
    lay_erofs_super s;
    size_t size = (size_t)lay_eimage_base(f->image);
    if (size > PIECE)
        return lay_fail(err, LAY_E_LIMIT, "more layers than one image can show");
    lay_eimage_super(f->image, &s);
    digest_layers(f, digest);
    s.diff_id = digest;
    s.tar_size = -1;
    if (f->whole) {
        s.blocks += (uint32_t)(f->bytes / LAY_EROFS_BLOCK);
    } else {
        s.incompat |= LAY_EROFS_INCOMPAT_DEVICES;
        s.devices = (uint16_t)f->count;
        s.device_slot = LAY_EROFS_HEADER / LAY_EROFS_DEVICE;
    }
    memset(f->piece, 0, size);
    lay_erofs_put_super(f->piece, &s);
    for (size_t i = 0; i < f->count && !f->whole; i++)
        put_device(f, i, f->piece + LAY_EROFS_HEADER + i * LAY_EROFS_DEVICE);
    *n = size;
    f->stage = METADATA;
    return LAY_OK;
}

static lay_code put_bytes(lay_erofs_flat *f, size_t *n, lay_error *err)
{
    *n = 0;
    while (*n < PIECE && f->at < f->bytes) {
        source *s = f->next < f->nsources ? &f->sources[f->next] : NULL;
        int64_t zeros = (s ? s->at : f->bytes) - f->at, room = PIECE - (int64_t)*n;
        size_t got;
        if (zeros > 0) {                      /* to the end of a block */
            got = (size_t)(zeros < room ? zeros : room);
            memset(f->piece + *n, 0, got);
        } else {
            if (lay_erofs_read(f->layers[s->layer], s->ino, f->piece + *n, (size_t)(s->n < room ? s->n : room), s->offset, &got, err))
                return err->code;
            if (!got)
                return lay_fail(err, LAY_E_MISMATCH, "a layer's image became shorter");
            s->offset += (int64_t)got;
            s->at += (int64_t)got;
            s->n -= (int64_t)got;
            f->next += s->n == 0;
        }
        *n += got;
        f->at += (int64_t)got;
    }
    if (f->at == f->bytes)
        f->stage = OVER;
    return LAY_OK;
}

/* *p: the next bytes; where there are none it stays as it is. */
static lay_code put_metadata(lay_erofs_flat *f, const uint8_t **p, size_t *n, lay_error *err)
{
    const uint8_t *made;
    int64_t at;
    if (lay_eimage_next(f->image, &made, n, &at, err))
        return err->code;
    if (*n)
        *p = made;
    else
        f->stage = f->whole ? BYTES : OVER;
    return LAY_OK;
}

/* ---- the face ------------------------------------------------------------------------------------------------------ */

static lay_code open_layers(lay_erofs_flat *f, lay_erofs *const *images, lay_error *err)
{
    static const lay_limits none;             /* each layer was within those that it was registered with */
    for (size_t i = 0; i < f->count; i++) {
        lay_erofs_hold(images[i]);
        f->layers[i] = images[i];
        f->lowers[i] = *lay_erofs_lower(images[i]);
    }
    for (size_t i = f->count; i-- && !f->whole;) {        /* the lowest first */
        f->begins[i] = f->bytes;
        f->bytes += f->layers[i]->limit;
    }
    if (lay_lowers_open(&f->nothing, NULL, 0, false, err) || lay_union_open(&f->stacked, f->lowers, f->count, &f->nothing, 0, err)
        || lay_union_walk_open(&f->walk, f->stacked, err))
        return err->code;
    return lay_etree_new(&f->tree, &none, err);
}

lay_code lay_erofs_flat_open(lay_erofs_flat **out, lay_erofs *const *images, size_t n, int whole, lay_error *err)
{
    lay_error_clear(err);
    lay_erofs_flat *f = calloc(1, sizeof *f);
    if (!f)
        return lay_fail_nomem(err);
    f->whole = whole;
    f->layers = calloc(n + 1, sizeof *f->layers);
    f->lowers = calloc(n + 1, sizeof *f->lowers);
    f->begins = calloc(n + 1, sizeof *f->begins);
    f->piece = malloc(PIECE);
    if (!f->layers || !f->lowers || !f->begins || !f->piece) {
        lay_fail_nomem(err);
    } else {
        f->count = n;
        open_layers(f, images, err);
    }
    if (err->code)
        lay_erofs_flat_free(f);
    else
        *out = f;
    return err->code;
}

lay_code lay_erofs_flat_next(lay_erofs_flat *f, int max_ms, const void **p, size_t *n, int *end, lay_error *err)
{
    int64_t stop = lay_now_ms() + max_ms;
    const uint8_t *metadata = NULL;
    lay_code code = LAY_OK;
    lay_error_clear(err);
    for (*n = 0; !code && !*n && f->stage != OVER && lay_now_ms() < stop;)
        switch (f->stage) {
        case WALK: code = walk(f, err); break;
        case LAYOUT: code = lay_out(f, err); break;
        case HEADER: code = put_header(f, n, err); break;
        case METADATA: code = put_metadata(f, &metadata, n, err); break;
        case BYTES: code = put_bytes(f, n, err); break;
        case OVER: break;
        }
    *p = metadata ? metadata : f->piece;
    *end = f->stage == OVER;
    return code;
}

void lay_erofs_flat_free(lay_erofs_flat *f)
{
    if (!f)
        return;
    lay_union_walk_free(f->walk);
    lay_union_free(f->stacked);
    lay_lowers_free(&f->nothing);
    lay_eimage_free(f->image);
    lay_etree_free(f->tree);
    lay_inodes_free(&f->inodes);
    for (size_t i = 0; i < f->count; i++)
        lay_erofs_free((lay_erofs *)(uintptr_t)f->layers[i]);
    free(f->layers);
    free(f->lowers);
    free(f->begins);
    free(f->firsts.p);
    free(f->sources);
    free(f->xattrs);
    free(f->names.p);
    free(f->values.p);
    free(f->piece);
    free(f);
}
