/* fuzz_assemble.c - any bytes as a record, over a tree with traps: a tar or an error, the same from anywhere; and checked without end. */
#include "room.h"

#define MOST (1u << 20)

static void put(int at, const char *name, const char *text)
{
    int fd = openat(at, name, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
    PROMISE(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text), "the fuzzer itself can write a file");
    close(fd);
}

/* What the recipes t1 and t2 leave, and what an attacker would: a way out, and a fifo without a writer. */
static void furnish(int root)
{
    close(fuzz_made_dir(root, "a"));
    close(fuzz_made_dir(root, "d"));
    put(root, "a/f", "hello");
    put(root, "b", "abc");
    put(root, "gone", "g");
    PROMISE(!symlinkat("../victim", root, "out") && !symlinkat("../victim/hello", root, "hello"), "the fuzzer itself can link");
    PROMISE(!mkfifoat(root, "fifo", 0644), "the fuzzer itself can make a fifo");
}

static size_t read_from(lay_source *s, uint8_t *to, size_t room, fuzz_dice *dice)
{
    lay_error err = { .code = LAY_OK };
    size_t all = 0, got = 1;
    while (all < room && got > 0) {
        size_t n = 1 + fuzz_throw(dice, room - all);
        lay_code code = lay_source_read(s, to + all, n, &got, &err);
        if (code) {
            fuzz_error_is_whole(&err, code);
            fuzz_stays_inside(&err);
            PROMISE(code != LAY_E_STATE && code != LAY_E_BUSY, "a record is refused for what it is");
            break;
        }
        PROMISE(got <= n, "no more than was asked for");
        all += got;
    }
    return all;
}

static void assemble(int record, int root, const uint8_t *diff_id, fuzz_dice *dice)
{
    lay_error err = { .code = LAY_OK };
    lay_source *s;
    lay_code code = lay_assemble_open(&s, record, root, diff_id, &err);
    if (code) {
        fuzz_error_is_whole(&err, code);
        return;
    }
    uint8_t *first = fuzz_memory(MOST), *again = fuzz_memory(MOST);
    size_t n = read_from(s, first, MOST, dice);
    for (unsigned i = 0; i < 2; i++) {
        size_t at = fuzz_throw(dice, n + 1);
        err.code = LAY_OK;
        if (lay_source_seek(s, (int64_t)at, &err))
            continue;
        /* From the middle of a file its CRC is not known: a wrong one may give more now, none gives less or other bytes. */
        size_t m = read_from(s, again, MOST - at, dice);
        PROMISE(at + m >= n && memcmp(first + at, again, n - at) == 0, "from anywhere the same bytes");
    }
    free(first);
    free(again);
    lay_source_free(s);
}

static void check(int record, int root, const uint8_t *diff_id)
{
    lay_error err = { .code = LAY_OK };
    lay_check *c;
    lay_problem problem = { .kind = LAY_PROBLEM_NONE };
    lay_check_options options = { .record_fd = record, .root_fd = root, .diff_id = diff_id, .lowers = &(lay_shown){ root, NULL }, .nlowers = 1, .flags = LAY_CHECK_METADATA };
    lay_code code = lay_check_open(&c, &options, &err);
    int end = 0;
    if (code) {
        fuzz_error_is_whole(&err, code);
        return;
    }
    while (!end && !(code = lay_check_next(c, 1000, &problem, &end, &err)))
        if (problem.kind != LAY_PROBLEM_NONE)
            PROMISE(strlen(problem.path) == problem.path_len && memchr(problem.text, 0, sizeof problem.text), "a problem is whole");
    PROMISE(!code, "damage is no error of the call");
    lay_check_free(c);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint8_t diff_id[32] = { 1 };
    fuzz_dice dice = fuzz_dice_of(data, size);
    fuzz_room room = fuzz_room_open();
    furnish(room.out);
    int record = fuzz_file(data, size);
    assemble(record, room.out, fuzz_throw(&dice, 2) ? diff_id : NULL, &dice);
    check(record, room.out, fuzz_throw(&dice, 2) ? diff_id : NULL);
    close(record);
    fuzz_room_close(&room);
    return 0;
}
