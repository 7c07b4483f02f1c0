/* fuzz_round_trip.c - any tar that is accepted is returned: from its beginning, from anywhere, and found whole. It comes
 * plain or as gzip; the digest of what came is that of its bytes. */
#include "base/digest.h"
#include "codec/pack.h"
#include "room.h"

/* What is pushed: the tar itself, or packed. */
static fuzz_bytes as_it_comes(const uint8_t *data, size_t size, fuzz_dice *dice)
{
    fuzz_bytes came = { 0 };
    if (fuzz_throw(dice, 3)) {
        fuzz_put(&came, data, size);
        return came;
    }
    lay_error err = { .code = LAY_OK };
    size_t room = lay_gzip_bound(size), n;
    uint8_t *packed = fuzz_memory(room), *plain = fuzz_copy(data, size);
    PROMISE(!lay_gzip_member(plain, size, NULL, 0, packed, room, &n, &err), "any bytes are packed");
    fuzz_put(&came, packed, n);
    free(plain);
    free(packed);
    return came;
}

static void digest_is_of(const lay_applied *applied, lay_digest_kind kind, const fuzz_bytes *came)
{
    uint8_t digest[LAY_DIGEST_MOST];
    lay_digest d;
    lay_digest_start(&d, kind);
    lay_digest_add(&d, came->p, came->n);
    size_t n = lay_digest_end(&d, digest);
    PROMISE(applied->source_size == (int64_t)came->n && applied->source_digest_len == n, "all that came is counted");
    PROMISE(memcmp(applied->source_digest, digest, n) == 0, "the source's digest is of what came");
}

static lay_code take_in(const uint8_t *data, size_t size, const fuzz_room *room, int record, fuzz_dice *dice, lay_applied *applied, lay_error *err)
{
    lay_apply *a;
    lay_apply_options options = { .digest = (lay_digest_kind)fuzz_throw(dice, LAY_DIGEST_SHA512 + 1) };
    PROMISE(!lay_apply_register(&a, room->out, room->scratch, record, &options, err), "an apply opens");
    fuzz_bytes came = as_it_comes(data, size, dice);
    lay_code code = LAY_OK;
    for (size_t at = 0; at < came.n && !code;) {
        size_t n = fuzz_piece(dice, came.n - at);
        code = lay_apply_push(a, came.p + at, n, err);
        at += n;
    }
    if (!code)
        code = lay_apply_finish(a, applied, err);
    if (!code)
        digest_is_of(applied, options.digest, &came);
    lay_apply_free(a);
    free(came.p);
    return code;
}

/* The record as JSON lines, which assemble reads, too. */
static void unpack_record(int record)
{
    struct stat st;
    lay_inflate *z;
    lay_error err = { .code = LAY_OK };
    PROMISE(!fstat(record, &st), "a record has a length");
    size_t size = (size_t)st.st_size, got = 1;
    uint8_t *packed = fuzz_memory(size), block[5000];
    PROMISE(pread(record, packed, size, 0) == (ssize_t)size && !ftruncate(record, 0) && !lseek(record, 0, SEEK_SET), "a record is read");
    PROMISE(!lay_inflate_open(&z, LAY_FORMAT_GZIP, &err), "a record is gzip");
    lay_inflate_feed(z, packed, size);
    while (got) {
        PROMISE(!lay_inflate_next(z, block, sizeof block, &got, &err), "a record is whole");
        PROMISE(write(record, block, got) == (ssize_t)got, "the fuzzer itself can write");
    }
    lay_inflate_free(z);
    free(packed);
}

/* The rest of the tar from where the source stands. */
static void read_rest(lay_source *s, const uint8_t *data, size_t size, size_t at, fuzz_dice *dice)
{
    lay_error err = { .code = LAY_OK };
    for (size_t got = 1; got > 0; at += got) {
        size_t n = 1 + fuzz_throw(dice, 5000);
        uint8_t *buffer = fuzz_memory(n);
        if (lay_source_read(s, buffer, n, &got, &err)) {
            fprintf(stderr, "%s: %s\n", err.path, err.text);
            PROMISE(false, "what was taken in is given back");
        }
        PROMISE(got <= size - (at < size ? at : size) && memcmp(buffer, data + at, got) == 0, "byte for byte");
        free(buffer);
    }
    PROMISE(at >= size, "to its end");
}

static void give_back(const uint8_t *data, size_t size, int root, int record, const uint8_t diff_id[32], fuzz_dice *dice)
{
    lay_error err = { .code = LAY_OK };
    lay_source *s;
    lay_check *c;
    lay_problem problem;
    lay_check_options options = { .record_fd = record, .root_fd = root, .diff_id = diff_id, .flags = LAY_CHECK_METADATA };
    int64_t total;
    int end = 0;
    PROMISE(!lay_assemble_open(&s, record, root, diff_id, &err), "a record is opened");
    read_rest(s, data, size, 0, dice);
    PROMISE(!lay_source_size(s, &total, &err) && total == (int64_t)size, "a tar knows its length");
    for (unsigned i = 0; i < 2; i++) {
        size_t at = fuzz_throw(dice, size + 1);
        PROMISE(!lay_source_seek(s, (int64_t)at, &err), "a tar is read from anywhere");
        read_rest(s, data, size, at, dice);
    }
    lay_source_free(s);
    PROMISE(!lay_check_open(&c, &options, &err), "a layer is checked");
    while (!end) {
        PROMISE(!lay_check_next(c, 1000, &problem, &end, &err), "a check goes on");
        PROMISE(problem.kind == LAY_PROBLEM_NONE, "nothing is wrong with a layer just made");
    }
    lay_check_free(c);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!fuzz_is_plain(data, size))
        return 0;
    fuzz_dice dice = fuzz_dice_of(data, size);
    lay_error err = { .code = LAY_OK };
    lay_applied applied;
    fuzz_room room = fuzz_room_open();
    int record = fuzz_file(data, 0);
    lay_code code = take_in(data, size, &room, record, &dice, &applied, &err);
    if (code) {
        fuzz_error_is_whole(&err, code);
        fuzz_stays_inside(&err);
        PROMISE(code != LAY_E_SPLIT && code != LAY_E_MISMATCH && code != LAY_E_STATE && code != LAY_E_BUSY, "a tar is refused for what it is");
    } else {
        uint8_t digest[LAY_SHA256_SIZE];
        lay_sha256 sha;
        lay_sha256_start(&sha);
        lay_sha256_add(&sha, data, size);
        lay_sha256_end(&sha, digest);
        PROMISE(applied.tar_size == (int64_t)size && memcmp(digest, applied.diff_id, sizeof digest) == 0, "a DiffID is the tar's SHA-256");
        if (fuzz_throw(&dice, 2))
            unpack_record(record);
        give_back(data, size, room.out, record, digest, &dice);
    }
    close(record);
    fuzz_room_close(&room);
    return 0;
}
