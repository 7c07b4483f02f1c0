/* union_names.c - the names that a directory of a union shows: the lists of its layers, merged, and whiteouts judged.
 *
 * Every layer's list is sorted; lists are merged two by two, so that a few huge ones cost no more than their length.
 */
#include "tree/whiteout.h"
#include "union/union_state.h"

#include <dirent.h>
#include <limits.h>
#include <string.h>

/* ---- taking them ---- */

static lay_code read_lists(lay_union_dir *d, lay_error *err)
{
    d->lists = calloc(d->nlisted + 1, sizeof *d->lists);
    if (d->lists == NULL)
        return lay_fail_nomem(err);
    for (size_t i = 0; i < d->nlisted; i++) {
        const lay_lower *l = lay_union_layer(d->of, d->parts[i].layer);
        lay_lower_dir in = lay_union_dir_part(d, i);
        if (in < 0 && !lay_tree_gone(errno))
            return lay_fail_os(err, errno, d->path_len > 0 ? d->path : ".", "cannot open the directory");
        if (in >= 0 && l->ops->list(l, in, &d->lists[i], err))
            return err->code;
        d->gone |= i == 0 && (in < 0 || d->lists[i].gone);
        d->nentries += d->lists[i].count;
    }
    return LAY_OK;
}

static size_t put_list(lay_union_entry *to, const lay_names *names, size_t part)
{
    for (size_t i = 0; i < names->count; i++) {
        const lay_name *n = &names->list[i];
        to[i] = (lay_union_entry){ .name = names->text + n->at, .ino = n->ino, .part = (uint32_t)part, .len = n->len, .type = n->type };
    }
    return names->count;
}

/* Of the same name the nearer one comes first. */
static bool after(const lay_union_entry *a, const lay_union_entry *b)
{
    int r = memcmp(a->name, b->name, a->len < b->len ? a->len : b->len);
    return r != 0 ? r > 0 : a->len > b->len;
}

static void merge_two(lay_union_entry *to, const lay_union_entry *a, size_t n, const lay_union_entry *b, size_t m)
{
    while (n > 0 && m > 0) {
        bool second = after(a, b);
        *to++ = second ? *b++ : *a++;
        *(second ? &m : &n) -= 1;
    }
    memcpy(to, n > 0 ? a : b, (n + m) * sizeof *to);
}

/* ends[i]: where run i of from ends. Leaves one run, in from or in spare, which change places. */
static void merge_runs(lay_union_entry **from, lay_union_entry **spare, size_t *ends, size_t runs)
{
    for (; runs > 1; runs = (runs + 1) / 2) {
        size_t start = 0;
        for (size_t i = 0; i < runs; i += 2) {
            size_t mid = ends[i], end = ends[i + 1 < runs ? i + 1 : i];
            merge_two(*spare + start, *from + start, mid - start, *from + mid, end - mid);
            ends[i / 2] = start = end;
        }
        lay_union_entry *other = *from;
        *from = *spare;
        *spare = other;
    }
}

static lay_code merge_lists(lay_union_dir *d, lay_error *err)
{
    LAY_AUTO_FREE lay_union_entry *spare = calloc(d->nlisted > 1 ? d->nentries + 1 : 1, sizeof *spare);
    LAY_AUTO_FREE size_t *ends = calloc(d->nlisted + 1, sizeof *ends);
    d->entries = calloc(d->nentries + 1, sizeof *d->entries);
    d->shown = calloc(d->nentries + 1, sizeof *d->shown);
    if (spare == NULL || ends == NULL || d->entries == NULL || d->shown == NULL)
        return lay_fail_nomem(err);
    size_t runs = 0, at = 0;
    for (size_t i = 0; i < d->nlisted; i++) {
        at += put_list(d->entries + at, &d->lists[i], i);
        free(lay_steal(d->lists[i].list));     /* the text stays */
        if (d->lists[i].count > 0)
            ends[runs++] = at;
    }
    merge_runs(&d->entries, &spare, ends, runs);
    for (size_t i = 0; i < d->nentries; i++) {
        lay_union_entry *e = &d->entries[i];
        e->again = i > 0 && e->len == e[-1].len && memcmp(e->name, e[-1].name, e->len) == 0;
        if (!e->again)
            d->shown[d->nshown++] = (uint32_t)i;
    }
    return LAY_OK;
}

/* ---- whiteouts ---- */

/* Is a device one, and of what kind is what the list did not say? What is gone meanwhile shows nothing, and says so. */
static lay_code look_at(lay_union_dir *d, lay_union_entry *e, bool *there, lay_error *err)
{
    struct stat st;
    const lay_lower *l = lay_union_layer(d->of, d->parts[e->part].layer);
    lay_lower_dir in = lay_union_dir_part(d, e->part);
    *there = in >= 0 && l->ops->stat(l, in, e->name, &st) == 0;
    if (*there)
        e->type = lay_stat_is_whiteout(st.st_mode, st.st_rdev) ? DT_WHT : (uint8_t)IFTODT(st.st_mode);
    if (*there || lay_tree_gone(errno))
        return LAY_OK;
    lay_text path = { 0 };
    int e_no = errno;
    if (!lay_text_set(&path, d->path, d->path_len, err) && !lay_text_push(&path, e->name, e->len, err))
        lay_fail_os(err, e_no, path.p, "cannot stat it");
    free(path.p);
    return err->code;
}

