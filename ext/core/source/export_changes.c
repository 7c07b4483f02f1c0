/* export_changes.c - changes over a tree as a tar: sorted by path, a deletion is an empty .wh. file.
 *
 * Source: go-archive, changes.go (ExportChanges).
 */
#include "changes/changes.h"
#include "source/export.h"
#include "tree/whiteout.h"

#include <string.h>
#include <time.h>

typedef struct changes_export {
    lay_export x;              /* first */
    lay_near near;
    lay_changes list;          /* sorted; a twin only borrows it */
    bool borrowed;
    size_t next;
    int64_t now;               /* seconds, of deletions */
} changes_export;

/* Of what differs in its attributes alone only what has no place in the tar is noted, where they are not kept. */
static lay_code give_change(changes_export *c, int kind, bool *given, lay_error *err)
{
    lay_export *x = &c->x;
    const char *slash = memrchr(x->name.p, '/', x->name.len);
    size_t dir = slash ? (size_t)(slash - x->name.p) : 0;
    int fd = lay_near_open(&c->near, x->name.p, dir, err);
    *given = false;
    if (fd < 0 && err->code != LAY_OK)
        return err->code;
    if (fd < 0)
        return lay_tree_gone(errno) ? LAY_OK : lay_fail_os(err, errno, x->name.p, "cannot open the directory");
    const char *base = slash ? slash + 1 : x->name.p;
    if (kind == LAY_CHANGE_ATTRIBUTES && !x->keep)
        return lay_export_unchanged(x, fd, base, err);
    struct stat st;
    int64_t sockets = x->left.count[LAY_LEFT_SOCKET];
    if (lay_export_entry(x, fd, base, &st, err))
        return err->code;
    *given = st.st_mode != 0;
    /* a socket in another thing's place: where all is kept, that one does not come back */
    if (*given || !x->keep || kind != LAY_CHANGE_MODIFY || x->left.count[LAY_LEFT_SOCKET] == sockets)
        return LAY_OK;
    *given = true;
    return lay_export_deletion(x, c->now, err);
}

static bool came_before(const changes_export *c, const char *path)
{
    return c->next > 1 && strcmp(c->list.text + c->list.at[c->next - 2] + 1, path) == 0;
}

typedef enum mark { MARK_NONE, MARK_ABOVE, MARK_HERE } mark;

/* Whether a component of this path would be a mark in the tar, and whether it is the last one. */
static mark mark_in(const char *path)
{
    for (;;) {
        size_t n = strcspn(path, "/");
        if (lay_whiteout_kind(path, n) != LAY_WH_PLAIN)
            return path[n] == '\0' ? MARK_HERE : MARK_ABOVE;
        if (path[n] == '\0')
            return MARK_NONE;
        path += n + 1;
    }
}

static lay_code changes_next(lay_export *x, bool *end, lay_error *err)
{
    changes_export *c = (changes_export *)x;
    bool given = false;
    while (!given && c->next < c->list.count) {
        const char *change = c->list.text + c->list.at[c->next++];
        size_t n = strlen(change + 1);
        if (n < 2 || came_before(c, change + 1))
            continue;       /* the root; told already */
        lay_text_cut(&x->name, 0);
        if (lay_text_add(&x->name, change + 2, n - 1, err))
            return err->code;
        mark where = mark_in(x->name.p);
        if (where == MARK_ABOVE && x->skip_marks)
            continue;
        bool deleted = change[0] == LAY_CHANGE_DELETE;
        if (where != MARK_NONE ? lay_export_mark(x, err)
            : deleted ? lay_export_deletion(x, c->now, err) : give_change(c, change[0], &given, err))
            return err->code;
        given |= where == MARK_NONE && deleted;
    }
    *end = !given;
    return LAY_OK;
}

static void changes_done(lay_export *x)
{
    changes_export *c = (changes_export *)x;
    if (!c->borrowed) {
        free(c->list.text);
        free(c->list.at);
    }
    lay_near_free(&c->near);
}

static lay_code changes_twin(const lay_export *x, lay_export **out, lay_error *err);

static lay_code changes_new(changes_export **out, int root_fd, unsigned flags, lay_error *err)
{
    changes_export *c = calloc(1, sizeof *c);
    if (c == NULL)
        return lay_fail_nomem(err);
    lay_export_init(&c->x, flags);
    c->x.next = changes_next;
    c->x.twin = changes_twin;
    c->x.done = changes_done;
    if (lay_near_init(&c->near, root_fd, err)) {
        lay_source_free(&c->x.source);
        return err->code;
    }
    *out = c;
    return LAY_OK;
}

static lay_code changes_twin(const lay_export *x, lay_export **out, lay_error *err)
{
    const changes_export *c = (const changes_export *)x;
    changes_export *twin = NULL;
    if (changes_new(&twin, c->near.root_fd, lay_export_flags(x), err))
        return err->code;
    twin->list = c->list;
    twin->borrowed = true;
    twin->now = c->now;
    twin->x.dry = true;
    *out = &twin->x;
    return LAY_OK;
}

/* Where a path comes twice, what differs in its attributes alone is last. */
static int by_path(const void *a, const void *b, void *text)
{
    const char *x = (const char *)text + *(const size_t *)a, *y = (const char *)text + *(const size_t *)b;
    int r = strcmp(x + 1, y + 1);
    return r != 0 ? r : *x - *y;
}

static lay_code copy_list(lay_changes *to, const lay_changes *from, lay_error *err)
{
    if (from->count == 0)
        return LAY_OK;
    to->text = malloc(from->text_len);
    to->at = reallocarray(NULL, from->count, sizeof *to->at);
    if (to->text == NULL || to->at == NULL)
        return lay_fail_nomem(err);
    memcpy(to->text, from->text, from->text_len);
    memcpy(to->at, from->at, from->count * sizeof *to->at);
    to->count = from->count;
    qsort_r(to->at, to->count, sizeof *to->at, by_path, to->text);
    return LAY_OK;
}

lay_code lay_export_changes_open(lay_source **out, int root_fd, const lay_changes *c, unsigned flags, lay_error *err)
{
    changes_export *x = NULL;
    if (changes_new(&x, root_fd, flags & (LAY_EXPORT_KEEP | LAY_EXPORT_SKIP_MARKS), err))
        return err->code;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    x->now = now.tv_sec + (now.tv_nsec >= 500000000);
    if (copy_list(&x->list, c, err)) {
        lay_source_free(&x->x.source);
        return err->code;
    }
    *out = &x->x.source;
    return LAY_OK;
}
