"""Bytes in: one layer tar becomes files, a DiffID and a tar-split record. Binding of lay_apply.

See _apply.pyi for what is promised. Bytes are lent or pushed from Python objects that live until the
call, or until close(), is over; a sibling Source is pumped in C without passing through Python.
"""
cimport lay
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport int64_t, uint8_t
from libc.stdlib cimport free, malloc
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from posix.unistd cimport getpid

from collections import namedtuple

cdef extern from "codec/inflate.h" nogil:
    ctypedef enum lay_format:
        LAY_FORMAT_PLAIN, LAY_FORMAT_GZIP, LAY_FORMAT_ZSTD, LAY_FORMAT_BZIP2, LAY_FORMAT_XZ, LAY_FORMAT_LZ4
    lay_format lay_format_guess(const uint8_t *p, size_t n) noexcept

MERGED = <int>lay.LAY_APPLY_MERGED
USERNS = <int>lay.LAY_APPLY_USERNS
PLAIN_RECORD = <int>lay.LAY_APPLY_PLAIN_RECORD
PLAIN_INPUT = <int>lay.LAY_APPLY_PLAIN_INPUT
NO_DRAIN = <int>lay.LAY_APPLY_NO_DRAIN
OWN_LINKS = <int>lay.LAY_APPLY_OWN_LINKS
USERXATTR = <int>lay.LAY_APPLY_USERXATTR

Applied = namedtuple("Applied", "diff_id tar_size size entries unsettled left_out first_left_out", module="layerstore._core._apply")

cdef lay.lay_limits limits_of(given):
    """A layerstore.limits.Limits, or anything with these numbers; None: the core's own."""
    cdef lay.lay_limits l = lay.lay_limits_default()[0]
    cdef const char *option = NULL
    cdef size_t i = 0
    while given is not None and lay.lay_limits_at(&l, i, &option) != NULL:
        lay.lay_limits_at(&l, i, &option)[0] = getattr(given, option.decode())
        i += 1
    return l


def default_limits():
    """What None means, by the names that Limits has."""
    cdef lay.lay_limits l = lay.lay_limits_default()[0]
    cdef const char *option = NULL
    cdef size_t i = 0
    limits = {}
    while lay.lay_limits_at(&l, i, &option) != NULL:
        limits[option.decode()] = lay.lay_limits_at(&l, i, &option)[0]
        i += 1
    return limits


# How long a call stays in C before signals are looked at.
cdef enum:
    BLOCK = 1 << 20
    MAX_BYTES = 256 << 20
    MAX_MS = 100


cdef class Lent:
    """A buffer that is not let go before this object is."""
    cdef Py_buffer view
    cdef bint held

    def __cinit__(self, buffer):
        PyObject_GetBuffer(buffer, &self.view, PyBUF_SIMPLE)
        self.held = True

    def __dealloc__(self):
        if self.held:
            PyBuffer_Release(&self.view)


cdef int64_t now_ms() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <int64_t>t.tv_sec * 1000 + t.tv_nsec // 1000000


cdef lay.lay_code pump_blocks(lay.lay_apply *a, lay.lay_source *s, void *block, int64_t max_bytes, int max_ms,
                              int *end, lay.lay_error *err) noexcept nogil:
    """lay_apply_pump from a source: until about max_bytes or max_ms have passed, or the end."""
    cdef lay.lay_code code
    cdef size_t got = 0
    cdef int64_t taken = 0, deadline = now_ms() + max_ms
    while True:
        code = lay.lay_source_read(s, block, BLOCK, &got, err)
        if code == lay.LAY_OK and got > 0:
            code = lay.lay_apply_push(a, block, got, err)
        if code != lay.LAY_OK:
            return code
        taken += <int64_t>got
        end[0] = got == 0 or lay.lay_apply_sated(a)
        if end[0] or taken >= max_bytes or now_ms() >= deadline:
            return code


