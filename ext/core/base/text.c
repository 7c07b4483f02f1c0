/* text.c - bytes that grow, and paths that grow by components. */
#include "base/text.h"

#include "base/grow.h"

#include <string.h>

lay_code lay_text_room(lay_text *t, size_t len, lay_error *err)
{
    return lay_reserve(&t->p, &t->cap, len + 1, 1, err);
}

lay_code lay_text_set(lay_text *t, const void *p, size_t n, lay_error *err)
{
    if (lay_text_room(t, n, err))
        return err->code;
    if (n)
        memmove(t->p, p, n);
    lay_text_cut(t, n);
    return LAY_OK;
}

lay_code lay_text_add(lay_text *t, const void *p, size_t n, lay_error *err)
{
    size_t len;
    if (__builtin_add_overflow(t->len, n, &len))
        return lay_fail_nomem(err);
    if (lay_text_room(t, len, err))
        return err->code;
    if (n)
        memcpy(t->p + t->len, p, n);
    lay_text_cut(t, len);
    return LAY_OK;
}

lay_code lay_text_push(lay_text *t, const char *name, size_t n, lay_error *err)
{
    return (t->len && lay_text_add(t, "/", 1, err)) || lay_text_add(t, name, n, err) ? err->code : LAY_OK;
}

void lay_text_cut(lay_text *t, size_t len)
{
    t->len = len;
    if (t->p)
        t->p[len] = '\0';
}
