"""File calls that keep the GIL: those that take microseconds, a handful for every layer.

Python's own let the GIL go around each; beside a busy thread every one of them then waits out a switch
interval (5 ms) to get it back, which makes a register of 0.2 s twice as long. What may wait for a disk or
for another process (fsync, a taken lock) lets it go here, too. Errors are OSErrors with the path, as Python's.
"""
from cpython.bytes cimport PyBytes_AsString, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EAGAIN, EINTR, errno

import os

cdef extern from *:
    """
    #include <dirent.h>
    #include <errno.h>
    #include <fcntl.h>
    #include <linux/falloc.h>
    #include <stdio.h>
    #include <string.h>
    #include <sys/file.h>
    #include <sys/random.h>
    #include <sys/stat.h>
    #include <sys/syscall.h>
    #include <unistd.h>

    static int lay_stat_at(int dir_fd, const char *path, int flags, unsigned *mode, unsigned long long *dev, unsigned long long *ino)
    {
        struct stat st;
        int r = path ? fstatat(dir_fd, path, &st, flags) : fstat(dir_fd, &st);
        if (r == 0) {
            *mode = st.st_mode;
            *dev = st.st_dev;
            *ino = st.st_ino;
        }
        return r;
    }

    /* Of the open file, not of the process: a lock of another descriptor of this very process counts, too. */
    static int lay_byte_lock(int fd, int type, long long at)
    {
        struct flock lock = { .l_type = (short)type, .l_whence = SEEK_SET, .l_start = (off_t)at, .l_len = 1 };
        return fcntl(fd, F_OFD_SETLK, &lock);
    }

    /* 1: an open file other than fd's holds a lock on the byte. Asked as if for a sole lock, which no directory can have. */
    static int lay_byte_locked(int fd, long long at)
    {
        struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = (off_t)at, .l_len = 1 };
        return fcntl(fd, F_OFD_GETLK, &lock) != 0 ? -1 : lock.l_type != F_UNLCK;
    }

    /* An XFS that has shut itself down, as it does when its disk fails, still says 0 to the fsync of a directory whose
     * changes it has dropped. It says EIO to a fstat. */
    static int lay_fsync(int fd)
    {
        struct stat st;
        return fsync(fd) == 0 ? fstat(fd, &st) : -1;
    }

    /* Not in the libraries of older hosts. RENAME_EXCHANGE is 2. */
    static int lay_exchange(int a_fd, const char *a, int b_fd, const char *b)
    {
        return (int)syscall(SYS_renameat2, a_fd, a, b_fd, b, 2u);
    }

    static int lay_link(int fd, const char *path)
    {
        char from[40];
        snprintf(from, sizeof from, "/proc/self/fd/%d", fd);
        return linkat(AT_FDCWD, from, AT_FDCWD, path, AT_SYMLINK_FOLLOW);
    }

    static int lay_punch(int fd, long long at, long long n)
    {
        return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)at, (off_t)n);
    }

    /* 1: nothing but "." and ".."; 0: something; -1 and errno. fd stays where it is. */
    static int lay_directory_is_empty(int fd)
    {
        int own = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        DIR *d = own < 0 ? NULL : fdopendir(own);
        int empty = 1;
        if (!d) {
            if (own >= 0)
                close(own);
            return -1;
        }
        errno = 0;
        for (struct dirent *e; empty && (e = readdir(d)); errno = 0)
            empty = strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0;
        int failed = errno;
        closedir(d);
        errno = failed;
        return failed ? -1 : empty;
    }

    static int lay_real_directory(int fd, const char *path)
    {
        struct stat s;
        return fstatat(fd, path, &s, AT_SYMLINK_NOFOLLOW) == 0 && S_ISDIR(s.st_mode);
    }

    /* 1: the link says just "../<directory>/<name>", and that and the directory are directories, not links to any. */
    static int lay_link_leads(int fd, const char *link, const char *directory, const char *name)
    {
        char to[512], wanted[512];
        int n = snprintf(wanted, sizeof wanted, "../%s/%s", directory, name);
        return n > 0 && (size_t)n < sizeof wanted && readlinkat(fd, link, to, sizeof to) == n
            && memcmp(to, wanted, (size_t)n) == 0 && lay_real_directory(fd, directory) && lay_real_directory(fd, wanted + 3);
    }
    """
    int lay_stat_at(int dir_fd, const char *path, int flags, unsigned *mode, unsigned long long *dev,
                    unsigned long long *ino) nogil
    int lay_directory_is_empty(int fd) nogil
    int lay_link_leads(int fd, const char *link, const char *directory, const char *name)
    int lay_link(int fd, const char *path)
    int lay_punch(int fd, long long at, long long n) nogil
    int lay_exchange(int a_fd, const char *a, int b_fd, const char *b)
    int lay_byte_lock(int fd, int type, long long at)
    int lay_byte_locked(int fd, long long at)
    int AT_FDCWD, AT_SYMLINK_NOFOLLOW, LOCK_EX, LOCK_NB, LOCK_SH, LOCK_UN, F_RDLCK, F_UNLCK
    int c_openat "openat"(int dir_fd, const char *path, int flags, unsigned mode) nogil
    int c_close "close"(int fd) nogil
    int c_mkdir "mkdir"(const char *path, unsigned mode) nogil
    int c_chmod "chmod"(const char *path, unsigned mode) nogil
    int c_fchmod "fchmod"(int fd, unsigned mode) nogil
    int c_rename "rename"(const char *a, const char *b) nogil
    int c_symlink "symlink"(const char *target, const char *path) nogil
    int c_unlink "unlink"(const char *path) nogil
    Py_ssize_t c_readlink "readlink"(const char *path, char *to, size_t n) nogil
    Py_ssize_t c_read "read"(int fd, void *to, size_t n) nogil
    Py_ssize_t c_pread "pread"(int fd, void *to, size_t n, long long offset) nogil
    Py_ssize_t c_write "write"(int fd, const void *p, size_t n) nogil
    int lay_fsync(int fd) nogil
    int c_flock "flock"(int fd, int operation) nogil
    Py_ssize_t c_getrandom "getrandom"(void *to, size_t n, unsigned flags) nogil


