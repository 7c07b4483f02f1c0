"""Bytes out: a recorded tar again, or a fresh one from a tree. Binding of lay_source and lay_check.

See _tarstream.pyi for what is promised. read() makes its bytes object once and has C fill it; what is
too large to be asked for at once is read in parts, with a look at signals between them. Reads that follow
one another are served from bytes read ahead, in few large calls: each call lets the GIL go, and beside a busy
thread waits 5 ms to get it back.
"""
cimport lay
from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AsString, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_New
from libc.errno cimport EINTR, errno
from libc.stdint cimport int64_t, uint8_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, strerror, strlen

cdef extern from "Python.h":
    str PyUnicode_DecodeFSDefaultAndSize(const char *s, Py_ssize_t size)

EXPORT_OVERLAY = <int>lay.LAY_EXPORT_OVERLAY
EXPORT_USERXATTR = <int>lay.LAY_EXPORT_USERXATTR
EXPORT_KEEP = <int>lay.LAY_EXPORT_KEEP
EXPORT_SKIP_MARKS = <int>lay.LAY_EXPORT_SKIP_MARKS
EXPORT_WHOLE = <int>lay.LAY_EXPORT_WHOLE
CHECK_METADATA = <int>lay.LAY_CHECK_METADATA
CHECK_USERNS = <int>lay.LAY_CHECK_USERNS
CHECK_USERXATTR = <int>lay.LAY_CHECK_USERXATTR
CHECK_FIRST = <int>lay.LAY_CHECK_FIRST

cdef list LEFT = [("xattr", lay.LAY_LEFT_XATTR), ("acl", lay.LAY_LEFT_ACL), ("socket", lay.LAY_LEFT_SOCKET),
                  ("mark", lay.LAY_LEFT_MARK)]

cdef enum:
    PART = 16 << 20
    AHEAD_FIRST = 64 << 10   # bytes of the first read ahead, at least: a caller that seeks often must not pay for it
    AHEAD = 32 << 20         # it grows fourfold up to this
    MAX_BYTES = 256 << 20
    MAX_MS = 100


cdef const uint8_t *diff_id_bytes(bytes diff_id) except? NULL:
    """32 bytes of it, alive as long as the object; NULL for None."""
    if diff_id is None:
        return NULL
    if len(diff_id) != 32:
        raise ValueError(f"a DiffID has 32 bytes, not {len(diff_id)}")
    return <const uint8_t *><const char *>diff_id


