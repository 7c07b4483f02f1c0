"""What a store does beside its calls: one thread for what may end later, as closing a file system or removing a tree.

Jobs come in; they are done one after the other. A job that cannot be done yet is asked again from time to time. The
thread begins with the first job, ends when there is none, and is in no forked child. The jobs of a program that ends
are not done: what they leave is unowned on disk, or goes with the process.
"""

from __future__ import annotations

import _thread
import collections
import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable

log = logging.getLogger("layerstore")

Job = Callable[[], bool]
"""Returns False to be asked again later."""

# Seconds that the thread waits for another job before it ends, and after which a job is asked again.
_IDLE, _AGAIN = 1.0, 0.25


class Background:
    """The thread of one store. Every call is safe from any thread."""

    def __init__(self) -> None:
        self._begin(os.getpid())

    def _begin(self, pid: int) -> None:
        self._pid = pid
        self._lock = threading.Condition()
        self._jobs: collections.deque[Job] = collections.deque()
        self._later: list[tuple[float, Job]] = []
        self._is_running, self._ident = False, 0
        self._turn = threading.Lock()
        self._ends = False

    def _own(self) -> threading.Condition:
        """Return the lock; in a forked child nothing is to be done, as all of it is the parent's."""
        pid = os.getpid()
        if pid != self._pid:
            self._begin(pid)
        return self._lock

    def submit(self, job: Job) -> None:
        """Do job soon; where there can be no thread, with the next job, or at drain(). What it raises is logged."""
        with self._own():
            self._jobs.append(job)
            if not self._is_running:
                # Thread.start() would wait for ever for a thread that finds no memory as it begins.
                with contextlib.suppress(RuntimeError, MemoryError):
                    _thread.start_new_thread(self._run, ())
            self._lock.notify_all()

    def drain(self) -> None:
        """Do what is left to do, and ask jobs that could not be done once more."""
        if sys.is_finalizing():
            return                        # no thread goes on by now, nor begins
        with self._own():
            if self._is_running and threading.get_ident() == self._ident:
                return                    # a store that the garbage collector closes there
        with self._turn, self._lock:      # the job that the thread is at may have to be asked again
            self._jobs.extend(job for _, job in self._later)
            self._later.clear()
        while self._do_next():
            pass

    def close(self) -> None:
        """Drain, forget the jobs that cannot be done yet, and end the thread. Twice is harmless."""
        self.drain()
        with self._own():
            self._later.clear()
            if not self._is_running or threading.get_ident() == self._ident or sys.is_finalizing():
                return                    # one that only begins finds nothing to do
            self._ends = True
            self._lock.notify_all()
            self._lock.wait_for(lambda: not self._is_running)
            self._ends = False

    # ---- in a thread ----

    def _do_next(self) -> bool:
        """Do the next job, after the one that another thread is at. False: there is none."""
        with self._turn:
            with self._lock:
                if not self._jobs:
                    return False
                job = self._jobs.popleft()
            self._do(job)
        return True

    def _do(self, job: Job) -> None:
        done = True
        try:
            done = job()
        except Exception as err:          # it has no caller
            log.error("A job in the background failed: %s", err, exc_info=err)
        finally:
            if not done:
                with self._lock:
                    self._later.append((time.monotonic() + _AGAIN, job))

    def _run(self) -> None:
        with self._lock:
            if self._is_running:
                return                    # another one began with the same jobs
            self._is_running, self._ident = True, threading.get_ident()
        try:
            while self._goes_on():
                self._do_next()
        except BaseException:
            with self._lock:
                self._end()
            raise

    def _goes_on(self) -> bool:
        with self._lock:
            if self._wait():
                return True
            self._end()
            return False

    def _end(self) -> None:
        self._is_running = False
        self._lock.notify_all()

    def _wait(self) -> bool:
        """Wait for a job. False: there is none, and none to be asked again."""
        idle_until = time.monotonic() + _IDLE
        while not self._jobs:
            now = time.monotonic()
            if self._later and self._later[0][0] <= now:
                self._jobs.append(self._later.pop(0)[1])
            elif self._ends or (not self._later and now >= idle_until):
                return False
            else:
                self._lock.wait((self._later[0][0] if self._later else idle_until) - now)
        return True
