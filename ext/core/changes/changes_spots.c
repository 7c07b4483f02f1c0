/* changes_spots.c - directories enter a stack, threads look into them and put what lies in them on top; what
 * they noted leaves in the order of a walk.
 *
 * The last one put is the next one taken, so what waits is what a walk would have to come back to. An error
 * ends nothing that comes before it in the order of the walk: so it is the walk's first one that is told.
 */
#include "changes/changes_spots.h"
#include "base/grow.h"

#include <pthread.h>
#include <signal.h>
#include <string.h>

#define INTO 5          /* among what is noted: the next directory comes here */
#define WORTH 16u       /* directories that wait: a thread costs as much as looking into one or two */

/* ---- one directory ---- */

static lay_spot *spot_new(lay_spot *parent, const char *name, size_t n)
{
    lay_spot *s = calloc(1, sizeof *s + n + 1);
    if (s == NULL)
        return NULL;
    memcpy(s->name, name, n);
    s->name_len = n;
    s->kind = LAY_SPOT_SAME;
    s->parent = parent;
    if (parent != NULL) {
        s->depth = parent->depth + 1;
        s->path_len = parent->path_len + (parent->path_len > 0) + n;
    }
    return s;
}

lay_spot *lay_spot_root(void) { return spot_new(NULL, "", 0); }

static void spot_free(lay_spot *s)
{
    free(s->lowers);
    free(s->noted);
    free(s->dirs);
    free(s);
}

void lay_spot_free(lay_spot *s)
{
    while (s != NULL) {
        if (s->ndirs > 0) {
            lay_spot *dir = s->dirs[--s->ndirs];
            if (dir != NULL)
                s = dir;
            continue;
        }
        lay_spot *parent = s->parent;
        spot_free(s);
        s = parent;
    }
}

lay_code lay_spot_note(lay_spot *s, int kind, const char *name, size_t n, lay_error *err)
{
    if (lay_reserve(&s->noted, &s->noted_cap, s->noted_len + n + 2, 1, err))
        return err->code;
    char *to = s->noted + s->noted_len;
    to[0] = (char)kind;
    memcpy(to + 1, name, n);
    to[n + 1] = '\0';
    s->noted_len += n + 2;
    return LAY_OK;
}

lay_code lay_spot_note_dir(lay_spot *s, const char *name, size_t n, lay_error *err)
{
    if (lay_grow(&s->dirs, &s->dirs_cap, s->ndirs, sizeof *s->dirs, err))
        return err->code;
    lay_spot *dir = spot_new(s, name, n);
    if (dir == NULL)
        return lay_fail_nomem(err);
    dir->index = s->ndirs;
    s->dirs[s->ndirs++] = dir;
    return lay_spot_note(s, INTO, "", 0, err);
}

lay_code lay_spot_path(const lay_spot *s, lay_text *path, lay_error *err)
{
    if (lay_text_room(path, s->path_len, err))
        return err->code;
    lay_text_cut(path, s->path_len);
    char *to = path->p + s->path_len;
    for (; s->parent != NULL; s = s->parent) {
        to -= s->name_len;
        memcpy(to, s->name, s->name_len);
        if (s->parent->parent != NULL)
            *--to = '/';
    }
    return LAY_OK;
}

/* ---- the threads ---- */

typedef struct crew crew;
typedef struct hand { crew *crew; void *reader; pthread_t thread; bool runs; } hand;
struct crew {                         /* lock: for all but look, hands and n */
    lay_spot_look look;
    hand hands[LAY_SPOT_THREADS]; unsigned n;
    pthread_mutex_t lock;
    pthread_cond_t more;              /* there is work, or none will follow */
    lay_spot **todo; size_t count, cap;
    unsigned busy, waiting;
    bool started;
    const lay_spot *failed;           /* the first in the order of the walk */
    lay_error err;
};

/* Does a come before b in the order of the walk? What a failed at comes after all the directories it noted. */
static bool before(const lay_spot *a, const lay_spot *b)
{
    for (; a->depth > b->depth; a = a->parent)
        if (a->parent == b)
            return true;
    for (; b->depth > a->depth; b = b->parent)
        if (b->parent == a)
            return false;
    for (; a->parent != b->parent; a = a->parent)
        b = b->parent;
    return a->index < b->index;
}

