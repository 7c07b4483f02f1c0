"""Layers that are EROFS images over their tars. Binding of the core's erofs.

See _erofs.pyi for what is promised. An Image never changes, so any number of threads may ask it; a call holds it until
its answer is there, so that it may be closed meanwhile.
"""
cimport lay
from cpython.bytes cimport PyBytes_AsString, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from cpython.pycapsule cimport PyCapsule_GetContext, PyCapsule_New, PyCapsule_SetContext, PyCapsule_SetDestructor
from libc.errno cimport EINTR, EINVAL, ERANGE, EXDEV, errno
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, strlen

import os
from collections import namedtuple

cdef extern from "Python.h":
    str PyUnicode_DecodeFSDefaultAndSize(const char *s, Py_ssize_t size)

cdef extern from "lay.h" nogil:
    int LAY_IMAGE_TAR

cdef enum:
    MAX_MS = 100
    LINK_SIZE = 4096
    VALUE_SIZE = 65536

Found = namedtuple("Found", "mode uid gid size mtime_ns rdev nlink ino")
Found.__module__ = __name__


cdef void drop(object capsule) noexcept:
    lay.lay_erofs_free(<lay.lay_erofs *>PyCapsule_GetContext(capsule))


cdef bytes encoded(path):
    """A path below the root; "", "." and "/" are the root itself."""
    cdef bytes name = os.fsencode(path).strip(b"/")
    if b"\0" in name:
        raise ValueError("embedded null byte")
    return b"" if name == b"." else name


cdef int check_at(lay.lay_code code, lay.lay_error *err, bytes path) except -1:
    """lay.check() of an inode, whose path is known here."""
    cdef size_t n = min(<size_t>len(path), <size_t>4096)
    if code != lay.LAY_OK and err.path[0] == 0:
        memcpy(err.path, PyBytes_AsString(path), n)
        err.path[n] = 0
    return lay.check(code, err)


