/* check.c - a stored layer against its record: every file's CRC-64, that every other entry is there, and
 * the whole DiffID.
 *
 * Iterator: unlike assemble it goes on after a damaged file, so that all of them are told. The DiffID is
 * only asked for when every file is as recorded: a damaged one changes it anyway.
 * The tar itself goes through a reader on its way, which knows links, directories and nodes. One that is
 * not found is only told at the end, and not when a later entry may have taken its parent's place.
 */
#include "digest.h"
#include "nameset.h"
#include "payload.h"
#include "split.h"
#include "text.h"
#include "tree.h"
#include "whiteout.h"

#include <fcntl.h>
#include <string.h>
#include <time.h>

#define BLOCK (1u << 20)

struct lay_check {
    int root_fd;
    lay_split_reader *reader;
    bool verify, damaged, ended;
    uint8_t diff_id[LAY_SHA256_SIZE];
    lay_sha256 sha;
    uint8_t *block;
    lay_split_line line;
    int fd; int64_t left; uint64_t crc;      /* the file being read */
    char *path; size_t path_cap;
    lay_parent parent;                       /* no longer than for one lay_check_next: the tree may change */
    lay_tar *tar;                            /* NULL: the bytes are no longer those of the tar */
    lay_nameset no_directories;              /* cleaned names of entries that are none */
    bool linked;                             /* some name went through one of those: say nothing of absence */
    int64_t done;                            /* bytes of files looked at */
    lay_text lost; size_t told;              /* NUL-terminated cleaned names that were not found */
};

lay_code lay_check_open(lay_check **out, int record_fd, int root_fd, const uint8_t *diff_id, lay_error *err)
{
    lay_error_clear(err);
    lay_check *c = calloc(1, sizeof *c);
    if (!c)
        return lay_fail_nomem(err);
    c->fd = -1;
    c->parent = (lay_parent)LAY_PARENT_NONE;
    c->verify = diff_id != NULL;
    if (diff_id)
        memcpy(c->diff_id, diff_id, sizeof c->diff_id);
    lay_sha256_start(&c->sha);
    c->block = malloc(BLOCK);
    c->tar = lay_tar_new();
    c->root_fd = fcntl(root_fd, F_DUPFD_CLOEXEC, 0);
    if (!c->block || !c->tar)
        lay_fail_nomem(err);
    else if (lay_nameset_init(&c->no_directories, err))
        ;
    else if (c->root_fd < 0)
        lay_fail_os(err, errno, NULL, "cannot keep the layer's directory");
    else if (lay_split_reader_open(&c->reader, record_fd, err) == LAY_OK) {
        *out = c;
        return LAY_OK;
    }
    lay_check_free(c);
    return err->code;
}

void lay_check_free(lay_check *c)
{
    if (!c)
        return;
    if (c->fd >= 0)
        close(c->fd);
    if (c->root_fd >= 0)
        close(c->root_fd);
    lay_split_reader_free(c->reader);
    lay_tar_free(c->tar);
    lay_nameset_free(&c->no_directories);
    free(c->lost.p);
    free(c->block);
    free(c->path);
    lay_parent_free(&c->parent);
    free(c);
}

static int64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* ---- what is no file with bytes ------------------------------------------------------------------ */

