"""Locks that no interrupt loses and no fork leaves behind.

A signal's handler may raise at the entry of any Python function. So each lock is taken, handed over and given back
inside one call of C, into which no Python function enters: `with` on such an object has no moment at which the lock is
held and nobody gives it back. A wait looks for signals, and may have an end.

In a forked child only the thread that forked goes on. What other threads held there is free; the descriptors of locks
on directories are closed, because such a lock belongs to the open file, and so to the parent.
"""
cimport cython
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EAGAIN, EINTR, EINVAL, ENOENT, ENOLCK, ENOSYS, EOPNOTSUPP, errno

import os

cdef extern from *:
    """
    #include <errno.h>
    #include <fcntl.h>
    #include <pthread.h>
    #include <string.h>
    #include <sys/file.h>
    #include <sys/stat.h>
    #include <time.h>
    #include <unistd.h>

    static long long lay_now_us(void)
    {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return (long long)t.tv_sec * 1000000 + t.tv_nsec / 1000;
    }

    static void lay_sleep_us(long long us)
    {
        struct timespec t = { .tv_sec = (time_t)(us / 1000000), .tv_nsec = (long)(us % 1000000) * 1000 };
        nanosleep(&t, NULL);
    }

    /* All mutexes and all claims of the process, for the child of a fork. */
    static pthread_mutex_t lay_all = PTHREAD_MUTEX_INITIALIZER;

    /* ---- a mutex that its owner may take again ---- */

    typedef struct lay_mutex {
        pthread_mutex_t m;
        pthread_cond_t c;
        pthread_t owner;
        int depth;                  /* 0: nobody's */
        unsigned generation;        /* another one in a child: what was held in the parent is not given back there */
        struct lay_mutex *next, **prev;
    } lay_mutex;

    static lay_mutex *lay_mutexes;

    static void lay_mutex_make(lay_mutex *x)
    {
        pthread_condattr_t how;
        pthread_condattr_init(&how);
        pthread_condattr_setclock(&how, CLOCK_MONOTONIC);
        pthread_mutex_init(&x->m, NULL);
        pthread_cond_init(&x->c, &how);
        pthread_condattr_destroy(&how);
    }

    static void lay_mutex_open(lay_mutex *x)
    {
        memset(x, 0, sizeof *x);
        lay_mutex_make(x);
        pthread_mutex_lock(&lay_all);
        x->next = lay_mutexes;
        x->prev = &lay_mutexes;
        if (x->next)
            x->next->prev = &x->next;
        lay_mutexes = x;
        pthread_mutex_unlock(&lay_all);
    }

    static void lay_mutex_close(lay_mutex *x)
    {
        pthread_mutex_lock(&lay_all);
        *x->prev = x->next;
        if (x->next)
            x->next->prev = x->prev;
        pthread_mutex_unlock(&lay_all);
    }

    /* 1: it is ours, once more; 0: it was another one's all the time. until: of lay_now_us(). */
    static int lay_mutex_take(lay_mutex *x, long long until)
    {
        struct timespec t = { .tv_sec = (time_t)(until / 1000000), .tv_nsec = (long)(until % 1000000) * 1000 };
        int taken, waited = 0;
        pthread_mutex_lock(&x->m);
        while (x->depth > 0 && !pthread_equal(x->owner, pthread_self()) && waited == 0)
            waited = until ? pthread_cond_timedwait(&x->c, &x->m, &t) : ETIMEDOUT;
        taken = x->depth == 0 || pthread_equal(x->owner, pthread_self());
        if (taken) {
            x->owner = pthread_self();
            x->depth++;
        }
        pthread_mutex_unlock(&x->m);
        return taken;
    }

    static void lay_mutex_give(lay_mutex *x)
    {
        pthread_mutex_lock(&x->m);
        if (x->depth > 0 && --x->depth == 0)
            pthread_cond_signal(&x->c);
        pthread_mutex_unlock(&x->m);
    }

    static int lay_mutex_is_ours(lay_mutex *x)
    {
        pthread_mutex_lock(&x->m);
        int ours = x->depth > 0 && pthread_equal(x->owner, pthread_self());
        pthread_mutex_unlock(&x->m);
        return ours;
    }

    /* ---- a directory that is locked by an open descriptor ---- */

    typedef struct lay_claim {
        int fd;                     /* -1: none */
        struct lay_claim *next, **prev;
    } lay_claim;

    static lay_claim *lay_claims;

    static void lay_claim_enter(lay_claim *k, int fd)
    {
        pthread_mutex_lock(&lay_all);
        k->fd = fd;
        k->next = lay_claims;
        k->prev = &lay_claims;
        if (k->next)
            k->next->prev = &k->next;
        lay_claims = k;
        pthread_mutex_unlock(&lay_all);
    }

    /* The lock is the open file's, which a child forked meanwhile shares: closing alone would leave it there. */
    static void lay_claim_drop(lay_claim *k)
    {
        pthread_mutex_lock(&lay_all);
        int fd = k->fd;
        k->fd = -1;
        if (fd >= 0) {
            *k->prev = k->next;
            if (k->next)
                k->next->prev = k->prev;
        }
        pthread_mutex_unlock(&lay_all);
        if (fd >= 0) {
            flock(fd, LOCK_UN);
            close(fd);
        }
    }

    /* 1: fd is what stands at path still; 0: it is not; -1: errno. */
    static int lay_claim_is_of(int fd, const char *path)
    {
        struct stat a, b;
        if (fstat(fd, &a) != 0)
            return -1;
        if (fstatat(AT_FDCWD, path, &b, AT_SYMLINK_NOFOLLOW) != 0)
            return errno == ENOENT || errno == ENOTDIR ? 0 : -1;
        return a.st_dev == b.st_dev && a.st_ino == b.st_ino;
    }

    /* ---- in the child of a fork ---- */

    static void lay_locks_after_fork(void)
    {
        pthread_mutex_init(&lay_all, NULL);
        for (lay_mutex *x = lay_mutexes; x; x = x->next) {
            lay_mutex_make(x);
            if (x->depth > 0 && !pthread_equal(x->owner, pthread_self())) {
                x->depth = 0;
                x->generation++;
            }
        }
        while (lay_claims) {
            lay_claim *k = lay_claims;
            lay_claims = k->next;
            close(k->fd);
            k->fd = -1;
        }
    }
    """
    long long lay_now_us() nogil
    void lay_sleep_us(long long us) nogil
    ctypedef struct lay_mutex:
        int depth
        unsigned generation
    void lay_mutex_open(lay_mutex *x) nogil
    void lay_mutex_close(lay_mutex *x) nogil
    int lay_mutex_take(lay_mutex *x, long long until) nogil
    void lay_mutex_give(lay_mutex *x) nogil
    int lay_mutex_is_ours(lay_mutex *x) nogil
    ctypedef struct lay_claim:
        int fd
    void lay_claim_enter(lay_claim *k, int fd) nogil
    void lay_claim_drop(lay_claim *k) nogil
    int lay_claim_is_of(int fd, const char *path) nogil
    void lay_locks_after_fork() nogil
    int LOCK_EX, LOCK_NB, O_RDONLY, O_DIRECTORY, O_NOFOLLOW, O_CLOEXEC
    int AT_FDCWD
    int c_open "open"(const char *path, int flags) nogil
    int c_openat "openat"(int at, const char *path, int flags) nogil
    int c_close "close"(int fd) nogil
    int c_flock "flock"(int fd, int operation) nogil