cdef class Image:
    cdef lay.Handle handle

    def __init__(self, int fd, int64_t size=-1, devices=()):
        cdef lay.lay_error err
        cdef lay.lay_erofs *e = NULL
        cdef bytes packed = lay.descriptors(devices)
        cdef const char *p = packed
        cdef size_t n = len(devices)
        if self.handle.c != NULL:
            raise RuntimeError("already open")
        with nogil:
            lay.check(lay.lay_erofs_open(&e, fd, size, <const int *>p, n, &err), &err)
        self.handle.c = e

    def __dealloc__(self):
        lay.lay_erofs_free(<lay.lay_erofs *>self.handle.c)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def close(self):
        while not lay.take(&self.handle):        # no one has it for longer than an instant
            pass
        cdef lay.lay_erofs *e = <lay.lay_erofs *>self.handle.c
        self.handle.c = NULL
        lay.give(&self.handle)
        lay.lay_erofs_free(e)

    cdef lay.lay_erofs *hold(self) except NULL:
        while not lay.take(&self.handle):
            pass
        cdef lay.lay_erofs *e = <lay.lay_erofs *>self.handle.c
        if e != NULL:
            lay.lay_erofs_hold(e)
        lay.give(&self.handle)
        if e == NULL:
            raise RuntimeError("already closed")
        return e

    def _lower(self):
        cdef lay.lay_erofs *e = self.hold()
        try:
            capsule = PyCapsule_New(<void *>lay.lay_erofs_lower(e), "layerstore.lower", NULL)
            PyCapsule_SetContext(capsule, e)
        except BaseException:
            lay.lay_erofs_free(e)
            raise
        PyCapsule_SetDestructor(capsule, drop)
        return capsule

    @property
    def tar_size(self):
        cdef lay.lay_erofs *e = self.hold()
        cdef int64_t size = lay.lay_erofs_tar_bytes(e)
        lay.lay_erofs_free(e)
        return size if size >= 0 else None

    def find(self, path):
        cdef lay.lay_error err
        cdef lay.lay_erofs_thing t
        cdef bytes name = encoded(path)
        cdef const char *p = name
        cdef size_t n = len(name)
        cdef lay.lay_code code
        cdef lay.lay_erofs *e = self.hold()
        with nogil:
            code = lay.lay_erofs_find(e, p, n, &t, &err)
            lay.lay_erofs_free(e)
        lay.check(code, &err)
        return Found(t.mode, t.uid, t.gid, t.size, int(t.mtime_sec) * 1000000000 + t.mtime_nsec, t.rdev, t.nlink, t.ino)

    def extents(self, path):
        cdef lay.lay_error err
        cdef lay.lay_erofs_piece piece
        cdef lay.lay_code code
        cdef int64_t offset = 0
        found = self.find(path)
        cdef uint64_t ino = found.ino
        cdef list pieces = []
        if (found.mode & 0o170000) != 0o100000:
            raise OSError(EINVAL, "it is no regular file", os.fsdecode(path))
        cdef lay.lay_erofs *e = self.hold()
        try:
            while True:
                with nogil:
                    code = lay.lay_erofs_next_piece(e, ino, offset, &piece, &err)
                check_at(code, &err, encoded(path))
                if piece.n == 0:
                    return found.size, pieces
                if piece.device != 0:
                    raise OSError(EXDEV, "its bytes are in another file than the image", os.fsdecode(path))
                pieces.append((piece.offset, piece.n, piece.at))
                offset = piece.offset + piece.n
        finally:
            lay.lay_erofs_free(e)

    def read(self, path, size_t size, int64_t offset=0):
        if offset < 0:
            raise ValueError("an offset is not negative")
        found = self.find(path)
        left = found.size - offset if (found.mode & 0o170000) == 0o100000 else 0
        return self.bytes_of(found.ino, min(size, max(left, 0)), offset, encoded(path))

    def readlink(self, path):
        return os.fsdecode(self.bytes_of(self.find(path).ino, LINK_SIZE, -1, encoded(path)))

    cdef bytes bytes_of(self, uint64_t ino, size_t size, int64_t offset, bytes path):
        cdef lay.lay_error err
        cdef lay.lay_code code
        cdef size_t got = 0
        cdef bytes data = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>size)
        cdef char *p = PyBytes_AsString(data)
        cdef lay.lay_erofs *e = self.hold()
        with nogil:
            code = lay.lay_erofs_read(e, ino, p, size, offset, &got, &err)
            lay.lay_erofs_free(e)
        check_at(code, &err, path)
        return data if got == size else data[:got]

    def names(self, path):
        cdef lay.lay_error err
        cdef lay.lay_code code
        cdef char *text = NULL
        cdef const char *at
        cdef size_t i, n, count = 0
        cdef uint64_t ino = self.find(path).ino
        cdef list made = []
        cdef lay.lay_erofs *e = self.hold()
        with nogil:
            code = lay.lay_erofs_names(e, ino, &text, &count, &err)
            lay.lay_erofs_free(e)
        check_at(code, &err, encoded(path))
        try:
            at = text
            for i in range(count):
                n = strlen(at)
                made.append(PyUnicode_DecodeFSDefaultAndSize(at, <Py_ssize_t>n))
                at += n + 1
            return made
        finally:
            free(text)

    def xattrs(self, path):
        cdef uint64_t ino = self.find(path).ino
        cdef bytes name = encoded(path)
        found = {}
        for each in self.attribute(ino, b"", name).split(b"\0")[:-1]:
            found[os.fsdecode(each)] = self.attribute(ino, each, name)
        return found

    cdef bytes attribute(self, uint64_t ino, bytes name, bytes path):
        """One value; of b"" the names of all."""
        cdef lay.lay_error err
        cdef lay.lay_code code
        cdef size_t got = 0, room = VALUE_SIZE
        cdef bytes data
        cdef char *to
        cdef const char *p = NULL
        cdef lay.lay_erofs *e = self.hold()
        if name:
            p = name
        try:
            while True:
                data = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>room)
                to = PyBytes_AsString(data)
                with nogil:
                    code = lay.lay_erofs_attribute(e, ino, p, to, room, &got, &err)
                if code != lay.LAY_OK and err.sys_errno == ERANGE and not name:
                    room *= 4                    # all of an inode have a bound
                    continue
                check_at(code, &err, path)
                return data[:got]
        finally:
            lay.lay_erofs_free(e)

    def verify(self):
        cdef lay.lay_error err
        cdef lay.lay_code code
        cdef lay.lay_erofs *e = self.hold()
        with nogil:
            code = lay.lay_erofs_verify(e, &err)
            lay.lay_erofs_free(e)
        if code == lay.LAY_E_MISMATCH:
            return [("metadata", os.fsdecode(<bytes>err.path), err.text.decode("utf-8", "replace"))]
        lay.check(code, &err)
        return []

    def refusal(self, bytes diff_id not None, int64_t tar_size):
        cdef char text[512]
        if len(diff_id) != 32:
            raise ValueError("a DiffID has 32 bytes")
        cdef const uint8_t *p = <const uint8_t *>PyBytes_AsString(diff_id)
        cdef lay.lay_erofs *e = self.hold()
        lay.lay_erofs_refusal(e, p, tar_size, text)
        lay.lay_erofs_free(e)
        return text.decode("utf-8", "replace")


# ---- writing, and comparing with the tar ----

HEADER = LAY_IMAGE_TAR


