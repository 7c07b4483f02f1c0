/* walk.c - the entries of a tar, one after the other, whose payloads others read.
 *
 * Enters: headers and what extends them, in exactly the portions that are asked for. Leaves: entries. What an archive of
 * images holds is read by the reader that reads the layers in it, so that both see the same.
 */
#include "lay.h"
#include "tar/tar_state.h"

#include <stdlib.h>

struct lay_walk {
    lay_tar *tar;
};

lay_code lay_walk_open(lay_walk **out, lay_error *err)
{
    lay_error_clear(err);
    lay_walk *w = calloc(1, sizeof *w);
    if (w)
        w->tar = lay_tar_new();
    if (!w || !w->tar) {
        lay_walk_free(w);
        return lay_fail_nomem(err);
    }
    *out = w;
    return LAY_OK;
}

void lay_walk_free(lay_walk *w)
{
    if (w)
        lay_tar_free(w->tar);
    free(w);
}

size_t lay_walk_wants(const lay_walk *w)
{
    const lay_tar *t = w->tar;
    switch (t->state) {
    case IN_EXTENSION:
        return (size_t)t->left;
    case IN_EXTENSION_PAD:
        return t->pad ? t->pad : LAY_TAR_BLOCK;
    case IN_TRAILER:
    case IN_ERROR:
        return 0;
    default:
        return LAY_TAR_BLOCK - t->have;
    }
}

lay_code lay_walk_feed(lay_walk *w, const void *p, size_t n, lay_walked *entry, int *found, lay_error *err)
{
    lay_tar *t = w->tar;
    lay_error_clear(err);
    *found = 0;
    if (n > lay_walk_wants(w))
        return lay_fail(err, LAY_E_STATE, "more than was asked for");
    lay_tar_feed(t, p, n);
    lay_tar_item item;
    for (;;) {
        switch (lay_tar_next(t, &item, err)) {
        case LAY_TAR_BAD:
            return err->code;
        case LAY_TAR_ENTRY:
            *entry = (lay_walked){
                .name = item.entry->name, .name_len = item.entry->name_len, .link = item.entry->link, .link_len = item.entry->link_len,
                .type = item.entry->type, .sparse = item.entry->sparse, .stored = t->left, .padding = (int64_t)t->pad,
                .doubt = item.entry->doubt,
            };
            *found = 1;
            lay_tar_pass(t);
            return LAY_OK;
        case LAY_TAR_NEED:
        case LAY_TAR_END:
            return LAY_OK;
        case LAY_TAR_RAW:
        case LAY_TAR_DATA:
        case LAY_TAR_DONE:
            break;
        }
    }
}

lay_code lay_walk_end(lay_walk *w, lay_error *err)
{
    lay_error_clear(err);
    return lay_tar_eof(w->tar, err);
}

int lay_walk_begins(const uint8_t *block) { return lay_tar_is_header(block); }
