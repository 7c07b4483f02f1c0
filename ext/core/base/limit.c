/* limit.c - the list of limits as numbers and as names. */
#include "base/limit.h"

static const lay_limits defaults = {
#define DEFAULT(name, value) .name = value,
    LAY_LIMITS(DEFAULT)
};

static const struct { const char *option; size_t at; } rows[] = {
#define ROW(name, value) { "max_" #name, offsetof(lay_limits, name) },
    LAY_LIMITS(ROW)
};

static const lay_limits of_record = {
    .header = 64 << 20, .headers = 64 << 20, .global_headers = 64 << 20, .extents = 4 << 20, .xattrs = 1 << 20, .xattr_size = 64 << 20,
};

const lay_limits *lay_limits_default(void) { return &defaults; }
const lay_limits *lay_limits_of_record(void) { return &of_record; }

int64_t *lay_limits_at(lay_limits *l, size_t i, const char **option)
{
    if (i >= sizeof rows / sizeof *rows)
        return NULL;
    *option = rows[i].option;
    return (int64_t *)(void *)((char *)l + rows[i].at);
}

lay_code lay_fail_limit(lay_error *err, int64_t offset, const char *option, int64_t limit, const char *unit, const char *what)
{
    return lay_fail_at(err, LAY_E_LIMIT, offset, "%s: more than %lld %s (%s)", what, (long long)limit, unit, option);
}
