/* twins.c - the first name of an inode is made; the others are linked to it, and wait while it is being made. */
#include "clone/twins.h"

#include "base/grow.h"

#include <fcntl.h>
#include <string.h>

void lay_twins_init(lay_twins *t, int root_fd)
{
    *t = (lay_twins){ .root_fd = root_fd };
    pthread_mutex_init(&t->lock, NULL);
    pthread_cond_init(&t->made, NULL);
}

void lay_twins_free(lay_twins *t)
{
    for (size_t i = 0; i < t->count; i++)
        free(t->list[i].path);
    free(t->list);
    lay_inodes_free(&t->inodes);
    pthread_cond_destroy(&t->made);
    pthread_mutex_destroy(&t->lock);
}

void lay_twins_stop(lay_twins *t)
{
    pthread_mutex_lock(&t->lock);
    t->stop = true;
    pthread_cond_broadcast(&t->made);
    pthread_mutex_unlock(&t->lock);
}

/* Under the lock: the twin of this inode; NULL: no memory. */
static lay_twin *twin_of(lay_twins *t, const struct stat *st, lay_error *err)
{
    bool seen;
    size_t i = t->count;
    if (lay_grow(&t->list, &t->cap, t->count, sizeof *t->list, err) || lay_inodes_add(&t->inodes, st->st_dev, st->st_ino, &i, &seen, err))
        return NULL;
    if (!seen)
        t->list[t->count++] = (lay_twin){ LAY_TWIN_ABSENT, NULL, 0 };
    return &t->list[i];
}

typedef enum turn { TURN_FAILED, TURN_MAKE, TURN_LINK, TURN_STOPPED } turn;
typedef struct spot { const char *path; size_t n; } spot;

/* Under the lock: this name is the one that is made. */
static turn become_first(lay_twin *w, const spot *here, lay_error *err)
{
    char *path = strndup(here->path, here->n);
    if (path == NULL) {
        lay_fail_nomem(err);
        return TURN_FAILED;
    }
    free(w->path);
    *w = (lay_twin){ LAY_TWIN_IN_WORK, path, here->n };
    return TURN_MAKE;
}

/* Whether a name of an inode is to be made, or to be linked to c->first. full: a link to that was refused. */
static turn take_turn(lay_twins *t, lay_copier *c, const struct stat *st, const spot *here, bool full, lay_error *err)
{
    turn r = TURN_STOPPED;
    pthread_mutex_lock(&t->lock);
    while (!t->stop) {
        lay_twin *w = twin_of(t, st, err);       /* anew: the list may have moved */
        r = TURN_FAILED;
        if (w == NULL)
            break;
        if (w->state == LAY_TWIN_IN_WORK) {
            pthread_cond_wait(&t->made, &t->lock);
            r = TURN_STOPPED;
            continue;
        }
        bool link = w->state == LAY_TWIN_THERE && !(full && w->len == c->first.len && memcmp(w->path, c->first.p, w->len) == 0);
        if (!link) {
            r = become_first(w, here, err);
        } else {
            lay_text_cut(&c->first, 0);
            r = lay_text_add(&c->first, w->path, w->len, err) ? TURN_FAILED : TURN_LINK;
        }
        break;
    }
    pthread_mutex_unlock(&t->lock);
    return r;
}

static void end_turn(lay_twins *t, const struct stat *st, bool made)
{
    lay_error unused;
    pthread_mutex_lock(&t->lock);
    lay_twin *w = twin_of(t, st, &unused);
    if (w)
        w->state = made ? LAY_TWIN_THERE : LAY_TWIN_ABSENT;
    pthread_cond_broadcast(&t->made);
    pthread_mutex_unlock(&t->lock);
}

/* One more name of the copy at c->first. *full: it has as many as it can have. */
static lay_code link_to_first(const lay_twins *t, lay_copier *c, const char *name, int to_fd, bool *full, lay_error *err)
{
    const char *base;
    int fd = lay_parent_open(&c->parent, t->root_fd, c->first.p, c->first.len, &base);
    *full = false;
    if (fd >= 0 && linkat(fd, base, to_fd, name, 0) == 0)
        return LAY_OK;
    *full = fd >= 0 && errno == EMLINK;
    return *full ? LAY_OK : lay_fail_os(err, errno, name, "cannot link it to its other name");
}

static lay_code copy_twin(lay_copier *c, lay_twins *t, lay_found *f, int to_fd, const spot *here, bool *unsteady, lay_error *err)
{
    const struct stat st = f->st;
    bool full = false, made;
    turn r;
    while ((r = take_turn(t, c, &st, here, full, err)) == TURN_LINK) {
        if (link_to_first(t, c, f->name, to_fd, &full, err))
            return err->code;
        if (!full)
            return LAY_OK;
    }
    if (r != TURN_MAKE)
        return r == TURN_STOPPED ? LAY_OK : err->code;
    lay_code code = lay_copy_make(c, f, to_fd, &made, unsteady, err);
    end_turn(t, &st, made && !code);
    return code;
}

lay_code lay_copy_name(lay_copier *c, lay_twins *t, int from_fd, const char *name, int to_fd, const char *path, size_t n, bool *unsteady, lay_error *err)
{
    bool there = false;
    lay_found f;
    const spot here = { path, n };
    *unsteady = false;
    lay_code code = lay_copy_find(&f, from_fd, name, &there, err);
    if (code == LAY_OK && there && f.st.st_nlink > 1)
        code = copy_twin(c, t, &f, to_fd, &here, unsteady, err);
    else if (code == LAY_OK && there)
        code = lay_copy_make(c, &f, to_fd, &there, unsteady, err);
    lay_close_owner(&f.fd);
    return code;
}
