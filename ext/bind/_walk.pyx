"""The entries of a tar whose payloads others read. Binding of lay_walk.

See _walk.pyi for what is promised. A header takes microseconds: the GIL is kept.
"""
cimport lay
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t

cdef enum:
    MOST = 1 << 16           # bytes asked for at once, of an extension


cdef class Walker:
    cdef lay.Handle handle

    def __init__(self):
        cdef lay.lay_error err
        cdef lay.lay_walk *w = NULL
        if self.handle.c != NULL:
            raise RuntimeError("already open")
        lay.check(lay.lay_walk_open(&w, &err), &err)
        self.handle.c = w

    def __dealloc__(self):
        if self.handle.c != NULL:
            lay.lay_walk_free(<lay.lay_walk *>self.handle.c)

    def wants(self):
        lay.enter(&self.handle)
        cdef size_t n = lay.lay_walk_wants(<lay.lay_walk *>self.handle.c)
        lay.give(&self.handle)
        return n if n < MOST else MOST

    def feed(self, bytes data):
        cdef lay.lay_error err
        cdef lay.lay_walked e
        cdef int found = 0
        cdef const char *p = data
        lay.enter(&self.handle)
        try:
            lay.check(lay.lay_walk_feed(<lay.lay_walk *>self.handle.c, p, <size_t>len(data), &e, &found, &err), &err)
            if not found:
                return None
            return (
                PyBytes_FromStringAndSize(e.name, <Py_ssize_t>e.name_len), PyBytes_FromStringAndSize(e.link, <Py_ssize_t>e.link_len),
                chr(<unsigned char>e.type), e.sparse != 0, e.stored, e.padding, None if e.doubt == NULL else (<bytes>e.doubt).decode(),
            )
        finally:
            lay.give(&self.handle)

    def end(self):
        cdef lay.lay_error err
        lay.enter(&self.handle)
        try:
            lay.check(lay.lay_walk_end(<lay.lay_walk *>self.handle.c, &err), &err)
        finally:
            lay.give(&self.handle)


def begins(bytes block):
    if len(block) < 512:
        return False
    cdef const uint8_t *p = block
    return lay.lay_walk_begins(p) != 0