cdef extern from "Python.h":
    bytes PyUnicode_EncodeFSDefault(object text)


cdef bytes encoded(path):
    cdef bytes name = PyUnicode_EncodeFSDefault(path) if type(path) is str else os.fsencode(path)
    if b"\0" in name:
        raise ValueError("embedded null byte")
    return name


cdef named(path):
    """Return what an error has as its filename: text or bytes, as with Python's own calls."""
    return path if path is None else os.fspath(path)


cdef failed(path, other=None):
    cdef int e = errno
    raise OSError(e, os.strerror(e), named(path), None, named(other))


def name_of(int fd):
    """Return the kernel's name of an open file, or of its directory if it has none. None: a pipe, a socket, memory."""
    cdef char to[4096]
    cdef Py_ssize_t n = c_readlink(b"/proc/self/fd/%d" % fd, to, sizeof(to))
    name = os.fsdecode(PyBytes_FromStringAndSize(to, n)) if n > 0 and to[0] == b"/" else None
    if name is not None and name.endswith(" (deleted)"):
        # Memory is "/memfd:..." and lies in no directory.
        name = None if name.startswith("/memfd:") else os.path.dirname(name)
    return name


cdef failed_at(int fd):
    cdef int e = errno
    raise OSError(e, os.strerror(e), name_of(fd))


def open(path, int flags, unsigned mode=0o777, *, dir_fd=None):
    """os.open, close-on-exec."""
    cdef bytes name = encoded(path)
    cdef int at = AT_FDCWD if dir_fd is None else dir_fd
    cdef int fd
    while True:
        fd = c_openat(at, name, flags | os.O_CLOEXEC, mode)
        if fd >= 0:
            return fd
        if errno != EINTR:
            failed(path)


