/* assemble.c - recorded framing and the files of a tree become the first tar again.
 *
 * Pull: each read copies framing and file bytes straight into the caller's buffer; every file's CRC-64 is
 * checked when it has been read whole, and the DiffID when all was read from the first byte to the end.
 * The hash is the long pole of large files: it is no part of reading, so that source.c can have it follow in a
 * thread. Opening is that of small ones: sizes are recorded, so each has its place in the buffer before it is read,
 * and the thread that hashes reads some of them there while it has nothing to hash (gather.c).
 * A seek goes to the nearest restart point of the record and passes over lines without opening files.
 * Source: tar-split, tar/asm/assemble.go; moby, layer.go (verifiedReadCloser).
 */
#include "source/assemble.h"

#include "base/digest.h"
#include "source/gather.h"
#include "source/proof.h"
#include "tree/payload.h"
#include "source/source.h"
#include "tarsplit/split.h"

#include <fcntl.h>
#include <string.h>

#define FILE_PART (128u << 10)   /* bytes of a file read at once: the CRC still finds them in the cache */
#define FAR_AHEAD (16 << 20)     /* a forward seek beyond this looks for a restart point */

typedef struct assemble {
    lay_source base;
    int record_fd, root_fd;
    lay_locate locate; void *context;
    lay_split_reader *reader;
    bool ended;
    lay_proof proof;                      /* pass's and end's, which read leaves alone */
    int64_t position, skip_to;            /* of the next byte to give; lines before skip_to are passed over */
    lay_split_line line;
    const uint8_t *p; size_t n;           /* framing still to give */
    int fd; int64_t left, file_at;        /* file still to give; not opened yet: fd is -1 */
    uint64_t crc, files;
    bool whole;                           /* it is being read from its first byte */
    int64_t size;                         /* -1: not known yet */
    lay_hand near, far;                   /* read's; help's */
    lay_gather *gather; bool gathering;   /* made when first needed; some files are in it */
    lay_error failure;
} assemble;

static void close_file(assemble *a)
{
    if (a->fd >= 0)
        close(a->fd);
    a->fd = -1;
    a->left = 0;
}

static lay_code open_file(assemble *a, lay_error *err)
{
    const lay_split_line *line = &a->line;
    int root_fd = a->root_fd;
    const char *path;
    size_t n;
    if (a->locate) {
        lay_parent_close(&a->near.parent);    /* of another root, maybe */
        if (a->locate(a->context, a->files - 1, line->name, line->name_len, &root_fd, &path, &n, err))
            return err->code;
    } else {
        if (lay_payload_path(&a->near.path, line->name, line->name_len, err))
            return err->code;
        path = a->near.path.p;
        n = a->near.path.len;
    }
    a->fd = lay_payload_open(root_fd, &a->near.parent, path, n, line->name, line->name_len, line->size, err);
    if (a->fd < 0)
        return err->code;
    a->whole = a->file_at == 0;
    a->crc = 0;
    return LAY_OK;
}

/* The next line that has bytes at or after skip_to. */
static lay_code next_line(assemble *a, lay_error *err)
{
    for (;;) {
        bool end;
        if (lay_split_reader_next(a->reader, &a->line, &end, err))
            return err->code;
        if (end) {
            a->ended = true;
            return LAY_OK;
        }
        a->files += a->line.is_file;
        int64_t bytes = a->line.is_file ? a->line.size : (int64_t)a->line.n;
        int64_t from = a->skip_to > a->line.tar_offset ? a->skip_to - a->line.tar_offset : 0;
        if (from >= bytes)
            continue;
        if (a->line.is_file) {
            a->file_at = from;
            a->left = bytes - from;
        } else {
            a->p = a->line.p + from;
            a->n = (size_t)(bytes - from);
        }
        return LAY_OK;
    }
}

