/* paths.h - many paths, each directory's name kept once: an entry costs its own name, however long the path to it is.
 *
 * A path is a number; what lies in one directory shares the way to it. So a tar whose names lead through links to long
 * paths takes no more memory than one whose names do not. */
#ifndef LAY_PATHS_H
#define LAY_PATHS_H

#include "base/nameset.h"
#include "base/text.h"

#define LAY_PATHS_ROOT 0u      /* the path "" */

typedef struct lay_path_node { uint64_t name; uint32_t above, len; } lay_path_node;   /* where its name lies, and its directory */

typedef struct lay_paths {
    lay_nameset key;           /* only for its hash */
    lay_path_node *nodes; size_t count, cap;
    uint32_t *slots; size_t mask;
    lay_text names;
} lay_paths;

lay_code lay_paths_init(lay_paths *p, lay_error *err);
/* The number of a path of components with one '/' between them; the same for the same path. */
lay_code lay_paths_add(lay_paths *p, const char *path, size_t n, uint32_t *id, lay_error *err);
/* The number of a name in a directory of that number; false: no path that was added goes there. */
bool lay_paths_below(const lay_paths *p, uint32_t above, const char *name, size_t n, uint32_t *id);
/* The path of a number; out is overwritten. */
lay_code lay_paths_get(const lay_paths *p, uint32_t id, lay_text *out, lay_error *err);
void lay_paths_free(lay_paths *p);

#endif
