/* room.h - where the targets that write files write them: a directory out, beside a victim that must stay as it is.
 *
 * FUZZ_ROOM names a directory, best on a tmpfs of its own and with all else mounted read-only, as .ci/fuzz
 * has it: then a file outside of it is EROFS, which is a broken promise as well.
 */
#ifndef FUZZ_ROOM_H
#define FUZZ_ROOM_H

#include "fuzz.h"
#include "tree/tree.h"

#include <fcntl.h>
#include <sys/stat.h>

typedef struct fuzz_room { int top, out, scratch; struct stat victim, hello; } fuzz_room;

static inline int fuzz_made_dir(int at, const char *name)
{
    PROMISE(mkdirat(at, name, 0755) == 0 || errno == EEXIST, "the fuzzer itself can make a directory");
    int fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    PROMISE(fd >= 0, "the fuzzer itself can open a directory");
    return fd;
}

static inline fuzz_room fuzz_room_open(void)
{
    const char *place = getenv("FUZZ_ROOM");
    PROMISE(place != NULL, "FUZZ_ROOM names a directory");
    fuzz_room r = { .top = open(place, O_RDONLY | O_DIRECTORY | O_CLOEXEC) };
    PROMISE(r.top >= 0, "FUZZ_ROOM is a directory");
    lay_error err = { .code = LAY_OK };
    PROMISE(!lay_tree_remove(r.top, "out", &err) && !lay_tree_remove(r.top, "scratch", &err), "the room can be emptied");
    r.out = fuzz_made_dir(r.top, "out");
    r.scratch = fuzz_made_dir(r.top, "scratch");
    int victim = fuzz_made_dir(r.top, "victim");
    int hello = openat(victim, "hello", O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    PROMISE(hello >= 0 && !fstat(hello, &r.hello) && !fstat(victim, &r.victim), "the fuzzer itself can make a file");
    close(hello);
    close(victim);
    return r;
}

static inline bool fuzz_untouched(const struct stat *a, const struct stat *b)
{
    return a->st_ino == b->st_ino && a->st_mode == b->st_mode && a->st_nlink == b->st_nlink && a->st_size == b->st_size
        && a->st_ctim.tv_sec == b->st_ctim.tv_sec && a->st_ctim.tv_nsec == b->st_ctim.tv_nsec;
}

/* Nothing but out, scratch and the victim is there, the victim is as it was, and scratch is empty again. */
static inline void fuzz_room_close(fuzz_room *r)
{
    struct stat st;
    lay_names names;
    lay_error err = { .code = LAY_OK };
    PROMISE(!fstatat(r->top, "victim", &st, 0) && fuzz_untouched(&st, &r->victim), "the victim is untouched");
    PROMISE(!fstatat(r->top, "victim/hello", &st, 0) && fuzz_untouched(&st, &r->hello), "the victim's file is untouched");
    PROMISE(!lay_names_read(&names, r->scratch, &err) && names.count == 0, "nothing stays in the scratch directory");
    lay_names_free(&names);
    close(r->out);
    close(r->scratch);
    PROMISE(!lay_tree_remove(r->top, "out", &err) && !lay_tree_remove(r->top, "scratch", &err), "what was unpacked can be removed");
    PROMISE(lseek(r->top, 0, SEEK_SET) == 0 && !lay_names_read(&names, r->top, &err), "the room can be listed");
    PROMISE(names.count == 1 && strcmp(names.text, "victim") == 0, "nothing is made beside the root");
    lay_names_free(&names);
    close(r->top);
}

static inline void fuzz_stays_inside(const lay_error *err)
{
    PROMISE(err->code != LAY_E_OS || err->sys_errno != EROFS, "nothing is written outside of the room");
}

#endif
