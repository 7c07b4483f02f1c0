/* text.h - bytes that grow: a name, a path, the payload of an extension. Always ends with a NUL that len
 * does not count. Starts as { 0 }; free(p) ends it. */
#ifndef LAY_TEXT_H
#define LAY_TEXT_H

#include "base/error.h"

#include <string.h>

typedef struct lay_text { char *p; size_t len, cap; } lay_text;

/* Room for len bytes and a NUL. */
lay_code lay_text_room(lay_text *t, size_t len, lay_error *err);
lay_code lay_text_set(lay_text *t, const void *p, size_t n, lay_error *err);
lay_code lay_text_add(lay_text *t, const void *p, size_t n, lay_error *err);
/* As a path, "a" + "b" -> "a/b"; "" + "b" -> "b". */
lay_code lay_text_push(lay_text *t, const char *name, size_t n, lay_error *err);
void lay_text_cut(lay_text *t, size_t len);

static inline bool lay_begins(const char *text, const char *with) { return strncmp(text, with, strlen(with)) == 0; }

#endif
