/* exact.c - plan which payloads go into the record itself, then record the tar once more.
 *
 * The bytes of the second pass come from where they are now (the tree, or the scratch directory for what
 * was replaced) through the assembler, which checks each CRC and the DiffID: so a plan that is wrong
 * cannot go unnoticed. Rare, so simple: names that repeat are sorted in memory.
 */
#include "exact.h"

#include "assemble.h"
#include "tree.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define BLOCK (1u << 20)

typedef struct named { char *name; uint64_t ordinal; } named;

typedef struct plan {
    uint8_t *marks; uint64_t count;
    named *names; size_t nnames, cap;
} plan;

static void free_plan(plan *p)
{
    for (size_t i = 0; i < p->nnames; i++)
        free(p->names[i].name);
    free(p->names);
    free(p->marks);
}

static int by_name(const void *a, const void *b)
{
    const named *x = a, *y = b;
    int c = strcmp(x->name, y->name);
    return c ? c : x->ordinal < y->ordinal ? -1 : x->ordinal > y->ordinal;
}

static lay_code keep_name(plan *p, const char *name, size_t n, uint64_t ordinal, lay_error *err)
{
    if (p->nnames == p->cap) {
        size_t cap = p->cap ? 2 * p->cap : 64;
        named *grown = realloc(p->names, cap * sizeof *grown);
        if (!grown)
            return lay_fail_nomem(err);
        p->names = grown;
        p->cap = cap;
    }
    char *copy = strndup(name, n);
    if (!copy)
        return lay_fail_nomem(err);
    p->names[p->nnames++] = (named){ copy, ordinal };
    return LAY_OK;
}

/* The n-th file line of a first pass is entry n: nothing is left out there. */
static lay_code make_plan(const lay_exact *x, plan *p, lay_error *err)
{
    lay_split_reader *r;
    LAY_AUTO_FREE char *clean = NULL;
    size_t cap = 0;
    p->count = lay_split_entries(x->first);
    p->marks = calloc(p->count ? p->count : 1, 1);
    if (!p->marks)
        return lay_fail_nomem(err);
    if (lay_split_reader_open(&r, x->record_fd, err))
        return err->code;
    lay_code code = LAY_OK;
    for (uint64_t ordinal = 0; !code && ordinal < p->count;) {
        lay_split_line line;
        bool end;
        code = lay_split_reader_next(r, &line, &end, err);
        if (code || end)
            break;
        if (!line.is_file)
            continue;
        if (cap < line.name_len + 2) {
            char *grown = realloc(clean, line.name_len + 258);
            if (!grown) {
                code = lay_fail_nomem(err);
                break;
            }
            clean = grown;
            cap = line.name_len + 258;
        }
        size_t n = lay_path_clean(line.name, line.name_len, clean);
        clean[n] = '\0';
        if (lay_split_repeats(x->first, clean, n))
            code = keep_name(p, clean, n, ordinal, err);
        lay_where where;
        if (!code && x->tree && line.size) {
            code = lay_unpack_locate(x->tree, ordinal, clean, n, &where, err);
            if (!code && !where.plain)
                p->marks[ordinal] |= LAY_PLAN_INLINE;
        }
        ordinal++;
    }
    lay_split_reader_free(r);
    if (code)
        return code;
    if (p->nnames)
        qsort(p->names, p->nnames, sizeof *p->names, by_name);
    for (size_t i = 0; i + 1 < p->nnames; i++)
        if (!strcmp(p->names[i].name, p->names[i + 1].name))
            p->marks[p->names[i].ordinal] |= LAY_PLAN_UNNAMED | LAY_PLAN_INLINE;
    return LAY_OK;
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
    lay_code code = LAY_OK;
    while (!code && got) {
        code = lay_source_read(s, block, BLOCK, &got, err);
        if (!code && got)
            code = lay_split_add(second, block, got, err);
    }
    lay_source_free(s);
    return code;
}

static lay_code replay_again(const lay_exact *x, lay_split *second, uint8_t *block, lay_error *err)
{
    lay_sha256 sha;
    uint8_t diff_id[LAY_SHA256_SIZE];
    lay_sha256_start(&sha);
    for (int64_t at = 0; at < x->tar_size;) {
        int64_t left = x->tar_size - at;
        size_t want = left < (int64_t)BLOCK ? (size_t)left : BLOCK;
        const uint8_t *p = block;
        ssize_t n = (ssize_t)want;
        if (x->again.fd >= 0) {
            n = pread(x->again.fd, block, want, x->again.offset + at);
            if (n < 0 && errno == EINTR)
                continue;
            if (n < 0)
                return lay_fail_os(err, errno, NULL, "cannot read the tar again");
            if (n == 0)
                break;
        } else {
            p = x->again.p + at;
        }
        lay_sha256_add(&sha, p, (size_t)n);
        if (lay_split_add(second, p, (size_t)n, err))
            return err->code;
        at += n;
    }
    lay_sha256_end(&sha, diff_id);
    return memcmp(diff_id, x->diff_id, sizeof diff_id) ? lay_fail(err, LAY_E_TAR, "the tar changed while it was read") : LAY_OK;
}

static lay_code empty_file(int fd, lay_error *err)
{
    if (ftruncate(fd, 0) != 0 || lseek(fd, 0, SEEK_SET) != 0)
        return lay_fail_os(err, errno, NULL, "cannot rewrite the tar-split record");
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
            return lay_fail_os(err, errno, NULL, "cannot rewrite the tar-split record");
        if (n == 0)
            return LAY_OK;
        for (ssize_t done = 0; done < n;) {
            ssize_t w = write(to, block + done, (size_t)(n - done));
            if (w < 0 && errno == EINTR)
                continue;
            if (w < 0)
                return lay_fail_os(err, errno, NULL, "cannot rewrite the tar-split record");
            done += w;
        }
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

lay_code lay_exact_rewrite(const lay_exact *x, lay_error *err)
{
    plan p = { 0 };
    lay_split *second = NULL;
    LAY_AUTO_FREE uint8_t *block = malloc(BLOCK);
    /* Without a tree the first record has served once the plan is made; with one it is read on. */
    LAY_AUTO_FD int other = x->tree ? temporary_file(x->scratch_fd) : -1;
    int to = x->tree ? other : x->record_fd;
    lay_code code = LAY_OK;
    if (!block)
        code = lay_fail_nomem(err);
    else if (to < 0)
        code = lay_fail_os(err, errno, NULL, "cannot make a temporary file for the tar-split record");
    if (!code)
        code = make_plan(x, &p, err);
    if (!code && !x->tree)
        code = empty_file(x->record_fd, err);
    lay_plan marks = { p.marks, p.count };
    if (!code)
        code = lay_split_open(&second, to, x->gzip, &marks, err);
    if (!code)
        code = x->tree ? replay_tree(x, second, block, err) : replay_again(x, second, block, err);
    if (!code)
        code = lay_split_end(second, err);
    if (!code && x->tree)
        code = copy_back(other, x->record_fd, block, err);
    lay_split_free(second);
    free_plan(&p);
    return code;
}
