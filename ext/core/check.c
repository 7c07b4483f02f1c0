/* check.c - a stored layer against its record: every file's CRC-64, then the whole DiffID.
 *
 * Iterator: unlike assemble it goes on after a damaged file, so that all of them are told. The DiffID is
 * only asked for when every file is as recorded: a damaged one changes it anyway.
 */
#include "assemble.h"
#include "digest.h"
#include "split.h"

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
};

lay_code lay_check_open(lay_check **out, int record_fd, int root_fd, const uint8_t *diff_id, lay_error *err)
{
    lay_error_clear(err);
    lay_check *c = calloc(1, sizeof *c);
    if (!c)
        return lay_fail_nomem(err);
    c->fd = -1;
    c->verify = diff_id != NULL;
    if (diff_id)
        memcpy(c->diff_id, diff_id, sizeof c->diff_id);
    lay_sha256_start(&c->sha);
    c->block = malloc(BLOCK);
    c->root_fd = fcntl(root_fd, F_DUPFD_CLOEXEC, 0);
    if (!c->block)
        lay_fail_nomem(err);
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
    free(c->block);
    free(c->path);
    free(c);
}

static int64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static int found(lay_check *c, int kind)
{
    c->damaged = true;
    if (c->fd >= 0)
        close(c->fd);
    c->fd = -1;
    return kind;
}

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
        c->crc = lay_crc64_add(c->crc, c->block, (size_t)n);
        lay_sha256_add(&c->sha, c->block, (size_t)n);
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
        return LAY_PROBLEM_NONE;
    }
    if (!c->line.size)
        return LAY_PROBLEM_NONE;
    size_t n;
    if (!lay_payload_path(c->line.name, c->line.name_len, &c->path, &c->path_cap, &n, problem))
        c->fd = lay_payload_open(c->root_fd, c->path, n, c->line.name, c->line.name_len, c->line.size, problem);
    if (c->fd < 0)
        return found(c, problem->sys_errno == ENOENT || problem->sys_errno == ENOTDIR ? LAY_PROBLEM_MISSING : LAY_PROBLEM_CONTENT);
    c->left = c->line.size;
    c->crc = 0;
    return LAY_PROBLEM_NONE;
}

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
    *end = c->ended;
    return LAY_OK;
}
