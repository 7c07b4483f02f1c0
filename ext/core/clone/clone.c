/* clone.c - a directory enters, the same tree in another directory leaves.
 *
 * One thread walks: it lists a directory, makes the directories in it at once and hands out the other names in batches.
 * A directory's own owner, mode and times are set when its last name is made, by the thread that made it; the root's at the
 * very end. So at no depth more than a few descriptors are open, and what is set last is not changed by what is made.
 */
#include "clone/twins.h"

#include "base/clock.h"
#include "base/grow.h"
#include "tree/trail.h"

#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <time.h>

#define QUEUE 16u             /* batches; each may keep two descriptors open */
#define NAMES 32u             /* of a batch */
#define NAMES_SIZE 4096u      /* bytes of them */
#define THREADS_MAX 8

/* A directory and its copy, open while names of it are to be made. */
typedef struct pair {
    unsigned refs;            /* atomic */
    bool root;
    int from_fd, to_fd;
    struct stat st;           /* what it was before its names were read */
    size_t path_len;
    char path[];
} pair;

typedef struct batch { pair *dir; unsigned count; size_t len; char names[NAMES_SIZE]; } batch;
typedef struct frame { lay_names names; size_t next, path_len; pair *dir; struct timespec times[2]; } frame;   /* dir: until its names are laid out */

/* What one thread has of its own. */
typedef struct hand { lay_copier copier; lay_text path; } hand;

struct lay_clone {
    lay_copy_rules rules;
    lay_trail from, to;       /* the walker's, down to the next line */
    frame *frames; size_t depth, cap;
    lay_text path;            /* of the directory they stand in */
    batch filling;
    pair *root;
    hand own;                 /* of the thread that calls run */
    bool ended;
    lay_twins twins;
    pthread_mutex_t lock;     /* guards all from here to threads */
    pthread_cond_t work, done;            /* to a worker; to the walker */
    batch queue[QUEUE];
    unsigned head, count, active, sleeping;
    bool failed; lay_error failure;
    char **unsteady; size_t unsteady_count, unsteady_cap;
    int threads;
    pthread_t thread[THREADS_MAX];
};

static bool stopped(const lay_clone *c) { return __atomic_load_n(&c->rules.stop, __ATOMIC_RELAXED); }

/* The first failure is told; what goes on is stopped. */
static void fail(lay_clone *c, const lay_error *err)
{
    pthread_mutex_lock(&c->lock);
    if (!c->failed) {
        c->failed = true;
        c->failure = *err;
    }
    __atomic_store_n(&c->rules.stop, 1, __ATOMIC_RELAXED);
    pthread_cond_broadcast(&c->done);
    pthread_mutex_unlock(&c->lock);
    lay_twins_stop(&c->twins);
}

/* ---- directories ---- */

static pair *pair_new(lay_clone *c, const struct stat *st, lay_error *err)
{
    pair *p = malloc(sizeof *p + c->path.len + 1);
    if (p == NULL) {
        lay_fail_nomem(err);
        return NULL;
    }
    *p = (pair){ .refs = 1, .root = c->path.len == 0, .st = *st, .path_len = c->path.len };
    memcpy(p->path, c->path.len ? c->path.p : "", c->path.len + 1);
    p->from_fd = fcntl(lay_trail_fd(&c->from), F_DUPFD_CLOEXEC, 3);
    p->to_fd = p->from_fd < 0 ? -1 : fcntl(lay_trail_fd(&c->to), F_DUPFD_CLOEXEC, 3);
    if (p->to_fd >= 0)
        return p;
    lay_fail_os(err, errno, p->path, "cannot keep the directory open");
    lay_close_owner(&p->from_fd);
    free(p);
    return NULL;
}

