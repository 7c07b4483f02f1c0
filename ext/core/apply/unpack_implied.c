/* unpack_implied.c - directories that the tar has no entry for, only names in them.
 *
 * What they are follows from the layers below. If a layer is unpacked alone, these are unknown: the
 * directories are noted for lay_stand_on. Where it is unpacked over what they show, each is there already and
 * is only claimed; or it is made, plain.
 */
#include "apply/unpack_implied.h"

#include "apply/unpack_marks.h"

#include "apply/stand.h"
#include "base/grow.h"
#include "tree/tree.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

lay_code lay_unpack_implied_made(lay_unpack *u, const char *path, size_t n, size_t from, lay_error *err)
{
    uint32_t id;
    if (u->merged)
        return LAY_OK;
    if (lay_paths_add(&u->paths, path, n, &id, err))
        return err->code;
    for (size_t end = n; end > from && id != LAY_PATHS_ROOT; id = u->paths.nodes[id].above) {
        if (lay_grow(&u->implied_ids, &u->implied_cap, u->nimplied, sizeof *u->implied_ids, err))
            return err->code;
        u->implied_ids[u->nimplied++] = id;
        end -= end > u->paths.nodes[id].len ? u->paths.nodes[id].len + 1 : end;
    }
    return LAY_OK;
}

enum { IMPLIED = 1, NEEDED = 2 };

lay_code lay_unpack_implied_left(lay_unpack *u, lay_error *err)
{
    if (!u->nimplied && !u->opaque)
        return LAY_OK;
    size_t count = u->paths.count;
    LAY_AUTO_FREE uint8_t *marks = calloc(count + 1, 1);
    LAY_AUTO_FREE uint32_t *as = calloc(count + 1, sizeof *as);
    if (!marks || !as)
        return lay_fail_nomem(err);
    for (size_t i = 0; i < u->nimplied; i++)
        marks[u->implied_ids[i]] = IMPLIED;
    for (size_t i = 0; i < u->ntimes; i++)
        marks[u->times[i].path] = 0;          /* it has an entry by now */
    for (size_t id = count; id-- > 1;)        /* what lies in a directory comes behind it */
        if (marks[id])
            marks[u->paths.nodes[id].above] |= NEEDED;
    lay_stand_head head = { .opaque = u->opaque };
    if (lay_text_add(&u->unsettled, &head, sizeof head, err))
        return err->code;
    uint32_t next = 1;
    for (size_t id = 1; id < count; id++) {
        const lay_path_node *node = &u->paths.nodes[id];
        if (!marks[id])
            continue;
        as[id] = next++;
        lay_stand_node out = { .above = as[node->above], .len = node->len, .implied = (marks[id] & IMPLIED) != 0 };
        if (lay_text_add(&u->unsettled, &out, sizeof out, err) || lay_text_add(&u->unsettled, u->paths.names.p + node->name, node->len, err))
            return err->code;
    }
    if (next == 1 && !u->opaque)
        u->unsettled.len = 0;
    return LAY_OK;
}

/* Down into a component, for looking only. */
static int step(int at, const char *name)
{
    return openat(at, name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
}

/* The names from `from` on, below the directory at. */
static lay_code claim_below(lay_unpack *u, int at, char *path, size_t n, size_t from, lay_error *err)
{
    LAY_AUTO_FD int here = -1;
    for (size_t to; from < n; from = to + 1) {
        for (to = from; to < n && path[to] != '/';)
            to++;
        char kept = path[to];
        path[to] = '\0';
        const char *name = path + from;
        struct stat st;
        bool own = lay_unpack_is(u, path, to, 0);
        int gone = own || fstatat(at, name, &st, AT_SYMLINK_NOFOLLOW) == 0 ? 0 : errno;
        if (gone == ENOENT && lay_unpack_is_hidden(u, path, to))
            return lay_fail_os(err, ENOTDIR, NULL, "cannot make the parent directory");     /* a whiteout is there */
        if (gone == ENOENT)
            return LAY_OK;                    /* it is made */
        if (gone)
            return lay_fail_os(err, gone, NULL, "cannot look at the parent directory");
        if (!own && !S_ISDIR(st.st_mode)) {
            u->removals++;
            return unlinkat(at, name, 0) != 0 ? lay_fail_os(err, errno, NULL, "cannot remove what is replaced") : LAY_OK;
        }
        struct timespec times[2];
        bool ignored;
        if (!own) {
            times[0] = st.st_atim;
            times[1] = st.st_mtim;
            if (lay_unpack_seen(u, path, to, &ignored, err) || lay_unpack_add_times(u, path, to, times, err))
                return err->code;
        }
        int next = step(at, name);
        if (next < 0)
            return LAY_OK;                    /* a link of this layer: it is followed, which asks again */
        lay_close_owner(&here);
        at = here = next;
        path[to] = kept;
    }
    return LAY_OK;
}

lay_code lay_unpack_claim(lay_unpack *u, const char *path, size_t n, lay_error *err)
{
    size_t from = 0, to = 0;
    for (bool own = true; own; from = own ? to + 1 : from) {
        if (from >= n)
            return LAY_OK;
        for (to = from; to < n && path[to] != '/';)
            to++;
        own = lay_unpack_is(u, path, to, 0);
    }
    LAY_AUTO_FREE char *copy = strndup(path, n);
    if (!copy)
        return lay_fail_nomem(err);
    struct stat st;
    if (!u->own_links) {                      /* on the way to a link nothing is claimed: the name lies elsewhere */
        int e = lay_tree_stat(u->root_fd, copy, n, &st) == 0 ? 0 : errno;
        if (e == ELOOP || (!e && S_ISLNK(st.st_mode)))
            return LAY_OK;
    }
    if (from)
        copy[from - 1] = '\0';
    LAY_AUTO_FD int at = lay_tree_open_dir(u->root_fd, copy, from ? from - 1 : 0, O_PATH);
    if (at < 0)
        return LAY_OK;                        /* through a link of this layer, or still to be made */
    if (from)
        copy[from - 1] = '/';
    return claim_below(u, at, copy, n, from, err);
}
