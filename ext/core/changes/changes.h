/* changes.h - what both comparisons share: the list they write, the way they stand on, the test for "differs". */
#ifndef LAY_CHANGES_H
#define LAY_CHANGES_H

#include "base/text.h"
#include "tree/lowers.h"
#include "tree/trail.h"

/* One piece of text: for every change a kind byte, the path, a NUL. at[i] is where change i begins. */
struct lay_changes {
    char *text; size_t text_len, text_cap;
    size_t *at; size_t count, cap;
};

/* The directory a comparison stands in, and which directories on the way to it are in the list already. */
typedef struct lay_differ {
    lay_changes *out;
    lay_text path;
    size_t *lens;          /* of path, for every directory below the root */
    size_t depth, cap;
    size_t told;           /* the first so many of them are in the list */
} lay_differ;

lay_code lay_differ_open(lay_differ *d, lay_error *err);
/* Into a child directory; recorded: it is in the list itself. */
lay_code lay_differ_enter(lay_differ *d, const char *name, size_t n, bool recorded, lay_error *err);
void lay_differ_leave(lay_differ *d);
/* A change of a child; directories on the way that are not in the list come first, as modified. */
lay_code lay_differ_record(lay_differ *d, int kind, const char *name, size_t n, lay_error *err);
/* The failure of a system call on a child ("" for the directory itself). */
lay_code lay_differ_fail(lay_differ *d, int sys_errno, const char *name, const char *what, lay_error *err);
void lay_differ_free(lay_differ *d);

/* One thing of a layer, and what it is. */
typedef struct lay_thing { const lay_lower *layer; lay_lower_dir in; const char *name; const struct stat *st; } lay_thing;

/* Whether two things differ, as moby has it: by what stat tells, and by security.capability. */
bool lay_stats_differ(const struct stat *a, const struct stat *b);
/* 1 or 0; -1 and errno. */
int lay_capabilities_differ(const lay_thing *a, const lay_thing *b);

/* Both; contents: times do not count, and bytes and targets do. 1 or 0; -1 and errno. */
int lay_things_differ(bool contents, const lay_thing *a, const lay_thing *b);

/* As lay_changes_overlay, whatever keeps these layers. */
lay_code lay_changes_over(lay_changes **out, const lay_lower *upper, const lay_lowers *lowers, bool contents, lay_error *err);

#endif