/* The last one who lets go of a directory gives it its owner, mode and times. */
static lay_code pair_release(lay_clone *c, hand *h, pair *p, lay_error *err)
{
    lay_code code = LAY_OK;
    if (p == NULL || __atomic_sub_fetch(&p->refs, 1, __ATOMIC_ACQ_REL) > 0)
        return LAY_OK;
    if (!stopped(c))
        code = lay_copy_directory(&h->copier, p->from_fd, &p->st, p->to_fd, p->root, err);
    if (code)
        lay_error_path(err, p->root ? "." : p->path, p->root ? 1 : p->path_len);
    close(p->from_fd);
    close(p->to_fd);
    free(p);
    return code;
}

/* ---- names: what a worker does ---- */

static lay_code path_of(hand *h, const pair *dir, const char *name, lay_error *err)
{
    lay_text_cut(&h->path, 0);
    if (lay_text_push(&h->path, dir->path, dir->path_len, err))
        return err->code;
    return lay_text_push(&h->path, name, strlen(name), err);
}

/* h->path: of the file. */
static lay_code note_unsteady(lay_clone *c, const hand *h, lay_error *err)
{
    char *path = strdup(h->path.p);
    lay_code code = path ? LAY_OK : lay_fail_nomem(err);
    pthread_mutex_lock(&c->lock);
    if (!code)
        code = lay_grow(&c->unsteady, &c->unsteady_cap, c->unsteady_count, sizeof *c->unsteady, err);
    if (!code)
        c->unsteady[c->unsteady_count++] = lay_steal(path);
    pthread_mutex_unlock(&c->lock);
    free(path);
    return code;
}

/* As the same inode. *done false: it cannot be linked, and is to be copied. */
static lay_code link_name(const pair *dir, const char *name, bool *done, lay_error *err)
{
    *done = linkat(dir->from_fd, name, dir->to_fd, name, 0) == 0 || lay_tree_gone(errno);
    if (*done || errno == EXDEV || errno == EMLINK || errno == EPERM)
        return LAY_OK;
    return lay_fail_os(err, errno, name, "cannot link it");
}

static lay_code make_name(lay_clone *c, hand *h, const pair *dir, const char *name, lay_error *err)
{
    bool unsteady, linked = false;
    if (path_of(h, dir, name, err) || ((c->rules.flags & LAY_CLONE_LINK) && link_name(dir, name, &linked, err)) || linked)
        return err->code;
    if (lay_copy_name(&h->copier, &c->twins, dir->from_fd, name, dir->to_fd, h->path.p, h->path.len, &unsteady, err))
        return err->code;
    return unsteady ? note_unsteady(c, h, err) : LAY_OK;
}

static void run_batch(lay_clone *c, hand *h, const batch *b)
{
    lay_error err;
    lay_error_clear(&err);
    const char *name = b->names;
    for (unsigned i = 0; i < b->count && !stopped(c); i++, name += strlen(name) + 1) {
        if (make_name(c, h, b->dir, name, &err) == LAY_OK)
            continue;
        err.path[0] = '\0';             /* its name alone so far */
        if (h->path.len > 0)
            lay_error_path(&err, h->path.p, h->path.len);
        fail(c, &err);
    }
    if (pair_release(c, h, b->dir, &err))
        fail(c, &err);
}

static void move_batch(batch *to, batch *from)
{
    to->dir = lay_steal(from->dir);
    to->count = from->count;
    to->len = from->len;
    memcpy(to->names, from->names, from->len);
    from->count = 0;
    from->len = 0;
}

static void *worker(void *arg)
{
    lay_clone *c = arg;
    hand h = { 0 };
    batch mine;
    lay_error err;
    lay_error_clear(&err);
    if (lay_copier_init(&h.copier, &c->rules, true, &err))
        fail(c, &err);
    pthread_mutex_lock(&c->lock);
    for (;;) {
        while (!c->count && !stopped(c)) {
            c->sleeping++;
            pthread_cond_wait(&c->work, &c->lock);
            c->sleeping--;
        }
        if (!c->count)
            break;
        move_batch(&mine, &c->queue[c->head]);
        c->head = (c->head + 1) % QUEUE;
        c->count--;
        c->active++;
        pthread_cond_signal(&c->done);
        pthread_mutex_unlock(&c->lock);
        run_batch(c, &h, &mine);
        pthread_mutex_lock(&c->lock);
        c->active--;
        pthread_cond_signal(&c->done);
    }
    pthread_mutex_unlock(&c->lock);
    lay_copier_free(&h.copier);
    free(h.path.p);
    return NULL;
}

