"""What a store does beside its calls: one thread for what may end later, as closing a file system or removing a tree.

Jobs come in; they are done one after the other. A job that cannot be done yet is asked again from time to time. The
thread begins with the first job, ends when there is none, and is in no forked child. The jobs of a program that ends
are not done: what they leave is unowned on disk, or goes with the process. No interrupt loses a job or leaves a lock:
each step of a caller is one call of C.
"""

from __future__ import annotations

import _thread
import collections
import contextlib
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable

from layerstore._core._locks import Mutex

log = logging.getLogger("layerstore")

Job = Callable[[], bool]
"""Returns False to be asked again later. It may be called once more after an interrupt."""

# Seconds that the thread waits for another job before it ends, and after which a job is asked again.
_IDLE, _AGAIN = 1.0, 0.25
_MOMENT = 0.0002
# Seconds after which a job is begun: the call that left it behind is over by then, and need not share the interpreter.
_AFTER = 0.001


class Background:
    """The thread of one store. Every call is safe from any thread."""

    def __init__(self) -> None:
        self._begin(os.getpid())

    def _begin(self, pid: int) -> None:
        self._pid = pid
        self._turn = Mutex()              # of who does a job
        self._jobs: collections.deque[Job] = collections.deque()
        self._later: list[tuple[float, Job]] = []
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._is_running, self._ident = False, 0
        self._ends = False

    def _own(self) -> None:
        """Forget the jobs in a forked child, as all of them are the parent's."""
        if os.getpid() != self._pid:
            self._begin(os.getpid())

    def submit(self, job: Job) -> None:
        """Do job soon; where there can be no thread, with the next job, or at drain(). What it raises is logged."""
        self._own()
        self._jobs.append(job)
        self._wake.put(None)
        if not self._is_running:
            # Thread.start() would wait for ever for a thread that finds no memory as it begins.
            with contextlib.suppress(RuntimeError, MemoryError):
                _thread.start_new_thread(self._run, ())

    def drain(self) -> None:
        """Do what is left to do, and ask jobs that could not be done once more."""
        self._own()
        if sys.is_finalizing() or (self._is_running and threading.get_ident() == self._ident):
            return                        # no thread goes on by now; or the garbage collector closes a store there
        with self._turn:                  # the job that the thread is at may have to be asked again
            self._jobs.extend(job for _, job in self._later)
            self._later.clear()
        while self._do_next():
            pass

    def close(self) -> None:
        """Drain, forget the jobs that cannot be done yet, and end the thread. Twice is harmless."""
        if sys.is_finalizing():
            return                        # the thread has ended where it was, perhaps with the lock
        self.drain()
        if sys.is_finalizing() or (self._is_running and threading.get_ident() == self._ident):
            return
        with self._turn:
            self._later.clear()
        self._ends = True
        self._wake.put(None)
        while self._is_running:           # one that only begins finds nothing to do
            time.sleep(_MOMENT)
        self._ends = False

    # ---- in a thread ----

    def _do_next(self) -> bool:
        """Do the next job, after the one that another thread is at. False: there is none."""
        with self._turn:
            try:
                job = self._jobs.popleft()
            except IndexError:
                return False
            try:
                done = job()
            except Exception as err:      # it has no caller
                log.error("A job in the background failed: %s", err, exc_info=err)
            except BaseException:
                self._jobs.appendleft(job)
                raise
            else:
                if not done:
                    self._later.append((time.monotonic() + _AGAIN, job))
            return True

    def _run(self) -> None:
        with self._turn:
            if self._is_running:
                return                    # another one began with the same jobs
            self._is_running, self._ident = True, threading.get_ident()
        time.sleep(_AFTER)
        try:
            while self._goes_on():
                pass
        finally:
            self._is_running = False
        if self._jobs:                    # one came in just now, and its caller saw a thread
            self._run()

    def _goes_on(self) -> bool:
        """Do all jobs that are there, and wait for another. False: there is none, and none to be asked again."""
        while self._do_next():
            pass
        with self._turn:
            now = time.monotonic()
            while self._later and self._later[0][0] <= now:
                self._jobs.append(self._later.pop(0)[1])
            until = self._later[0][0] if self._later else now + _IDLE
        if self._jobs:
            return True
        if self._ends:
            return False
        try:
            self._wake.get(timeout=until - now)
        except queue.Empty:
            return bool(self._later)
        time.sleep(_AFTER)
        return True
