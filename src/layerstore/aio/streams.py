"""Files and tars whose reads are awaited."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from typing import Any, Self

from layerstore.aio.calls import Call, Slots, T, in_thread
from layerstore.streams.sources import Teller
from layerstore.values import Progress

BLOCK = 1 << 20


class File:
    """A binary file to be read: await read(), or `async for` its blocks. `async with` closes it."""

    def __init__(self, blocking: Any, slots: Slots) -> None:
        """Take over a blocking file."""
        self._blocking, self._slots = blocking, slots

    @property
    def blocking(self) -> Any:
        """The same as a blocking file."""
        return self._blocking

    async def _do(self, work: Callable[[Call], T]) -> T:
        return await in_thread(work, self._slots.short)

    async def read(self, size: int = -1) -> bytes:
        """Give size bytes, fewer only at the end; all that is left for -1. Raises as the blocking file does."""

        def work(call: Call) -> bytes:
            if 0 <= size <= BLOCK:
                return bytes(self._blocking.read(size))
            parts = []
            left = size
            while left:
                call.check()
                part = self._blocking.read(BLOCK if left < 0 else min(BLOCK, left))
                if not part:
                    break
                parts.append(part)
                left -= len(part) if left > 0 else 0
            return b"".join(parts)

        return await self._do(work)

    async def readinto(self, buffer: Any) -> int:
        """Fill buffer; fewer bytes only at the end."""
        return await self._do(lambda _: int(self._blocking.readinto(buffer)))

    async def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a position."""
        return await self._do(lambda _: int(self._blocking.seek(offset, whence)))

    async def tell(self) -> int:
        """Give the position of the next byte."""
        return await self._do(lambda _: int(self._blocking.tell()))

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return bool(self._blocking.closed)

    async def close(self) -> None:
        """Give back what it holds, once a running read is over. Twice is harmless."""
        await in_thread(lambda _: self._blocking.close(), None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Give what is left in blocks of 1 MiB: the next one is read when it is asked for."""
        while block := await self.read(BLOCK):
            yield block


class TarStream(File):
    """A layer's tar, byte for byte: what layerstore.TarStream is."""

    def seekable(self) -> bool:
        """Say whether seek() works."""
        return bool(self._blocking.seekable())

    async def size(self) -> int:
        """Give the whole length in bytes."""
        return await self._do(lambda _: int(self._blocking.size))

    async def copy_to(self, dst: Any, *, progress: Progress | None = None) -> int:
        """Write what is left to a descriptor, a binary file or an asyncio.StreamWriter; gives the bytes written.

        progress   called with the bytes written, at most ten times a second; what it raises ends the copy
        Raises     CorruptLayerError   a file or the whole is not what was recorded
        What is not written yet when it is cancelled is left in the stream.
        """
        if not isinstance(dst, asyncio.StreamWriter):
            return await in_thread(
                lambda call: int(self._blocking.copy_to(dst, progress=call.hook(progress))), self._slots.long
            )
        total = 0
        teller = Teller(progress, None)
        async for block in self:
            dst.write(block)
            await dst.drain()
            total += len(block)
            teller.tell(total)
        teller.tell(total, end=True)
        return total
