"""Files whose reads are awaited."""

from __future__ import annotations

import io
import os
from collections.abc import AsyncIterator, Callable
from typing import Any

from layerstore.aio.calls import Call, T, in_thread
from layerstore.aio.mirror import AWAITED, Managed

BLOCK = 1 << 20


class File(Managed[Any]):
    """A binary file to be read: await read(), or `async for` its blocks. `async with` closes it."""

    async def _do(self, work: Callable[[Call], T]) -> T:
        return await in_thread(work, self._slots.short)

    async def read(self, size: int | None = -1) -> bytes:
        """Return size bytes, fewer only at the end; all that is left for -1 or None. Raise as its file does."""

        def work(call: Call) -> bytes:
            left = -1 if size is None else size
            if 0 <= left <= BLOCK:
                return bytes(self.blocking.read(left))
            parts = []
            while left:
                call.check()
                part = self.blocking.read(BLOCK if left < 0 else min(BLOCK, left))
                if not part:
                    break
                parts.append(part)
                left -= len(part) if left > 0 else 0
            return b"".join(parts)

        return await self._do(work)

    async def readinto(self, buffer: Any) -> int:
        """Fill buffer; fewer bytes only at the end."""
        return await self._do(lambda _: int(self.blocking.readinto(buffer)))

    async def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a position."""
        return await self._do(lambda _: int(self.blocking.seek(offset, whence)))

    async def tell(self) -> int:
        """Return the position of the next byte."""
        return await self._do(lambda _: int(self.blocking.tell()))

    @property
    def closed(self) -> bool:
        """True if close() was called."""
        return bool(self.blocking.closed)

    async def close(self) -> None:
        """Release what it holds, once a running read is over. Twice is harmless."""
        await in_thread(lambda _: self.blocking.close(), None)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Return what is left in blocks of 1 MiB: the next one is read when it is asked for."""
        while block := await self.read(BLOCK):
            yield block


AWAITED[io.IOBase.__mro__[1]] = File         # what every file of the interpreter is, too
