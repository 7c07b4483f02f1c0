/* gather.h - small files of a tree, each read whole to a place that was fixed before, by two threads at once.
 *
 * One thread adds files in the order of the tar, and ends; another may help from the first add to the end.
 * What fails is told at the end: of all that failed, the first that was added.
 */
#ifndef LAY_GATHER_H
#define LAY_GATHER_H

#include "tree/payload.h"

typedef struct lay_gather lay_gather;

lay_code lay_gather_open(lay_gather **out, int root_fd, lay_error *err);   /* root_fd is borrowed */
/* One more file, whose bytes go to `to`, which is at offset `at` for the adder. False: there is no room
 * before an end (nor after it, if nothing was added). *news: a helper may find work now. */
bool lay_gather_add(lay_gather *g, const lay_payload *file, uint8_t *to, size_t at, bool *news);
/* Reads some of the files; false: none was left to be taken. */
bool lay_gather_help(lay_gather *g, lay_hand *hand);
/* Reads what is left and waits for the helper. On failure *at is the offset of the file in err: files before it
 * are read, those behind it may be. Then g is as new. */
lay_code lay_gather_end(lay_gather *g, lay_hand *hand, size_t *at, lay_error *err);
void lay_gather_free(lay_gather *g);

#endif
