/* memory_lower.c - a second kind of lower layer, for the seam's sake: a tree that was read once and is held in memory.
 *
 * A place is a number that is given out and must come back: what is asked of one that is not given out now, or leads
 * to no directory, ends the process. So it tells leaks and uses after closing.
 */
#include "changes/changes.h"
#include "tree/lowers.h"

#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/xattr.h>

#define PLACES 4096

typedef struct attribute { struct attribute *next; size_t len; char *name; uint8_t value[]; } attribute;
typedef struct thing {
    struct thing *next, *first;         /* in the same directory; in this one */
    attribute *attributes;
    struct stat st;
    char name[256];
} thing;
typedef struct memory { lay_lower as; thing *root; pthread_mutex_t lock; const thing *given[PLACES]; long asked; } memory;

memory *memory_new(int fd);
void memory_free(memory *m);
long memory_given(const memory *m);
long memory_asked(const memory *m);
lay_code memory_changes(lay_changes **out, memory *upper, int upper_fd, memory *const *lowers, size_t n, lay_error *err);
int memory_shows(memory *const *lowers, size_t n, const char *path, size_t len);

static void *must(void *p)
{
    if (!p)
        abort();
    return p;
}

/* ---- reading ---- */

static void read_attributes(thing *t, const char *path)
{
    char names[8192];
    ssize_t n = llistxattr(path, names, sizeof names);
    for (const char *at = names; n > 0 && at < names + n; at += strlen(at) + 1) {
        ssize_t len = lgetxattr(path, at, NULL, 0);
        attribute *a = must(malloc(sizeof *a + (len > 0 ? (size_t)len : 0)));
        *a = (attribute){ .next = t->attributes, .len = (size_t)len, .name = must(strdup(at)) };
        if (len < 0 || lgetxattr(path, at, a->value, a->len) != len)
            abort();
        t->attributes = a;
    }
}

static thing *read_tree(const char *path, const char *name)
{
    thing *t = must(calloc(1, sizeof *t));
    strcpy(t->name, name);
    if (lstat(path, &t->st) != 0)
        abort();
    read_attributes(t, path);
    DIR *d = S_ISDIR(t->st.st_mode) ? must(opendir(path)) : NULL;
    for (const struct dirent *e; d && (e = readdir(d)) != NULL;) {
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, ".."))
            continue;
        char *below = must(malloc(strlen(path) + strlen(e->d_name) + 2));
        sprintf(below, "%s/%s", path, e->d_name);
        thing *child = read_tree(below, e->d_name);
        child->next = t->first;
        t->first = child;
        free(below);
    }
    if (d)
        closedir(d);
    return t;
}

static void free_tree(thing *t)
{
    while (t->first) {
        thing *child = t->first;
        t->first = child->next;
        free_tree(child);
    }
    while (t->attributes) {
        attribute *a = t->attributes;
        t->attributes = a->next;
        free(a->name);
        free(a);
    }
    free(t);
}

/* ---- the functions ---- */

static memory *memory_of(const lay_lower *l) { return (memory *)(uintptr_t)l->layer; }

static const thing *at(const lay_lower *l, lay_lower_dir in)
{
    memory *m = memory_of(l);
    pthread_mutex_lock(&m->lock);
    const thing *t = in >= 0 && in < PLACES ? m->given[in] : NULL;
    m->asked++;
    pthread_mutex_unlock(&m->lock);
    if (!t || !S_ISDIR(t->st.st_mode))
        abort();
    return t;
}

static const thing *child_of(const thing *t, const char *name, size_t n)
{
    if (n == 1 && name[0] == '.')
        return t;
    for (t = t->first; t; t = t->next)
        if (strlen(t->name) == n && !memcmp(t->name, name, n))
            return t;
    errno = ENOENT;
    return NULL;
}

static lay_lower_dir give(memory *m, const thing *t)
{
    lay_lower_dir in = 0;
    pthread_mutex_lock(&m->lock);
    while (in < PLACES && m->given[in])
        in++;
    if (in == PLACES)
        abort();
    m->given[in] = t;
    pthread_mutex_unlock(&m->lock);
    return in;
}

static lay_lower_dir memory_open(const lay_lower *l, lay_lower_dir in, const char *path, size_t n)
{
    const thing *t = at(l, in);
    for (size_t len; t && n; path += len, n -= len) {
        const char *slash = memchr(path, '/', n);
        len = slash ? (size_t)(slash - path) : n;
        t = child_of(t, path, len);
        if (t && !S_ISDIR(t->st.st_mode)) {
            errno = S_ISLNK(t->st.st_mode) && slash ? ELOOP : ENOTDIR;
            t = NULL;
        }
        len += slash != NULL;
    }
    return t ? give(memory_of(l), t) : -1;
}