static lay_code crew_put(crew *c, const lay_spot *s, lay_error *err)
{
    if (lay_reserve(&c->todo, &c->cap, c->count + s->ndirs, sizeof *c->todo, err))
        return err->code;
    for (size_t i = s->ndirs; i > 0; i--)
        c->todo[c->count++] = s->dirs[i - 1];
    return LAY_OK;
}

static void *hand_work(void *arg);

/* Where no thread can be had, the caller's does it all. */
static void crew_start(crew *c)
{
    sigset_t all, was;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &was);     /* signals are the caller's threads' to see */
    for (unsigned i = 1; i < c->n; i++)
        c->hands[i].runs = pthread_create(&c->hands[i].thread, NULL, hand_work, &c->hands[i]) == 0;
    pthread_sigmask(SIG_SETMASK, &was, NULL);
    c->started = true;
}

static void *hand_work(void *arg)
{
    hand *h = arg;
    crew *c = h->crew;
    pthread_mutex_lock(&c->lock);
    while (c->count > 0 || c->busy > 0) {
        if (c->count == 0) {
            c->waiting++;
            pthread_cond_wait(&c->more, &c->lock);
            c->waiting--;
            continue;
        }
        lay_spot *s = c->todo[--c->count];
        if (c->failed != NULL && before(c->failed, s))
            continue;
        c->busy++;
        pthread_mutex_unlock(&c->lock);
        lay_error err;
        lay_error_clear(&err);
        lay_code code = c->look(h->reader, s, &err);
        pthread_mutex_lock(&c->lock);
        c->busy--;
        lay_error more;
        lay_code full = crew_put(c, s, &more);
        if (code == LAY_OK && full != LAY_OK) {
            code = full;
            err = more;
        }
        if (code != LAY_OK && (c->failed == NULL || before(s, c->failed))) {
            c->failed = s;
            c->err = err;
        }
        if (h == c->hands && !c->started && c->count >= WORTH)
            crew_start(c);
        if (c->waiting > 0 && c->count > 0)
            pthread_cond_broadcast(&c->more);
    }
    pthread_cond_broadcast(&c->more);
    pthread_mutex_unlock(&c->lock);
    return NULL;
}

lay_code lay_spot_walk(lay_spot *root, lay_spot_look look, void *const *readers, unsigned n, lay_error *err)
{
    crew c = { .look = look, .n = n, .lock = PTHREAD_MUTEX_INITIALIZER, .more = PTHREAD_COND_INITIALIZER };
    for (unsigned i = 0; i < n; i++)
        c.hands[i] = (hand){ .crew = &c, .reader = readers[i] };
    lay_spot *first = root;
    lay_spot top = { .dirs = &first, .ndirs = 1 };
    lay_code code = crew_put(&c, &top, err);
    if (code == LAY_OK) {
        hand_work(&c.hands[0]);
        for (unsigned i = 1; i < n; i++)
            if (c.hands[i].runs)
                pthread_join(c.hands[i].thread, NULL);
        code = c.failed != NULL ? c.err.code : LAY_OK;
        if (code != LAY_OK)
            *err = c.err;
    }
    pthread_cond_destroy(&c.more);
    pthread_mutex_destroy(&c.lock);
    free(c.todo);
    return code;
}

/* ---- the list ---- */

lay_code lay_spot_tell(lay_spot *root, lay_differ *d, lay_error *err)
{
    lay_code code = LAY_OK;
    for (lay_spot *s = root; code == LAY_OK;) {
        if (s->noted_at == s->noted_len) {
            if (s == root)
                break;
            lay_spot *done = s;
            s = s->parent;
            s->dirs[done->index] = NULL;
            lay_differ_leave(d);
            spot_free(done);
            continue;
        }
        const char *noted = s->noted + s->noted_at;
        size_t n = strlen(noted + 1);
        s->noted_at += n + 2;
        if (noted[0] != INTO) {
            code = lay_differ_record(d, noted[0], noted + 1, n, err);
            continue;
        }
        lay_spot *dir = s->dirs[s->dirs_at++];
        if (dir->kind == LAY_SPOT_GONE)
            continue;
        bool recorded = dir->kind != LAY_SPOT_SAME;
        code = (recorded && lay_differ_record(d, dir->kind, dir->name, dir->name_len, err))
            || lay_differ_enter(d, dir->name, dir->name_len, recorded, err) ? err->code : LAY_OK;
        s = dir;
    }
    return code;
}
