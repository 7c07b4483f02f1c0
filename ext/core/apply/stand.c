/* stand.c - a layer that was unpacked alone comes to stand on others: what its tar left open is settled.
 *
 * A directory without an entry takes its owner, xattrs, mode and times from the one that the layers below show there:
 * an overlay shows the topmost. Of a name, those layers are kept that it is looked for in; going down they only grow
 * fewer. An opaque mark at the top, which overlayfs does not look at, becomes marks of each name below.
 * Source: the kernel, fs/overlayfs (lookup)
 */
#include "apply/stand.h"

#include "base/grow.h"
#include "base/text.h"
#include "tree/lowers.h"
#include "tree/place.h"
#include "tree/whiteout.h"

#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>

/* One directory of the layer, and the lowers where it is looked for: of `active`, count from `first` on. */
typedef struct spot { const char *name; uint32_t above, len, first, count; bool implied; } spot;

typedef struct place { const lay_lower *lower; lay_lower_dir in; } place;

typedef struct stand {
    int root_fd;
    lay_lowers lowers;
    spot *spots; size_t count, cap;           /* the root is the first */
    uint16_t *active; size_t nactive, active_cap;
    size_t here;                              /* the spot whose directories are open */
    int own; place *below;                    /* in the layer; in its active lowers; -1: not open */
    lay_text path;                            /* for errors, and for opening */
} stand;

static lay_code path_of(stand *s, size_t at, lay_error *err)
{
    size_t len = 0;
    for (size_t i = at; i; i = s->spots[i].above)
        len += s->spots[i].len + 1;
    if (lay_text_room(&s->path, len, err))
        return err->code;
    lay_text_cut(&s->path, len ? len - 1 : 0);
    for (size_t i = at; i; i = s->spots[i].above) {
        len -= s->spots[i].len + 1;
        memcpy(s->path.p + len, s->spots[i].name, s->spots[i].len);
        if (s->spots[i].above)
            s->path.p[len - 1] = '/';
    }
    return LAY_OK;
}

/* Tell the path only now: most go well. */
static lay_code fail_at(stand *s, size_t at, int e, const char *what, lay_error *err)
{
    return path_of(s, at, err) ? err->code : lay_fail_os(err, e, s->path.p, what);
}

static void close_here(stand *s)
{
    lay_close_owner(&s->own);
    s->own = -1;
    for (uint32_t i = 0; i < s->spots[s->here].count; i++)
        lay_lower_leave(s->below[i].lower, s->below[i].in);
}

/* Open the directories of a spot. They were open before: if one is gone, another process removed it. */
static lay_code go_to(stand *s, size_t at, lay_error *err)
{
    const spot *to = &s->spots[at];
    if (s->own >= 0 && s->here == at)
        return LAY_OK;
    if (s->own >= 0)
        close_here(s);
    if (path_of(s, at, err))
        return err->code;
    s->here = at;
    for (uint32_t i = 0; i < to->count; i++)
        s->below[i] = (place){ &s->lowers.list[s->active[to->first + i]], -1 };
    s->own = lay_tree_open_dir(s->root_fd, s->path.p, s->path.len, 0);
    bool failed = s->own < 0;
    for (uint32_t i = 0; i < to->count && !failed; i++) {
        const lay_lower *l = s->below[i].lower;
        s->below[i].in = l->ops->open(l, l->root, s->path.p, s->path.len);
        failed = s->below[i].in < 0;
    }
    return failed ? lay_fail_os(err, errno, s->path.p, "cannot open the directory") : LAY_OK;
}

