"""Bytes in: one layer tar becomes files, a DiffID and a tar-split record. Binding of lay_apply.

See _apply.pyi for what is promised. Bytes are lent or pushed from Python objects that live until the
call, or until close(), is over; a sibling Source is pumped in C without passing through Python.
"""
cimport lay
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport int64_t, uint8_t
from posix.unistd cimport getpid

from collections import namedtuple

cdef extern from "codec/inflate.h" nogil:
    ctypedef enum lay_format:
        LAY_FORMAT_PLAIN, LAY_FORMAT_GZIP, LAY_FORMAT_ZSTD, LAY_FORMAT_BZIP2, LAY_FORMAT_XZ, LAY_FORMAT_LZ4
    lay_format lay_format_guess(const uint8_t *p, size_t n) noexcept

USERNS = <int>lay.LAY_APPLY_USERNS
USERXATTR = <int>lay.LAY_APPLY_USERXATTR

Applied = namedtuple("Applied", "diff_id tar_size size entries unsettled left_out first_left_out source_digest source_size",
                     module="layerstore._core._apply")

_DIGESTS = {None: <int>lay.LAY_DIGEST_NONE, "sha256": <int>lay.LAY_DIGEST_SHA256, "sha384": <int>lay.LAY_DIGEST_SHA384, "sha512": <int>lay.LAY_DIGEST_SHA512}

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


cdef class Apply:
    cdef lay.Handle handle
    cdef list lent
    # What finish() has to say, when pump() met the end and went on to it at once: two waits for the GIL are one.
    cdef lay.lay_applied done
    cdef lay.lay_error done_err
    cdef bint finished, over
    cdef lay.lay_limits bounds
    cdef lay.lay_apply_options options
    cdef readonly object digest
    cdef int pid          # whose threads work for it: a forked child has none of them, and must not wait for their ends

    cdef opened(self, lay.lay_code code):
        lay.check(code, &self.done_err)
        return self

    def __init__(self):
        raise TypeError("an Apply is made by register, erofs, record, disassemble, over_tree or over_mount")

    def __dealloc__(self):
        cdef lay.lay_apply *a = <lay.lay_apply *>self.handle.c
        if self.pid != getpid():
            return
        with nogil:
            lay.lay_apply_free(a)

    @property
    def max_window(self):
        return self.bounds.window

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
            lay.enter(other)
        except:
            lay.give(&self.handle)
            raise
        with nogil:
            code = lay.lay_apply_draw(<lay.lay_apply *>self.handle.c, <lay.lay_source *>other.c, max_bytes, max_ms, &end, &err)
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
        return Applied((<char *>self.done.diff_id)[:32], self.done.tar_size, self.done.size, self.done.entries,
                       (<const char *>self.done.unsettled)[:self.done.unsettled_len] if self.done.unsettled_len else b"",
                       self.done.left_out, <bytes>self.done.first_left_out if self.done.first_left_out != NULL else b"",
                       (<char *>self.done.source_digest)[:self.done.source_digest_len], self.done.source_size)

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


cdef Apply not_open(unsigned flags, limits, int workers, digest=None):
    cdef Apply made = Apply.__new__(Apply)
    made.lent = []
    made.pid = getpid()
    made.bounds = lay.limits_of(limits)
    made.options.workers, made.options.flags, made.options.limits = workers, flags, &made.bounds
    made.digest = digest
    if digest not in _DIGESTS:
        raise ValueError(f"unknown digest: {digest!r}; sha256, sha384 and sha512 are known")
    made.options.digest = <lay.lay_digest_kind><int>_DIGESTS[digest]
    return made


# Opening takes microseconds: the GIL is kept.
def register(int root_fd, int scratch_fd, int record_fd, *, unsigned flags=0, limits=None, int workers=-1, digest=None):
    cdef Apply made = not_open(flags, limits, workers, digest)
    return made.opened(lay.lay_apply_register(<lay.lay_apply **>&made.handle.c, root_fd, scratch_fd, record_fd, &made.options, &made.done_err))


def erofs(int fd, lowers=(), *, limits=None, int workers=-1, digest=None, bint present=False):
    cdef Apply made = not_open(lay.LAY_APPLY_PRESENT if present else 0, limits, workers, digest)
    cdef list kept = []
    cdef bytes array = lay.shown(lowers, kept)
    cdef const char *p = array
    made.lent.append(kept)
    return made.opened(lay.lay_apply_erofs(<lay.lay_apply **>&made.handle.c, fd, <const lay.lay_shown *>p, len(lowers), &made.options, &made.done_err))


def record(int record_fd, *, limits=None, int workers=-1):
    cdef Apply made = not_open(0, limits, workers)
    return made.opened(lay.lay_apply_record(<lay.lay_apply **>&made.handle.c, record_fd, &made.options, &made.done_err))


def disassemble(int record_fd, int again_fd=-1, int64_t again_offset=-1, *, limits=None, int workers=-1):
    cdef Apply made = not_open(0, limits, workers)
    return made.opened(lay.lay_apply_disassemble(<lay.lay_apply **>&made.handle.c, record_fd, again_fd, again_offset, &made.options, &made.done_err))


def over_tree(int root_fd, *, unsigned flags=0, limits=None, int workers=-1):
    cdef Apply made = not_open(flags, limits, workers)
    return made.opened(lay.lay_apply_over_tree(<lay.lay_apply **>&made.handle.c, root_fd, &made.options, &made.done_err))


def over_mount(int root_fd, *, unsigned flags=0, limits=None, int workers=-1):
    cdef Apply made = not_open(flags, limits, workers)
    return made.opened(lay.lay_apply_over_mount(<lay.lay_apply **>&made.handle.c, root_fd, &made.options, &made.done_err))


def stand_on(int root_fd, bytes unsettled not None, lowers, unsigned flags=0):
    cdef lay.lay_error err
    cdef lay.lay_code code
    cdef list kept = []
    cdef bytes array = lay.shown(lowers, kept)
    cdef const char *p = unsettled
    cdef const char *fds = array
    cdef size_t size = len(unsettled), n = len(lowers)
    with nogil:
        code = lay.lay_stand_on(root_fd, p, size, <const lay.lay_shown *>fds, n, flags, &err)
    lay.check_shown(code, &err, kept)


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
