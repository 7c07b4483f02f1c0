"""Locks that no interrupt loses and no fork leaves behind.

A signal's handler may raise at the entry of any Python function. So each lock is taken, handed over and released
inside one call of C, into which no Python function enters: `with` on such an object has no moment at which the lock is
held and no code is due to release it. A wait checks for signals, and may have an end. The locks themselves, and what
a fork does to them, are ext/core/locks.
"""
cimport cython
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EAGAIN, EINTR, EINVAL, ENOENT, ENOLCK, ENOSYS, EOPNOTSUPP, errno

import os

cdef extern from "locks/locks.h" nogil:
    long long lay_locks_now()
    void lay_locks_sleep(long long us)
    void lay_locks_after_fork()
    ctypedef struct lay_mutex:
        int depth
        unsigned generation
    void lay_mutex_open(lay_mutex *x)
    void lay_mutex_close(lay_mutex *x)
    int lay_mutex_take(lay_mutex *x, long long until)
    void lay_mutex_give(lay_mutex *x)
    int lay_mutex_is_ours(lay_mutex *x)
    ctypedef struct lay_claim:
        int fd
    void lay_claim_enter(lay_claim *k, int fd)
    void lay_claim_drop(lay_claim *k)
    int lay_claim_is_of(int fd, const char *path)

cdef extern from *:
    """
    #include <fcntl.h>
    #include <sys/file.h>
    #include <unistd.h>
    """
    int LOCK_EX, LOCK_NB, O_RDONLY, O_DIRECTORY, O_NOFOLLOW, O_CLOEXEC
    int AT_FDCWD
    int c_openat "openat"(int at, const char *path, int flags) nogil
    int c_close "close"(int fd) nogil
    int c_flock "flock"(int fd, int operation) nogil

cdef enum:
    SLICE_US = 50000          # of a wait for another thread, between two looks for signals
    FIRST_US = 50             # of a wait for another process: it polls, as no flock() has an end
    LAST_US = 5000


cdef int take(lay_mutex *x, long long until) except -1:
    """1: taken; 0: another thread held it until then (until 0: wait without end)."""
    cdef int taken = lay_mutex_take(x, 0)
    cdef long long now, end
    while not taken:
        now = lay_locks_now()
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


cdef int open_directory(int at, bytes name, path, bint missing_ok) except -2:
    """Open a directory. -1: there is none."""
    cdef int fd = -1, e
    if b"\0" in name:
        raise ValueError("embedded null byte")
    while fd < 0:
        fd = c_openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
        e = errno
        if fd < 0 and e == ENOENT and missing_ok:
            return -1
        if fd < 0 and e != EINTR:
            raise OSError(e, os.strerror(e), path)
    return fd


cdef int lock_directory(lay_claim *k, path, bint wait, long long until, object late) except -1:
    """1: k is a lock on the directory at path; 0: there is none, or (not wait) another one holds it."""
    cdef bytes name = os.fsencode(path)
    cdef int is_of, e, fd = open_directory(AT_FDCWD, name, path, True)
    cdef long long delay = FIRST_US
    if fd < 0:
        return 0
    lay_claim_enter(k, fd)
    try:
        while c_flock(k.fd, LOCK_EX | LOCK_NB) != 0:
            e = errno
            # A file system without locks: no store can claim there, so none is disturbed.
            if e in (ENOLCK, EOPNOTSUPP, ENOSYS, EINVAL):
                break
            if e == EINTR:
                continue
            if e != EAGAIN:
                raise OSError(e, os.strerror(e), path)
            if not wait:
                lay_claim_drop(k)
                return 0
            if until and lay_locks_now() >= until:
                raise late(path)
            with nogil:
                lay_locks_sleep(delay)
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
    return lay_locks_now() + <long long>(seconds * 1e6) if seconds > 0 else 0


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
    cdef dict found          # name: [Mutex, how many hold it or wait for it]
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
                lay_locks_sleep(FIRST_US)
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


# How often an ending is begun anew. A user who interrupts more often than that does not need it done.
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
        self.fd = open_directory(AT_FDCWD if dir_fd is None else dir_fd, os.fsencode(path), path, False)

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
