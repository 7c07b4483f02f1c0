/* locks.c - the locks, and the two lists of them that the child of a fork goes through. */
#include "locks/locks.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static pthread_mutex_t all = PTHREAD_MUTEX_INITIALIZER;      /* guards both lists */
static lay_link *mutexes, *claims;

static struct timespec time_of(long long us)
{
    return (struct timespec){ .tv_sec = (time_t)(us / 1000000), .tv_nsec = (long)(us % 1000000) * 1000 };
}

long long lay_locks_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (long long)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

void lay_locks_sleep(long long us)
{
    struct timespec t = time_of(us);
    nanosleep(&t, NULL);
}

static void link_in(lay_link **first, lay_link *x)
{
    x->next = *first;
    x->prev = first;
    if (x->next)
        x->next->prev = &x->next;
    *first = x;
}

static void link_out(lay_link *x)
{
    *x->prev = x->next;
    if (x->next)
        x->next->prev = x->prev;
}

/* ---- mutexes ---- */

static void make(lay_mutex *x)
{
    pthread_condattr_t how;
    pthread_condattr_init(&how);
    pthread_condattr_setclock(&how, CLOCK_MONOTONIC);
    pthread_mutex_init(&x->m, NULL);
    pthread_cond_init(&x->c, &how);
    pthread_condattr_destroy(&how);
}

void lay_mutex_open(lay_mutex *x)
{
    memset(x, 0, sizeof *x);
    make(x);
    pthread_mutex_lock(&all);
    link_in(&mutexes, &x->link);
    pthread_mutex_unlock(&all);
}

void lay_mutex_close(lay_mutex *x)
{
    pthread_mutex_lock(&all);
    link_out(&x->link);
    pthread_mutex_unlock(&all);
}

static int is_ours(const lay_mutex *x)
{
    return x->depth > 0 && pthread_equal(x->owner, pthread_self());
}

int lay_mutex_take(lay_mutex *x, long long until)
{
    struct timespec end = time_of(until);
    int waited = 0;
    pthread_mutex_lock(&x->m);
    while (x->depth > 0 && !is_ours(x) && waited == 0)
        waited = until ? pthread_cond_timedwait(&x->c, &x->m, &end) : ETIMEDOUT;
    int taken = x->depth == 0 || is_ours(x);
    if (taken) {
        x->owner = pthread_self();
        x->depth++;
    }
    pthread_mutex_unlock(&x->m);
    return taken;
}

void lay_mutex_give(lay_mutex *x)
{
    pthread_mutex_lock(&x->m);
    if (x->depth > 0 && --x->depth == 0)
        pthread_cond_signal(&x->c);
    pthread_mutex_unlock(&x->m);
}

int lay_mutex_is_ours(lay_mutex *x)
{
    pthread_mutex_lock(&x->m);
    int ours = is_ours(x);
    pthread_mutex_unlock(&x->m);
    return ours;
}

/* ---- directories ---- */

void lay_claim_enter(lay_claim *k, int fd)
{
    pthread_mutex_lock(&all);
    k->fd = fd;
    link_in(&claims, &k->link);
    pthread_mutex_unlock(&all);
}

/* The lock is the open file's, which a child that was forked meanwhile shares: closing alone would leave it there. */
void lay_claim_drop(lay_claim *k)
{
    pthread_mutex_lock(&all);
    int fd = k->fd;
    k->fd = -1;
    if (fd >= 0)
        link_out(&k->link);
    pthread_mutex_unlock(&all);
    if (fd >= 0) {
        flock(fd, LOCK_UN);
        close(fd);
    }
}

int lay_claim_is_of(int fd, const char *path)
{
    struct stat a, b;
    if (fstat(fd, &a) != 0)
        return -1;
    if (fstatat(AT_FDCWD, path, &b, AT_SYMLINK_NOFOLLOW) != 0)
        return errno == ENOENT || errno == ENOTDIR ? 0 : -1;
    return a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

/* ---- in the child of a fork ---- */

void lay_locks_after_fork(void)
{
    pthread_mutex_init(&all, NULL);
    for (lay_link *at = mutexes; at; at = at->next) {
        lay_mutex *x = (lay_mutex *)at;
        make(x);
        if (x->depth > 0 && !pthread_equal(x->owner, pthread_self())) {
            x->depth = 0;
            x->generation++;
        }
    }
    while (claims) {
        lay_claim *k = (lay_claim *)claims;
        claims = k->link.next;
        close(k->fd);
        k->fd = -1;
    }
}
