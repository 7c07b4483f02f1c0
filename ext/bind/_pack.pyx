"""Plain bytes become gzip or zstd. Binding of lay_packer.

See _pack.pyi for what is promised. The GIL is let go for every block.
"""
cimport lay
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from libc.stdlib cimport free, malloc

cdef enum:
    ROOM = 1 << 20

cdef dict PACKINGS = {"gzip": lay.LAY_PACK_GZIP, "zstd": lay.LAY_PACK_ZSTD}


cdef class Packer:
    cdef lay.Handle handle
    cdef char *room
    cdef bint over

    def __init__(self, how):
        cdef lay.lay_error err
        cdef lay.lay_packer *k = NULL
        if self.handle.c != NULL:
            raise RuntimeError("already open")
        cdef lay.lay_packing packing = PACKINGS[how]
        if self.room == NULL:
            self.room = <char *>malloc(ROOM)
        if self.room == NULL:
            raise MemoryError
        lay.check(lay.lay_packer_open(&k, packing, &err), &err)     # microseconds
        self.handle.c = k

    def __dealloc__(self):
        lay.lay_packer_free(<lay.lay_packer *>self.handle.c)
        free(self.room)

    cdef bytes run(self, const char *p, size_t n, bint end):
        cdef lay.lay_error err
        cdef size_t used = 0, got = 0
        cdef int done = 0
        cdef list parts = []
        lay.enter(&self.handle)
        cdef lay.lay_packer *k = <lay.lay_packer *>self.handle.c
        try:
            if self.over:
                raise ValueError("packing is over")
            while n > 0 or (end and not done) or got == ROOM:
                with nogil:
                    lay.check(lay.lay_packer_run(k, p, n, end, self.room, ROOM, &used, &got, &done, &err), &err)
                p += used
                n -= used
                if got > 0:
                    parts.append(PyBytes_FromStringAndSize(self.room, <Py_ssize_t>got))
                if done:
                    self.over = True
                    break
                PyErr_CheckSignals()
        finally:
            lay.give(&self.handle)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def compress(self, data):
        cdef Py_buffer view
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            return self.run(<const char *>view.buf, <size_t>view.len, False)
        finally:
            PyBuffer_Release(&view)

    def flush(self):
        return self.run(b"", 0, True)
