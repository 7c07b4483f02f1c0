/* locks.h - mutexes and locks on directories that no fork leaves behind.
 *
 * The process has a list of all of them. In the child of a fork only the thread that forked goes on: lay_locks_after_fork
 * frees there what other threads held, and closes the descriptors of directories, as such a lock belongs to the open file
 * and so to the parent. Times are of lay_locks_now.
 */
#ifndef LAY_LOCKS_H
#define LAY_LOCKS_H

#include <pthread.h>

long long lay_locks_now(void);                /* microseconds of the monotonic clock */
void lay_locks_sleep(long long us);
void lay_locks_after_fork(void);

typedef struct lay_link { struct lay_link *next, **prev; } lay_link;

/* A mutex that its owner may take again. */
typedef struct lay_mutex {
    lay_link link;              /* first */
    pthread_t owner;
    int depth;                  /* 0: free */
    unsigned generation;        /* another one in a child: what was held in the parent is not released there */
    pthread_mutex_t m;
    pthread_cond_t c;
} lay_mutex;

void lay_mutex_open(lay_mutex *x);
void lay_mutex_close(lay_mutex *x);
/* 1: it is ours, once more; 0: another thread held it until then. until 0: do not wait. */
int lay_mutex_take(lay_mutex *x, long long until);
void lay_mutex_give(lay_mutex *x);
int lay_mutex_is_ours(lay_mutex *x);

/* A directory that is locked by an open descriptor. */
typedef struct lay_claim {
    lay_link link;              /* first */
    int fd;                     /* -1: none */
} lay_claim;

void lay_claim_enter(lay_claim *k, int fd);   /* fd is the claim's now */
void lay_claim_drop(lay_claim *k);
/* 1: fd still is what stands at path; 0: it is not; -1: errno. */
int lay_claim_is_of(int fd, const char *path);

#endif
