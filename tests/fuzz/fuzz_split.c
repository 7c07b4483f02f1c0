/* fuzz_split.c - any bytes are read as a record without harm; and the record of any tar gives the tar again. */
#include "fuzz.h"
#include "tarsplit/split.h"

static bool next(lay_split_reader *r, lay_split_line *line, lay_error *err, lay_code *code)
{
    bool end = false;
    *code = lay_split_reader_next(r, line, &end, err);
    if (*code)
        fuzz_error_is_whole(err, *code);
    return !*code && !end;
}

static void read_any(const uint8_t *data, size_t size, fuzz_dice *dice)
{
    lay_error err = { .code = LAY_OK };
    lay_split_reader *r;
    lay_split_line line;
    lay_code code;
    int fd = fuzz_file(data, size);
    if (lay_split_reader_open(&r, fd, &err)) {
        fuzz_error_is_whole(&err, err.code);
        close(fd);
        return;
    }
    int64_t at = 0, total;
    unsigned lines = 0;
    while (lines++ < 10000 && next(r, &line, &err, &code)) {
        PROMISE(line.tar_offset >= at && line.size >= 0, "lines come in the order of the tar");
        if (line.is_file)
            PROMISE(line.name[line.name_len] == '\0' && strlen(line.name) == line.name_len, "a name ends with its only NUL");
        else
            PROMISE(line.n > 0 && line.p[0] + line.p[line.n - 1] >= 0, "a segment has bytes");
        at = line.tar_offset;
    }
    err.code = LAY_OK;
    if (lines < 10000 && lay_split_reader_size(r, &total, &err) == LAY_OK)
        PROMISE(total >= 0, "a length is none or more");
    err.code = LAY_OK;
    for (unsigned i = 0; i < 3; i++)
        if (lay_split_reader_rewind(r, (int64_t)fuzz_throw(dice, 1u << 20), &err) == LAY_OK)
            next(r, &line, &err, &code);
    lay_split_reader_free(r);
    close(fd);
}

static void read_back(int record, const uint8_t *data, size_t size)
{
    lay_error err = { .code = LAY_OK };
    lay_split_reader *r;
    lay_split_line line;
    lay_code code;
    int64_t total;
    size_t at = 0;
    PROMISE(!lay_split_reader_open(&r, record, &err), "a record made here is opened");
    PROMISE(!lay_split_reader_size(r, &total, &err) && total == (int64_t)size, "a record knows the tar's length");
    PROMISE(!lay_split_reader_rewind(r, 0, &err), "a record made here is read from its beginning");
    while (next(r, &line, &err, &code)) {
        size_t n = line.is_file ? (size_t)line.size : line.n;
        PROMISE(line.tar_offset == (int64_t)at && n <= size - at, "lines cover the tar");
        if (line.is_file && n > 0)
            PROMISE(line.has_crc && line.crc == lay_crc64_plain(0, data + at, n), "a file's CRC is that of its payload");
        else if (!line.is_file)
            PROMISE(memcmp(line.p, data + at, n) == 0, "a segment is its part of the tar");
        at += n;
    }
    PROMISE(code == LAY_OK && at == size, "a record gives the whole tar again");
    lay_split_reader_free(r);
}

static void record_tar(const uint8_t *data, size_t size, fuzz_dice *dice)
{
    lay_error err = { .code = LAY_OK };
    lay_split *s;
    int fd = fuzz_file(data, 0);
    PROMISE(!lay_split_open(&s, fd, fuzz_throw(dice, 2), NULL, &err), "a recorder opens");
    lay_code code = LAY_OK;
    for (size_t at = 0; at < size && !code;) {
        size_t n = fuzz_piece(dice, size - at);
        uint8_t *window = fuzz_copy(data + at, n);
        code = lay_split_add(s, window, n, &err);
        free(window);
        at += n;
    }
    if (!code)
        code = lay_split_end(s, &err);
    if (code)
        fuzz_error_is_whole(&err, code);
    else
        read_back(fd, data, size);
    lay_split_free(s);
    close(fd);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_dice dice = fuzz_dice_of(data, size);
    read_any(data, size, &dice);
    record_tar(data, size, &dice);
    return 0;
}