/* Is there what the entry made? *there true also where nobody could say. */
static lay_code is_there(lay_check *c, const char *path, size_t n, bool *there, lay_error *err)
{
    const char *slash = memrchr(path, '/', n);
    size_t base = slash ? (size_t)(slash - path) + 1 : 0, parent = base ? base - 1 : 0;
    lay_wh wh = lay_whiteout_kind(path + base, n - base);
    struct stat st;
    *there = true;
    if (wh == LAY_WH_BAD)
        return LAY_OK;
    LAY_AUTO_FD int dir = lay_tree_open_dir(c->root_fd, path, parent, 0);
    if (dir < 0) {
        *there = errno != ENOENT && errno != ENOTDIR;
        return *there && errno != ELOOP ? lay_fail_os(err, errno, path, "cannot look into the layer") : LAY_OK;
    }
    if (wh == LAY_WH_OPAQUE_DIR) {
        int trusted = lay_tree_hasxattr(dir, ".", LAY_OPAQUE_TRUSTED);
        *there = trusted != 0 || lay_tree_hasxattr(dir, ".", LAY_OPAQUE_USER) != 0;
        return LAY_OK;
    }
    const char *name = path + base + (wh == LAY_WH_NAME ? LAY_WH_PREFIX_LEN : 0);
    if (fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT) != 0)
        *there = errno != ENOENT;             /* a hidden name may have come back as something else */
    return LAY_OK;
}

/* In a layer with names through links the path of an entry is not where it went: no word on absence then. */
static bool goes_through_no_directory(const lay_check *c, const char *path, size_t n)
{
    for (size_t i = 1; i < n; i++)
        if (path[i] == '/' && lay_nameset_has(&c->no_directories, lay_nameset_hash(&c->no_directories, path, i)))
            return true;
    return false;
}

static lay_code see_entry(lay_check *c, const lay_tar_entry *e, lay_error *err)
{
    size_t n;
    bool there, seen;
    if (e->type == 'g')
        return LAY_OK;
    if (lay_payload_path(e->name, e->name_len, &c->path, &c->path_cap, &n, err))
        return err->code;
    if (n == 1 && c->path[0] == '.')
        return LAY_OK;
    if (goes_through_no_directory(c, c->path, n))
        c->linked = true;
    if (e->type != '5' && lay_nameset_add(&c->no_directories, lay_nameset_hash(&c->no_directories, c->path, n), &seen, err))
        return err->code;
    if (e->type == '3' || e->type == '4')
        return LAY_OK;                        /* left out in a user namespace */
    if ((e->type == '0' && e->stored) || is_there(c, c->path, n, &there, err) || there)
        return err->code;                     /* a file with bytes is looked at when they are wanted */
    return lay_text_add(&c->lost, c->path, n + 1, err);
}

static void stop_looking(lay_check *c)
{
    lay_tar_free(c->tar);
    c->tar = NULL;
}

/* The next bytes of the tar. */
static lay_code see(lay_check *c, const uint8_t *p, size_t n, lay_error *err)
{
    lay_tar_item item;
    lay_tar_event event = LAY_TAR_NEED;
    lay_code code = LAY_OK;
    if (!c->tar)
        return LAY_OK;
    lay_tar_feed(c->tar, p, n);
    while (!code && (event = lay_tar_next(c->tar, &item, err)) > LAY_TAR_NEED)
        if (event == LAY_TAR_ENTRY)
            code = see_entry(c, item.entry, err);
    if (event == LAY_TAR_BAD) {
        stop_looking(c);
        lay_error_clear(err);
    }
    return code;
}

/* The reader goes on over payload that cannot be had; a record that lies of its size is no tar any more. */
static void see_nothing(lay_check *c, int64_t n)
{
    if (n > 0 && c->tar && !lay_tar_skip(c->tar, n))
        stop_looking(c);
}

static int found(lay_check *c, int kind)
{
    c->damaged = true;
    if (c->fd >= 0) {
        c->done += c->left;
        see_nothing(c, c->left);
        close(c->fd);
    }
    c->fd = -1;
    return kind;
}

/* The next name that is lost and has no excuse. */
static bool tell_lost(lay_check *c, lay_error *problem)
{
    while (!c->linked && c->told < c->lost.len) {
        const char *path = c->lost.p + c->told;
        size_t n = strlen(path);
        c->told += n + 1;
        if (goes_through_no_directory(c, path, n))
            continue;                         /* a later entry stands where its parent was */
        lay_fail(problem, LAY_E_MISMATCH, "\"%.400s\" of the layer is gone", path);
        lay_error_path(problem, path, n);
        return true;
    }
    return false;
}

