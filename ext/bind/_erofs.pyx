"""Layers that are EROFS images over their tars. Binding of the core's erofs.

See _erofs.pyi for what is promised.
"""
cimport lay
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t, uint8_t

cdef extern from "Python.h":
    str PyUnicode_DecodeFSDefaultAndSize(const char *s, Py_ssize_t size)

cdef extern from "lay.h" nogil:
    int LAY_IMAGE_TAR

cdef enum:
    MAX_MS = 100

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