cdef class Apply:
    cdef lay.Handle handle
    cdef list lent
    cdef void *block
    # What finish() has to say, when pump() met the end and went on to it at once: two waits for the GIL are one.
    cdef lay.lay_applied done
    cdef lay.lay_error done_err
    cdef bint finished, over
    cdef readonly int64_t max_window
    cdef int pid          # whose threads work for it: a forked child has none of them, and must not wait for their ends

    def __cinit__(self, int root_fd, int record_fd=-1, int scratch_fd=-1, *, int reread_fd=-1,
                  int64_t reread_offset=0, int spool_fd=-1, int workers=-1, unsigned flags=0,
                  limits=None):
        cdef lay.lay_limits bounds = limits_of(limits)
        cdef lay.lay_error err
        cdef lay.lay_code code
        cdef lay.lay_apply *a = NULL
        cdef lay.lay_apply_options options
        options.root_fd, options.record_fd, options.scratch_fd = root_fd, record_fd, scratch_fd
        options.reread_fd, options.reread_offset, options.spool_fd = reread_fd, reread_offset, spool_fd
        options.workers, options.flags, options.limits = workers, flags, &bounds
        self.lent = []
        self.max_window = bounds.window
        self.pid = getpid()
        code = lay.lay_apply_open(&a, &options, &err)    # microseconds
        lay.check(code, &err)
        self.handle.c = a

    def __dealloc__(self):
        cdef lay.lay_apply *a = <lay.lay_apply *>self.handle.c
        if self.pid != getpid():
            return
        with nogil:
            lay.lay_apply_free(a)
            free(self.block)

    @property
    def taken(self):
        lay.enter(&self.handle)
        cdef int64_t taken = lay.lay_apply_taken(<lay.lay_apply *>self.handle.c)
        lay.give(&self.handle)
        return taken

    def push(self, bytes data not None):
        cdef const char *p = data
        return self.take_in(p, len(data), False)

    def lend(self, buffer):
        cdef Lent lent = Lent(buffer)
        self.lent.append(lent)
        return self.take_in(<const char *>lent.view.buf, lent.view.len, True)

    cdef take_in(self, const char *p, size_t n, bint lend):
        cdef lay.lay_error err
        cdef lay.lay_code code
        cdef bint sated = False
        lay.enter(&self.handle)
        cdef lay.lay_apply *a = <lay.lay_apply *>self.handle.c
        with nogil:
            code = lay.lay_apply_lend(a, p, n, &err) if lend else lay.lay_apply_push(a, p, n, &err)
            if code == lay.LAY_OK:
                sated = lay.lay_apply_sated(a)
        lay.give(&self.handle)
        lay.check(code, &err)
        return sated

    def pump(self, int fd, int64_t offset=-1, int64_t max_bytes=MAX_BYTES, int max_ms=MAX_MS):
        cdef lay.lay_error err
        cdef lay.lay_code code
        cdef int end = 0
        lay.enter(&self.handle)
        cdef lay.lay_apply *a = <lay.lay_apply *>self.handle.c
        with nogil:
            code = lay.lay_apply_pump(a, fd, &offset, max_bytes, max_ms, &end, &err)
            if code == lay.LAY_OK and end:
                lay.lay_apply_finish(a, &self.done, &self.done_err)
        self.finished = self.over = code == lay.LAY_OK and end
        lay.give(&self.handle)
        lay.check(code, &err)
        return end != 0, offset

    def pump_source(self, source, int64_t max_bytes=MAX_BYTES, int max_ms=MAX_MS):
        cdef lay.lay_error err
        cdef lay.lay_code code
        cdef int end = 0
        capsule = source._capsule()
        cdef lay.Handle *other = <lay.Handle *>PyCapsule_GetPointer(capsule, "layerstore.source")
        lay.enter(&self.handle)
        try:
            if self.block == NULL:
                self.block = malloc(BLOCK)
                if self.block == NULL:
                    raise MemoryError
            lay.enter(other)
        except:
            lay.give(&self.handle)
            raise
        with nogil:
            code = pump_blocks(<lay.lay_apply *>self.handle.c, <lay.lay_source *>other.c, self.block, max_bytes, max_ms,
                               &end, &err)
        lay.give(other)
        lay.give(&self.handle)
        lay.check(code, &err)
        return end != 0

    def finish(self):
        lay.enter(&self.handle)
        cdef lay.lay_apply *a = <lay.lay_apply *>self.handle.c
        if not self.finished:
            with nogil:
                lay.lay_apply_finish(a, &self.done, &self.done_err)
        self.finished = False
        self.over = True
        lay.give(&self.handle)
        lay.check(self.done_err.code, &self.done_err)
        cdef const void *unsettled = NULL
        cdef size_t n = 0
        lay.lay_apply_unsettled(a, &unsettled, &n)
        return Applied((<char *>self.done.diff_id)[:32], self.done.tar_size, self.done.size, self.done.entries,
                       (<const char *>unsettled)[:n] if n else b"",
                       self.done.left_out, <bytes>lay.lay_apply_left_out(a))

    def close(self):
        if self.pid != getpid():
            return
        if not lay.take(&self.handle):
            raise RuntimeError("in use by another thread")
        cdef lay.lay_apply *a = <lay.lay_apply *>self.handle.c
        self.handle.c = NULL
        if self.over:
            lay.lay_apply_free(a)            # no thread is left to wait for
        else:
            with nogil:
                lay.lay_apply_free(a)
        lent, self.lent = self.lent, []
        lay.give(&self.handle)
        lent.clear()


def stand_on(int root_fd, bytes unsettled not None, lowers, unsigned flags=0):
    cdef lay.lay_error err
    cdef lay.lay_code code
    cdef bytes array = lay.descriptors(lowers)
    cdef const char *p = unsettled
    cdef const char *fds = array
    cdef size_t size = len(unsettled), n = len(lowers)
    with nogil:
        code = lay.lay_stand_on(root_fd, p, size, <const int *>fds, n, flags, &err)
    lay.check(code, &err)


def guess_format(bytes head not None):
    cdef const char *p = head
    cdef lay_format format = lay_format_guess(<const uint8_t *>p, len(head))
    return {LAY_FORMAT_GZIP: "gzip", LAY_FORMAT_ZSTD: "zstd", LAY_FORMAT_BZIP2: "bzip2", LAY_FORMAT_XZ: "xz",
            LAY_FORMAT_LZ4: "lz4"}.get(format, "plain")


def build_info():
    """Say which libraries this build stands on.

    Returns  {"sha256": ..., "crc64": ..., "gzip": ..., "zstd": ...}: name and version of each; "" for none
    """
    return {"sha256": lay.lay_build_sha256().decode(), "crc64": lay.lay_build_crc64().decode(),
            "gzip": lay.lay_build_gzip().decode(), "zstd": lay.lay_build_zstd().decode()}