static lay_code file_bytes(assemble *a, uint8_t *to, size_t room, size_t *got, lay_error *err)
{
    size_t most = room < FILE_PART ? room : FILE_PART;
    size_t want = a->left < (int64_t)most ? (size_t)a->left : most;
    if (lay_payload_part(a->fd, to, want, a->file_at, a->line.name, a->line.name_len, got, err))
        return err->code;
    if (*got == 0)
        return lay_payload_differs(a->line.name, a->line.name_len, err);
    a->file_at += (int64_t)*got;
    a->left -= (int64_t)*got;
    if (a->whole)
        a->crc = lay_crc64_add(a->crc, to, *got);
    if (a->left)
        return LAY_OK;
    bool same = !a->whole || (a->line.has_crc && a->crc == a->line.crc);
    close_file(a);
    if (!same)
        *got = 0;                             /* the last of wrong bytes are not given */
    return same ? LAY_OK : lay_payload_differs(a->line.name, a->line.name_len, err);
}

/* ---- small files, beside a helper ------------------------------------------------------------------ */

/* Wait for the files that were given away. The first of them that failed comes before whatever else did. */
static lay_code gather_end(assemble *a, size_t *got, lay_code code, lay_error *err)
{
    if (!a->gathering)
        return code;
    a->gathering = false;
    lay_error first;
    size_t at;
    if (lay_gather_end(a->gather, &a->near, &at, &first)) {
        *got = at;
        *err = first;
        code = first.code;
    }
    return code;
}

/* A file that is wholly wanted and of one part: either thread may read it. *given: one will. */
static lay_code give_away(assemble *a, uint8_t *to, size_t n, size_t *got, bool *given, lay_error *err)
{
    const lay_split_line *line = &a->line;
    *given = false;
    if (!a->base.crew || a->locate || a->file_at || a->left > FILE_PART || a->left > (int64_t)(n - *got))
        return LAY_OK;
    lay_error none;
    if (!a->gather && lay_gather_open(&a->gather, a->root_fd, &none))
        return LAY_OK;
    const lay_payload file = { line->name, line->name_len, line->size, line->has_crc, line->crc };
    bool news;
    *given = lay_gather_add(a->gather, &file, to + *got, *got, &news);
    if (!*given) {
        if (gather_end(a, got, LAY_OK, err))
            return err->code;
        *given = lay_gather_add(a->gather, &file, to + *got, *got, &news);
    }
    if (!*given)
        return LAY_OK;
    if (news)
        lay_source_offer(&a->base);
    a->gathering = true;
    *got += (size_t)a->left;
    a->left = 0;
    return LAY_OK;
}

static bool assemble_help(lay_source *s)
{
    assemble *a = (assemble *)s;
    return lay_gather_help(a->gather, &a->far);
}

static void assemble_pass(lay_source *s, const void *p, size_t n)
{
    assemble *a = (assemble *)s;
    lay_proof_add(&a->proof, p, n);
}

static lay_code assemble_end(lay_source *s, lay_error *err)
{
    assemble *a = (assemble *)s;
    lay_code code = lay_proof_end(&a->proof, err);
    if (code)
        a->failure = *err;
    return code;
}

static lay_code assemble_read(lay_source *s, void *buf, size_t n, size_t *got, lay_error *err)
{
    assemble *a = (assemble *)s;
    uint8_t *to = buf;
    *got = 0;
    if (a->failure.code) {
        *err = a->failure;
        return err->code;
    }
    lay_code code = LAY_OK;
    while (*got < n && !a->ended && !code) {
        size_t part = 0;
        if (a->n) {
            part = a->n < n - *got ? a->n : n - *got;
            memcpy(to + *got, a->p, part);
            a->p += part;
            a->n -= part;
        } else if (a->fd >= 0) {
            code = file_bytes(a, to + *got, n - *got, &part, err);
        } else if (a->left) {
            bool given;
            code = give_away(a, to, n, got, &given, err);
            if (!given && !code)
                code = open_file(a, err);
        } else {
            code = next_line(a, err);
        }
        *got += part;
    }
    code = gather_end(a, got, code, err);
    lay_parent_close(&a->near.parent);        /* the tree may change between reads */
    lay_parent_close(&a->far.parent);
    a->position += (int64_t)*got;
    if (a->skip_to < a->position)
        a->skip_to = a->position;
    if (!code)
        return LAY_OK;
    a->failure = *err;
    a->n = 0;
    close_file(a);
    if (!*got)
        return code;
    lay_error_clear(err);                     /* the good bytes first, the error at the next read */
    return LAY_OK;
}

