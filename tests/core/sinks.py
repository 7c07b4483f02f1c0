"""Driving the core's sinks and sources by the door: a tar in, its record and tree out, and the tar again.

What the tests of several core files need, in their words: a record is bytes, an error is a CoreError.
"""

import os
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import door

LIMIT = 1 << 20


class Line(NamedTuple):
    """A line as lay_split_reader gives it: segment bytes, or a file's name, size and CRC (None: none)."""

    segment: bytes | None
    name: bytes | None
    size: int
    crc: int | None
    tar_offset: int
    index: int


class Applied(NamedTuple):
    diff_id: bytes
    tar_size: int
    size: int
    entries: int


class Source(NamedTuple):
    """What an apply says of the bytes that came."""

    digest: bytes
    size: int


@contextmanager
def memory(content: bytes = b"") -> Iterator[int]:
    """A descriptor of a file in memory that holds content."""
    fd = os.memfd_create("layerstore-test")
    try:
        for at in range(0, len(content), LIMIT):
            os.write(fd, content[at : at + LIMIT])
        os.lseek(fd, 0, os.SEEK_SET)
        yield fd
    finally:
        os.close(fd)


@contextmanager
def directory(path: Any) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def content(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)


def windows(data: bytes, step: int | None = None) -> Iterator[tuple[Any, int]]:
    """data as C memory, whole or in pieces of step bytes, each just as long as it says."""
    for at in range(0, len(data), step or max(len(data), 1)):
        piece = data[at : at + step] if step else data
        yield door.ffi.new("uint8_t[]", piece), len(piece)


# ---- records ------------------------------------------------------------------------------------
def record(tar: bytes, *, step: int | None = None, gzip: bool = False) -> bytes:
    """The record lay_split makes of tar, pushed whole or step bytes at a time."""
    with memory() as fd:
        split = door.make("lay_split_open", "lay_split *", fd, gzip, door.ffi.NULL)
        for window, n in windows(tar, step):
            door.call("lay_split_add", split, window, n)
        door.call("lay_split_end", split)
        return content(fd)


def next_line(reader: Any) -> Line | None:
    ffi = door.ffi
    line, end = ffi.new("lay_split_line *"), ffi.new("bool *")
    door.call("lay_split_reader_next", reader, line, end)
    if end[0]:
        return None
    if line.is_file:
        return Line(
            None, ffi.buffer(line.name, line.name_len)[:], line.size, line.crc if line.has_crc else None,
            line.tar_offset, line.index
        )
    return Line(ffi.buffer(line.p, line.n)[:], None, line.n, None, line.tar_offset, line.index)


def lines(any_record: bytes) -> list[Line]:
    """A record's lines as lay_split_reader reads them."""
    with memory(any_record) as fd:
        reader = door.make("lay_split_reader_open", "lay_split_reader *", fd)
        return list(iter(lambda: next_line(reader), None))


# ---- whole layers -------------------------------------------------------------------------------
@contextmanager
def applying(
    *, root: int = -1, record_fd: int = -1, scratch: int = -1, over: str = "", workers: int = 0, flags: int = 0, again: int = -1,
    limits: Any = None, digest: int = 0,
) -> Iterator[Any]:  # fmt: skip
    """An open lay_apply, freed at the end of the block: over a "tree" or a "mount", or register, or (no root) disassemble.

    again      an empty file in which disassemble keeps the tar
    digest     the kind that a Source's is to be of
    """
    lib, handle = door.lib, door.ffi.new("lay_apply **")
    options = door.ffi.new("lay_apply_options *", [workers, flags, limits or door.ffi.NULL, digest])
    if over:
        door.call(f"lay_apply_over_{over}", handle, root, options)
    elif root >= 0:
        door.call("lay_apply_register", handle, root, scratch, record_fd, options)
    else:
        door.call("lay_apply_disassemble", handle, record_fd, again, -1, options)
    try:
        yield handle[0]
    finally:
        lib.lay_apply_free(handle[0])


def finish(a: Any) -> Applied:
    return finish_both(a)[0]


def finish_both(a: Any) -> tuple[Applied, Source]:
    got = door.ffi.new("lay_applied *")
    door.call("lay_apply_finish", a, got)
    source = Source(bytes(got.source_digest)[: got.source_digest_len], got.source_size)
    return Applied(bytes(got.diff_id), got.tar_size, got.size, got.entries), source


def apply(tar: bytes, *, step: int | None = None, **where: Any) -> Applied:
    """Push tar through lay_apply, whole or step bytes at a time."""
    with applying(**where) as a:
        for window, n in windows(tar, step):
            door.call("lay_apply_push", a, window, n)
        return finish(a)


def assemble(record_fd: int, root: int, diff_id: bytes | None = None, *, step: int = LIMIT) -> bytes:
    """The tar that a record and a tree give; checked against diff_id if there is one."""
    ffi = door.ffi
    known = ffi.new("uint8_t[32]", diff_id) if diff_id else ffi.NULL
    source = ffi.new("lay_source **")
    door.call("lay_assemble_open", source, record_fd, root, known)
    try:
        return read_source(source[0], step)
    finally:
        door.lib.lay_source_free(source[0])


def check_options(record_fd: int, root: int, diff_id: bytes | None = None, lowers: Sequence[int] = ()) -> Any:
    """The options of a check that looks at everything."""
    ffi = door.ffi
    fds = door.shown(lowers)
    known = ffi.new("uint8_t[32]", diff_id) if diff_id else ffi.NULL
    options = ffi.new("lay_check_options *", [record_fd, root, known, fds, len(lowers), door.lib.LAY_CHECK_METADATA])
    _alive[options] = fds, known
    return options


_alive: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def problems(record_fd: int, root: int, lowers: Sequence[int] = ()) -> list[tuple[int, bytes, str]]:
    """What lay_check finds: (kind, path, sentence)."""
    ffi = door.ffi
    check, found = door.make("lay_check_open", "lay_check *", check_options(record_fd, root, lowers=lowers)), []
    end, problem = ffi.new("int *"), ffi.new("lay_problem *")
    while not end[0]:
        door.call("lay_check_next", check, 100, problem, end)
        if problem.kind != door.lib.LAY_PROBLEM_NONE:
            found.append((problem.kind, ffi.buffer(problem.path, problem.path_len)[:], ffi.string(problem.text).decode()))
    return found


def read_source(source: Any, step: int = LIMIT) -> bytes:
    ffi = door.ffi
    buffer, got, parts = ffi.new("uint8_t[]", step), ffi.new("size_t *"), []
    while True:
        door.call("lay_source_read", source, buffer, step, got)
        if not got[0]:
            return b"".join(parts)
        parts.append(ffi.buffer(buffer, got[0])[:])
