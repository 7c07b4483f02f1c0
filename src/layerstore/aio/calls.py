"""One blocking call in a thread of its own: the event loop waits for it, and stops it when its task is cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

from layerstore.streams.stopping import STOP
from layerstore.values import Done, Progress

T = TypeVar("T")
SHORT_CALLS = 8


class _StoppedError(Exception):
    """The task that awaited this work was cancelled."""


class Call:
    """One blocking call in its thread: how it is told to stop, and how it asks the event loop."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.why: BaseException | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._lock = threading.Lock()
        self._wakes: dict[object, Callable[[BaseException], object]] = {}

    def stop(self, why: BaseException) -> None:
        """End the work at its next check(), and wake what cannot ask; called in the loop. The first reason counts."""
        with self._lock:
            if self.why is not None:
                return
            self.why, wakes = why, [*self._wakes.values()]
        for task in self._tasks:
            task.cancel()
        for wake in wakes:
            with contextlib.suppress(Exception):
                wake(why)

    def check(self) -> None:
        """Raise what stopped the work; called in the thread."""
        if self.why is not None:
            raise self.why

    @contextlib.contextmanager
    def when_stopped(self, wake: Callable[[BaseException], object]) -> Iterator[None]:
        """Have wake(why) called once if stop() is called during a `with` block, or was; called in the thread."""
        key = object()
        with self._lock:
            why = self.why
            if why is None:
                self._wakes[key] = wake
        if why is not None:
            with contextlib.suppress(Exception):
                wake(why)
        try:
            yield
        finally:
            with self._lock:
                self._wakes.pop(key, None)

    def hook(self, progress: Progress | None) -> Progress:
        """Return a progress argument for the blocking call; it stops the call, too."""

        def told(done: Done) -> None:
            self.check()
            if progress is not None:
                self.loop.call_soon_threadsafe(self._tell, progress, done)

        return told

    def _tell(self, progress: Progress, done: Done) -> None:
        try:
            if self.why is None:
                progress(done)
        except BaseException as err:
            self.stop(err)

    def result_of(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine in the loop and return its result; called in the thread. stop() cancels it."""
        ready = threading.Event()
        started: list[asyncio.Task[T]] = []

        def start() -> None:
            if self.why is not None:
                ready.set()
                return
            started.append(task := self.loop.create_task(make()))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            task.add_done_callback(lambda _: ready.set())

        self.loop.call_soon_threadsafe(start)
        ready.wait()
        if not started or started[0].cancelled():
            self.check()
            raise asyncio.CancelledError("what the call reads from or writes to was cancelled")
        result = started.pop().result()
        self.check()
        return result


async def in_thread(
    work: Callable[[Call], T], slots: asyncio.Semaphore | None, undo: Callable[[T], object] | None = None
) -> T:
    """Do work in a thread; slots bounds how many run. If cancelled, stop it, wait for its end, undo its result."""
    async with slots or contextlib.nullcontext():
        return await _carried_through(work, undo)


async def _carried_through(work: Callable[[Call], T], undo: Callable[[T], object] | None) -> T:
    call = Call()
    ended: asyncio.Future[None] = call.loop.create_future()
    result: list[T] = []
    failed: list[BaseException] = []
    context = contextvars.copy_context()
    context.run(STOP.set, call)

    def body() -> None:
        try:
            result.append(context.run(work, call))
        except BaseException as err:
            failed.append(err)
        call.loop.call_soon_threadsafe(ended.set_result, None)

    thread = threading.Thread(target=body, name="layerstore-aio")
    thread.start()
    cancelled: BaseException | None = None
    while not ended.done():
        try:
            await asyncio.wait([ended])
        except asyncio.CancelledError as err:
            cancelled = err
            call.stop(_StoppedError())
    thread.join()
    why = cancelled or call.why
    if result and why is not None and undo is not None:
        given = result[0]
        try:
            await _carried_through(lambda _: undo(given), None)
        except asyncio.CancelledError as err:
            cancelled = why = err
    try:
        if cancelled is not None:
            raise cancelled
        if failed:
            raise failed[0]
        if why is not None:
            raise why
        return result[0]
    finally:
        result, failed, cancelled, why = [], [], None, None     # no cycle through the traceback


class Slots:
    """How much of one store's work runs at a time. Reads have slots of their own: they feed what runs longer.

    take_back   the store's, for a reference whose receiver was cancelled
    """

    def __init__(self, workers: int | None = None) -> None:
        self.long = asyncio.Semaphore(workers or min(4, os.cpu_count() or 1))
        self.short = asyncio.Semaphore(SHORT_CALLS)
        self.take_back: Callable[[Any], object] | None = None
