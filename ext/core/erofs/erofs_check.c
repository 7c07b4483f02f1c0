/* erofs_check.c - an image against its tar: the tar's SHA-256, and all else against what the tar's headers make.
 *
 *   tar's bytes ──► SHA-256      tar's headers ──► tree ──► layout ──► superblock, header, size, metadata, expanded files
 *
 * Iterator, in stages; each works in portions. Nothing is written here; only the rebuilding, below, writes.
 */
#include "base/clock.h"
#include "base/digest.h"
#include "base/limit.h"
#include "base/write_all.h"
#include "erofs/erofs_format.h"
#include "erofs/erofs_scan.h"
#include "erofs/erofs_store.h"

#include <stdarg.h>
#include <stdio.h>
#include <sys/stat.h>

#define BLOCK (1u << 20)

typedef enum stage { CONTENT, HEADERS, LAYOUT, SUPERBLOCK, HEADER, SIZE, PADDING, METADATA, FILES, OVER } stage;

struct lay_erofs_check {
    lay_image_of of;
    uint8_t diff_id[LAY_SHA256_SIZE];
    bool metadata;
    stage stage;
    lay_lowers lowers;
    lay_sha256 sha;
    lay_escan *scan;
    lay_etree *tree;
    lay_eimage *image;
    uint8_t *there, *wanted;                 /* BLOCK bytes each */
    uint8_t header[LAY_EROFS_HEADER];
    int64_t at;                              /* CONTENT, FILES: how far this stage is; in the tar, in the file */
    size_t file; uint32_t piece;             /* FILES */
    int64_t done;
    lay_text told;                           /* path of the problem given */
};

/* ---- what is told ------------------------------------------------------------------------------------------------ */

static void found(lay_erofs_check *c, lay_problem *p, int kind, const char *format, ...) __attribute__((format(printf, 4, 5)));

/* The path is that in told. */
static void found(lay_erofs_check *c, lay_problem *p, int kind, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    p->kind = kind;
    p->path = c->told.p ? c->told.p : "";
    p->path_len = c->told.len;
    vsnprintf(p->text, sizeof p->text, format, list);
    va_end(list);
}

/* With the path of the inode that has this byte of the metadata. */
static lay_code found_at(lay_erofs_check *c, lay_problem *p, int64_t at, lay_error *err)
{
    if (lay_eimage_path_at(c->image, at, &c->told, err))
        return err->code;
    found(c, p, LAY_PROBLEM_METADATA, "the image's metadata at byte %lld is not what the tar makes", (long long)at);
    return LAY_OK;
}

/* ---- bytes ------------------------------------------------------------------------------------------------------- */

/* Of n bytes those that there are: fewer at the file's end. */
static lay_code read_at(const lay_erofs_check *c, uint8_t *to, size_t n, int64_t at, size_t *got, lay_error *err)
{
    for (*got = 0; *got < n;) {
        ssize_t r = pread(c->of.fd, to + *got, n - *got, at + (int64_t)*got);
        if (r < 0 && errno == EINTR)
            continue;
        if (r < 0)
            return lay_fail_fd(err, errno, c->of.fd, "cannot read the layer's image");
        if (!r)
            break;
        *got += (size_t)r;
    }
    return LAY_OK;
}

static size_t first_difference(const uint8_t *a, const uint8_t *b, size_t n)
{
    size_t i = 0;
    while (i < n && a[i] == b[i])
        i++;
    return i;
}

static size_t first_not_zero(const uint8_t *a, size_t n)
{
    size_t i = 0;
    while (i < n && !a[i])
        i++;
    return i;
}

/* ---- the tar ----------------------------------------------------------------------------------------------------- */

static void hex(const uint8_t *digest, char *to)
{
    for (size_t i = 0; i < LAY_SHA256_SIZE; i++)
        snprintf(to + 2 * i, 3, "%02x", digest[i]);
}

static lay_code check_content(lay_erofs_check *c, lay_problem *p, lay_error *err)
{
    int64_t left = c->of.tar_size - c->at;
    size_t want = left < BLOCK ? (size_t)left : BLOCK, got;
    if (read_at(c, c->there, want, LAY_EROFS_HEADER + c->at, &got, err))
        return err->code;
    lay_sha256_add(&c->sha, c->there, got);
    c->at += (int64_t)got;
    c->done += (int64_t)got;
    if (got < want) {
        found(c, p, LAY_PROBLEM_CONTENT, "the file ends %lld bytes before the end of the layer's tar", (long long)(c->of.tar_size - c->at));
        c->stage = OVER;
    } else if (c->at == c->of.tar_size) {
        uint8_t digest[LAY_SHA256_SIZE];
        char is[2 * LAY_SHA256_SIZE + 1], was[2 * LAY_SHA256_SIZE + 1];
        lay_sha256_end(&c->sha, digest);
        bool same = memcmp(digest, c->diff_id, sizeof digest) == 0;
        hex(digest, is);
        hex(c->diff_id, was);
        if (!same)
            found(c, p, LAY_PROBLEM_CONTENT, "the layer's tar has the DiffID sha256:%s, not sha256:%s", is, was);
        c->stage = same && c->metadata ? HEADERS : OVER;
    }
    return LAY_OK;
}

