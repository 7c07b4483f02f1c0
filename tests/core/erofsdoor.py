"""An image read by the core, through the door: what tests of the reader ask of it."""

import contextlib
import ctypes
import os
from collections.abc import Iterator, Sequence
from typing import Any

import door

LIBC = ctypes.CDLL(None)


class Reader:
    """One open image. Paths are str as erofsreader has them; "" is the root."""

    def __init__(self, fd: int, size: int = -1, devices: Sequence[int] = ()) -> None:
        fds = door.ffi.new("int[]", list(devices)) if devices else door.ffi.NULL
        self.e = door.make("lay_erofs_open", "lay_erofs *", fd, size, fds, len(devices))

    def close(self) -> None:
        door.ffi.release(self.e)

    def find(self, path: str) -> Any:
        thing, name = door.out("lay_erofs_thing *"), os.fsencode(path)
        door.call("lay_erofs_find", self.e, name, len(name), thing)
        return thing[0]

    def names(self, path: str) -> list[str]:
        text, count = door.out("char **"), door.out("size_t *")
        door.call("lay_erofs_names", self.e, self.find(path).ino, text, count)
        found, at = [], text[0]
        for _ in range(count[0]):
            found.append(door.ffi.string(at))
            at += len(found[-1]) + 1
        LIBC.free(ctypes.c_void_p(int(door.ffi.cast("uintptr_t", text[0]))))
        return [os.fsdecode(name) for name in found]

    def read(self, path: str, size: int, offset: int = 0) -> bytes:
        got, room = door.out("size_t *"), door.ffi.new("char[]", max(size, 1))
        door.call("lay_erofs_read", self.e, self.find(path).ino, room, size, offset, got)
        return bytes(door.ffi.buffer(room, got[0]))

    def target(self, path: str) -> str:
        return os.fsdecode(self.read(path, 4096, -1))

    def pieces(self, path: str) -> list[tuple[int, int, int]]:
        found, ino, piece, offset = [], self.find(path).ino, door.out("lay_erofs_piece *"), 0
        while True:
            door.call("lay_erofs_next_piece", self.e, ino, offset, piece)
            if piece.n == 0:
                return found
            found.append((piece.offset, piece.n, piece.at))
            offset = piece.offset + piece.n

    def xattr(self, path: str, name: bytes | None) -> bytes:
        got, room = door.out("size_t *"), door.ffi.new("char[]", 1 << 19)
        door.call("lay_erofs_attribute", self.e, self.find(path).ino, name or door.ffi.NULL, room, 1 << 19, got)
        return bytes(door.ffi.buffer(room, got[0]))

    def xattrs(self, path: str) -> dict[str, bytes]:
        return {os.fsdecode(name): self.xattr(path, name) for name in self.xattr(path, None).split(b"\0")[:-1]}

    def refusal(self, diff_id: bytes, tar_size: int) -> str:
        text = door.ffi.new("char[]", 512)
        door.lib.lay_erofs_refusal(self.e, diff_id, tar_size, text)
        return door.ffi.string(text).decode()

    def verify(self) -> None:
        door.call("lay_erofs_verify", self.e)

    def shown(self) -> Any:
        """For functions that take layers: one, and a directory's place behind it."""
        return door.ffi.new("lay_shown[]", [(-1, door.lib.lay_erofs_lower(self.e)), (-1,)])

    def tree(self) -> dict[str, Any]:
        """Every path, with what find() says."""
        found, todo = {}, [""]
        while todo:
            path = todo.pop()
            found[path] = self.find(path)
            if found[path].mode & 0o170000 == 0o040000:
                todo += [os.path.join(path, name) for name in self.names(path)]
        return found


@contextlib.contextmanager
def opened(data: bytes, **how: Any) -> Iterator[Reader]:
    """A reader of these bytes."""
    fd = os.memfd_create("image")
    try:
        with os.fdopen(fd, "wb", closefd=False) as file:
            file.write(data)
        reader = Reader(fd, **how)
    finally:
        os.close(fd)
    try:
        yield reader
    finally:
        reader.close()
