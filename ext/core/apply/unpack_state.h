/* unpack_state.h - the unpacker's state, and what each of its parts asks of it.
 *
 * The parts, from the ground up: unpack_marks (what hides), unpack_implied (directories without an entry), unpack_names
 * (where a name leads), unpack_replaced (what stood there before), unpack (entries and payload). Each calls down only. */
#ifndef LAY_UNPACK_STATE_H
#define LAY_UNPACK_STATE_H

#include "tree/dirs.h"
#include "base/nameset.h"
#include "apply/paths.h"
#include "tree/entry.h"
#include "tree/place.h"
#include "apply/pool.h"
#include "base/text.h"
#include "tar/tar.h"

#include <limits.h>

typedef struct lay_unpack lay_unpack;

/* Paths by their numbers in lay_unpack.paths. */
typedef struct dir_times { uint32_t path; struct timespec times[2]; } dir_times;
typedef struct displaced { uint64_t ordinal; uint32_t path; unsigned id; } displaced;
typedef struct alias { uint64_t ordinal; uint32_t path; } alias;

/* What the payload of the present entry becomes. */
typedef enum payload { PAYLOAD_NONE, PAYLOAD_FILE, PAYLOAD_OPEN } payload;

struct lay_unpack {
    int root_fd, scratch_fd, stash_fd;
    char stash_name[32];
    bool merged, own_links, userxattr, fresh;
    lay_place place;
    lay_tar *tar;
    lay_ring *ring;
    lay_pool *pool;
    lay_nameset seen;
    lay_dirs dirs;
    lay_dir *dir;                            /* parent of the present entry */
    lay_text clean, path, tried;           /* cleaned name; resolved path; link target; scratch */
    char base[NAME_MAX + LAY_WH_PREFIX_LEN + 1];   /* a whiteout's entry is longer than the name it hides */
    lay_text linked_from, linked_to;         /* a parent that leads through links, and where it leads */
    uint64_t removals, linked_at;            /* how often something was taken away; and then, plus 1, when that was found */
    payload payload;
    lay_meta meta;
    int file_fd; int64_t file_end;           /* PAYLOAD_OPEN */
    lay_paths paths;                         /* of what follows */
    dir_times *times; size_t ntimes, times_cap;
    displaced *gone; size_t ngone, gone_cap;
    alias *aliases; size_t naliases, aliases_cap;
    bool gone_sorted, replaced;
    bool reborn;                             /* a directory takes the place of what was none: nothing below shows in it */
    bool opaque;                             /* the root is marked: all below goes */
    bool gone_below;                         /* a directory went: what was hidden in it is so no more */
    uint32_t *implied_ids; size_t nimplied, implied_cap;   /* directories made for want of an entry: in paths */
    lay_text unsettled;                      /* those that still have none at the end */
    uint64_t left_out;                       /* devices that a user namespace cannot make */
    lay_text first_left_out;
    lay_taken taken;
    const lay_limits *limits;
};

/* Waits for the pool. */
lay_code lay_unpack_drain(lay_unpack *u, lay_error *err);
/* What is true of a resolved path, in the same set as the names seen. */
#define LAY_NAME_ENTRY 0x14057b7ef767814fu     /* a directory that has an entry, and was there before it */
bool lay_unpack_is(const lay_unpack *u, const char *path, size_t n, uint64_t what);
lay_code lay_unpack_note(lay_unpack *u, const char *path, size_t n, uint64_t what, lay_error *err);
/* A directory's times, for the end. */
lay_code lay_unpack_add_times(lay_unpack *u, const char *path, size_t n, const struct timespec times[2], lay_error *err);
/* Remember a cleaned or resolved path; *seen: maybe it was there before. */
lay_code lay_unpack_seen(lay_unpack *u, const char *path, size_t n, bool *seen, lay_error *err);

#endif
