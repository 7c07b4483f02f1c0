/* erofs_dir.c - directories of an image: looking up one name, and listing all. */
#include "erofs/erofs_image_state.h"

#include <dirent.h>
#include <inttypes.h>
#include <limits.h>
#include <string.h>

uint8_t lay_erofs_dtype(uint8_t type)
{
    static const uint8_t types[] = { DT_UNKNOWN, DT_REG, DT_DIR, DT_CHR, DT_BLK, DT_FIFO, DT_SOCK, DT_LNK };
    return type < sizeof types ? types[type] : DT_UNKNOWN;
}

/* ---- blocks ---- */

int64_t lay_erofs_dir_blocks(const lay_erofs *e, const lay_einode *dir)
{
    int64_t block = 1 << e->bits;
    return dir->size / block + (dir->size % block != 0);
}

int lay_erofs_dir_block(const lay_erofs *e, const lay_einode *dir, int64_t number, lay_eblock *out)
{
    lay_eextent x;
    int64_t offset = number << e->bits, left = dir->size - offset, block = 1 << e->bits;
    if (lay_erofs_extent(e, dir, offset, &x) < 0)
        return -1;
    *out = (lay_eblock){ .size = (size_t)(left < block ? left : block), .at = x.from };
    if (x.device != e->devices || (int64_t)out->size > x.n)
        return lay_erofs_bad(e, dir->at, "a directory's names are not in the primary device");
    out->p = lay_erofs_at(e, x.from, out->size, "a directory's block");
    if (out->p == NULL)
        return -1;
    size_t first = out->size >= LAY_EROFS_DIRENT ? lay_get16(out->p + 8) : 0;
    if (first < LAY_EROFS_DIRENT || first % LAY_EROFS_DIRENT != 0 || first > out->size)
        return lay_erofs_bad(e, x.from, "a directory's names begin at %zu of its block", first);
    out->count = first / LAY_EROFS_DIRENT;
    return 0;
}

int lay_erofs_dirent(const lay_erofs *e, const lay_eblock *b, size_t i, lay_edirent *out)
{
    const uint8_t *p = b->p + i * LAY_EROFS_DIRENT;
    size_t from = lay_get16(p + 8), to = i + 1 < b->count ? lay_get16(p + LAY_EROFS_DIRENT + 8) : b->size;
    if (from < b->count * LAY_EROFS_DIRENT || from >= to || to > b->size)
        return lay_erofs_bad(e, b->at, "name %zu of a directory's block is not in it", i);
    *out = (lay_edirent){ .nid = lay_get64(p), .name = (const char *)b->p + from, .type = p[10] };
    out->len = strnlen(out->name, to - from);
    if (out->len == 0 || out->len > NAME_MAX || (i + 1 < b->count && out->len != to - from) || memchr(out->name, '/', out->len) != NULL)
        return lay_erofs_bad(e, b->at, "name %zu of a directory's block is no name", i);
    return 0;
}

/* ---- one name ---- */

static int order(const lay_edirent *d, const char *name, size_t n)
{
    int r = memcmp(d->name, name, d->len < n ? d->len : n);
    return r != 0 ? r : (d->len > n) - (d->len < n);
}

/* The last block whose first name is not behind this one. 1: none; *exact: that first name is it, and in *out. */
static int find_block(const lay_erofs *e, const lay_einode *dir, const char *name, size_t n, lay_eblock *found, lay_edirent *out, bool *exact)
{
    int64_t low = 0, high = lay_erofs_dir_blocks(e, dir);
    int none = 1;
    while (low < high) {
        int64_t mid = low + (high - low) / 2;
        lay_eblock b;
        lay_edirent d;
        if (lay_erofs_dir_block(e, dir, mid, &b) < 0 || lay_erofs_dirent(e, &b, 0, &d) < 0)
            return -1;
        int r = order(&d, name, n);
        if (r > 0) {
            high = mid;
            continue;
        }
        *found = b;
        none = 0;
        *exact = r == 0;
        if (*exact) {
            *out = d;
            break;
        }
        low = mid + 1;
    }
    return none;
}

int lay_erofs_look(const lay_erofs *e, const lay_einode *dir, const char *name, size_t n, lay_edirent *out)
{
    lay_eblock b;
    bool exact = false;
    int none = find_block(e, dir, name, n, &b, out, &exact);
    if (none < 0 || exact)
        return none < 0 ? -1 : 0;
    for (size_t low = 1, high = none > 0 ? 0 : b.count; low < high;) {
        size_t mid = low + (high - low) / 2;
        if (lay_erofs_dirent(e, &b, mid, out) < 0)
            return -1;
        int r = order(out, name, n);
        if (r == 0)
            return 0;
        *(r < 0 ? &low : &high) = r < 0 ? mid + 1 : mid;
    }
    errno = ENOENT;
    return -1;
}

/* ---- all names ---- */

typedef struct listing { lay_names *names; size_t room, text, text_room; } listing;

/* Room for as many more names as a block has, and for what they are written in. */
static bool reserve(listing *l, const lay_eblock *b)
{
    size_t need = l->names->count + b->count, text = l->text + b->size + b->count;
    if (need > l->room) {
        void *list = reallocarray(l->names->list, l->room = need + need / 2, sizeof *l->names->list);
        if (list == NULL)
            return false;
        l->names->list = list;
    }
    if (text > l->text_room) {
        void *p = realloc(l->names->text, l->text_room = text + text / 2);
        if (p == NULL)
            return false;
        l->names->text = p;
    }
    return true;
}