/* The directory of this path in a layer below the run; -1: it has none. *last: what lies under the layer is not seen there. */
static lay_lower_dir below_at(const lay_lower *l, const lay_union_dir *d, bool *last)
{
    lay_lower_dir in = l->root;
    for (const char *part = d->path, *end = d->path + d->path_len; part < end;) {
        char name[NAME_MAX + 1];
        const char *slash = memchr(part, '/', (size_t)(end - part));
        size_t len = (size_t)((slash != NULL ? slash : end) - part);
        memcpy(name, part, len);
        name[len] = '\0';
        lay_lower_dir next = l->ops->open(l, in, name, len);
        *last |= next < 0 ? errno != ENOENT : lay_lower_is_opaque(l, next, d->of->userxattr);
        lay_lower_leave(l, in);
        if (next < 0)
            return -1;
        in = next;
        part += len + 1;
    }
    return in;
}

/* Of the whiteouts that are shown, those of what nothing below the run has go. */
static lay_code judge(lay_union_dir *d, size_t whiteouts, lay_error *err)
{
    const lay_lowers *below = d->of->below;
    LAY_AUTO_FREE uint8_t *stays = calloc(d->nshown + 1, 1);        /* 1: it does; 2: it does not */
    if (stays == NULL)
        return lay_fail_nomem(err);
    bool last = d->cut;
    for (size_t i = 0; i < below->count && !last && whiteouts > 0; i++) {
        const lay_lower *l = &below->list[i];
        lay_lower_dir in = below_at(l, d, &last);
        for (size_t k = 0; in >= 0 && k < d->nshown; k++) {
            const lay_union_entry *e = &d->entries[d->shown[k]];
            if (e->type != DT_WHT || stays[k] != 0)
                continue;
            int hidden = lay_union_is_whiteout(l, in, e->name);
            if (hidden < 0 && errno != ENOENT) {
                lay_fail_os(err, errno, e->name, "cannot look it up in a lower directory");
                lay_lower_leave(l, in);
                return err->code;
            }
            if (hidden >= 0) {
                stays[k] = hidden == 0 || d->of->over_marks ? 1 : 2;
                whiteouts--;
            }
        }
        if (in >= 0)
            lay_lower_leave(l, in);
    }
    size_t kept = 0;
    for (size_t k = 0; k < d->nshown; k++)
        if (d->entries[d->shown[k]].type != DT_WHT || stays[k] == 1)
            d->shown[kept++] = d->shown[k];
    d->nshown = kept;
    return LAY_OK;
}

void lay_union_dir_forget(lay_union_dir *d)
{
    for (size_t i = 0; d->lists != NULL && i < d->nlisted; i++)
        lay_names_free(&d->lists[i]);
    free(lay_steal(d->lists));
    free(lay_steal(d->entries));
    free(lay_steal(d->shown));
    d->nentries = d->nshown = d->nlisted = 0;
    d->listed = d->gone = false;
}

static lay_code read_names(lay_union_dir *d, lay_error *err)
{
    if (read_lists(d, err) || merge_lists(d, err))
        return err->code;
    size_t whiteouts = 0, kept = 0;
    for (size_t k = 0; k < d->nshown; k++) {
        lay_union_entry *e = &d->entries[d->shown[k]];
        bool there = true;
        if ((e->type == DT_CHR || e->type == DT_UNKNOWN) && look_at(d, e, &there, err))
            return err->code;
        whiteouts += e->type == DT_WHT;
        if (there)
            d->shown[kept++] = d->shown[k];
    }
    d->nshown = kept;
    return whiteouts > 0 && d->of->below != NULL && d->nlisted == d->nparts ? judge(d, whiteouts, err) : LAY_OK;
}

lay_code lay_union_dir_read(lay_union_dir *d, lay_error *err) { return lay_union_dir_read_first(d, d->nparts, err); }

lay_code lay_union_dir_read_first(lay_union_dir *d, size_t first, lay_error *err)
{
    if (d->listed)
        return LAY_OK;
    if (d->refused != NULL)
        return lay_fail(err, LAY_E_UNSUPPORTED, "%s: only a mount can tell what is there", d->refused);
    d->nlisted = first;
    lay_code code = read_names(d, err);
    lay_union_parts_close(d, LAY_UNION_KEPT);
    if (code != LAY_OK) {
        lay_union_dir_forget(d);
        return code;
    }
    d->listed = true;
    return LAY_OK;
}