/* ---- what the tar makes ------------------------------------------------------------------------------------------ */

static lay_code scan_headers(lay_erofs_check *c, int max_ms, lay_error *err)
{
    bool end;
    if (!c->scan && lay_escan_open(&c->scan, c->of.fd, LAY_EROFS_HEADER, c->of.tar_size, c->of.limits, err))
        return err->code;
    if (lay_escan_run(c->scan, max_ms, &end, err) || !end)
        return err->code;
    c->tree = lay_escan_take(c->scan);
    c->stage = LAYOUT;
    return LAY_OK;
}

static lay_code lay_out(lay_erofs_check *c, lay_error *err)
{
    if (lay_etree_settle(c->tree, &c->lowers, err) || lay_eimage_layout(&c->image, c->tree, c->of.tar_size, LAY_EIMAGE_TABLES(c->of.tar_size), err))
        return err->code;
    lay_eimage_header(c->image, c->diff_id, c->header);
    c->stage = SUPERBLOCK;
    return LAY_OK;
}

/* ---- what is there ----------------------------------------------------------------------------------------------- */

static const struct { const char *name; uint8_t at, size; } fields[] = {
    { "magic", 0, 4 }, { "checksum", 4, 4 }, { "feature_compat", 8, 4 }, { "blkszbits", 12, 1 }, { "sb_extslots", 13, 1 },
    { "root_nid", 14, 2 }, { "inos", 16, 8 }, { "epoch", 24, 8 }, { "fixed_nsec", 32, 4 }, { "blocks", 36, 4 },
    { "meta_blkaddr", 40, 4 }, { "xattr_blkaddr", 44, 4 }, { "uuid", 48, 16 }, { "volume_name", 64, 16 },
    { "feature_incompat", 80, 4 }, { "available_compr_algs", 84, 2 }, { "extra_devices", 86, 2 }, { "devt_slotoff", 88, 2 },
    { "dirblkbits", 90, 1 }, { "xattr_prefix_count", 91, 1 }, { "xattr_prefix_start", 92, 4 }, { "packed_nid", 96, 8 },
    { "xattr_filter_reserved", 104, 1 }, { "ishare_xattr_prefix_id", 105, 1 }, { "reserved", 106, 2 }, { "build_time", 108, 4 },
    { "rootnid_8b", 112, 8 }, { "reserved2", 120, 8 },
};

/* The fields that are not ours, by their names. */
static lay_code check_superblock(lay_erofs_check *c, lay_problem *p, lay_error *err)
{
    char names[256] = "";
    size_t got, len = 0, count = 0;
    c->stage = HEADER;
    if (read_at(c, c->there, LAY_EROFS_HEADER, 0, &got, err))
        return err->code;
    if (got < LAY_EROFS_HEADER)
        memset(c->there + got, 0, LAY_EROFS_HEADER - got);
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        size_t at = LAY_EROFS_SUPER + fields[i].at;
        if (memcmp(c->there + at, c->header + at, fields[i].size) != 0 && len < sizeof names - 40) {
            len += (size_t)snprintf(names + len, sizeof names - len, "%s%s", len ? ", " : "", fields[i].name);
            count++;
        }
    }
    if (count)
        found(c, p, LAY_PROBLEM_METADATA, "the image's superblock is not what the tar makes: %s", names);
    return LAY_OK;
}

/* c->there still has it. */
static void check_header(lay_erofs_check *c, lay_problem *p)
{
    size_t end = LAY_EROFS_SUPER + LAY_EROFS_SUPER_SIZE;
    memset(c->there + LAY_EROFS_SUPER, 0, LAY_EROFS_SUPER_SIZE);
    size_t at = first_not_zero(c->there, LAY_EROFS_SUPER);
    if (at == LAY_EROFS_SUPER)
        at = end + first_not_zero(c->there + end, LAY_EROFS_HEADER - end);
    if (at < LAY_EROFS_HEADER)
        found(c, p, LAY_PROBLEM_METADATA, "the image's header is not zero at byte %zu", at);
    c->stage = SIZE;
}

