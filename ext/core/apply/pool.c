/* pool.c - a bounded queue of files to be made, and the threads that make them. */
#include "apply/pool.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

#define QUEUE 128u
#define BATCH 4u
#define THREADS_MAX 8

struct lay_pool {
    const lay_place *place;
    lay_ring *ring;
    pthread_mutex_t lock;           /* guards all below */
    pthread_cond_t work, idle;
    lay_job *queue;
    unsigned head, count;           /* head: next to take */
    unsigned active, sleeping;
    bool stop, failed;
    lay_error failure;              /* the lowest offset so far */
    int64_t failure_offset;
    int threads;
    pthread_t thread[THREADS_MAX];
};

/* Lets go of what the job holds. */
static void discard(lay_ring *ring, lay_job *job)
{
    if (job->slot >= 0)
        lay_ring_drop(ring, (unsigned)job->slot);
    lay_dir_release(job->dir);
    free((void *)(uintptr_t)job->meta.xattrs);
}

lay_code lay_job_run(const lay_place *place, lay_ring *ring, lay_job *job, lay_error *err)
{
    lay_code code = LAY_OK;
    LAY_AUTO_FD int fd = lay_place_create(place, job->dir->fd, job->name, &job->meta);
    if (fd < 0) {
        code = lay_fail_os(err, errno, NULL, "cannot make the file");
    } else {
        int64_t end = 0;
        int e = lay_place_write(fd, job->p, job->n, 0, &end);
        code = e ? lay_fail_os(err, e, NULL, "cannot write the file") : lay_place_finish(place, fd, end, (int64_t)job->n, &job->meta, err);
        if (!code && close(lay_steal_fd(&fd)) != 0 && errno != EINTR)     /* some file systems tell a full disk here */
            code = lay_fail_os(err, errno, NULL, "cannot write the file");
    }
    if (code) {
        char path[LAY_ERROR_PATH];
        int n = snprintf(path, sizeof path, "%s%s%s", job->dir->path, job->dir->path_len ? "/" : "", job->name);
        lay_error_path(err, path, n < (int)sizeof path ? (size_t)n : sizeof path - 1);
        err->offset = job->offset;
    }
    discard(ring, job);
    return code;
}

static void run_and_note(lay_pool *p, lay_job *job, lay_error *scratch)
{
    int64_t offset = job->offset;
    scratch->code = LAY_OK;
    if (lay_job_run(p->place, p->ring, job, scratch) == LAY_OK)
        return;
    pthread_mutex_lock(&p->lock);
    if (!p->failed || offset < p->failure_offset) {
        p->failed = true;
        p->failure = *scratch;
        p->failure_offset = offset;
    }
    pthread_mutex_unlock(&p->lock);
}

/* Under the lock: up to n jobs out of the queue. */
static unsigned take_jobs(lay_pool *p, lay_job *to, unsigned n)
{
    unsigned k = p->count < n ? p->count : n;
    for (unsigned i = 0; i < k; i++)
        to[i] = p->queue[(p->head + i) % QUEUE];
    p->head = (p->head + k) % QUEUE;
    p->count -= k;
    return k;
}

static void *worker(void *arg)
{
    lay_pool *p = arg;
    lay_job jobs[BATCH];
    lay_error scratch;
    pthread_mutex_lock(&p->lock);
    for (;;) {
        while (!p->count && !p->stop) {
            p->sleeping++;
            pthread_cond_wait(&p->work, &p->lock);
            p->sleeping--;
        }
        if (!p->count)
            break;
        unsigned k = take_jobs(p, jobs, BATCH);
        p->active += k;
        bool skip = p->stop;
        pthread_mutex_unlock(&p->lock);
        for (unsigned i = 0; i < k; i++) {
            if (skip)
                discard(p->ring, &jobs[i]);
            else
                run_and_note(p, &jobs[i], &scratch);
        }
        pthread_mutex_lock(&p->lock);
        p->active -= k;
        if (!p->active && !p->count)
            pthread_cond_broadcast(&p->idle);
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

/* Threads inherit the umask of their maker's file-system context; each takes its own copy. */
static void *worker_start(void *arg)
{
    lay_pool *p = arg;
    if (p->place->private_umask)
        lay_place_private_umask();
    return worker(p);
}

lay_code lay_pool_new(lay_pool **out, const lay_place *place, lay_ring *ring, int threads, lay_error *err)
{
    lay_pool *p = calloc(1, sizeof *p);
    if (!p)
        return lay_fail_nomem(err);
    p->place = place;
    p->ring = ring;
    p->queue = malloc(QUEUE * sizeof *p->queue);
    if (!p->queue) {
        free(p);
        return lay_fail_nomem(err);
    }
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->work, NULL);
    pthread_cond_init(&p->idle, NULL);
    for (int i = 0; i < threads && i < THREADS_MAX; i++) {
        if (pthread_create(&p->thread[i], NULL, worker_start, p) != 0)
            break;                               /* fewer are as right as many */
        p->threads++;
    }
    *out = p;
    return LAY_OK;
}

bool lay_pool_post(lay_pool *p, const lay_job *job)
{
    pthread_mutex_lock(&p->lock);
    bool failed = p->failed, queued = !failed && p->threads && p->count < QUEUE;
    if (queued) {
        p->queue[(p->head + p->count++) % QUEUE] = *job;
        if (p->sleeping)
            pthread_cond_signal(&p->work);
    }
    pthread_mutex_unlock(&p->lock);
    if (queued)
        return true;
    lay_job mine = *job;
    if (failed) {
        discard(p->ring, &mine);
        return false;
    }
    lay_error scratch;
    run_and_note(p, &mine, &scratch);
    return true;
}

lay_code lay_pool_drain(lay_pool *p, lay_error *err)
{
    lay_job jobs[BATCH];
    lay_error scratch;
    pthread_mutex_lock(&p->lock);
    while (p->count || p->active) {
        unsigned k = take_jobs(p, jobs, BATCH);
        if (!k) {
            pthread_cond_wait(&p->idle, &p->lock);
            continue;
        }
        p->active += k;
        pthread_mutex_unlock(&p->lock);
        for (unsigned i = 0; i < k; i++)
            run_and_note(p, &jobs[i], &scratch);
        pthread_mutex_lock(&p->lock);
        p->active -= k;
    }
    bool failed = p->failed;
    if (failed)
        *err = p->failure;
    pthread_mutex_unlock(&p->lock);
    return failed ? err->code : LAY_OK;
}

void lay_pool_free(lay_pool *p)
{
    if (!p)
        return;
    pthread_mutex_lock(&p->lock);
    p->stop = true;
    pthread_cond_broadcast(&p->work);
    pthread_mutex_unlock(&p->lock);
    for (int i = 0; i < p->threads; i++)
        pthread_join(p->thread[i], NULL);
    while (p->count)
        discard(p->ring, &p->queue[(p->head + --p->count) % QUEUE]);
    pthread_cond_destroy(&p->work);
    pthread_cond_destroy(&p->idle);
    pthread_mutex_destroy(&p->lock);
    free(p->queue);
    free(p);
}
