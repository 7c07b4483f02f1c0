/* export_directory.c - a plain directory as a reproducible tar: the same tree gives the same bytes, wherever it lies.
 *
 * All names are listed first, so that they can be sorted by the bytes of their whole paths ("a", "a-b", "a/b"), which no
 * walk does; then each becomes an entry, as of any tree, but for what the options say. What is missing or changes
 * while it is read is an error: a tar without it would be another one.
 */
#include "base/grow.h"
#include "source/exclude.h"
#include "source/export.h"
#include "tree/sweep.h"
#include "tree/whiteout.h"

#include <dirent.h>
#include <fcntl.h>
#include <string.h>

/* Paths below the directory. */
typedef struct listing {
    lay_sweep sweep;           /* first */
    lay_exclude *exclude;
    lay_text directory;        /* the one that exclude was told of last */
    bool told;
    char *text; size_t len, cap;
    size_t *at; size_t count, at_cap;
} listing;

typedef struct directory_export {
    lay_export x;              /* first */
    lay_near near;
    listing list;              /* sorted; a twin only borrows it */
    bool borrowed;
    size_t next;
    lay_text prefix;           /* "" or "a/b/" */
} directory_export;

/* ---- the list ---------------------------------------------------------------------------------------------------- */

static lay_code add_path(listing *l, const char *name, lay_error *err)
{
    const lay_text *above = &l->sweep.path;
    size_t n = strlen(name), slash = above->len > 0;
    if (lay_grow(&l->at, &l->at_cap, l->count, sizeof *l->at, err) || lay_reserve(&l->text, &l->cap, l->len + above->len + n + 2, 1, err))
        return err->code;
    l->at[l->count++] = l->len;
    if (slash) {
        memcpy(l->text + l->len, above->p, above->len);
        l->text[l->len + above->len] = '/';
        l->len += above->len + 1;
    }
    memcpy(l->text + l->len, name, n + 1);
    l->len += n + 1;
    return LAY_OK;
}

static lay_code tell_directory(listing *l, lay_error *err)
{
    const lay_text *at = &l->sweep.path;
    bool same = l->told && l->directory.len == at->len && (at->len == 0 || memcmp(l->directory.p, at->p, at->len) == 0);
    if (same || l->exclude == NULL)
        return LAY_OK;
    lay_text_cut(&l->directory, 0);
    if (lay_text_add(&l->directory, at->len > 0 ? at->p : "", at->len, err))
        return err->code;
    lay_exclude_enter(l->exclude, l->directory.p);
    l->told = true;
    return LAY_OK;
}

static lay_code list_one(lay_sweep *s, int fd, const char *name, uint8_t type, lay_error *err)
{
    listing *l = (listing *)s;
    struct stat st;
    if (tell_directory(l, err))
        return err->code;
    if (lay_exclude_fits(l->exclude, name))
        return LAY_OK;
    if (type == DT_UNKNOWN) {
        if (fstatat(fd, name, &st, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT) < 0)
            return lay_sweep_fail(s, errno, name, "cannot stat it", err);
        type = S_ISDIR(st.st_mode) ? DT_DIR : DT_REG;
    }
    if (add_path(l, name, err))
        return err->code;
    if (lay_whiteout_kind(name, strlen(name)) != LAY_WH_PLAIN) {
        const char *path = l->text + l->at[l->count - 1];
        lay_fail(err, LAY_E_BREAKOUT, "a name that begins with " LAY_WH_PREFIX " would delete where the tar is unpacked: rename it, or exclude it");
        return lay_error_path(err, path, strlen(path));
    }
    return type == DT_DIR ? lay_sweep_wait(s, name, err) : LAY_OK;
}

static int by_bytes(const void *a, const void *b, void *text)
{
    return strcmp((const char *)text + *(const size_t *)a, (const char *)text + *(const size_t *)b);
}

static void listing_free(listing *l)
{
    lay_exclude_free(l->exclude);
    free(l->directory.p);
    free(l->text);
    free(l->at);
}

