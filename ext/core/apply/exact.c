/* exact.c - plan which payloads go into the record itself, then record the tar once more.
 *
 * The bytes of the second pass come from where they are now (the tree, or the scratch directory for what
 * was replaced) through the assembler, which checks each CRC and the DiffID: so a plan that is wrong
 * cannot go unnoticed. Where there is no tree, the tar is read once more and the names alone say what tree
 * it would make. Rare, so simple: hashes of the names are sorted in memory.
 */
#include "apply/exact.h"

#include "source/assemble.h"
#include "base/grow.h"
#include "base/text.h"
#include "base/write_all.h"
#include "tree/tree.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define BLOCK (1u << 20)

/* An entry, by hashes of its name and of the place that name stands for: 24 bytes however long the name. Two names with
 * one hash would only put the earlier one's payload into the record for nothing. */
typedef struct named { uint64_t name, place, ordinal; } named;

typedef struct plan {
    uint8_t *marks; uint64_t count;
    named *names; size_t nnames, cap;
} plan;

static int by(uint64_t a, uint64_t b, uint64_t ordinal_a, uint64_t ordinal_b)
{
    return a != b ? (a < b ? -1 : 1) : ordinal_a < ordinal_b ? -1 : ordinal_a > ordinal_b;
}

static int by_name(const void *a, const void *b)
{
    const named *x = a, *y = b;
    return by(x->name, y->name, x->ordinal, y->ordinal);
}

static int by_place(const void *a, const void *b)
{
    const named *x = a, *y = b;
    return by(x->place, y->place, x->ordinal, y->ordinal);
}

static void sort(plan *p, int (*order)(const void *, const void *))
{
    if (p->nnames)
        qsort(p->names, p->nnames, sizeof *p->names, order);
}

static lay_code keep_name(plan *p, const lay_split *first, const lay_text *clean, uint64_t ordinal, lay_error *err)
{
    if (lay_grow(&p->names, &p->cap, p->nnames, sizeof *p->names, err))
        return err->code;
    p->names[p->nnames++] = (named){ lay_split_name_hash(first, clean->p, clean->len), lay_split_place_hash(first, clean->p, clean->len), ordinal };
    return LAY_OK;
}

/* Room for a cleaned name; n bytes and a NUL. */
static lay_code clean_into(lay_text *clean, const char *name, size_t n, lay_error *err)
{
    if (lay_text_room(clean, n + 2, err))
        return err->code;
    lay_text_cut(clean, lay_path_clean(name, n, clean->p));
    return LAY_OK;
}

/* Of several lines with one name only the last stays. */
static void unname_earlier(plan *p)
{
    sort(p, by_name);
    for (size_t i = 0; i + 1 < p->nnames; i++)
        if (p->names[i].name == p->names[i + 1].name)
            p->marks[p->names[i].ordinal] |= LAY_PLAN_UNNAMED | LAY_PLAN_INLINE;
}

static lay_code plan_line(const lay_exact *x, plan *p, lay_text *clean, const lay_split_line *line, uint64_t ordinal, lay_error *err)
{
    lay_where where = { .plain = true };
    if (clean_into(clean, line->name, line->name_len, err)
        || (lay_split_repeats(x->first, clean->p, clean->len) && keep_name(p, x->first, clean, ordinal, err))
        || (line->size && lay_unpack_locate(x->tree, ordinal, clean->p, clean->len, &where, err)))
        return err->code;
    if (!where.plain)
        p->marks[ordinal] |= LAY_PLAN_INLINE;
    return LAY_OK;
}

/* The n-th file line of a first pass is entry n: nothing is left out there. */
static lay_code plan_with_tree(const lay_exact *x, plan *p, lay_error *err)
{
    lay_split_reader *r;
    LAY_AUTO_FREE lay_text clean = { 0 };
    lay_split_line line;
    bool end = false;
    if (lay_split_reader_open(&r, x->record_fd, err))
        return err->code;
    for (uint64_t ordinal = 0; ordinal < p->count && !lay_split_reader_next(r, &line, &end, err) && !end; ordinal += line.is_file)
        if (line.is_file && plan_line(x, p, &clean, &line, ordinal, err))
            break;
    lay_split_reader_free(r);
    if (!err->code)
        unname_earlier(p);
    return err->code;
}

