/* tar_walk.c - the tar reader's whole event stream over one span, and nothing done with it.
 * From Python each event would cost more than the reader takes for it. Built by stages.py beside the tests' door. */
#include "tar/tar.h"

int64_t bench_tar_walk(const void *p, size_t n, lay_error *err)
{
    lay_tar *t = lay_tar_new();
    lay_tar_item item;
    int64_t entries = 0;
    int event;

    if (!t)
        return -1;
    lay_tar_feed(t, p, n);
    while ((event = lay_tar_next(t, &item, err)) > 0)
        entries += event == LAY_TAR_ENTRY;
    if (event < 0 || lay_tar_eof(t, err) != LAY_OK)
        entries = -1;
    lay_tar_free(t);
    return entries;
}