cdef enum:
    SLICE_US = 50000          # of a wait for another thread, between two looks for signals
    FIRST_US = 50             # of a wait for another process: it asks again and again, as no flock() has an end
    LAST_US = 5000


cdef int take(lay_mutex *x, long long until) except -1:
    """1: taken; 0: another thread had it until then (0: for ever)."""
    cdef int taken = lay_mutex_take(x, 0)
    cdef long long now, end
    while not taken:
        now = lay_now_us()
        if until and now >= until:
            return 0
        end = now + SLICE_US
        if until and end > until:
            end = until
        with nogil:
            taken = lay_mutex_take(x, end)
        if not taken:
            PyErr_CheckSignals()
    return 1


cdef int lock_directory(lay_claim *k, path, bint wait, long long until, object late) except -1:
    """1: k is a lock on the directory at path; 0: there is none, or (not wait) another one holds it."""
    cdef bytes name = os.fsencode(path)
    cdef int fd, is_of, e
    cdef long long delay = FIRST_US
    fd = c_open(name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
    while fd < 0 and errno == EINTR:
        fd = c_open(name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
    if fd < 0:
        e = errno
        if e == ENOENT:
            return 0
        raise OSError(e, os.strerror(e), path)
    lay_claim_enter(k, fd)
    try:
        while c_flock(k.fd, LOCK_EX | LOCK_NB) != 0:
            e = errno
            # A file system without locks: nobody can claim there, so nobody is disturbed.
            if e in (ENOLCK, EOPNOTSUPP, ENOSYS, EINVAL):
                break
            if e == EINTR:
                continue
            if e != EAGAIN:
                raise OSError(e, os.strerror(e), path)
            if not wait:
                lay_claim_drop(k)
                return 0
            if until and lay_now_us() >= until:
                raise late(path)
            with nogil:
                lay_sleep_us(delay)
            delay = min(2 * delay, LAST_US)
            PyErr_CheckSignals()
        is_of = lay_claim_is_of(k.fd, name)
        if is_of < 0:
            e = errno
            raise OSError(e, os.strerror(e), path)
    except:
        lay_claim_drop(k)
        raise
    if not is_of:
        lay_claim_drop(k)
    return is_of


cdef long long end_of(double seconds) noexcept:
    return lay_now_us() + <long long>(seconds * 1e6) if seconds > 0 else 0


cdef class Mutex:
    cdef lay_mutex mutex
    cdef object told

    def __cinit__(self, told=None):
        lay_mutex_open(&self.mutex)
        self.told = told

    def __dealloc__(self):
        lay_mutex_close(&self.mutex)

    def __enter__(self):
        take(&self.mutex, 0)
        return None

    def __exit__(self, kind, error, trace):
        lay_mutex_give(&self.mutex)
        if error is not None and self.told is not None:
            self.told(error)

    def is_held(self):
        return lay_mutex_is_ours(&self.mutex) == 1


@cython.auto_pickle(False)
@cython.no_gc
cdef class HeldName:
    cdef NamedLocks locks
    cdef object name
    cdef Mutex mutex
    cdef bint held
    cdef unsigned generation

    def __enter__(self):
        if self.held:
            raise RuntimeError("held already")
        self.mutex = self.locks.entered(self.name)
        try:
            take(&self.mutex.mutex, 0)
            self.generation = self.mutex.mutex.generation
            self.held = True
        finally:
            if not self.held:
                self.locks.left(self.name)
        return None

    cdef give(self):
        if self.held:
            self.held = False
            if self.generation == self.mutex.mutex.generation:
                lay_mutex_give(&self.mutex.mutex)
            self.locks.left(self.name)

    def __exit__(self, *_):
        self.give()

    def __dealloc__(self):
        self.give()


cdef class NamedLocks:
    cdef dict found          # name: [Mutex, how many want it]
    cdef lay_mutex guard

    def __cinit__(self):
        lay_mutex_open(&self.guard)
        self.found = {}

    def __dealloc__(self):
        lay_mutex_close(&self.guard)

    cdef Mutex entered(self, name):
        cdef list entry
        take(&self.guard, 0)
        try:
            entry = self.found.get(name)
            if entry is None:
                entry = self.found[name] = [Mutex(), 0]
            entry[1] += 1
            return <Mutex>entry[0]
        finally:
            lay_mutex_give(&self.guard)

    cdef left(self, name):
        cdef list entry
        while lay_mutex_take(&self.guard, 0) == 0:
            with nogil:
                lay_sleep_us(FIRST_US)
        entry = self.found.get(name)
        if entry is not None:
            entry[1] -= 1
            if entry[1] <= 0:
                del self.found[name]
        lay_mutex_give(&self.guard)

    def hold(self, name):
        cdef HeldName held = HeldName.__new__(HeldName)
        held.locks, held.name = self, name
        return held

    def names(self):
        return sorted(self.found)


@cython.auto_pickle(False)
@cython.no_gc
cdef class HeldDirectory:
    cdef DirectoryLock lock
    cdef object check
    cdef bint held
    cdef unsigned generation

    def __enter__(self):
        if self.held:
            raise RuntimeError("held already")
        self.lock.take()
        self.generation = self.lock.mutex.generation
        self.held = True
        if self.check is not None:
            try:
                self.check()
            except:
                self.give()
                raise
        return None

    cdef give(self):
        if self.held:
            self.held = False
            if self.generation == self.lock.mutex.generation:
                self.lock.give()

    def __exit__(self, *_):
        self.give()

    def __dealloc__(self):
        self.give()


cdef class DirectoryLock:
    cdef lay_mutex mutex
    cdef lay_claim claim
    cdef object path, late
    cdef double timeout

    def __cinit__(self, path, double timeout, late):
        lay_mutex_open(&self.mutex)
        self.claim.fd = -1
        self.path, self.timeout, self.late = path, timeout, late

    def __dealloc__(self):
        lay_claim_drop(&self.claim)
        lay_mutex_close(&self.mutex)

    cdef int take(self) except -1:
        cdef long long until = end_of(self.timeout)
        if not take(&self.mutex, until):
            raise self.late(self.path)
        if self.mutex.depth == 1:
            try:
                lock_directory(&self.claim, self.path, True, until, self.late)
            except:
                lay_mutex_give(&self.mutex)
                raise
        return 0

    cdef give(self):
        if self.mutex.depth == 1:
            lay_claim_drop(&self.claim)
        lay_mutex_give(&self.mutex)

    def hold(self, check=None):
        cdef HeldDirectory held = HeldDirectory.__new__(HeldDirectory)
        held.lock, held.check = self, check
        return held


cdef class Claim:
    cdef lay_claim claim

    def __cinit__(self):
        self.claim.fd = -1

    def __dealloc__(self):
        lay_claim_drop(&self.claim)

    def is_held(self):
        return self.claim.fd >= 0

    def release(self):
        lay_claim_drop(&self.claim)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        lay_claim_drop(&self.claim)


def claim_directory(path, *, bint wait=True, double timeout=0, late=None):
    cdef Claim made = Claim.__new__(Claim)
    return made if lock_directory(&made.claim, path, wait, end_of(timeout) if late is not None else 0, late) else None


# How often an ending is begun anew. Who interrupts more often than that does not want it.
cdef enum:
    TRIES = 100


def surely(call, *args):
    cdef int tries = 0
    interrupt = None
    while True:
        try:
            given = call(*args)
            break
        except Exception:
            if interrupt is None:
                raise
            break                     # what was done the first time cannot be done again
        except BaseException as err:
            tries += 1
            if tries == TRIES:
                raise
            interrupt = err
    if interrupt is not None:
        raise interrupt
    return given


cdef class Ending:
    cdef object call

    def __cinit__(self, call):
        self.call = call

    def __enter__(self):
        return None

    def __exit__(self, *_):
        surely(self.call)


cdef class Scope:
    cdef object begin, end, value
    cdef bint entered

    def __cinit__(self, begin, end):
        self.begin, self.end = begin, end

    def __enter__(self):
        self.value = self.begin()
        self.entered = True
        return self.value

    def __exit__(self, *_):
        if self.entered:
            self.entered = False
            value, self.value = self.value, None
            surely(self.end, value)


@cython.auto_pickle(False)
cdef class OpenDirectory:
    cdef int fd

    def __cinit__(self, path, *, dir_fd=None):
        self.fd = -1                          # before all else: what is 0 would be closed
        cdef bytes name = os.fsencode(path)
        cdef int at = AT_FDCWD if dir_fd is None else dir_fd
        cdef int e
        if b"\0" in name:
            raise ValueError("embedded null byte")
        while self.fd < 0:
            self.fd = c_openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
            e = errno
            if self.fd < 0 and e != EINTR:
                raise OSError(e, os.strerror(e), path)

    def __dealloc__(self):
        if self.fd >= 0:
            c_close(self.fd)

    def __enter__(self):
        return self.fd

    def __exit__(self, *_):
        if self.fd >= 0:
            c_close(self.fd)
        self.fd = -1


os.register_at_fork(after_in_child=lambda: lay_locks_after_fork())