static lay_code list_all(listing *l, int root_fd, const lay_directory_options *o, lay_error *err)
{
    l->sweep = (lay_sweep){ .trail = LAY_TRAIL_NONE, .one = list_one };
    if (lay_exclude_new(&l->exclude, o->exclude, o->excludes, err) || lay_sweep_over(&l->sweep, root_fd, err))
        return err->code;
    if (l->count > 1)
        qsort_r(l->at, l->count, sizeof *l->at, by_bytes, l->text);
    return LAY_OK;
}

/* ---- the tar ----------------------------------------------------------------------------------------------------- */

static lay_code give(directory_export *d, const char *path, bool *given, lay_error *err)
{
    struct stat st;
    const char *slash = strrchr(path, '/');
    lay_text_cut(&d->x.name, 0);
    if (lay_text_add(&d->x.name, d->prefix.len > 0 ? d->prefix.p : "", d->prefix.len, err) || lay_text_add(&d->x.name, path, strlen(path), err))
        return err->code;
    int fd = lay_near_open(&d->near, path, slash ? (size_t)(slash - path) : 0, err);
    if (fd < 0)
        return err->code == LAY_OK ? lay_fail_os(err, errno, path, "cannot open the directory") : err->code;
    if (lay_export_entry(&d->x, fd, slash ? slash + 1 : path, &st, err)) {
        if (strcmp(err->path, d->x.name.p) == 0)      /* as it lies, not as the tar names it */
            memmove(err->path, err->path + d->prefix.len, strlen(err->path) + 1 - d->prefix.len);
        return err->code;
    }
    *given = st.st_mode != 0;
    return LAY_OK;
}

static lay_code directory_next(lay_export *x, bool *end, lay_error *err)
{
    directory_export *d = (directory_export *)x;
    bool given = false;
    while (!given && d->next < d->list.count)
        if (give(d, d->list.text + d->list.at[d->next++], &given, err))
            return err->code;
    *end = !given;
    return LAY_OK;
}

static void directory_done(lay_export *x)
{
    directory_export *d = (directory_export *)x;
    if (!d->borrowed)
        listing_free(&d->list);
    lay_near_free(&d->near);
    free(d->prefix.p);
}

static lay_code directory_twin(const lay_export *x, lay_export **out, lay_error *err);

static lay_code directory_new(directory_export **out, int root_fd, const char *prefix, size_t prefix_len, lay_error *err)
{
    directory_export *d = calloc(1, sizeof *d);
    if (d == NULL)
        return lay_fail_nomem(err);
    lay_export_init(&d->x, 0);
    d->x.next = directory_next;
    d->x.twin = directory_twin;
    d->x.done = directory_done;
    if (lay_near_init(&d->near, root_fd, err) || (prefix_len > 0 && lay_text_add(&d->prefix, prefix, prefix_len, err))) {
        lay_source_free(&d->x.source);
        return err->code;
    }
    *out = d;
    return LAY_OK;
}

static lay_code directory_twin(const lay_export *x, lay_export **out, lay_error *err)
{
    const directory_export *d = (const directory_export *)x;
    directory_export *twin = NULL;
    if (directory_new(&twin, d->near.root_fd, d->prefix.p, d->prefix.len, err))
        return err->code;
    twin->list = d->list;
    twin->borrowed = true;
    twin->x.plain = d->x.plain;
    twin->x.dry = true;
    *out = &twin->x;
    return LAY_OK;
}

lay_code lay_export_directory_open(lay_source **out, int root_fd, const lay_directory_options *o, lay_error *err)
{
    directory_export *d = NULL;
    lay_error_clear(err);
    if (directory_new(&d, root_fd, o->prefix, strlen(o->prefix), err))
        return err->code;
    d->x.plain = (lay_plain){ .on = true, .newest = o->newest, .uid = o->uid, .gid = o->gid };
    if (list_all(&d->list, root_fd, o, err) || (d->prefix.len > 0 && lay_text_add(&d->prefix, "/", 1, err))) {
        lay_source_free(&d->x.source);
        return err->code;
    }
    d->x.plain.prefix = d->prefix.len;
    *out = &d->x.source;
    return LAY_OK;
}
