/* unpack_implied.c - directories that the tar has no entry for, only names in them.
 *
 * What they are follows from the layers below. Where a layer is unpacked alone, nobody knows these yet: the
 * directories are written down, for lay_stand_on. Where it is unpacked over what they show, each is there already and
 * is only claimed; or it is made, plain.
 */
#include "unpack_state.h"

#include "tree.h"

#include <string.h>
#include <sys/stat.h>

/* One way down, some of it implied; the path follows, with a NUL. lay_stand_on reads the same. */
typedef struct run { uint32_t from, n; } run;

static lay_code add_run(lay_text *to, const char *path, size_t n, size_t from, lay_error *err)
{
    run r = { (uint32_t)from, (uint32_t)n };
    return lay_text_add(to, &r, sizeof r, err) || lay_text_add(to, path, n, err) || lay_text_add(to, "", 1, err) ? err->code : LAY_OK;
}

lay_code lay_unpack_implied_made(lay_unpack *u, const char *path, size_t n, size_t from, lay_error *err)
{
    return u->merged ? LAY_OK : add_run(&u->implied_runs, path, n, from, err);
}

lay_code lay_unpack_implied_left(lay_unpack *u, lay_error *err)
{
    if (u->opaque && add_run(&u->unsettled, "", 0, 0, err))
        return err->code;
    for (size_t at = 0; at < u->implied_runs.len;) {
        run r;
        memcpy(&r, u->implied_runs.p + at, sizeof r);
        const char *path = u->implied_runs.p + at + sizeof r;
        at += sizeof r + r.n + 1;
        size_t first = r.n;                   /* where the present row of implied ones begins; r.n: there is none */
        for (size_t from = r.from, to; from < r.n; from = to + 1) {
            for (to = from; to < r.n && path[to] != '/';)
                to++;
            bool has_entry = lay_unpack_is(u, path, to, LAY_NAME_ENTRY);
            if (!has_entry && first == r.n)
                first = from;
            if (first == r.n || (!has_entry && to < r.n))
                continue;
            size_t end = has_entry ? from - 1 : to;
            if (first < end && add_run(&u->unsettled, path, end, first, err))
                return err->code;
            first = r.n;
        }
    }
    return LAY_OK;
}

/* Remove what is at path, and is no directory. */
static lay_code remove_at(lay_unpack *u, const char *path, size_t n, lay_error *err)
{
    char name[NAME_MAX + 1];
    size_t base = lay_unpack_base(path, n);
    LAY_AUTO_FD int fd = lay_tree_open_dir(u->root_fd, path, base ? base - 1 : 0, 0);
    if (fd < 0)
        return lay_fail_os(err, errno, NULL, "cannot open the parent directory");
    memcpy(name, path + base, n - base);
    name[n - base] = '\0';
    return unlinkat(fd, name, 0) != 0 ? lay_fail_os(err, errno, NULL, "cannot remove what is replaced") : LAY_OK;
}

lay_code lay_unpack_claim(lay_unpack *u, const char *path, size_t n, lay_error *err)
{
    LAY_AUTO_FREE char *part = n ? strndup(path, n) : NULL;
    if (n && !part)
        return lay_fail_nomem(err);
    struct stat st;
    if (part && !u->own_links) {              /* on the way to a link nothing is claimed: the name lies elsewhere */
        int e = lay_tree_stat(u->root_fd, part, n, &st) == 0 ? 0 : errno;
        if (e == ELOOP || (!e && S_ISLNK(st.st_mode)))
            return LAY_OK;
    }
    for (size_t i = 1; i <= n; i++) {
        if ((i < n && path[i] != '/') || lay_unpack_is(u, path, i, 0))
            continue;
        part[i] = '\0';
        int gone = lay_tree_stat(u->root_fd, part, i, &st) == 0 ? 0 : errno;
        part[i] = i < n ? path[i] : '\0';
        if (gone == ENOENT && lay_unpack_is_hidden(u, path, i))
            return lay_fail_os(err, ENOTDIR, NULL, "cannot make the parent directory");     /* a whiteout is there */
        if (gone == ENOENT || gone == ELOOP || gone == ENOTDIR)
            return LAY_OK;                    /* it is made, or the links are followed, which asks again */
        if (gone)
            return lay_fail_os(err, gone, NULL, "cannot look at the parent directory");
        if (!S_ISDIR(st.st_mode))
            return remove_at(u, path, i, err);
        struct timespec times[2] = { st.st_atim, st.st_mtim };
        bool ignored;
        if (lay_unpack_seen(u, path, i, &ignored, err) || lay_unpack_add_times(u, path, i, times, err))
            return err->code;
    }
    return LAY_OK;
}