static lay_code assemble_size(lay_source *s, int64_t *size, lay_error *err)
{
    assemble *a = (assemble *)s;
    if (a->size < 0) {
        lay_split_reader *r;
        if (lay_split_reader_open(&r, a->record_fd, err))
            return err->code;
        lay_code code = lay_split_reader_size(r, &a->size, err);
        lay_split_reader_free(r);
        if (code) {
            a->size = -1;
            return code;
        }
    }
    *size = a->size;
    return LAY_OK;
}

static lay_code assemble_seek(lay_source *s, int64_t offset, lay_error *err)
{
    assemble *a = (assemble *)s;
    if (offset == a->position && !a->failure.code)
        return LAY_OK;
    lay_proof_give_up(&a->proof);
    bool lost = a->failure.code != LAY_OK;    /* lines behind the bad one may have been read */
    lay_error_clear(&a->failure);
    int64_t ahead = offset - a->position;
    if (!lost && ahead > 0 && ahead <= FAR_AHEAD) {
        int64_t in_hand = a->n ? (int64_t)a->n : a->left;
        if (ahead < in_hand && a->n) {
            a->p += ahead;
            a->n -= (size_t)ahead;
        } else if (ahead < in_hand) {
            a->file_at += ahead;
            a->left -= ahead;
            a->whole = false;
        } else {
            a->n = 0;
            close_file(a);
        }
    } else {
        a->n = 0;
        close_file(a);
        a->ended = false;
        if (lay_split_reader_rewind(a->reader, offset, err)) {
            a->failure = *err;
            return err->code;
        }
        if (offset == 0) {
            a->files = 0;
            lay_proof_start(&a->proof);
        }
    }
    a->position = a->skip_to = offset;
    return LAY_OK;
}

static void assemble_free(lay_source *s)
{
    assemble *a = (assemble *)s;
    close_file(a);
    lay_gather_free(a->gather);
    lay_hand_free(&a->near);
    lay_hand_free(&a->far);
    lay_split_reader_free(a->reader);
    if (a->record_fd >= 0)
        close(a->record_fd);
    if (a->root_fd >= 0)
        close(a->root_fd);
    free(a);
}

static const lay_source_ops ops = { .read = assemble_read, .size = assemble_size, .seek = assemble_seek, .free = assemble_free,
                                    .pass = assemble_pass, .end = assemble_end, .help = assemble_help };

static lay_code open_source(lay_source **out, int record_fd, int root_fd, lay_locate locate, void *context, const uint8_t *diff_id, lay_error *err)
{
    lay_error_clear(err);
    assemble *a = calloc(1, sizeof *a);
    if (!a)
        return lay_fail_nomem(err);
    a->base.ops = &ops;
    a->fd = a->root_fd = -1;
    a->near = a->far = (lay_hand)LAY_HAND_NONE;
    a->size = -1;
    a->failure.offset = -1;
    a->locate = locate;
    a->context = context;
    lay_proof_init(&a->proof, diff_id);
    a->record_fd = fcntl(record_fd, F_DUPFD_CLOEXEC, 0);
    if (a->record_fd >= 0 && root_fd >= 0)
        a->root_fd = fcntl(root_fd, F_DUPFD_CLOEXEC, 0);
    if (a->record_fd < 0 || (root_fd >= 0 && a->root_fd < 0))
        lay_fail_os(err, errno, NULL, "cannot keep a descriptor");
    else if (lay_split_reader_open(&a->reader, record_fd, err) == LAY_OK) {
        *out = &a->base;
        return LAY_OK;
    }
    assemble_free(&a->base);
    return err->code;
}

lay_code lay_assemble_open(lay_source **out, int record_fd, int root_fd, const uint8_t *diff_id, lay_error *err)
{
    return open_source(out, record_fd, root_fd, NULL, NULL, diff_id, err);
}

lay_code lay_assemble_open_at(lay_source **out, int record_fd, lay_locate locate, void *context, const uint8_t *diff_id, lay_error *err)
{
    return open_source(out, record_fd, -1, locate, context, diff_id, err);
}