cdef class Source:
    cdef lay.Handle handle
    cdef char *ahead             # bytes read and not given yet: ahead[ahead_at:ahead_len]
    cdef size_t ahead_at, ahead_len, ahead_want   # ahead_want: how much to read ahead; 0: not yet

    def __init__(self):
        raise TypeError("a Source is made by assemble, of_range, export_tree, export_changes or export_directory")

    def __dealloc__(self):
        cdef lay.lay_source *s = <lay.lay_source *>self.handle.c
        free(self.ahead)
        if s != NULL:
            with nogil:
                lay.lay_source_free(s)

    cdef size_t give_ahead(self, char *p, size_t n) noexcept:
        """Up to n of the bytes that were read ahead."""
        cdef size_t m = min(n, self.ahead_len - self.ahead_at)
        if m > 0:
            memcpy(p, self.ahead + self.ahead_at, m)
            self.ahead_at += m
        return m

    def read_ahead(self):
        cdef bytes rest
        lay.enter(&self.handle)
        rest = PyBytes_FromStringAndSize(self.ahead + self.ahead_at, <Py_ssize_t>(self.ahead_len - self.ahead_at)) if self.ahead != NULL else b""
        self.ahead_at = self.ahead_len = 0
        lay.give(&self.handle)
        return rest

    def _capsule(self):
        """For Apply.pump_source, while it keeps this object."""
        if self.ahead_at < self.ahead_len:
            raise RuntimeError("bytes were read ahead: take them first")
        return PyCapsule_New(&self.handle, "layerstore.source", NULL)

    cdef size_t fill(self, char *p, size_t n, bint ahead=True) except? <size_t>-1:
        """Up to n bytes to p, in parts; fewer only at the end. That the whole is not what was promised (an error
        of no file) comes in place of the end, by the next call; every other error at once."""
        cdef lay.lay_error err
        cdef lay.lay_code code
        cdef size_t have, got = 1, part
        cdef bint further
        cdef char *to
        lay.enter(&self.handle)
        cdef lay.lay_source *s = <lay.lay_source *>self.handle.c
        try:
            have = self.give_ahead(p, n)
            while have < n and got > 0:
                part = min(n - have, <size_t>PART)
                to = p + have
                further = ahead and n - have < self.ahead_want
                if further:
                    if self.ahead == NULL:
                        self.ahead = <char *>malloc(AHEAD)
                        if self.ahead == NULL:
                            raise MemoryError
                    part, to = self.ahead_want, self.ahead
                    self.ahead_at = self.ahead_len = 0
                with nogil:
                    code = lay.lay_source_read(s, to, part, &got, &err)
                if code == lay.LAY_E_MISMATCH and have > 0 and err.path[0] == 0:
                    break
                lay.check(code, &err)
                if further:
                    self.ahead_len = got
                    self.ahead_want = min(4 * self.ahead_want, <size_t>AHEAD)
                    have += self.give_ahead(p + have, n - have)
                else:
                    have += got
                PyErr_CheckSignals()
            if ahead and self.ahead_want == 0:
                self.ahead_want = min(max(4 * n, <size_t>AHEAD_FIRST), <size_t>AHEAD)
        finally:
            lay.give(&self.handle)
        return have

    cdef bytes read_part(self, size_t n, bint ahead=True):
        cdef bytes data = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>n)
        cdef char *p = PyBytes_AsString(data)
        cdef size_t got = self.fill(p, n, ahead)
        return data if got == n else PyBytes_FromStringAndSize(p, <Py_ssize_t>got)

    def read(self, n):
        cdef list parts = []
        left = n if n >= 0 else None
        while True:
            want = PART if left is None else min(left, PART)
            part = self.read_part(want)
            short = len(part) < want
            if left is None:
                # Up to the end, not to a short part: an error may hide behind it.
                if not part:
                    return parts[0] if len(parts) == 1 else b"".join(parts)
            else:
                left -= want
                if not parts and (left == 0 or short):
                    return part
            parts.append(part)
            if left == 0 or (short and left is not None):
                return b"".join(parts)

    def read_block(self, size_t n):
        return self.read_part(min(n, <size_t>PART), False)

    def readinto(self, buffer):
        cdef Py_buffer view
        PyObject_GetBuffer(buffer, &view, PyBUF_WRITABLE)
        try:
            return self.fill(<char *>view.buf, <size_t>view.len)
        finally:
            PyBuffer_Release(&view)

    def copy_to_fd(self, int fd, int64_t max_bytes=MAX_BYTES, int max_ms=MAX_MS):
        cdef lay.lay_error err
        cdef lay.lay_code code
        cdef int64_t written = 0
        cdef int end = 0
        lay.enter(&self.handle)
        cdef lay.lay_source *s = <lay.lay_source *>self.handle.c
        if self.ahead_at < self.ahead_len:
            try:
                return False, self.write_ahead(fd, max_bytes, max_ms)
            finally:
                lay.give(&self.handle)
        with nogil:
            code = lay.lay_source_copy(s, fd, max_bytes, max_ms, &written, &end, &err)
        lay.give(&self.handle)
        lay.check(code, &err)
        return end != 0, written

    cdef int64_t write_ahead(self, int fd, int64_t max_bytes, int max_ms) except -1:
        """Write of what was read ahead what the descriptor takes at once."""
        cdef size_t n = min(self.ahead_len - self.ahead_at, <size_t>max(max_bytes, 0))
        cdef int64_t put
        cdef int e
        with nogil:
            put = lay.lay_write_some(fd, self.ahead + self.ahead_at, n, max_ms)
            e = errno if put < 0 else 0
        if e == EINTR:
            return 0
        if put < 0:
            raise OSError(e, "write the tar: " + strerror(e).decode())
        self.ahead_at += <size_t>put
        return put

    def size(self):
        cdef lay.lay_error err
        cdef lay.lay_code code
        cdef int64_t size = 0
        lay.enter(&self.handle)
        cdef lay.lay_source *s = <lay.lay_source *>self.handle.c
        with nogil:
            code = lay.lay_source_size(s, &size, &err)
        lay.give(&self.handle)
        lay.check(code, &err)
        return size

    def files_size(self):
        lay.enter(&self.handle)
        cdef int64_t size = lay.lay_export_files_size(<lay.lay_source *>self.handle.c)
        lay.give(&self.handle)
        return size

    def left_out(self):
        cdef const char *path
        cdef int kind
        cdef size_t i
        cdef list found = [], paths
        lay.enter(&self.handle)
        cdef lay.lay_source *s = <lay.lay_source *>self.handle.c
        try:
            for name, kind in LEFT:
                count = lay.lay_export_left_out(s, kind)
                if count == 0:
                    continue
                paths = []
                for i in range(<size_t>lay.LAY_LEFT_NAMED):
                    path = lay.lay_export_left_path(s, kind, i)
                    if path != NULL:
                        paths.append(PyUnicode_DecodeFSDefaultAndSize(path, <Py_ssize_t>strlen(path)))
                found.append((name, count, paths))
        finally:
            lay.give(&self.handle)
        return found

    def lies(self):
        cdef int fd = -1
        cdef int64_t offset = 0, left = 0
        cdef const uint8_t *diff_id = NULL
        lay.enter(&self.handle)
        ahead = <int64_t>(self.ahead_len - self.ahead_at)
        cdef bint lies = lay.lay_range_lies(<lay.lay_source *>self.handle.c, &fd, &offset, &left, &diff_id) != 0
        expected = PyBytes_FromStringAndSize(<const char *>diff_id, 32) if diff_id != NULL and ahead == 0 else None
        lay.give(&self.handle)
        return (fd, offset - ahead, left + ahead, expected) if lies else None

    def seek(self, int64_t offset):
        cdef lay.lay_error err
        cdef lay.lay_code code = lay.LAY_OK
        lay.enter(&self.handle)
        cdef lay.lay_source *s = <lay.lay_source *>self.handle.c
        if offset != lay.lay_source_tell(s) - <int64_t>(self.ahead_len - self.ahead_at):
            self.ahead_at = self.ahead_len = self.ahead_want = 0
            with nogil:
                code = lay.lay_source_seek(s, offset, &err)
        lay.give(&self.handle)
        lay.check(code, &err)

    def tell(self):
        lay.enter(&self.handle)
        cdef int64_t position = lay.lay_source_tell(<lay.lay_source *>self.handle.c)
        position -= <int64_t>(self.ahead_len - self.ahead_at)
        lay.give(&self.handle)
        return position

    def close(self):
        if not lay.take(&self.handle):
            raise RuntimeError("in use by another thread")
        cdef lay.lay_source *s = <lay.lay_source *>self.handle.c
        self.handle.c = NULL
        if s != NULL:
            lay.lay_source_free(s)           # microseconds
        free(self.ahead)
        self.ahead = NULL
        self.ahead_at = self.ahead_len = self.ahead_want = 0
        lay.give(&self.handle)