/* ---- the walk ---- */

/* Waits for a sign of a worker. False: it is time. Under the lock. */
static bool wait_done(lay_clone *c, int64_t deadline)
{
    struct timespec until = { deadline / 1000, (long)(deadline % 1000) * 1000000 };
    return pthread_cond_timedwait(&c->done, &c->lock, &until) != ETIMEDOUT;
}

/* Hands out the names that were gathered. False: there was no room for them until the deadline, or all is to end. */
static bool post(lay_clone *c, int64_t deadline)
{
    batch *b = &c->filling;
    if (b->count == 0)
        return true;
    if (c->threads == 0) {
        run_batch(c, &c->own, b);
        b->dir = NULL;
        b->count = 0;
        b->len = 0;
        return true;
    }
    pthread_mutex_lock(&c->lock);
    bool in_time = true;
    while (c->count == QUEUE && !c->failed && in_time)
        in_time = wait_done(c, deadline);
    bool room = c->count < QUEUE && !c->failed;
    if (room)
        move_batch(&c->queue[(c->head + c->count++) % QUEUE], b);
    if (room && c->sleeping)
        pthread_cond_signal(&c->work);
    pthread_mutex_unlock(&c->lock);
    return room;
}

/* Lists the directory that the trails stand in, whose path is c->path. */
static lay_code enter(lay_clone *c, lay_error *err)
{
    struct stat st;
    int fd = lay_trail_fd(&c->from);
    const char *path = c->path.len ? c->path.p : ".";
    if (lay_grow(&c->frames, &c->cap, c->depth, sizeof *c->frames, err))
        return err->code;
    if (fstat(fd, &st) != 0)
        return lay_fail_os(err, errno, path, "cannot look at the directory");
    fcntl(fd, F_SETFL, O_NOATIME);      /* listing it leaves no trace, where that is allowed */
    pair *dir = pair_new(c, &st, err);
    if (dir == NULL)
        return err->code;
    frame *f = &c->frames[c->depth];
    *f = (frame){ .path_len = c->path.len, .dir = dir, .times = { st.st_atim, st.st_mtim } };
    if (dir->root) {
        dir->refs++;
        c->root = dir;
    }
    c->depth++;
    return lay_names_read(&f->names, fd, err) ? lay_error_path(err, path, strlen(path)) : LAY_OK;
}

/* Some file systems do not tell kinds in a list. */
static uint8_t kind_of(int dir_fd, const char *name, uint8_t told)
{
    struct stat st;
    if (told != DT_UNKNOWN || fstatat(dir_fd, name, &st, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT) != 0)
        return told;
    return (uint8_t)IFTODT(st.st_mode);
}

/* Makes the directories of the one on top, and hands out its other names. *later: the time was over. */
static lay_code lay_out(lay_clone *c, int64_t deadline, bool *later, lay_error *err)
{
    frame *f = &c->frames[c->depth - 1];
    batch *b = &c->filling;
    bool links = (c->rules.flags & LAY_CLONE_LINK) != 0;
    for (; f->next < f->names.count; f->next++) {
        lay_name *n = &f->names.list[f->next];
        const char *name = f->names.text + n->at;
        n->type = kind_of(f->dir->from_fd, name, n->type);
        if (n->type == DT_DIR && mkdirat(f->dir->to_fd, name, 0700) != 0) {
            int e = errno;
            return lay_text_push(&c->path, name, n->len, err) ? err->code : lay_fail_os(err, e, c->path.p, "cannot make the directory");
        }
        *later = n->type == DT_DIR && f->next % NAMES == NAMES - 1 && lay_now_ms() > deadline;
        if (*later && ++f->next)
            return LAY_OK;
        if (n->type == DT_DIR || (n->type == DT_SOCK && !links))
            continue;
        bool full = b->count == NAMES || b->len + n->len + 1u > NAMES_SIZE;
        *later = full && !post(c, deadline);
        if (*later)
            return LAY_OK;
        if (b->count == 0) {
            __atomic_add_fetch(&f->dir->refs, 1, __ATOMIC_RELAXED);
            b->dir = f->dir;
        }
        memcpy(b->names + b->len, name, n->len + 1u);
        b->len += n->len + 1u;
        b->count++;
    }
    *later = !post(c, deadline);
    if (*later)
        return LAY_OK;
    f->next = 0;
    return pair_release(c, &c->own, lay_steal(f->dir), err);
}

