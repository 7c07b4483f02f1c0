"""apply.c: the digest of what came in, as it came, however it comes; and digest.c's three kinds."""

import gzip
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import door
import imagekit
import pytest
import recipes
import sinks
from tarkit import end, file

SMALL = file("small", b"small") + end()
LARGE = file("large", recipes.noise((5 << 19) + 77)) + file("zeros", bytes(3 << 20)) + end()
KINDS = {"sha256": 1, "sha384": 2, "sha512": 3}


def same(data: bytes) -> bytes:
    return data


PACKED: dict[str, Callable[[bytes], bytes]] = {"plain": same, "gzip": gzip.compress, "zstd": imagekit.zstd}


@contextmanager
def opened(room: Path, **how: Any) -> Iterator[Any]:
    """An apply that registers in a fresh root."""
    with sinks.directory(room) as at, sinks.memory() as record_fd:
        os.mkdir("root", dir_fd=at)
        try:
            with sinks.directory(room / "root") as root_fd:
                with sinks.applying(root=root_fd, scratch=at, record_fd=record_fd, **how) as a:
                    yield a
        finally:
            door.call("lay_tree_remove", at, b"root")


def push(a: Any, data: bytes, step: int | None = None) -> None:
    for window, n in sinks.windows(data, step):
        door.call("lay_apply_push", a, window, n)


def pump(a: Any, data: bytes) -> None:
    at, stop = door.ffi.new("int64_t *", -1), door.out("int *")
    with sinks.memory(data) as fd:
        while not stop[0]:
            door.call("lay_apply_pump", a, fd, at, 300_000, 1000, stop)


def push_and_pump(a: Any, data: bytes) -> None:
    push(a, data[:300])
    pump(a, data[300:])


WAYS: dict[str, Callable[[Any, bytes], None]] = {
    "whole": push, "in pieces": lambda a, data: push(a, data, 1999), "pumped": pump, "pushed and pumped": push_and_pump,
}


def check(room: Path, kind: str, tar: bytes, came: bytes, feed: Callable[[Any, bytes], None], **how: Any) -> None:
    with opened(room, digest=KINDS[kind], **how) as a:
        feed(a, came)
        applied, source = sinks.finish_both(a)
    assert source == sinks.Source(hashlib.new(kind, came).digest(), len(came))
    assert (applied.diff_id, applied.tar_size) == (hashlib.sha256(tar).digest(), len(tar))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("packing", PACKED)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("workers", [0, 2])
def test_one_pass_gives_both_digests(room: Path, kind: str, packing: str, way: str, workers: int) -> None:
    for tar in SMALL, LARGE:
        check(room, kind, tar, PACKED[packing](tar), WAYS[way], workers=workers)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("packing", PACKED)
def test_of_lent_bytes(room: Path, kind: str, packing: str) -> None:
    came = PACKED[packing](LARGE)
    memory = door.ffi.from_buffer(came)

    def lend(a: Any, came: bytes) -> None:
        door.call("lay_apply_lend", a, memory, 700)
        door.call("lay_apply_lend", a, memory + 700, len(came) - 700)

    check(room, kind, LARGE, came, lend, workers=2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("behind", [b"\0" * 512, b"no member" * 3000], ids=["zeros", "text"])
@pytest.mark.parametrize("step", [None, 100])
def test_bytes_behind_the_compressed_stream_count(room: Path, kind: str, behind: bytes, step: int | None) -> None:
    came = gzip.compress(SMALL) + behind
    check(room, kind, SMALL, came, lambda a, data: push(a, data, step))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("behind", [b"behind the end" * 9, bytes(3 << 20)], ids=["text", "zeros"])
def test_bytes_behind_a_plain_tar_count(room: Path, kind: str, behind: bytes) -> None:
    check(room, kind, SMALL + behind, SMALL + behind, push, workers=1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("packing", PACKED)
def test_of_no_bytes(room: Path, kind: str, packing: str) -> None:
    check(room, kind, b"", PACKED[packing](b""), push)


@contextmanager
def exported(path: Path) -> Iterator[Any]:
    source = door.ffi.new("lay_source **")
    with sinks.directory(path) as tree:
        door.call("lay_export_tree_open", source, tree, 0)
        try:
            yield source[0]
        finally:
            door.lib.lay_source_free(source[0])


def test_of_a_source_that_is_drawn(room: Path) -> None:
    (room / "tree").mkdir()
    (room / "tree" / "file").write_bytes(recipes.noise(70_000))
    for kind, number in KINDS.items():
        with exported(room / "tree") as source, opened(room, digest=number) as a:
            stop = door.out("int *")
            while not stop[0]:
                door.call("lay_apply_draw", a, source, 1 << 30, 1000, stop)
            applied, came = sinks.finish_both(a)
        with exported(room / "tree") as source:
            tar = sinks.read_source(source)
        assert came == sinks.Source(hashlib.new(kind, tar).digest(), len(tar))
        assert applied.diff_id == hashlib.sha256(tar).digest()


def test_of_what_has_no_diffid(room: Path) -> None:
    (room / "over").mkdir()
    with sinks.directory(room / "over") as root:
        for kind, number in KINDS.items():
            with sinks.applying(root=root, over="tree", digest=number) as a:
                push(a, SMALL)
                assert sinks.finish_both(a)[1] == sinks.Source(hashlib.new(kind, SMALL).digest(), len(SMALL))


def test_none_is_taken_that_was_not_asked_for(room: Path) -> None:
    with opened(room) as a:
        push(a, SMALL)
        assert sinks.finish_both(a)[1] == sinks.Source(b"", len(SMALL))


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_its_definition_at_any_cut(kind: str) -> None:
    data, out = recipes.noise(5000), door.ffi.new("uint8_t[64]")
    for cuts in [], [1], [63, 64, 65], [127, 128, 129, 129], list(range(0, 5000, 7)):
        digest = door.ffi.new("lay_digest *")
        door.lib.lay_digest_start(digest, KINDS[kind])
        for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True):
            door.lib.lay_digest_add(digest, door.ffi.new("uint8_t[]", data[a:b]), b - a)
        n = door.lib.lay_digest_end(digest, out)
        assert bytes(out)[:n] == hashlib.new(kind, data).digest()
