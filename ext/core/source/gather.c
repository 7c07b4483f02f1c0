/* gather.c - small files of a tree, each read whole to a place that was fixed before, by two threads at once.
 *
 * A list that is filled, worked off from its front and emptied again: memory is that of the list. Files are handed
 * over and taken several at a time, as a lock for each costs both threads more than it gives; a hand takes fewer
 * towards the end, so that neither waits long for the other.
 */
#include "source/gather.h"

#include <pthread.h>
#include <string.h>

#define FILES 1024u
#define NAMES (128u << 10)       /* bytes of their names */
#define HAND_OVER 8u
#define TAKE 8u

typedef struct gathered { lay_payload file; uint8_t *to; size_t at; } gathered;

struct lay_gather {
    int root_fd;
    unsigned laid; size_t names_len;        /* the adder's; files below `ready` and their names stay as they are */
    pthread_mutex_t lock;                   /* guards all from here to failure */
    pthread_cond_t rest;
    unsigned ready, taken, active;          /* active: hands that have some */
    bool failed;
    unsigned failed_file;                   /* the first so far */
    lay_error failure;
    gathered files[FILES];
    char names[NAMES];
};

lay_code lay_gather_open(lay_gather **out, int root_fd, lay_error *err)
{
    lay_gather *g = calloc(1, sizeof *g);
    if (!g)
        return lay_fail_nomem(err);
    g->root_fd = root_fd;
    int e = pthread_mutex_init(&g->lock, NULL);
    if (e == 0 && (e = pthread_cond_init(&g->rest, NULL)) != 0)
        pthread_mutex_destroy(&g->lock);
    if (e != 0) {
        free(g);
        return lay_fail_os(err, e, NULL, "cannot read files side by side");
    }
    *out = g;
    return LAY_OK;
}

void lay_gather_free(lay_gather *g)
{
    if (!g)
        return;
    pthread_cond_destroy(&g->rest);
    pthread_mutex_destroy(&g->lock);
    free(g);
}

static void hand_over(lay_gather *g)
{
    pthread_mutex_lock(&g->lock);
    g->ready = g->laid;
    pthread_mutex_unlock(&g->lock);
}

bool lay_gather_add(lay_gather *g, const lay_payload *file, uint8_t *to, size_t at, bool *news)
{
    *news = false;
    if (g->laid == FILES || file->name_len > NAMES - g->names_len)
        return false;
    gathered *f = &g->files[g->laid++];
    *f = (gathered){ *file, to, at };
    f->file.name = memcpy(g->names + g->names_len, file->name, file->name_len);
    g->names_len += file->name_len;
    *news = g->laid % HAND_OVER == 0;
    if (*news)
        hand_over(g);
    return true;
}

bool lay_gather_help(lay_gather *g, lay_hand *hand)
{
    pthread_mutex_lock(&g->lock);
    unsigned first = g->taken, left = g->failed ? 0 : g->ready - first;
    unsigned n = left > 4 * TAKE ? TAKE : (left + 3) / 4;
    g->taken += n;
    g->active += n > 0;
    pthread_mutex_unlock(&g->lock);
    if (n == 0)
        return false;
    lay_error err;
    unsigned i = 0;
    while (i < n && lay_payload_read(g->root_fd, hand, &g->files[first + i].file, g->files[first + i].to, &err) == LAY_OK)
        i++;
    pthread_mutex_lock(&g->lock);
    if (i < n && (!g->failed || first + i < g->failed_file)) {
        g->failed = true;
        g->failed_file = first + i;
        g->failure = err;
    }
    g->active--;
    pthread_cond_signal(&g->rest);
    pthread_mutex_unlock(&g->lock);
    return true;
}

lay_code lay_gather_end(lay_gather *g, lay_hand *hand, size_t *at, lay_error *err)
{
    hand_over(g);
    while (lay_gather_help(g, hand))
        ;
    pthread_mutex_lock(&g->lock);
    while (g->active > 0)
        pthread_cond_wait(&g->rest, &g->lock);
    lay_code code = LAY_OK;
    if (g->failed) {
        *at = g->files[g->failed_file].at;
        *err = g->failure;
        code = err->code;
    }
    g->failed = false;
    g->ready = g->taken = g->laid = 0;
    g->names_len = 0;
    pthread_mutex_unlock(&g->lock);
    return code;
}