/* ---- without a tree: what tree would this tar make? ---- */

/* The payload of a place is that of its last entry. */
static void inline_earlier(plan *p)
{
    sort(p, by_place);
    for (size_t i = 0; i + 1 < p->nnames; i++)
        if (p->names[i].place == p->names[i + 1].place)
            p->marks[p->names[i].ordinal] |= LAY_PLAN_INLINE;
}

/* The next bytes of the tar again, at most BLOCK of them. */
static lay_code again_bytes(const lay_exact *x, int64_t at, uint8_t *block, const uint8_t **p, size_t *n, lay_error *err)
{
    int64_t left = x->tar_size - at;
    *n = left < (int64_t)BLOCK ? (size_t)left : BLOCK;
    *p = block;
    if (x->again.fd < 0) {
        *p = x->again.p + at;
        return LAY_OK;
    }
    ssize_t got;
    do
        got = pread(x->again.fd, block, *n, x->again.offset + at);
    while (got < 0 && errno == EINTR);
    if (got < 0)
        return lay_fail_fd(err, errno, x->again.fd, "cannot read the tar again");
    *n = (size_t)got;
    return LAY_OK;
}

static lay_code plan_entry(const lay_exact *x, plan *p, lay_text *clean, const lay_tar_entry *e, lay_error *err)
{
    if (e->ordinal >= p->count)
        return LAY_OK;
    if (clean_into(clean, e->name, e->name_len, err) || keep_name(p, x->first, clean, e->ordinal, err))
        return err->code;
    if (lay_split_is_below_file(x->first, clean->p, clean->len))      /* the names do not say where it went */
        p->marks[e->ordinal] |= LAY_PLAN_INLINE;
    return LAY_OK;
}

static lay_code plan_alone(const lay_exact *x, plan *p, uint8_t *block, lay_error *err)
{
    LAY_AUTO_FREE lay_text clean = { 0 };
    lay_tar *tar = lay_tar_new();
    if (!tar)
        return lay_fail_nomem(err);
    lay_tar_limit(tar, x->limits);
    size_t n = 1;
    for (int64_t at = 0; !err->code && at < x->tar_size && n; at += (int64_t)n) {
        const uint8_t *bytes;
        lay_tar_item item;
        lay_tar_event event;
        if (again_bytes(x, at, block, &bytes, &n, err))
            break;
        lay_tar_feed(tar, bytes, n);
        while (!err->code && (event = lay_tar_next(tar, &item, err)) > LAY_TAR_NEED)
            if (event == LAY_TAR_ENTRY)
                plan_entry(x, p, &clean, item.entry, err);
    }
    lay_tar_free(tar);
    if (err->code)
        return err->code;
    inline_earlier(p);
    unname_earlier(p);
    return LAY_OK;
}

static lay_code make_plan(const lay_exact *x, plan *p, uint8_t *block, lay_error *err)
{
    p->count = lay_split_entries(x->first);
    p->marks = calloc(p->count ? p->count : 1, 1);
    if (!p->marks)
        return lay_fail_nomem(err);
    return x->tree ? plan_with_tree(x, p, err) : plan_alone(x, p, block, err);
}

static lay_code find_payload(void *context, uint64_t ordinal, const char *name, size_t len, int *root_fd, const char **path, size_t *path_len, lay_error *err)
{
    lay_unpack *u = context;
    lay_where where;
    LAY_AUTO_FREE char *clean = malloc(len + 2);
    if (!clean)
        return lay_fail_nomem(err);
    size_t n = lay_path_clean(name, len, clean);
    clean[n] = '\0';
    if (lay_unpack_locate(u, ordinal, clean, n, &where, err))
        return err->code;
    *root_fd = where.root_fd;
    *path = where.path;
    *path_len = where.path_len;
    return LAY_OK;
}

