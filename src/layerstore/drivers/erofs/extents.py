"""A regular file of a layer, read by the pieces of it that lie in the layer's file."""

from __future__ import annotations

import bisect
import os
from collections.abc import Sequence

from layerstore._core import _files
from layerstore.disk.textfile import naming_file


class Extents:
    """The contents.files.Opened of an image's file. What lies in no piece is a hole."""

    def __init__(self, fd: int, size: int, pieces: Sequence[tuple[int, int, int]]) -> None:
        """Take over fd.

        size     bytes of the file
        pieces   in order: where in the file, how many bytes, where in the layer's file
        """
        self._fd, self._size, self._pieces = fd, size, pieces
        self._begins = [piece[0] for piece in pieces]

    def pread(self, view: memoryview, offset: int) -> int:
        room = min(len(view), self._size - offset)
        if room <= 0:
            return 0
        at = bisect.bisect_right(self._begins, offset) - 1
        if at >= 0:
            begin, n, where = self._pieces[at]
            done = offset - begin
            if done < n:
                with naming_file(self._fd):
                    return os.preadv(self._fd, [view[: min(room, n - done)]], where + done)
        if at + 1 < len(self._begins):
            room = min(room, self._begins[at + 1] - offset)
        view[:room] = bytes(room)
        return room

    def close(self) -> None:
        _files.close(self._fd)