def close(int fd, path=None):
    """os.close. path: what an error names; without it the name is looked up first, as a closed descriptor has none."""
    if path is None:
        path = name_of(fd)
    if c_close(fd) != 0 and errno != EINTR:
        failed(path)


def mkdir(path, unsigned mode):
    """os.mkdir."""
    cdef bytes name = encoded(path)
    if c_mkdir(name, mode) != 0:
        failed(path)


def chmod(path, unsigned mode):
    """os.chmod."""
    cdef bytes name = encoded(path)
    if c_chmod(name, mode) != 0:
        failed(path)


def fchmod(int fd, unsigned mode):
    """os.fchmod."""
    if c_fchmod(fd, mode) != 0:
        failed_at(fd)


def rename(source, target):
    """os.rename."""
    cdef bytes a = encoded(source), b = encoded(target)
    if c_rename(a, b) != 0:
        failed(source, target)


def link(int fd, path):
    """Link an open file under one more name, or its first (linkat). Raises OSError: ENOENT if it has lost its last."""
    cdef bytes p = encoded(path)
    if lay_link(fd, p) != 0:
        failed(path)


def exchange(int a_fd, a, int b_fd, b):
    """Exchange two names below two directories atomically (renameat2). Raises OSError: EINVAL if the file system cannot."""
    cdef bytes x = encoded(a), y = encoded(b)
    if lay_exchange(a_fd, x, b_fd, y) != 0:
        failed(a)


def punch(int fd, long long at, long long n):
    """Free the blocks of n bytes of a file; they read as zeros. Raises OSError: EOPNOTSUPP if the file system cannot."""
    cdef int done
    while True:
        with nogil:
            done = lay_punch(fd, at, n)
        if done == 0:
            return
        if errno != EINTR:
            failed_at(fd)


def symlink(target, path):
    """os.symlink."""
    cdef bytes a = encoded(target), b = encoded(path)
    if c_symlink(a, b) != 0:
        failed(target, path)


def unlink(path):
    """os.unlink."""
    cdef bytes name = encoded(path)
    if c_unlink(name) != 0:
        failed(path)


def readlink(path):
    """os.readlink."""
    cdef bytes name = encoded(path)
    cdef char to[4096]
    cdef Py_ssize_t n = c_readlink(name, to, sizeof(to))
    if n < 0:
        failed(path)
    return os.fsdecode(PyBytes_FromStringAndSize(to, n))


def mode_of(path, *, bint follow=False):
    """Return the st_mode of a path (of a last link itself, without follow) or of a descriptor."""
    return status(path, follow=follow)[0]


def status(path, *, bint follow=False):
    """Return (st_mode, st_dev, st_ino) of a path or a descriptor."""
    cdef unsigned mode = 0
    cdef unsigned long long dev = 0, ino = 0
    cdef bytes name
    cdef int r
    if isinstance(path, int):
        r = lay_stat_at(path, NULL, 0, &mode, &dev, &ino)
    else:
        name = encoded(path)
        r = lay_stat_at(AT_FDCWD, name, 0 if follow else AT_SYMLINK_NOFOLLOW, &mode, &dev, &ino)
    if r != 0:
        failed_at(path) if isinstance(path, int) else failed(path)
    return mode, dev, ino


def is_empty(int fd):
    """Return True if an open directory is empty."""
    cdef int empty = lay_directory_is_empty(fd)
    if empty < 0:
        failed_at(fd)
    return empty == 1


def links_lead(int fd, links, directories, name):
    """Return True if each link below fd is "../<directory>/<name>" with its directory, and all of that is there."""
    cdef bytes to = encoded(name)
    for link, directory in zip(links, directories, strict=True):
        if not lay_link_leads(fd, encoded(link), encoded(directory), to):
            return False
    return True