/* A directory that is gone meanwhile is left out. */
static lay_code leave_out(lay_clone *c, const frame *f, const char *name, lay_error *err)
{
    int fd = lay_trail_fd(&c->to);
    if (unlinkat(fd, name, AT_REMOVEDIR) != 0 || futimens(fd, f->times) != 0)
        return lay_fail_os(err, errno, name, "cannot leave out a directory that is gone");
    return LAY_OK;
}

/* Into the next directory of the one on top, or up. */
static lay_code move_on(lay_clone *c, lay_error *err)
{
    frame *f = &c->frames[c->depth - 1];
    while (f->next < f->names.count && f->names.list[f->next].type != DT_DIR)
        f->next++;
    if (f->next < f->names.count) {
        const lay_name *n = &f->names.list[f->next++];
        const char *name = f->names.text + n->at;
        if (lay_trail_down(&c->from, name) != 0)
            return lay_tree_gone(errno) ? leave_out(c, f, name, err) : lay_fail_os(err, errno, name, "cannot open the directory");
        if (lay_trail_down(&c->to, name) != 0)
            return lay_fail_os(err, errno, name, "cannot open the copy of the directory");
        return lay_text_push(&c->path, name, n->len, err) ? err->code : enter(c, err);
    }
    for (int r = 1; r > 0;) {           /* the rest of a directory that has gone is skipped */
        lay_names_free(&c->frames[--c->depth].names);
        if (c->depth == 0)
            return LAY_OK;
        lay_text_cut(&c->path, c->frames[c->depth - 1].path_len);
        r = lay_trail_up(&c->from, c->path.len ? c->path.p : "", c->path.len);
        if (r < 0 || lay_trail_up(&c->to, c->path.len ? c->path.p : "", c->path.len) != 0)
            return lay_fail_os(err, errno, c->path.len ? c->path.p : ".", "cannot go back to the directory");
    }
    return LAY_OK;
}

/* All names are handed out: waits until they are made. False: the time was over. */
static bool wait_idle(lay_clone *c, int64_t deadline)
{
    bool in_time = true;
    pthread_mutex_lock(&c->lock);
    while ((c->count || c->active) && !c->failed && in_time)
        in_time = wait_done(c, deadline);
    bool idle = !c->count && !c->active;
    pthread_mutex_unlock(&c->lock);
    return idle;
}

static bool has_failed(lay_clone *c, lay_error *err)
{
    pthread_mutex_lock(&c->lock);
    bool failed = c->failed;
    if (failed)
        *err = c->failure;
    pthread_mutex_unlock(&c->lock);
    return failed;
}

lay_code lay_clone_run(lay_clone *c, int max_ms, int *end, lay_error *err)
{
    int64_t deadline = lay_now_ms() + max_ms;
    bool later = false;
    lay_error_clear(err);
    *end = c->ended;
    while (c->depth > 0 && !later && !has_failed(c, err)) {
        lay_code code = c->frames[c->depth - 1].dir ? lay_out(c, deadline, &later, err) : move_on(c, err);
        if (code)
            fail(c, err);
        later |= lay_now_ms() > deadline;
    }
    if (!later && c->root && wait_idle(c, deadline) && !has_failed(c, err) && pair_release(c, &c->own, lay_steal(c->root), err))
        fail(c, err);
    if (has_failed(c, err))
        return err->code;
    c->ended = c->root == NULL;
    *end = c->ended;
    return LAY_OK;
}

