/* nameset.h - a set of names as 64-bit keyed hashes: has this name been seen before? A false yes is
 * possible (and must be harmless to the caller), a false no is not. The key is drawn per set. */
#ifndef LAY_NAMESET_H
#define LAY_NAMESET_H

#include "base/error.h"

typedef struct lay_nameset { uint64_t *slots; size_t mask, count; uint64_t key[2]; bool has_zero; } lay_nameset;

lay_code lay_nameset_init(lay_nameset *s, lay_error *err);
uint64_t lay_nameset_hash(const lay_nameset *s, const char *name, size_t n);
bool lay_nameset_has(const lay_nameset *s, uint64_t hash);
/* *seen says whether it was in before. */
lay_code lay_nameset_add(lay_nameset *s, uint64_t hash, bool *seen, lay_error *err);
void lay_nameset_free(lay_nameset *s);

#endif