cdef Source owned(lay.lay_source *s):
    cdef Source source = Source.__new__(Source)
    source.handle.c = s
    return source


def assemble(int record_fd, int root_fd, bytes diff_id=None):
    cdef lay.lay_error err
    cdef lay.lay_source *s = NULL
    cdef const uint8_t *expected = diff_id_bytes(diff_id)
    lay.check(lay.lay_assemble_open(&s, record_fd, root_fd, expected, &err), &err)     # microseconds
    return owned(s)


def of_range(int fd, int64_t offset, int64_t size, bytes diff_id=None):
    cdef lay.lay_error err
    cdef lay.lay_source *s = NULL
    cdef const uint8_t *expected = diff_id_bytes(diff_id)
    if offset < 0 or size < 0:
        raise ValueError(f"no range of a file: {size} bytes at {offset}")
    lay.check(lay.lay_range_open(&s, fd, offset, size, expected, &err), &err)     # microseconds
    return owned(s)


def export_tree(int root_fd, unsigned flags=0):
    cdef lay.lay_error err
    cdef lay.lay_source *s = NULL
    with nogil:
        lay.check(lay.lay_export_tree_open(&s, root_fd, flags, &err), &err)
    return owned(s)


def export_directory(int root_fd, bytes prefix not None, int64_t newest, int64_t uid, int64_t gid, list exclude not None):
    cdef lay.lay_error err
    cdef lay.lay_source *s = NULL
    cdef lay.lay_directory_options options
    cdef bytes patterns = b"".join([pattern + b"\0" for pattern in exclude])
    options.prefix, options.newest, options.uid, options.gid = prefix, newest, uid, gid
    options.exclude, options.excludes = patterns, len(exclude)
    with nogil:
        lay.check(lay.lay_export_directory_open(&s, root_fd, &options, &err), &err)
    return owned(s)


