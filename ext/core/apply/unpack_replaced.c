/* unpack_replaced.c - what a later entry of the same tar replaces, and where its bytes are then.
 *
 * A regular file or a directory in the way is renamed into a scratch directory and written down with the
 * entry that drove it out; so at the end the payload of every entry can still be found. Without a record
 * to complete (a writable layer) it is removed.
 */
#include "apply/unpack_replaced.h"

#include "apply/unpack_marks.h"

#include "base/grow.h"
#include "tree/tree.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

static lay_code open_stash(lay_unpack *u, lay_error *err)
{
    if (u->stash_fd >= 0)
        return LAY_OK;
    for (unsigned i = 0;; i++) {
        snprintf(u->stash_name, sizeof u->stash_name, ".replaced-%u", i);
        if (mkdirat(u->scratch_fd, u->stash_name, 0700) == 0)
            break;
        if (errno != EEXIST)
            return lay_fail_os(err, errno, u->stash_name, "cannot make a scratch directory");
    }
    u->stash_fd = openat(u->scratch_fd, u->stash_name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return u->stash_fd < 0 ? lay_fail_os(err, errno, u->stash_name, "cannot open the scratch directory") : LAY_OK;
}

/* Move or remove u->dir/u->base, which is of this kind. */
static lay_code displace(lay_unpack *u, mode_t mode, const lay_tar_entry *e, lay_error *err)
{
    bool directory = S_ISDIR(mode);
    u->replaced = true;
    u->removals++;
    u->reborn = !directory && e->type == '5' && !u->merged;
    if (directory && lay_unpack_forget(u, err))
        return err->code;
    if (u->scratch_fd < 0 || !(directory || S_ISREG(mode))) {
        if (directory ? lay_tree_remove(u->dir->fd, u->base, err) != LAY_OK : unlinkat(u->dir->fd, u->base, 0) != 0)
            return directory ? err->code : lay_fail_os(err, errno, NULL, "cannot remove what is replaced");
    } else {
        uint32_t path;
        if (open_stash(u, err) || lay_grow(&u->gone, &u->gone_cap, u->ngone, sizeof *u->gone, err)
            || lay_paths_add(&u->paths, u->path.p, u->path.len, &path, err))
            return err->code;
        char id[16];
        snprintf(id, sizeof id, "%u", (unsigned)u->ngone);
        if (renameat(u->dir->fd, u->base, u->stash_fd, id) != 0)
            return lay_fail_os(err, errno, NULL, "cannot move what is replaced");
        u->gone[u->ngone] = (displaced){ e->ordinal, path, (unsigned)u->ngone };
        u->ngone++;
        u->gone_sorted = false;
    }
    if (directory) {                          /* descriptors of what lies below point elsewhere now */
        lay_dir *keep = u->dir;
        lay_dirs_forget(&u->dirs);
        lay_dirs_remember(&u->dirs, keep);
    }
    return LAY_OK;
}

lay_code lay_unpack_make_way(lay_unpack *u, const lay_tar_entry *e, bool *kept, lay_error *err)
{
    struct stat st;
    *kept = false;
    if (lay_unpack_drain(u, err))
        return err->code;
    if (fstatat(u->dir->fd, u->base, &st, AT_SYMLINK_NOFOLLOW) != 0)
        return errno == ENOENT ? LAY_OK : lay_fail_os(err, errno, NULL, "cannot look at what is there");
    if (e->type == '5' && S_ISDIR(st.st_mode)) {
        *kept = true;
        return LAY_OK;
    }
    return displace(u, st.st_mode, e, err);
}

lay_code lay_unpack_note_alias(lay_unpack *u, uint64_t ordinal, lay_error *err)
{
    if (lay_grow(&u->aliases, &u->aliases_cap, u->naliases, sizeof *u->aliases, err))
        return err->code;
    uint32_t path;
    if (lay_paths_add(&u->paths, u->path.p, u->path.len, &path, err))
        return err->code;
    u->aliases[u->naliases++] = (alias){ ordinal, path };
    return LAY_OK;
}

void lay_unpack_free_replaced(lay_unpack *u)
{
    if (u->stash_fd >= 0) {
        lay_error ignored;
        close(u->stash_fd);
        lay_error_clear(&ignored);
        lay_tree_remove(u->scratch_fd, u->stash_name, &ignored);
    }
    free(u->gone);
    free(u->aliases);
}

bool lay_unpack_irregular(const lay_unpack *u) { return u->ngone || u->naliases; }

static int by_path(const void *a, const void *b)
{
    const displaced *x = a, *y = b;
    if (x->path != y->path)
        return x->path < y->path ? -1 : 1;
    return x->ordinal < y->ordinal ? -1 : x->ordinal > y->ordinal;
}

/* The first displacement of this very path after the entry, or NULL. */
static const displaced *displaced_after(const lay_unpack *u, uint32_t path, uint64_t ordinal)
{
    size_t low = 0, high = u->ngone;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        const displaced *d = &u->gone[mid];
        if (d->path < path || (d->path == path && d->ordinal <= ordinal))
            low = mid + 1;
        else
            high = mid;
    }
    return low < u->ngone && u->gone[low].path == path ? &u->gone[low] : NULL;
}

/* The earliest after the entry of all displacements of the path or of what it lies in; *end: of that part of it. */
static const displaced *first_displaced(const lay_unpack *u, const char *path, size_t n, uint64_t ordinal, size_t *end)
{
    const displaced *first = NULL;
    uint32_t at = LAY_PATHS_ROOT;
    for (size_t from = 0, to; from < n; from = to + 1) {
        for (to = from; to < n && path[to] != '/';)
            to++;
        if (!lay_paths_below(&u->paths, at, path + from, to - from, &at))
            break;
        const displaced *d = displaced_after(u, at, ordinal);
        if (d && (!first || d->ordinal < first->ordinal)) {
            first = d;
            *end = to;
        }
    }
    return first;
}

lay_code lay_unpack_locate(lay_unpack *u, uint64_t ordinal, const char *clean, size_t n, lay_where *where, lay_error *err)
{
    if (!u->gone_sorted && u->ngone) {
        qsort(u->gone, u->ngone, sizeof *u->gone, by_path);
        u->gone_sorted = true;
    }
    while (n && *clean == '/') {
        clean++;
        n--;
    }
    bool plain = true;
    size_t low = 0, high = u->naliases;       /* in the order of their ordinals */
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        if (u->aliases[mid].ordinal < ordinal)
            low = mid + 1;
        else
            high = mid;
    }
    if (low < u->naliases && u->aliases[low].ordinal == ordinal) {
        if (lay_paths_get(&u->paths, u->aliases[low].path, &u->path, err))
            return err->code;
        clean = u->path.p;
        n = u->path.len;
        plain = false;
    }
    size_t end = 0;
    const displaced *first = u->ngone ? first_displaced(u, clean, n, ordinal, &end) : NULL;
    if (!first) {
        if (lay_text_set(&u->tried, clean, n, err))
            return err->code;
        *where = (lay_where){ u->root_fd, u->tried.p, u->tried.len, plain };
        return LAY_OK;
    }
    char id[16];
    int len = snprintf(id, sizeof id, "%u", first->id);
    if (lay_text_set(&u->tried, id, (size_t)len, err) || lay_text_add(&u->tried, clean + end, n - end, err))
        return err->code;
    *where = (lay_where){ u->stash_fd, u->tried.p, u->tried.len, false };
    return LAY_OK;
}