static bool is_dot(const lay_edirent *d) { return d->name[0] == '.' && (d->len == 1 || (d->len == 2 && d->name[1] == '.')); }

/* last: the name before, of the block before too. */
static int list_block(const lay_erofs *e, const lay_eblock *b, listing *l, lay_edirent *last)
{
    for (size_t i = 0; i < b->count; i++) {
        lay_edirent d;
        if (lay_erofs_dirent(e, b, i, &d) < 0)
            return -1;
        if (last->name != NULL && order(last, d.name, d.len) >= 0)
            return lay_erofs_bad(e, b->at, "names of a directory are out of order");
        *last = d;
        if (is_dot(&d))
            continue;
        l->names->list[l->names->count++] = (lay_name){ .at = (uint32_t)l->text, .len = (uint16_t)d.len, .type = lay_erofs_dtype(d.type), .ino = d.nid };
        memcpy(l->names->text + l->text, d.name, d.len);
        l->names->text[l->text + d.len] = '\0';
        l->text += d.len + 1;
    }
    return 0;
}

static int by_number(const void *a, const void *b)
{
    ino_t x = *(const ino_t *)a, y = *(const ino_t *)b;
    return (x > y) - (x < y);
}

/* A directory has one name: else a walk of a small image could be without an end that anyone lives to see. */
static int check_once(const lay_erofs *e, const lay_einode *dir, const lay_names *names)
{
    size_t count = 0;
    for (size_t i = 0; i < names->count; i++)
        count += names->list[i].type == DT_DIR;
    if (count < 2)
        return 0;
    LAY_AUTO_FREE ino_t *all = calloc(count, sizeof *all);
    if (all == NULL)
        return -1;
    count = 0;
    for (size_t i = 0; i < names->count; i++)
        if (names->list[i].type == DT_DIR)
            all[count++] = names->list[i].ino;
    qsort(all, count, sizeof *all, by_number);
    for (size_t i = 1; i < count; i++)
        if (all[i] == all[i - 1])
            return lay_erofs_bad(e, dir->at, "a directory has two names for one directory");
    return 0;
}

lay_code lay_erofs_list(const lay_erofs *e, const lay_einode *dir, lay_names *names, lay_error *err)
{
    *names = (lay_names){ 0 };
    listing l = { .names = names };
    lay_edirent last = { .name = NULL };
    int64_t count = lay_erofs_dir_blocks(e, dir);
    int failed = dir->size > UINT32_MAX / 2 ? lay_erofs_bad(e, dir->at, "a directory of %" PRId64 " bytes", dir->size) : 0;
    for (int64_t i = 0; i < count && failed == 0; i++) {
        lay_eblock b;
        failed = lay_erofs_dir_block(e, dir, i, &b);
        if (failed == 0 && !reserve(&l, &b)) {
            errno = ENOMEM;
            failed = -1;
        }
        if (failed == 0)
            failed = list_block(e, &b, &l, &last);
    }
    if (failed == 0)
        failed = check_once(e, dir, names);
    lay_erofs_let_go(e, dir->size + (int64_t)names->count * LAY_EROFS_INODE);      /* who lists mostly looks at what is there, too */
    if (failed == 0)
        return LAY_OK;
    int why = errno;
    lay_names_free(names);
    return why == ENOMEM ? lay_fail_nomem(err) : lay_fail_os(err, why, NULL, "cannot read a directory of the layer");
}

/* ---- a path ---- */

/* A directory lies in one other only, which it knows: so no way leads around. */
static int is_child(const lay_erofs *e, const lay_einode *child, uint64_t parent)
{
    lay_edirent up;
    if (lay_erofs_look(e, child, "..", 2, &up) < 0)
        return errno == ENOENT ? lay_erofs_bad(e, child->at, "a directory has no name ..") : -1;
    return up.nid == parent ? 0 : lay_erofs_bad(e, child->at, "a directory's name .. does not lead back");
}

int lay_erofs_walk(const lay_erofs *e, uint64_t from, const char *path, size_t n, lay_einode *out)
{
    if (lay_erofs_inode(e, from, out) < 0)
        return -1;
    for (const char *at = path, *end = path + n; at < end;) {
        const char *slash = memchr(at, '/', (size_t)(end - at));
        size_t len = (size_t)((slash != NULL ? slash : end) - at);
        lay_edirent d;
        uint64_t parent = out->nid;
        if (!S_ISDIR(out->mode)) {
            errno = S_ISLNK(out->mode) ? ELOOP : ENOTDIR;
            return -1;
        }
        if (len > NAME_MAX) {
            errno = ENAMETOOLONG;
            return -1;
        }
        if (lay_erofs_look(e, out, at, len, &d) < 0 || lay_erofs_inode(e, d.nid, out) < 0)
            return -1;
        if (d.type != lay_erofs_file_type(out->mode))
            return lay_erofs_bad(e, out->at, "it is of another type than its name");
        if (S_ISDIR(out->mode) && is_child(e, out, parent) < 0)
            return -1;
        at += len + (slash != NULL);
    }
    return 0;
}
