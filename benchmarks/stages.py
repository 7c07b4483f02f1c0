"""The core's stages one at a time, through the tests' door: digest, CRC, tar reader, record, inflate, unpack.

Each stage is given a whole layer tar, mapped; it runs in the calling thread. What register reaches is to be set
beside its slowest stage alone: with a core for each stage nothing better is possible.
"""

from __future__ import annotations

import contextlib
import functools
import mmap
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cffi
import door
import sinks

from benchmarks import ROOT, measure

SPAN = 1 << 20


@functools.cache
def _walker() -> tuple[cffi.FFI, Any]:
    """tar_walk.c, built against the door's shared object."""
    core = door.shared_object()
    made = core.with_name("tar_walk.so")
    source = ROOT / "benchmarks" / "tar_walk.c"
    if not made.exists() or made.stat().st_mtime < source.stat().st_mtime:
        flags, _ = door.build_flags()
        flags = [flag for flag in flags if flag != "-Werror"]
        command = [*door.probe.compiler(), *flags, "-Wno-missing-prototypes", "-shared", source, core, "-o", made]
        subprocess.run([str(word) for word in command], check=True)
    ffi = cffi.FFI()
    ffi.cdef("int64_t bench_tar_walk(const void *p, size_t n, void *err);")
    return ffi, ffi.dlopen(str(made))


def ready() -> None:
    """Build what has to be built, before anything is timed."""
    _walker()
    assert door.lib.LAY_OK == 0


@contextlib.contextmanager
def mapped(path: Path) -> Iterator[Any]:
    """A file as C memory."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as memory:
        view = door.ffi.from_buffer(memory)
        try:
            yield view
        finally:
            door.ffi.release(view)


def _spans(data: Any) -> Iterator[tuple[Any, int]]:
    for at in range(0, len(data), SPAN):
        yield data + at, min(SPAN, len(data) - at)


def digest(data: Any) -> bytes:
    state, out = door.ffi.new("lay_sha256 *"), door.ffi.new("uint8_t[32]")
    door.lib.lay_sha256_start(state)
    for p, n in _spans(data):
        door.lib.lay_sha256_add(state, p, n)
    door.lib.lay_sha256_end(state, out)
    return bytes(out)


def crc64(data: Any) -> int:
    crc = 0
    for p, n in _spans(data):
        crc = door.lib.lay_crc64_add(crc, p, n)
    return crc


def tar_read(data: Any) -> int:
    """Every event of the reader; entries."""
    ffi, lib = _walker()
    err = door.new_error()
    there = [ffi.cast("void *", int(door.ffi.cast("uintptr_t", p))) for p in (data, err)]
    entries = lib.bench_tar_walk(there[0], len(data), there[1])
    if entries < 0:
        raise door.error_of(err)
    return entries


def split(data: Any) -> int:
    """The gzip record into a file in memory; its bytes."""
    with sinks.memory() as fd:
        recorder = door.make("lay_split_open", "lay_split *", fd, True, door.ffi.NULL)
        for p, n in _spans(data):
            door.call("lay_split_add", recorder, p, n)
        door.call("lay_split_end", recorder)
        return os.fstat(fd).st_size


def inflate(data: Any, kind: str) -> int:
    """gzip or zstd to nowhere; plain bytes."""
    format = {"gzip": door.lib.LAY_FORMAT_GZIP, "zstd": door.lib.LAY_FORMAT_ZSTD}[kind]
    z = door.make("lay_inflate_open", "lay_inflate *", format)
    out, got, total = door.ffi.new("uint8_t[]", SPAN), door.out("size_t *"), 0
    for p, n in _spans(data):
        door.lib.lay_inflate_feed(z, p, n)
        while True:
            door.call("lay_inflate_next", z, out, SPAN, got)
            if not got[0]:
                break
            total += got[0]
    door.call("lay_inflate_eof", z)
    return total


def unpack(data: Any, into: Path, *, threads: int = 0) -> int:
    """Files of the tar below an empty directory; bytes in them."""
    with sinks.directory(into) as root:
        options = door.ffi.new("lay_unpack_options *", {"root_fd": root, "scratch_fd": -1, "threads": threads})
        sink = door.make("lay_unpack_open", "lay_unpack *", options)
        span, done = door.ffi.new("lay_span *"), door.out("lay_applied *")
        for at in range(0, len(data), SPAN):
            span.p = door.ffi.cast("uint8_t *", data + at)
            span.n, span.offset, span.slot = min(SPAN, len(data) - at), at, 0
            door.call("lay_unpack_add", sink, span)
        door.call("lay_unpack_end", sink, done)
        return int(done.size)


def cases(tar: Path, into: Path) -> list[measure.Case]:
    """The stages of register, each alone, over one layer."""

    def with_data(job: Callable[[Any], Any]) -> Callable[[], Any]:
        def run() -> Any:
            with mapped(tar) as data:
                return job(data)

        return run

    return [
        measure.Case("digest", with_data(digest), inside=True),
        measure.Case("tar reader", with_data(tar_read), inside=True),
        measure.Case("record", with_data(split), inside=True),
        measure.Case("unpack, one thread", with_data(lambda data: unpack(data, into)),
                     prepare=lambda: measure.fresh(into), clean=lambda: measure.wipe(into), inside=True),
    ]  # fmt: skip