const char *lay_clone_unsteady(const lay_clone *c, size_t i)
{
    return c->ended && i < c->unsteady_count ? c->unsteady[i] : NULL;
}

/* ---- opening ---- */

/* One more than processors, as a thread may wait for the disk. */
static int default_threads(void)
{
    cpu_set_t set;
    int n = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) + 1 : 3;
    return n > 5 ? 5 : n;
}

static lay_code start(lay_clone *c, int from_fd, int to_fd, int workers, lay_error *err)
{
    if (lay_trail_open(&c->from, from_fd, false) != 0)
        return lay_fail_fd(err, errno, from_fd, "cannot open the directory");
    if (lay_trail_open(&c->to, to_fd, false) != 0)
        return lay_fail_fd(err, errno, to_fd, "cannot open the directory");
    c->twins.root_fd = c->to.root_fd;
    if (lay_copy_prepare(lay_trail_fd(&c->to), err) || lay_copier_init(&c->own.copier, &c->rules, false, err) || enter(c, err))
        return err->code;
    for (int i = workers < 0 ? default_threads() : workers; i > 0 && c->threads < THREADS_MAX; i--) {
        if (pthread_create(&c->thread[c->threads], NULL, worker, c) != 0)
            break;              /* fewer are as right as many */
        c->threads++;
    }
    return LAY_OK;
}

lay_code lay_clone_open(lay_clone **out, int from_fd, int to_fd, unsigned flags, int workers, lay_error *err)
{
    lay_error_clear(err);
    lay_clone *c = calloc(1, sizeof *c);
    if (c == NULL)
        return lay_fail_nomem(err);
    c->rules.flags = flags;
    c->from = c->to = (lay_trail)LAY_TRAIL_NONE;
    c->own.copier.parent = (lay_parent)LAY_PARENT_NONE;
    lay_twins_init(&c->twins, -1);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->work, NULL);
    pthread_cond_init(&c->done, &monotonic);
    pthread_condattr_destroy(&monotonic);
    if (start(c, from_fd, to_fd, workers, err)) {
        lay_clone_free(c);
        return err->code;
    }
    *out = c;
    return LAY_OK;
}

void lay_clone_free(lay_clone *c)
{
    lay_error unused;
    if (c == NULL)
        return;
    pthread_mutex_lock(&c->lock);
    __atomic_store_n(&c->rules.stop, 1, __ATOMIC_RELAXED);
    pthread_cond_broadcast(&c->work);
    pthread_mutex_unlock(&c->lock);
    lay_twins_stop(&c->twins);
    for (int i = 0; i < c->threads; i++)
        pthread_join(c->thread[i], NULL);
    while (c->count)
        pair_release(c, &c->own, c->queue[(c->head + --c->count) % QUEUE].dir, &unused);
    pair_release(c, &c->own, c->filling.dir, &unused);
    pair_release(c, &c->own, c->root, &unused);
    while (c->depth > 0) {
        pair_release(c, &c->own, c->frames[--c->depth].dir, &unused);
        lay_names_free(&c->frames[c->depth].names);
    }
    free(c->frames);
    free(c->path.p);
    lay_trail_free(&c->from);
    lay_trail_free(&c->to);
    lay_copier_free(&c->own.copier);
    free(c->own.path.p);
    lay_twins_free(&c->twins);
    for (size_t i = 0; i < c->unsteady_count; i++)
        free(c->unsteady[i]);
    free(c->unsteady);
    pthread_cond_destroy(&c->done);
    pthread_cond_destroy(&c->work);
    pthread_mutex_destroy(&c->lock);
    free(c);
}