static lay_code check_size(lay_erofs_check *c, lay_problem *p, lay_error *err)
{
    struct stat st;
    if (fstat(c->of.fd, &st) != 0)
        return lay_fail_fd(err, errno, c->of.fd, "cannot look at the layer's image");
    if (st.st_size != lay_eimage_size(c->image))
        found(c, p, LAY_PROBLEM_METADATA, "the image has %lld bytes, not %lld", (long long)st.st_size, (long long)lay_eimage_size(c->image));
    c->stage = PADDING;
    return LAY_OK;
}

static lay_code check_padding(lay_erofs_check *c, lay_problem *p, lay_error *err)
{
    int64_t end = LAY_EROFS_HEADER + c->of.tar_size;
    size_t got;
    if (read_at(c, c->there, (size_t)(lay_eimage_base(c->image) - end), end, &got, err))
        return err->code;
    size_t at = first_not_zero(c->there, got);
    if (at < got)
        found(c, p, LAY_PROBLEM_METADATA, "what pads the layer's tar is not zero at byte %lld", (long long)(end + (int64_t)at));
    c->stage = METADATA;
    return LAY_OK;
}

/* The next bytes of the metadata; the first that differ are told, and the rest is not looked at. */
static lay_code check_metadata(lay_erofs_check *c, lay_problem *p, lay_error *err)
{
    const uint8_t *wanted;
    size_t n;
    int64_t at;
    if (lay_eimage_next(c->image, &wanted, &n, &at, err))
        return err->code;
    for (size_t i = 0; i < n;) {
        size_t part = n - i < BLOCK ? n - i : BLOCK, got;
        if (read_at(c, c->there, part, at + (int64_t)i, &got, err))
            return err->code;
        size_t same = first_difference(c->there, wanted + i, got);
        if (same < part) {
            c->stage = OVER;
            return found_at(c, p, at + (int64_t)(i + same), err);
        }
        i += part;
        c->done += (int64_t)part;
    }
    if (!n) {
        c->stage = FILES;
        c->at = at;
    }
    return LAY_OK;
}

/* ---- expanded files ---------------------------------------------------------------------------------------------- */

static lay_code damaged_file(lay_erofs_check *c, lay_problem *p, uint32_t node, lay_error *err)
{
    if (lay_eimage_path(c->image, node, &c->told, err))
        return err->code;
    found(c, p, LAY_PROBLEM_METADATA, "the expanded file at byte %lld of the image is not what the tar makes", (long long)c->at);
    c->stage = OVER;
    return LAY_OK;
}

/* A part of what must be zero from c->at to `to`; a hole takes no time. */
static lay_code pass_zeros(lay_erofs_check *c, int64_t to, bool *same, lay_error *err)
{
    off_t data = lseek(c->of.fd, c->at, SEEK_DATA);
    size_t got;
    *same = true;
    if (data < 0 && errno != ENXIO)
        data = c->at;                         /* a file system that does not tell */
    if (data < 0 || data >= to) {
        c->at = to;
        return LAY_OK;
    }
    int64_t left = to - data;
    if (read_at(c, c->there, left < BLOCK ? (size_t)left : BLOCK, data, &got, err))
        return err->code;
    size_t zeros = first_not_zero(c->there, got);
    c->at = got ? data + (int64_t)zeros : to;
    *same = zeros == got;
    return LAY_OK;
}

static lay_code pass_piece(lay_erofs_check *c, const lay_epiece *piece, int64_t from, bool *same, lay_error *err)
{
    int64_t into = c->at - from, left = piece->n - into;
    size_t part = left < BLOCK ? (size_t)left : BLOCK, n, m;
    if (read_at(c, c->there, part, c->at, &n, err) || read_at(c, c->wanted, part, LAY_EROFS_HEADER + piece->tar_offset + into, &m, err))
        return err->code;
    size_t alike = first_difference(c->there, c->wanted, n < m ? n : m);
    *same = alike == part;
    c->at += (int64_t)alike;
    c->done += (int64_t)alike;
    c->piece += *same && left == (int64_t)part;
    return LAY_OK;
}