static void memory_close(const lay_lower *l, lay_lower_dir in)
{
    memory *m = memory_of(l);
    at(l, in);
    pthread_mutex_lock(&m->lock);
    m->given[in] = NULL;
    pthread_mutex_unlock(&m->lock);
}

static int memory_stat(const lay_lower *l, lay_lower_dir in, const char *name, struct stat *st)
{
    const thing *t = child_of(at(l, in), name, strlen(name));
    if (!t)
        return -1;
    *st = t->st;
    return 0;
}

static int by_name(const void *a, const void *b, void *text)
{
    return strcmp((const char *)text + ((const lay_name *)a)->at, (const char *)text + ((const lay_name *)b)->at);
}

static lay_code memory_list(const lay_lower *l, lay_lower_dir in, lay_names *names, lay_error *err)
{
    size_t text = 0;
    (void)err;
    *names = (lay_names){ 0 };
    for (const thing *t = at(l, in)->first; t; t = t->next) {
        size_t len = strlen(t->name);
        names->list = must(reallocarray(names->list, names->count + 1, sizeof *names->list));
        names->text = must(realloc(names->text, text + len + 1));
        names->list[names->count++] = (lay_name){ .at = (uint32_t)text, .len = (uint16_t)len, .type = (uint8_t)IFTODT(t->st.st_mode), .ino = t->st.st_ino };
        memcpy(names->text + text, t->name, len + 1);
        text += len + 1;
    }
    if (names->count)
        qsort_r(names->list, names->count, sizeof *names->list, by_name, names->text);
    return LAY_OK;
}

static ssize_t put(void *buf, size_t size, size_t have, const void *p, size_t n)
{
    if (size && have + n > size) {
        errno = ERANGE;
        return -1;
    }
    if (size && n)
        memcpy((char *)buf + have, p, n);
    errno = 0;
    return (ssize_t)(have + n);
}

static ssize_t memory_xattr(const lay_lower *l, lay_lower_dir in, const char *name, const char *xattr, void *buf, size_t size)
{
    const thing *t = child_of(at(l, in), name, strlen(name));
    ssize_t n = 0;
    if (!t)
        return -1;
    for (const attribute *a = t->attributes; a && n >= 0; a = a->next) {
        if (!xattr)
            n = put(buf, size, (size_t)n, a->name, strlen(a->name) + 1);
        else if (!strcmp(xattr, a->name))
            return put(buf, size, 0, a->value, a->len);
    }
    if (xattr)
        errno = ENODATA;
    return n;
}

static lay_lower_dir memory_file(const lay_lower *l, lay_lower_dir in, const char *name, mode_t mode, const lay_lower **of)
{
    (void)mode;
    *of = l;
    errno = child_of(at(l, in), name, strlen(name)) ? ENOSYS : ENOENT;      /* what it has read are no bytes */
    return -1;
}

static const lay_lower_ops ops = { memory_open, memory_close, memory_stat, memory_list, memory_xattr, memory_file, NULL, NULL };

/* ---- for the tests ---- */

memory *memory_new(int fd)
{
    char path[64];
    memory *m = must(calloc(1, sizeof *m));
    snprintf(path, sizeof path, "/proc/self/fd/%d/.", fd);
    m->root = read_tree(path, "");
    pthread_mutex_init(&m->lock, NULL);
    m->as = (lay_lower){ .ops = &ops, .layer = m, .root = give(m, m->root) };
    return m;
}

void memory_free(memory *m)
{
    free_tree(m->root);
    pthread_mutex_destroy(&m->lock);
    free(m);
}

/* Places that are given out, beside the root. */
long memory_given(const memory *m)
{
    long n = -1;
    for (size_t i = 0; i < PLACES; i++)
        n += m->given[i] != NULL;
    return n;
}

long memory_asked(const memory *m) { return m->asked; }

static lay_lowers gathered(memory *const *lowers, size_t n)
{
    lay_lowers all = { .list = must(calloc(n + 1, sizeof *all.list)), .count = n };
    for (size_t i = 0; i < n; i++)
        all.list[i] = lowers[i]->as;
    return all;
}

/* upper NULL: the directory at upper_fd. */
lay_code memory_changes(lay_changes **out, memory *upper, int upper_fd, memory *const *lowers, size_t n, lay_error *err)
{
    lay_lowers all = gathered(lowers, n);
    const lay_lower at_fd = lay_lower_listed(upper_fd);
    lay_error_clear(err);
    lay_code code = lay_changes_over(out, upper ? &upper->as : &at_fd, &all, false, err);
    lay_lowers_free(&all);
    return code;
}

int memory_shows(memory *const *lowers, size_t n, const char *path, size_t len)
{
    lay_error err;
    lay_lowers all = gathered(lowers, n);
    int shows = lay_lowers_keep(&all, &err) ? -2 : lay_lowers_show(&all, path, len);
    lay_lowers_free(&all);
    return shows;
}