/* ---- steps ------------------------------------------------------------------------------------------ */

/* One step: a block of the open file, or the next line. Gives the kind of problem met. */
static int step(lay_check *c, lay_error *problem)
{
    if (c->fd >= 0) {
        ssize_t n = read(c->fd, c->block, BLOCK);
        if (n < 0 && errno == EINTR)
            return LAY_PROBLEM_NONE;
        if (n < 0) {
            lay_fail_os(problem, errno, NULL, "cannot read a file of the layer");
            lay_error_path(problem, c->line.name, c->line.name_len);
            return found(c, LAY_PROBLEM_CONTENT);
        }
        c->left -= n;
        c->done += n;
        c->crc = lay_crc64_add(c->crc, c->block, (size_t)n);
        lay_sha256_add(&c->sha, c->block, (size_t)n);
        if (see(c, c->block, (size_t)n, problem))
            return found(c, LAY_PROBLEM_CONTENT);
        if (n && c->left > 0)
            return LAY_PROBLEM_NONE;
        if (c->left || !c->line.has_crc || c->crc != c->line.crc) {
            lay_payload_differs(c->line.name, c->line.name_len, problem);
            return found(c, LAY_PROBLEM_CONTENT);
        }
        close(c->fd);
        c->fd = -1;
        return LAY_PROBLEM_NONE;
    }
    bool end = false;
    if (lay_split_reader_next(c->reader, &c->line, &end, problem)) {
        c->ended = true;
        return found(c, LAY_PROBLEM_RECORD);
    }
    if (end && tell_lost(c, problem))
        return found(c, LAY_PROBLEM_MISSING);
    if (end) {
        c->ended = true;
        uint8_t got[LAY_SHA256_SIZE];
        lay_sha256_end(&c->sha, got);
        if (!c->verify || c->damaged || !memcmp(got, c->diff_id, sizeof got))
            return LAY_PROBLEM_NONE;
        lay_fail(problem, LAY_E_MISMATCH, "the layer's tar no longer hashes to its DiffID, though every file is as recorded");
        return found(c, LAY_PROBLEM_CONTENT);
    }
    if (!c->line.is_file) {
        lay_sha256_add(&c->sha, c->line.p, c->line.n);
        return see(c, c->line.p, c->line.n, problem) ? found(c, LAY_PROBLEM_CONTENT) : LAY_PROBLEM_NONE;
    }
    if (!c->line.size)
        return LAY_PROBLEM_NONE;
    size_t n;
    if (!lay_payload_path(c->line.name, c->line.name_len, &c->path, &c->path_cap, &n, problem))
        c->fd = lay_payload_open(c->root_fd, &c->parent, c->path, n, c->line.name, c->line.name_len, c->line.size, problem);
    if (c->fd < 0) {
        c->done += c->line.size;
        see_nothing(c, c->line.size);
        return found(c, problem->sys_errno == ENOENT || problem->sys_errno == ENOTDIR ? LAY_PROBLEM_MISSING : LAY_PROBLEM_CONTENT);
    }
    c->left = c->line.size;
    c->crc = 0;
    return LAY_PROBLEM_NONE;
}

int64_t lay_check_bytes(const lay_check *c) { return c->done; }

lay_code lay_check_next(lay_check *c, int max_ms, int *kind, int *end, lay_error *problem, lay_error *err)
{
    int64_t stop = now_ms() + max_ms;
    *kind = LAY_PROBLEM_NONE;
    for (unsigned i = 1; !c->ended && *kind == LAY_PROBLEM_NONE; i++) {
        lay_error_clear(problem);
        *kind = step(c, problem);
        if (*kind != LAY_PROBLEM_NONE && problem->code == LAY_E_NOMEM)
            return lay_fail_nomem(err);
        if (i % 64 == 0 && now_ms() >= stop)
            break;
    }
    lay_parent_close(&c->parent);
    *end = c->ended;
    return LAY_OK;
}