static lay_code check_files(lay_erofs_check *c, lay_problem *p, lay_error *err)
{
    uint32_t node = LAY_ETREE_ROOT, next_node;
    int64_t start = c->at, next = lay_eimage_size(c->image);
    lay_enode n = { 0 };
    bool same = true, is_file = lay_eimage_expanded(c->image, c->file, &node, &start);
    if (is_file) {
        lay_etree_node(c->tree, node, &n);
        lay_eimage_expanded(c->image, c->file + 1, &next_node, &next);
    }
    const lay_epiece *piece = is_file && c->piece < n.npieces ? &n.pieces[c->piece] : NULL;
    int64_t from = piece ? start + piece->file_offset : 0, zeros = piece ? from : next;
    lay_code code = c->at < zeros ? pass_zeros(c, zeros, &same, err) : piece ? pass_piece(c, piece, from, &same, err) : LAY_OK;
    if (code)
        return code;
    if (!same)
        return damaged_file(c, p, node, err);
    if (!piece && c->at >= zeros) {
        c->piece = 0;
        c->file++;
        if (!is_file)
            c->stage = OVER;
    }
    return LAY_OK;
}

/* ---- the face ---------------------------------------------------------------------------------------------------- */

lay_code lay_erofs_check_open(lay_erofs_check **out, const lay_image_of *image, int metadata, lay_error *err)
{
    lay_error_clear(err);
    lay_erofs_check *c = calloc(1, sizeof *c);
    if (!c)
        return lay_fail_nomem(err);
    c->of = *image;
    c->of.limits = image->limits ? image->limits : lay_limits_of_record();
    c->metadata = metadata;
    memcpy(c->diff_id, image->diff_id, sizeof c->diff_id);
    lay_sha256_start(&c->sha);
    c->there = malloc(BLOCK);
    c->wanted = malloc(BLOCK);
    if (!c->there || !c->wanted)
        lay_fail_nomem(err);
    else
        lay_lowers_open(&c->lowers, image->lowers, image->nlowers, false, err);
    if (err->code)
        lay_erofs_check_free(c);
    else
        *out = c;
    return err->code;
}

static lay_code step(lay_erofs_check *c, int max_ms, lay_problem *p, lay_error *err)
{
    switch (c->stage) {
    case CONTENT: return check_content(c, p, err);
    case HEADERS: return scan_headers(c, max_ms, err);
    case LAYOUT: return lay_out(c, err);
    case SUPERBLOCK: return check_superblock(c, p, err);
    case HEADER: check_header(c, p); return LAY_OK;
    case SIZE: return check_size(c, p, err);
    case PADDING: return check_padding(c, p, err);
    case METADATA: return check_metadata(c, p, err);
    case FILES: return check_files(c, p, err);
    case OVER: break;
    }
    return LAY_OK;
}

lay_code lay_erofs_check_next(lay_erofs_check *c, int max_ms, lay_problem *problem, int *end, lay_error *err)
{
    int64_t stop = lay_now_ms() + max_ms;
    lay_error_clear(err);
    problem->kind = LAY_PROBLEM_NONE;
    lay_text_cut(&c->told, 0);
    do
        if (step(c, max_ms, problem, err))
            return err->code;
    while (c->stage != OVER && problem->kind == LAY_PROBLEM_NONE && lay_now_ms() < stop);
    *end = c->stage == OVER;
    return LAY_OK;
}

int64_t lay_erofs_check_bytes(const lay_erofs_check *c) { return c->done; }

void lay_erofs_check_free(lay_erofs_check *c)
{
    if (!c)
        return;
    lay_eimage_free(c->image);
    lay_etree_free(c->tree);
    lay_escan_free(c->scan);
    lay_lowers_free(&c->lowers);
    free(c->there);
    free(c->wanted);
    free(c->told.p);
    free(c);
}

/* ---- anew -------------------------------------------------------------------------------------------------------- */

static lay_code write_anew(lay_erofs_check *c, lay_error *err)
{
    static const uint8_t none[LAY_EROFS_HEADER];
    while (c->stage < SUPERBLOCK) {
        lay_problem ignored;
        if (step(c, 1000, &ignored, err))
            return err->code;
    }
    int failed = lay_write_all(c->of.fd, none, sizeof none, 0);       /* until all is there it is no image */
    if (failed)
        return lay_fail_fd(err, failed, c->of.fd, "cannot write the layer's image");
    return lay_eimage_store(c->image, c->tree, c->of.fd, c->of.tar_size, err) ? err->code : lay_eimage_seal(c->image, c->of.fd, c->diff_id, err);
}

lay_code lay_erofs_rebuild(const lay_image_of *image, lay_error *err)
{
    lay_erofs_check *c;
    if (lay_erofs_check_open(&c, image, true, err))
        return err->code;
    c->stage = HEADERS;
    write_anew(c, err);
    lay_erofs_check_free(c);
    return err->code;
}
