/* exclude.c - patterns enter as lists of names; a path is followed name by name, by all of them at once.
 *
 * Of each pattern it is known behind which of its parts one may stand: places, a byte each, of all patterns in one row.
 * Source: Python, Lib/fnmatch.py (translate): what is no whole "[...]" is its own text, and a range backwards is empty.
 */
#include "source/exclude.h"

#include <string.h>

typedef struct part { const char *text; size_t len; bool any, last; } part;     /* last: a place behind a pattern, without text */

struct lay_exclude {
    char *text;
    part *parts; size_t count;
    bool *here, *next, *scratch;      /* of the directory at hand; of one of its names */
};

/* ---- one name ---------------------------------------------------------------------------------------------------- */

/* The character at *at, which moves behind it. Bytes that are no UTF-8 are characters of their own. */
static uint32_t next_char(const char **at, const char *end)
{
    const uint8_t *p = (const uint8_t *)*at;
    size_t left = (size_t)(end - *at), more = p[0] < 0xc2 ? 0 : p[0] < 0xe0 ? 1 : p[0] < 0xf0 ? 2 : p[0] < 0xf5 ? 3 : 0;
    if (p[0] < 0x80) {
        (*at)++;
        return p[0];
    }
    uint32_t c = p[0] & (0x3fu >> more);
    bool whole = more > 0 && left > more;
    for (size_t i = 1; whole && i <= more; i++) {
        whole = (p[i] & 0xc0) == 0x80;
        c = c << 6 | (p[i] & 0x3fu);
    }
    whole = whole && (more < 2 || c >= (more == 2 ? 0x800u : 0x10000u)) && c <= 0x10ffff && (c < 0xd800 || c > 0xdfff);
    *at += whole ? more + 1 : 1;
    return whole ? c : 0xdc00u | p[0];
}

/* Where the set that begins behind a "[" ends; NULL: it does not end. */
static const char *set_end(const char *at, const char *end)
{
    at += at < end && *at == '!';
    at += at < end && *at == ']';
    return at < end ? memchr(at, ']', (size_t)(end - at)) : NULL;
}

static bool in_set(const char *at, const char *end, uint32_t c)
{
    bool not = at < end && *at == '!', found = false;
    at += not;
    while (at < end) {
        uint32_t from = next_char(&at, end), to = from;
        if (at + 1 < end && *at == '-') {
            at++;
            to = next_char(&at, end);
        }
        found = found || (from <= c && c <= to);
    }
    return found != not;
}

/* The first of the pattern against the first of the name; both move behind it. */
static bool fits_one(const char **p, const char *pend, const char **n, const char *nend)
{
    uint32_t c = next_char(n, nend), want = next_char(p, pend);
    const char *close = want == '[' ? set_end(*p, pend) : NULL;
    if (close == NULL)
        return want == '?' || want == c;
    bool fits = in_set(*p, close, c);
    *p = close + 1;
    return fits;
}

bool lay_glob_fits(const char *pattern, size_t m, const char *name, size_t n)
{
    const char *p = pattern, *pend = pattern + m, *at = name, *nend = name + n;
    const char *star = NULL, *from = NULL;      /* behind the last "*", and where what it stands for ends */
    for (;;) {
        if (p < pend && *p == '*') {
            star = ++p;
            from = at;
            continue;
        }
        if (at == nend && p == pend)
            return true;
        if (at < nend && p < pend && fits_one(&p, pend, &at, nend))
            continue;
        if (star == NULL || from == nend)
            return false;
        next_char(&from, nend);
        p = star;
        at = from;
    }
}

/* ---- all patterns ------------------------------------------------------------------------------------------------ */

/* A "**" may stand for nothing. */
static void pass_any(const lay_exclude *x, bool *places)
{
    for (size_t i = 0; i + 1 < x->count; i++)
        if (places[i] && x->parts[i].any)
            places[i + 1] = true;
}

static void begin(const lay_exclude *x, bool *places)
{
    for (size_t i = 0; i < x->count; i++)
        places[i] = i == 0 || x->parts[i - 1].last;
    pass_any(x, places);
}

/* From the places before a name to those behind it. True: a pattern has come to its end. */
static bool step(const lay_exclude *x, const bool *from, bool *to, const char *name, size_t n)
{
    bool ended = false;
    memset(to, 0, x->count * sizeof *to);
    for (size_t i = 0; i < x->count; i++) {
        const part *p = &x->parts[i];
        if (!from[i] || p->last)
            continue;
        if (p->any)
            to[i] = true;
        else if (lay_glob_fits(p->text, p->len, name, n))
            to[i + 1] = true;
    }
    pass_any(x, to);
    for (size_t i = 0; i < x->count; i++)
        ended = ended || (to[i] && x->parts[i].last);
    return ended;
}

void lay_exclude_enter(lay_exclude *x, const char *directory)
{
    if (x == NULL)
        return;
    begin(x, x->here);
    for (const char *at = directory; *at != '\0';) {
        size_t n = strcspn(at, "/");
        step(x, x->here, x->next, at, n);
        bool *was = x->here;
        x->here = x->next;
        x->next = was;
        at += n + (at[n] == '/');
    }
}

bool lay_exclude_fits(lay_exclude *x, const char *name)
{
    return x != NULL && step(x, x->here, x->scratch, name, strlen(name));
}

/* parts NULL: only counts. */
static size_t split(const char *pattern, part *parts)
{
    size_t count = 0;
    bool any = false;
    for (const char *at = pattern; *at != '\0';) {
        size_t n = strcspn(at, "/");
        if (n > 0 && !(n == 1 && *at == '.')) {
            any = n == 2 && at[0] == '*' && at[1] == '*';
            if (parts != NULL)
                parts[count] = (part){ .text = at, .len = n, .any = any };
            count++;
        }
        at += n + (at[n] == '/');
    }
    if (any) {
        if (parts != NULL)
            parts[count] = (part){ .text = "*", .len = 1 };
        count++;
    }
    if (parts != NULL)
        parts[count] = (part){ .last = true };
    return count + 1;
}

lay_code lay_exclude_new(lay_exclude **out, const char *patterns, size_t count, lay_error *err)
{
    *out = NULL;
    if (count == 0)
        return LAY_OK;
    lay_exclude *x = calloc(1, sizeof *x);
    if (x == NULL)
        return lay_fail_nomem(err);
    const char *end = patterns;
    for (size_t i = 0; i < count; i++, end += strlen(end) + 1)
        x->count += split(end, NULL);
    x->text = malloc((size_t)(end - patterns));
    x->parts = calloc(x->count, sizeof *x->parts);
    x->here = calloc(x->count, sizeof *x->here);
    x->next = calloc(x->count, sizeof *x->next);
    x->scratch = calloc(x->count, sizeof *x->scratch);
    if (x->text == NULL || x->parts == NULL || x->here == NULL || x->next == NULL || x->scratch == NULL) {
        lay_exclude_free(x);
        return lay_fail_nomem(err);
    }
    memcpy(x->text, patterns, (size_t)(end - patterns));
    const char *at = x->text;
    for (size_t i = 0; i < x->count; at += strlen(at) + 1)
        i += split(at, x->parts + i);
    lay_exclude_enter(x, "");
    *out = x;
    return LAY_OK;
}

void lay_exclude_free(lay_exclude *x)
{
    if (x == NULL)
        return;
    free(x->text);
    free(x->parts);
    free(x->here);
    free(x->next);
    free(x->scratch);
    free(x);
}
