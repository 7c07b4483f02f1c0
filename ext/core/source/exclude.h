/* exclude.h - paths that fit one of some patterns: "*", "?" and "[...]" within one name, "**" for any number of names.
 *
 * As Python's fnmatch, name by name: "?" is one character, an invalid byte too; case counts, a dot is like any other.
 */
#ifndef LAY_EXCLUDE_H
#define LAY_EXCLUDE_H

#include "base/error.h"

typedef struct lay_exclude lay_exclude;

/* count patterns, each relative, with its NUL; a "**" at the end stands for all that is below. NULL: none. */
lay_code lay_exclude_new(lay_exclude **out, const char *patterns, size_t count, lay_error *err);
/* The names asked for next lie in this directory ("": the root). */
void lay_exclude_enter(lay_exclude *x, const char *directory);
bool lay_exclude_fits(lay_exclude *x, const char *name);
void lay_exclude_free(lay_exclude *x);

/* Does one name (n bytes) fit a pattern (m bytes) without "/"? */
bool lay_glob_fits(const char *pattern, size_t m, const char *name, size_t n);

#endif