cdef class Asked:
    """What an image is asked to be, as the core takes it; it holds what it points to."""
    cdef lay.lay_image_of c
    cdef lay.lay_limits limits
    cdef tuple held

    def __cinit__(self, int fd, int64_t tar_size, bytes diff_id not None, lowers, limits):
        cdef list kept = []
        cdef bytes array = lay.shown(lowers, kept)
        if len(diff_id) != 32:
            raise ValueError(f"a DiffID has 32 bytes, not {len(diff_id)}")
        if tar_size < 0:
            raise ValueError(f"a tar has no {tar_size} bytes")
        self.held = (diff_id, array, kept)
        self.limits = lay.limits_of(limits)
        self.c.fd, self.c.tar_size = fd, tar_size
        self.c.diff_id = <const uint8_t *><const char *>diff_id
        self.c.lowers, self.c.nlowers = <const lay.lay_shown *><const char *>array, len(lowers)
        self.c.limits = &self.limits if limits is not None else NULL


def rebuild(int fd, int64_t tar_size, bytes diff_id not None, lowers=(), *, limits=None):
    cdef lay.lay_error err
    cdef Asked asked = Asked(fd, tar_size, diff_id, lowers, limits)
    with nogil:
        lay.check(lay.lay_erofs_rebuild(&asked.c, &err), &err)


cdef list found_by(lay.lay_erofs_check *c, report):
    cdef lay.lay_error err
    cdef lay.lay_problem problem
    cdef int end = 0
    cdef int64_t done = 0, told = 0
    cdef list found = []
    while not end:
        with nogil:
            lay.check(lay.lay_erofs_check_next(c, MAX_MS, &problem, &end, &err), &err)
        if problem.kind != lay.LAY_PROBLEM_NONE:
            path = PyUnicode_DecodeFSDefaultAndSize(problem.path, <Py_ssize_t>problem.path_len)
            kind = "content" if problem.kind == lay.LAY_PROBLEM_CONTENT else "metadata"
            found.append((kind, path, problem.text.decode("utf-8", "replace")))
        if report is not None:
            done = lay.lay_erofs_check_bytes(c)
            report(done - told)
            told = done
        PyErr_CheckSignals()
    return found


def compare(int fd, int64_t tar_size, bytes diff_id not None, lowers=(), report=None, *, bint metadata=True, limits=None):
    cdef lay.lay_error err
    cdef lay.lay_erofs_check *c = NULL
    cdef Asked asked = Asked(fd, tar_size, diff_id, lowers, limits)
    cdef bint all = metadata
    with nogil:
        lay.check(lay.lay_erofs_check_open(&c, &asked.c, all, &err), &err)
    try:
        return found_by(c, report)
    finally:
        with nogil:
            lay.lay_erofs_check_free(c)


# ---- stacked as one ----

cdef lay.lay_erofs_flat *flat_of(list images, bint whole) except NULL:
    cdef lay.lay_error err
    cdef lay.lay_erofs_flat *f = NULL
    cdef size_t i, n = 0, count = len(images)
    cdef lay.lay_erofs **held = <lay.lay_erofs **>calloc(count + 1, sizeof(void *))
    if held == NULL:
        raise MemoryError
    try:
        for image in images:
            held[n] = (<Image?>image).hold()
            n += 1
        with nogil:
            lay.check(lay.lay_erofs_flat_open(&f, held, count, whole, &err), &err)
    finally:
        for i in range(n):
            lay.lay_erofs_free(held[i])
        free(held)
    return f


cdef put(int fd, const char *p, size_t n):
    """All of it, into a slow descriptor too."""
    cdef int64_t put
    cdef int failed
    while n:
        with nogil:
            put = lay.lay_write_some(fd, p, n, MAX_MS)
            failed = errno
        if put < 0 and failed != EINTR:
            raise OSError(failed, os.strerror(failed))
        PyErr_CheckSignals()
        if put > 0:
            p += put
            n -= <size_t>put


cdef stack(list images, int fd, report, bint whole):
    cdef lay.lay_error err
    cdef const void *p = NULL
    cdef size_t n = 0
    cdef int end = 0
    cdef lay.lay_erofs_flat *f = flat_of(images, whole)
    try:
        while not end:
            with nogil:
                lay.check(lay.lay_erofs_flat_next(f, MAX_MS, &p, &n, &end, &err), &err)
            put(fd, <const char *>p, n)
            if report is not None:
                report(n)
            PyErr_CheckSignals()
    finally:
        with nogil:
            lay.lay_erofs_flat_free(f)


def flatten(images, int fd):
    stack(list(images), fd, None, False)


def export(images, int fd, report=None):
    stack(list(images), fd, report, True)