static int open_child(int dir_fd, const char *name)
{
    return openat(dir_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
}

static lay_code add_active(stand *s, uint16_t lower, lay_error *err)
{
    if (lay_grow(&s->active, &s->active_cap, s->nactive, sizeof *s->active, err))
        return err->code;
    s->active[s->nactive++] = lower;
    return LAY_OK;
}

/* The lowers where what is in `at` is looked for, opened in their order: found. own: its directory in the layer. */
static lay_code look_below(stand *s, size_t at, const char *name, int own, place *found, uint32_t *nfound, lay_error *err)
{
    spot *to = &s->spots[at];
    const spot *above = &s->spots[to->above];
    const lay_lower layer = lay_lower_directory(own);
    bool alone = lay_lower_is_opaque(&layer, own, s->lowers.userxattr);   /* what is in it below is hidden; what it is itself is not */
    bool last = false;
    to->first = (uint32_t)s->nactive;
    for (uint32_t i = 0; i < above->count && !last; i++) {
        const lay_lower *l = s->below[i].lower;
        lay_lower_dir in = l->ops->open(l, s->below[i].in, name, to->len);
        if (in < 0 && errno == ENOENT)
            continue;
        if (in < 0 && (errno == ENOTDIR || errno == ELOOP))
            break;                            /* a whiteout, or another thing that is none: what is below is hidden */
        if (in < 0)
            return fail_at(s, at, errno, "cannot open the directory below", err);
        found[(*nfound)++] = (place){ l, in };
        if (alone)
            break;
        if (add_active(s, s->active[above->first + i], err))
            return err->code;
        to->count++;
        last = lay_lower_is_opaque(l, in, s->lowers.userxattr);
    }
    if (to->count == above->count) {          /* the same ones */
        s->nactive = to->first;
        to->first = above->first;
    }
    return LAY_OK;
}

static lay_code settle_one(stand *s, size_t at, lay_error *err)
{
    spot *to = &s->spots[at];
    if (!s->spots[to->above].count)
        return LAY_OK;                        /* nothing is below that could show */
    if (go_to(s, to->above, err))
        return err->code;
    char name[NAME_MAX + 1];
    memcpy(name, to->name, to->len);
    name[to->len] = '\0';
    LAY_AUTO_FD int own = open_child(s->own, name);
    if (own < 0)
        return errno == ENOENT || errno == ENOTDIR || errno == ELOOP ? LAY_OK      /* a later entry took its place */
            : fail_at(s, at, errno, "cannot open the directory", err);
    LAY_AUTO_FREE place *found = malloc((s->lowers.count + 1) * sizeof *found);
    uint32_t nfound = 0;
    if (!found)
        return lay_fail_nomem(err);
    lay_code code = look_below(s, at, name, own, found, &nfound, err);
    if (!code && to->implied && nfound && lay_place_as(own, found[0].lower, found[0].in, err)) {
        code = err->code;
        lay_error ignored;
        if (!path_of(s, at, &ignored))
            lay_error_path(err, s->path.p, s->path.len);
    }
    if (!code && to->count) {                 /* what comes next lies in it, often */
        close_here(s);
        s->here = at;
        s->own = lay_steal_fd(&own);
        memcpy(s->below, found, to->count * sizeof *found);
        return LAY_OK;
    }
    for (uint32_t i = 0; i < nfound; i++)
        lay_lower_leave(found[i].lower, found[i].in);
    return code;
}

/* ---- an opaque mark at the top ------------------------------------------------------------------------------ */

static lay_code hide_name(const stand *s, const char *name, lay_error *err)
{
    struct stat st;
    if (mknodat(s->root_fd, name, S_IFCHR, makedev(0, 0)) == 0)
        return LAY_OK;
    if (errno != EEXIST || fstatat(s->root_fd, name, &st, AT_SYMLINK_NOFOLLOW) != 0)
        return lay_fail_os(err, errno, name, "cannot make a whiteout");
    if (!S_ISDIR(st.st_mode))
        return LAY_OK;
    LAY_AUTO_FD int fd = openat(s->root_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    return fd < 0 || fsetxattr(fd, lay_opaque_xattr(s->lowers.userxattr), "y", 1, 0) != 0 ? lay_fail_os(err, errno, name, "cannot mark the directory opaque") : LAY_OK;
}

static lay_code hide_all(const stand *s, lay_error *err)
{
    lay_code code = LAY_OK;
    for (size_t i = 0; i < s->lowers.count && !code; i++) {
        const lay_lower *l = &s->lowers.list[i];
        lay_names names;
        code = l->ops->list(l, l->root, &names, err);
        for (size_t k = 0; k < names.count && !code; k++)
            code = hide_name(s, names.text + names.list[k].at, err);
        lay_names_free(&names);
    }
    return code;
}

/* ---- all of it ------------------------------------------------------------------------------------------------ */

static lay_code add_spot(stand *s, spot one, lay_error *err)
{
    if (lay_grow(&s->spots, &s->cap, s->count, sizeof *s->spots, err))
        return err->code;
    s->spots[s->count++] = one;
    return LAY_OK;
}

static lay_code read_spots(stand *s, const char *p, size_t size, bool *opaque, lay_error *err)
{
    lay_stand_head head;
    lay_stand_node node;
    if (size < sizeof head)
        return lay_fail(err, LAY_E_STATE, "what is to be settled is cut");
    memcpy(&head, p, sizeof head);
    *opaque = head.opaque;
    for (size_t at = sizeof head; at < size; at += node.len) {
        if (size - at < sizeof node)
            return lay_fail(err, LAY_E_STATE, "what is to be settled is cut");
        memcpy(&node, p + at, sizeof node);
        at += sizeof node;
        if (node.len > size - at || !node.len || node.len > NAME_MAX || node.above >= s->count)
            return lay_fail(err, LAY_E_STATE, "what is to be settled cannot be read");
        if (add_spot(s, (spot){ .name = p + at, .above = node.above, .len = node.len, .implied = node.implied }, err))
            return err->code;
    }
    return LAY_OK;
}

static lay_code settle(stand *s, const char *p, size_t size, lay_error *err)
{
    bool opaque = false;
    size_t n = s->lowers.count;
    s->below = malloc((n + 1) * sizeof *s->below);
    if (!s->below)
        return lay_fail_nomem(err);
    if (n > UINT16_MAX)
        return lay_fail(err, LAY_E_STATE, "too many layers below");
    if (add_spot(s, (spot){ 0 }, err) || read_spots(s, p, size, &opaque, err))
        return err->code;
    if (opaque)
        return hide_all(s, err);              /* and so nothing is below that could show */
    for (size_t i = 0; i < n; i++)
        if (add_active(s, (uint16_t)i, err))
            return err->code;
    s->spots[0].count = (uint32_t)n;
    for (size_t i = 1; i < s->count; i++)
        if (settle_one(s, i, err))
            return err->code;
    return LAY_OK;
}

lay_code lay_stand_on(int root_fd, const void *unsettled, size_t size, const lay_shown *lowers, size_t n, unsigned flags, lay_error *err)
{
    stand s = { .root_fd = root_fd, .own = -1 };
    lay_error_clear(err);
    if (!lay_lowers_open(&s.lowers, lowers, n, flags & (LAY_APPLY_USERNS | LAY_APPLY_USERXATTR), err))
        settle(&s, unsettled, size, err);
    if (s.own >= 0)
        close_here(&s);
    free(s.below);
    free(s.spots);
    free(s.active);
    free(s.path.p);
    lay_lowers_free(&s.lowers);
    return err->code;
}