def read_regular(path, size_t most):
    """Read a regular file, at most so many bytes of it. None: it is none. Follow no link, wait on no fifo."""
    cdef int fd = open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW)
    cdef char small[8192]
    cdef Py_ssize_t n
    cdef bytes data = b""
    cdef unsigned mode = 0
    cdef unsigned long long dev = 0, ino = 0
    try:
        if lay_stat_at(fd, NULL, 0, &mode, &dev, &ino) != 0:
            failed_at(fd)
        if (mode & 0o170000) != 0o100000:
            return None
        while <size_t>len(data) < most:
            n = c_read(fd, small, min(sizeof(small), most - <size_t>len(data)))
            if n < 0 and errno == EINTR:
                continue
            if n < 0:
                failed(path)
            if n == 0:
                break
            data += PyBytes_FromStringAndSize(small, n)
        return data
    finally:
        c_close(fd)                           # nothing was written that could be lost


def read(int fd, size_t n, long long offset=-1):
    """os.read, or os.pread from offset on. For regular files, which never wait."""
    cdef bytes data = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>n)
    cdef char *p = PyBytes_AsString(data)
    cdef Py_ssize_t got
    while True:
        got = c_read(fd, p, n) if offset < 0 else c_pread(fd, p, n, offset)
        if got >= 0:
            return data if <size_t>got == n else data[:got]
        if errno != EINTR:
            failed_at(fd)


def write_all(int fd, bytes data not None):
    """Write every byte."""
    cdef const char *p = data
    cdef size_t left = len(data)
    cdef Py_ssize_t n
    while left > 0:
        n = c_write(fd, p, left)
        if n < 0 and errno == EINTR:
            continue
        if n < 0:
            failed_at(fd)
        p += n
        left -= <size_t>n


def fsync(int fd):
    """os.fsync, without the GIL. EIO also if an XFS has shut itself down."""
    cdef int r
    with nogil:
        r = lay_fsync(fd)
    if r != 0:
        failed_at(fd)


def lock(int fd, *, bint wait=True):
    """flock(LOCK_EX). False: another open file holds it (wait=False only). It waits without the GIL."""
    cdef int r = c_flock(fd, LOCK_EX | LOCK_NB)
    while r != 0:
        if errno != EINTR and errno != EAGAIN:
            failed_at(fd)
        if not wait and errno != EINTR:
            return False
        with nogil:
            r = c_flock(fd, LOCK_EX)
        if r != 0:
            PyErr_CheckSignals()
    return True


def unlock(int fd):
    """flock(LOCK_UN)."""
    c_flock(fd, LOCK_UN)


def is_locked(int fd):
    """Return True if an open file holds flock(LOCK_EX) on the file. It tries with a shared lock, which it releases."""
    if c_flock(fd, LOCK_SH | LOCK_NB) == 0:
        c_flock(fd, LOCK_UN)
        return False
    if errno != EAGAIN:
        failed_at(fd)
    return True


SHARED, NONE = F_RDLCK, F_UNLCK


def lock_byte(int fd, int kind, long long at):
    """Change this open file's lock on one byte to SHARED or NONE."""
    while lay_byte_lock(fd, kind, at) != 0:
        if errno != EINTR:
            failed_at(fd)


def is_byte_locked(int fd, long long at):
    """Return True if another open file than this one holds a lock on the byte."""
    cdef int locked = lay_byte_locked(fd, at)
    if locked < 0:
        failed_at(fd)
    return locked == 1


def random(size_t n):
    """Return n random bytes (at most 256)."""
    cdef char to[256]
    if n > sizeof(to):
        raise ValueError("at most 256 bytes at a time")
    while c_getrandom(to, n, 0) != <Py_ssize_t>n:
        if errno != EINTR:
            failed(None)
    return PyBytes_FromStringAndSize(to, <Py_ssize_t>n)