def export_stack(fds, unsigned flags=0, lower_fds=None):
    cdef lay.lay_error err
    cdef lay.lay_source *s = NULL
    cdef lay.lay_code code
    cdef list kept = []
    cdef bytes array = lay.shown(fds, kept), below = lay.shown(lower_fds or (), kept)
    cdef const char *p = array
    cdef const char *q = NULL
    cdef size_t n = len(fds), m = 0
    if lower_fds is not None:
        q, m = below, len(lower_fds)
    with nogil:
        code = lay.lay_export_stack_open(&s, <const lay.lay_shown *>p, n, <const lay.lay_shown *>q, m, flags, &err)
    lay.check_shown(code, &err, kept)
    return owned(s)


def export_changes(int root_fd, changes, unsigned flags=0):
    cdef lay.lay_error err
    cdef lay.lay_source *s = NULL
    capsule = changes._capsule()
    cdef const lay.lay_changes *c = <const lay.lay_changes *>PyCapsule_GetPointer(capsule, "layerstore.changes")
    with nogil:
        lay.check(lay.lay_export_changes_open(&s, root_fd, c, flags, &err), &err)
    return owned(s)


cdef list found_by(lay.lay_check *c, report):
    cdef lay.lay_error err
    cdef lay.lay_problem problem
    cdef int end = 0
    cdef int64_t done = 0, told = 0
    cdef list found = []
    kinds = {
        lay.LAY_PROBLEM_CONTENT: "content", lay.LAY_PROBLEM_MISSING: "missing", lay.LAY_PROBLEM_RECORD: "metadata",
        lay.LAY_PROBLEM_METADATA: "metadata", lay.LAY_PROBLEM_ADDED: "orphan",
    }
    while not end:
        with nogil:
            lay.check(lay.lay_check_next(c, MAX_MS, &problem, &end, &err), &err)
        if problem.kind != lay.LAY_PROBLEM_NONE:
            path = PyUnicode_DecodeFSDefaultAndSize(problem.path, <Py_ssize_t>problem.path_len)
            found.append((kinds[problem.kind], path, problem.text.decode("utf-8", "replace")))
        if report is not None:
            done = lay.lay_check_bytes(c)
            report(done - told)
            told = done
        PyErr_CheckSignals()
    return found


def check(int record_fd, int root_fd, bytes diff_id, report=None, lower_fds=(), unsigned flags=0):
    cdef lay.lay_error err
    cdef lay.lay_check *c = NULL
    cdef lay.lay_check_options options
    cdef lay.lay_code code
    cdef list kept = []
    cdef bytes array = lay.shown(lower_fds, kept)
    cdef const char *fds = array
    options.record_fd, options.root_fd, options.flags = record_fd, root_fd, flags
    options.diff_id = diff_id_bytes(diff_id)
    options.lowers, options.nlowers = <const lay.lay_shown *>fds, len(lower_fds)
    with nogil:
        code = lay.lay_check_open(&c, &options, &err)
    lay.check_shown(code, &err, kept)
    try:
        return found_by(c, report)
    finally:
        with nogil:
            lay.lay_check_free(c)
