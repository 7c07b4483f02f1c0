/* dirs.c - counted open directories and a small direct-mapped table of the last ones used. */
#include "tree/dirs.h"

#include <string.h>

static uint64_t hash_path(const char *p, size_t n)
{
    uint64_t h = 1469598103934665603u;          /* FNV-1a: only a place in a table of 64, compared afterwards */
    for (size_t i = 0; i < n; i++)
        h = (h ^ (uint8_t)p[i]) * 1099511628211u;
    return h ^ h >> 29;
}

lay_dir *lay_dir_new(int fd, const char *path, size_t n, bool inherits)
{
    lay_dir *d = malloc(sizeof *d + n + 1);
    if (!d) {
        close(fd);
        return NULL;
    }
    d->fd = fd;
    d->refs = 1;
    d->inherits = inherits;
    d->marked = false;
    d->hash = hash_path(path, n);
    d->path_len = n;
    memcpy(d->path, path, n);
    d->path[n] = '\0';
    return d;
}

lay_dir *lay_dir_retain(lay_dir *d)
{
    __atomic_fetch_add(&d->refs, 1, __ATOMIC_RELAXED);
    return d;
}

void lay_dir_release(lay_dir *d)
{
    if (!d || __atomic_sub_fetch(&d->refs, 1, __ATOMIC_ACQ_REL) > 0)
        return;
    int e = errno;
    close(d->fd);
    free(d);
    errno = e;
}

lay_dir *lay_dirs_find(lay_dirs *dirs, const char *path, size_t n)
{
    uint64_t h = hash_path(path, n);
    lay_dir *d = dirs->kept[h % LAY_DIRS_KEPT];
    if (!d || d->hash != h || d->path_len != n || memcmp(d->path, path, n) != 0)
        return NULL;
    return lay_dir_retain(d);
}

void lay_dirs_remember(lay_dirs *dirs, lay_dir *d)
{
    lay_dir **slot = &dirs->kept[d->hash % LAY_DIRS_KEPT];
    lay_dir_release(*slot);
    *slot = lay_dir_retain(d);
}

void lay_dirs_forget(lay_dirs *dirs)
{
    for (size_t i = 0; i < LAY_DIRS_KEPT; i++) {
        lay_dir_release(dirs->kept[i]);
        dirs->kept[i] = NULL;
    }
}
