/* leftout.c - a kind and a path enter; they are counted, and the first few paths are kept. */
#include "base/leftout.h"

#include <string.h>

lay_code lay_left_out_add(lay_left_out *l, int kind, const char *path, size_t n, lay_error *err)
{
    int64_t seen = l->count[kind];
    if (seen < LAY_LEFT_NAMED) {
        char *kept = l->paths[kind][seen] = strndup(path, n);
        if (kept == NULL)
            return lay_fail_nomem(err);
    }
    l->count[kind] = seen + 1;
    return LAY_OK;
}

void lay_left_out_free(lay_left_out *l)
{
    for (int kind = 0; kind < LAY_LEFT_KINDS; kind++)
        for (int i = 0; i < LAY_LEFT_NAMED; i++)
            free(l->paths[kind][i]);
    *l = (lay_left_out){ 0 };
}
