"""What is in a stored layer, by its record or its tar, or in directories stacked. Binding of lay_listing and of the opening of a listed file.

See _listing.pyi for what is promised. The core parses a batch without the GIL; the tuples are made at once behind it.
"""
cimport lay
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memcmp

import os

cdef extern from "Python.h":
    str PyUnicode_DecodeFSDefaultAndSize(const char *s, Py_ssize_t size)

cdef enum:
    BATCH = 512
    MAX_MS = 100
    FEW = 64 << 10           # bytes whose CRC takes less time than giving the GIL away and getting it back


cdef object nanoseconds(int64_t sec, int nsec):
    if -9000000000 < sec < 9000000000:
        return sec * 1000000000 + nsec
    return int(sec) * 1000000000 + nsec


cdef dict xattrs_of(const lay.lay_listed *e):
    cdef dict found = {}
    cdef const char *at = e.xattrs
    cdef const char *name = NULL
    cdef const uint8_t *value = NULL
    cdef size_t i, n = 0
    for i in range(e.nxattrs):
        at = lay.lay_listed_xattr(at, &name, &value, &n)
        found[os.fsdecode(<bytes>name)] = PyBytes_FromStringAndSize(<const char *>value, <Py_ssize_t>n)
    return found


cdef class Listing:
    cdef lay.Handle handle
    cdef bint ended

    def __init__(self, int record_fd):
        cdef lay.lay_error err
        cdef lay.lay_listing *l = NULL
        if self.handle.c != NULL:
            raise RuntimeError("already open")
        lay.check(lay.lay_listing_open(&l, record_fd, &err), &err)     # microseconds
        self.handle.c = l

    def __dealloc__(self):
        lay.lay_listing_free(<lay.lay_listing *>self.handle.c)

    def next(self, entry_type, kinds, layer):
        cdef lay.lay_error err
        cdef lay.lay_listed e
        cdef size_t i, count = 0
        cdef int end = 0
        cdef list made = []
        cdef tuple kind_of = tuple(kinds)
        new = tuple.__new__
        lay.enter(&self.handle)
        cdef lay.lay_listing *l = <lay.lay_listing *>self.handle.c
        try:
            while count == 0 and not self.ended:
                with nogil:
                    lay.check(lay.lay_listing_next(l, BATCH, MAX_MS, &count, &end, &err), &err)
                self.ended = end != 0
                PyErr_CheckSignals()
            for i in range(count):
                lay.lay_listing_at(l, i, &e)
                path = PyUnicode_DecodeFSDefaultAndSize(e.path, <Py_ssize_t>e.path_len)
                if e.path_len == e.name_len and memcmp(e.path, e.name, e.path_len) == 0:
                    name = path
                else:
                    name = PyUnicode_DecodeFSDefaultAndSize(e.name, <Py_ssize_t>e.name_len)
                made.append(new(entry_type, (
                    path, kind_of[e.kind], e.size, e.mode, e.uid, e.gid, nanoseconds(e.mtime_sec, e.mtime_nsec),
                    nanoseconds(e.atime_sec, e.atime_nsec) if e.has_atime else None,
                    PyUnicode_DecodeFSDefaultAndSize(e.link, <Py_ssize_t>e.link_len) if e.link_len else "",
                    (e.dev_major, e.dev_minor) if e.kind in (lay.LAY_LISTED_CHARACTER, lay.LAY_LISTED_BLOCK) else None,
                    xattrs_of(&e), e.crc if e.has_crc else None, e.offset if e.offset >= 0 else None, name, layer,
                )))
        finally:
            lay.give(&self.handle)
        return made

    def close(self):
        if not lay.take(&self.handle):
            raise RuntimeError("in use by another thread")
        cdef lay.lay_listing *l = <lay.lay_listing *>self.handle.c
        self.handle.c = NULL
        lay.lay_listing_free(l)              # microseconds
        lay.give(&self.handle)


def list_tar(int fd, int64_t offset, int64_t size):
    cdef lay.lay_error err
    cdef lay.lay_listing *l = NULL
    cdef Listing listing = Listing.__new__(Listing)
    lay.check(lay.lay_listing_tar_open(&l, fd, offset, size, &err), &err)     # microseconds
    listing.handle.c = l
    return listing


def list_stack(fds, lower_fds=None, unsigned flags=0):
    cdef lay.lay_error err
    cdef lay.lay_listing *l = NULL
    cdef lay.lay_code code
    cdef list kept = []
    cdef bytes array = lay.shown(fds, kept), below = lay.shown(lower_fds or (), kept)
    cdef const char *p = array
    cdef const char *q = NULL
    cdef size_t n = len(fds), m = 0
    cdef Listing listing = Listing.__new__(Listing)
    if lower_fds is not None:
        q, m = below, len(lower_fds)
    with nogil:
        code = lay.lay_listing_stack_open(&l, <const lay.lay_shown *>p, n, <const lay.lay_shown *>q, m, flags, &err)
    lay.check_shown(code, &err, kept)
    listing.handle.c = l
    return listing


def open_stacked(fds, path, bint userxattr=False):
    cdef lay.lay_error err
    cdef int fd = -1
    cdef lay.lay_code code
    cdef list kept = []
    cdef bytes array = lay.shown(fds, kept), encoded = os.fsencode(path)
    cdef const char *p = array
    cdef const char *q = encoded
    cdef size_t n = len(fds)
    cdef unsigned flags = lay.LAY_STACK_USERXATTR if userxattr else 0
    if b"\0" in encoded:
        raise ValueError("embedded null byte")
    with nogil:
        code = lay.lay_stack_open(<const lay.lay_shown *>p, n, flags, q, &fd, &err)
    lay.check_shown(code, &err, kept)
    return fd


def open_file(int root_fd, path, int64_t size):
    cdef lay.lay_error err
    cdef int fd = -1
    cdef bytes encoded = os.fsencode(path)
    if b"\0" in encoded:
        raise ValueError("embedded null byte")
    cdef const char *p = encoded
    with nogil:
        lay.check(lay.lay_listed_open(root_fd, p, size, &fd, &err), &err)
    return fd


def add_crc(uint64_t crc, data):
    cdef Py_buffer view
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        if view.len <= FEW:
            crc = lay.lay_listed_crc(crc, view.buf, <size_t>view.len)
        else:
            with nogil:
                crc = lay.lay_listed_crc(crc, view.buf, <size_t>view.len)
    finally:
        PyBuffer_Release(&view)
    return crc
