"""What an async source gives, for a thread to read."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import io
import os
import select
import stat
import threading
from collections.abc import Awaitable, Callable
from typing import Any

from layerstore.aio.calls import Call
from layerstore.aio.streams import File


class _Pipe:
    """What an async source gives, for a thread to read."""

    def __init__(self, call: Call, fetch: Callable[[int], Awaitable[Any]]) -> None:
        self._call, self._fetch = call, fetch
        self._task: asyncio.Task[Any] | None = None
        self._left = memoryview(b"")
        call.on_stop.append(self._cancel)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _start(self, n: int, ready: threading.Event) -> None:
        if self._call.why is not None:
            ready.set()
            return

        async def fetch() -> Any:
            return await self._fetch(n)

        self._task = self._call.loop.create_task(fetch())
        self._task.add_done_callback(lambda _: ready.set())

    def read(self, n: int) -> bytes:
        """In the thread: the next bytes, at most n; b"" at the end."""
        if not self._left:
            ready = threading.Event()
            self._call.loop.call_soon_threadsafe(self._start, n, ready)
            ready.wait()
            if self._task is None or self._task.cancelled():
                self._call.check()
                raise asyncio.CancelledError("the source was cancelled")
            block = self._task.result()
            self._call.check()
            if not isinstance(block, (bytes, bytearray, memoryview)):
                raise TypeError(f"an async source gives bytes, not {type(block).__name__}")
            self._left = memoryview(block).cast("B")
        block, self._left = self._left[:n], self._left[n:]
        return bytes(block)


class _Line:
    """A pipe, a socket or a terminal, which may give nothing for long: a read of it cannot be interrupted."""

    def __init__(self, call: Call, fd: int) -> None:
        self._call, self._fd = call, fd
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)

    def read(self, n: int) -> bytes:
        """In the thread: what has come, at most n bytes; b"" at the end."""
        while True:
            self._call.check()
            if self._poll.poll(50):
                with contextlib.suppress(BlockingIOError):
                    return os.read(self._fd, n)


def source_for(call: Call, source: Any) -> Any:
    """In the thread: what the blocking call takes for this source."""
    if isinstance(source, File):
        return source.blocking
    if hasattr(source, "__aiter__") and not inspect.iscoroutinefunction(getattr(source, "read", None)):
        iterator = aiter(source)

        async def fetch(_: int) -> Any:
            while True:
                try:
                    block = await anext(iterator)
                except StopAsyncIteration:
                    return b""
                if len(block):            # an empty one is no end
                    return block

        return _Pipe(call, fetch)
    if inspect.iscoroutinefunction(getattr(source, "read", None)):
        return _Pipe(call, source.read)
    if isinstance(source, io.FileIO) or (isinstance(source, int) and not isinstance(source, bool)):
        fd = source if isinstance(source, int) else source.fileno()
        mode = os.fstat(fd).st_mode
        if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or stat.S_ISCHR(mode):
            return _Line(call, fd)
    return source
