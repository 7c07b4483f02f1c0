"""A tree once more, and layers stacked as one directory. Binding of lay_clone and lay_merge.

See _clone.pyi for what is promised. Threads of the core copy; the calling one waits without the GIL and looks at signals
in between.
"""
cimport lay
from cpython.exc cimport PyErr_CheckSignals
from libc.string cimport strlen

cdef extern from "Python.h":
    str PyUnicode_DecodeFSDefaultAndSize(const char *s, Py_ssize_t size)

CLONE_LINK = <int>lay.LAY_CLONE_LINK
CLONE_USERXATTR = <int>lay.LAY_CLONE_USERXATTR
MERGE_USERXATTR = <int>lay.LAY_MERGE_USERXATTR
MERGE_OVER_MARKS = <int>lay.LAY_MERGE_OVER_MARKS

cdef enum:
    MAX_MS = 100


def clone_tree(int from_fd, int to_fd, unsigned flags=0, *, int workers=-1):
    cdef lay.lay_error err
    cdef lay.lay_clone *c = NULL
    cdef const char *path
    cdef int end = 0
    cdef list unsteady = []
    with nogil:
        lay.check(lay.lay_clone_open(&c, from_fd, to_fd, flags, workers, &err), &err)
    try:
        while not end:
            with nogil:
                lay.check(lay.lay_clone_run(c, MAX_MS, &end, &err), &err)
            PyErr_CheckSignals()
        while (path := lay.lay_clone_unsteady(c, <size_t>len(unsteady))) != NULL:
            unsteady.append(PyUnicode_DecodeFSDefaultAndSize(path, <Py_ssize_t>strlen(path)))
        return unsteady
    finally:
        with nogil:
            lay.lay_clone_free(c)


def merge_stack(fds, lower_fds, int into_fd, unsigned flags=0):
    cdef lay.lay_error err
    cdef lay.lay_merge *m = NULL
    cdef lay.lay_code code
    cdef list kept = []
    cdef bytes array = lay.shown(fds, kept), below = lay.shown(lower_fds, kept)
    cdef const char *p = array
    cdef const char *q = below
    cdef size_t n = len(fds), k = len(lower_fds)
    cdef int end = 0
    with nogil:
        code = lay.lay_merge_open(&m, <const lay.lay_shown *>p, n, <const lay.lay_shown *>q, k, into_fd, flags, &err)
    lay.check_shown(code, &err, kept)
    try:
        while not end:
            with nogil:
                lay.check(lay.lay_merge_run(m, MAX_MS, &end, &err), &err)
            PyErr_CheckSignals()
    finally:
        with nogil:
            lay.lay_merge_free(m)