static lay_code replay_tree(const lay_exact *x, lay_split *second, uint8_t *block, lay_error *err)
{
    lay_source *s;
    if (lay_assemble_open_at(&s, x->record_fd, find_payload, x->tree, x->diff_id, err))
        return err->code;
    size_t got = 1;
    while (got && !lay_source_read(s, block, BLOCK, &got, err))
        if (got && lay_split_add(second, block, got, err))
            break;
    lay_source_free(s);
    return err->code;
}

static lay_code replay_again(const lay_exact *x, lay_split *second, uint8_t *block, lay_error *err)
{
    lay_sha256 sha;
    uint8_t diff_id[LAY_SHA256_SIZE];
    lay_sha256_start(&sha);
    size_t n = 1;
    for (int64_t at = 0; at < x->tar_size && n; at += (int64_t)n) {
        const uint8_t *p;
        if (again_bytes(x, at, block, &p, &n, err))
            return err->code;
        lay_sha256_add(&sha, p, n);
        if (lay_split_add(second, p, n, err))
            return err->code;
    }
    lay_sha256_end(&sha, diff_id);
    return memcmp(diff_id, x->diff_id, sizeof diff_id) ? lay_fail(err, LAY_E_TAR, "the tar changed while it was read") : LAY_OK;
}

static lay_code empty_file(int fd, lay_error *err)
{
    if (ftruncate(fd, 0) != 0 || lseek(fd, 0, SEEK_SET) != 0)
        return lay_fail_fd(err, errno, fd, "cannot rewrite the tar-split record");
    return LAY_OK;
}

static lay_code copy_back(int from, int to, uint8_t *block, lay_error *err)
{
    if (empty_file(to, err))
        return err->code;
    for (int64_t at = 0;;) {
        ssize_t n = pread(from, block, BLOCK, at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return lay_fail_fd(err, errno, from, "cannot rewrite the tar-split record");
        if (n == 0)
            return LAY_OK;
        int e = lay_write_all(to, block, (size_t)n, -1);
        if (e)
            return lay_fail_fd(err, e, to, "cannot rewrite the tar-split record");
        at += n;
    }
}

static int temporary_file(int dir_fd)
{
    int fd = openat(dir_fd, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (fd >= 0 || (errno != EOPNOTSUPP && errno != EISDIR))
        return fd;
    char name[32];
    for (unsigned i = 0;; i++) {
        snprintf(name, sizeof name, ".record-%u", i);
        fd = openat(dir_fd, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        if (fd >= 0)
            unlinkat(dir_fd, name, 0);
        if (fd >= 0 || errno != EEXIST)
            return fd;
    }
}

static lay_code record_again(const lay_exact *x, int to, const lay_plan *marks, uint8_t *block, lay_error *err)
{
    lay_split *second;
    if (lay_split_open(&second, to, x->gzip, marks, err))
        return err->code;
    lay_split_limit(second, x->limits);
    if (!(x->tree ? replay_tree(x, second, block, err) : replay_again(x, second, block, err)))
        lay_split_end(second, err);
    lay_split_free(second);
    return err->code;
}

static lay_code rewrite(const lay_exact *x, plan *p, lay_error *err)
{
    LAY_AUTO_FREE uint8_t *block = malloc(BLOCK);
    if (!block)
        return lay_fail_nomem(err);
    /* Without a tree the first record has served once the plan is made; with one it is read on. */
    LAY_AUTO_FD int other = x->tree ? temporary_file(x->scratch_fd) : -1;
    if (x->tree && other < 0)
        return lay_fail_fd(err, errno, x->scratch_fd, "cannot make a temporary file for the tar-split record");
    if (make_plan(x, p, block, err) || (!x->tree && empty_file(x->record_fd, err)))
        return err->code;
    lay_plan marks = { p->marks, p->count };
    if (record_again(x, x->tree ? other : x->record_fd, &marks, block, err))
        return err->code;
    return x->tree ? copy_back(other, x->record_fd, block, err) : LAY_OK;
}

lay_code lay_exact_rewrite(const lay_exact *x, lay_error *err)
{
    plan p = { 0 };
    rewrite(x, &p, err);
    free(p.names);
    free(p.marks);
    return err->code;
}
