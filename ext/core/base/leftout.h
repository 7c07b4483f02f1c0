/* leftout.h - what a fresh tar leaves out: how many things of each kind, and the paths of the first few. */
#ifndef LAY_LEFTOUT_H
#define LAY_LEFTOUT_H

#include "base/error.h"

typedef struct lay_left_out {
    int64_t count[LAY_LEFT_KINDS];
    char *paths[LAY_LEFT_KINDS][LAY_LEFT_NAMED];
} lay_left_out;

lay_code lay_left_out_add(lay_left_out *l, int kind, const char *path, size_t n, lay_error *err);
void lay_left_out_free(lay_left_out *l);

#endif
