"""Async sources and targets, for a thread to read from and to write to."""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import select
import stat
from collections.abc import Awaitable, Callable
from typing import Any

from layerstore.aio.calls import Call


class _Pipe:
    """What an async source returns, for a thread to read."""

    def __init__(self, call: Call, fetch: Callable[[int], Awaitable[Any]]) -> None:
        self._call, self._fetch = call, fetch
        self._left = memoryview(b"")

    def read(self, n: int) -> bytes:
        """Return the next bytes, at most n; b"" at the end. Called in the thread."""

        async def fetch() -> Any:
            return await self._fetch(n)

        if not self._left:
            block = self._call.result_of(fetch)
            if not isinstance(block, (bytes, bytearray, memoryview)):
                raise TypeError(f"an async source returns bytes, not {type(block).__name__}")
            self._left = memoryview(block).cast("B")
        block, self._left = self._left[:n], self._left[n:]
        return bytes(block)


class _Line:
    """A pipe, a socket or a terminal, which may return nothing for long: a read of it cannot be interrupted."""

    def __init__(self, call: Call, fd: int) -> None:
        self._call, self._fd = call, fd
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)

    def read(self, n: int) -> bytes:
        """Return what has come, at most n bytes; b"" at the end. Called in the thread."""
        while True:
            self._call.check()
            if self._poll.poll(50):
                with contextlib.suppress(BlockingIOError):
                    return os.read(self._fd, n)


class _Writer:
    """An async writer, for a thread to write to: each block waits until the writer takes more."""

    def __init__(self, call: Call, writer: Any) -> None:
        self._call, self._writer = call, writer

    def write(self, data: Any) -> int:
        """Write data and return how many bytes were taken; called in the thread."""
        block = bytes(data)

        async def put() -> Any:
            taken = self._writer.write(block)
            if inspect.isawaitable(taken):
                taken = await taken
            if hasattr(self._writer, "drain"):
                await self._writer.drain()
            return len(block) if taken is None else taken

        return int(self._call.result_of(put))


def source_for(call: Call, source: Any) -> Any:
    """Return what the blocking call takes for this source; called in the thread."""
    if inspect.iscoroutinefunction(getattr(source, "read", None)):
        return _Pipe(call, source.read)
    if hasattr(source, "__aiter__"):
        iterator = aiter(source)

        async def fetch(_: int) -> Any:
            async for block in iterator:
                if len(block):            # an empty one is no end
                    return block
            return b""

        return _Pipe(call, fetch)
    if isinstance(source, io.FileIO) or (isinstance(source, int) and not isinstance(source, bool)):
        fd = source if isinstance(source, int) else source.fileno()
        mode = os.fstat(fd).st_mode
        if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or stat.S_ISCHR(mode):
            return _Line(call, fd)
    return source


def is_async_target(target: Any) -> bool:
    """Return True if writing to it must be awaited: an asyncio.StreamWriter, or what has a coroutine write()."""
    return hasattr(target, "drain") or inspect.iscoroutinefunction(getattr(target, "write", None))


def target_for(call: Call, target: Any) -> Any:
    """Return what the blocking call takes for this target; called in the thread."""
    return _Writer(call, target) if is_async_target(target) else target
