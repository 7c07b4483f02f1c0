"""What a store does beside its calls: one thread for what may end later, as closing a file system or removing a tree.

Jobs come in; they are done one after the other. A job that cannot be done yet is asked again from time to time. The
thread begins with the first job, ends when there is none, and is in no forked child. The jobs of a program that ends
are not done: what they leave is unowned on disk, or goes with the process.
"""

from __future__ import annotations

import collections
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
        self._thread: threading.Thread | None = None
        self._turn = threading.Lock()
        self._ends = False

    def _own(self) -> threading.Condition:
        """Return the lock; in a forked child nothing is to be done, as all of it is the parent's."""
        pid = os.getpid()
        if pid != self._pid:
            self._begin(pid)
        return self._lock

    def submit(self, job: Job) -> None:
        """Do job soon. What it raises is logged."""
        with self._own():
            self._jobs.append(job)
            self._start()
            self._lock.notify_all()

    def _start(self) -> None:
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="layerstore", daemon=True)
            thread.start()
            self._thread = thread

    def drain(self) -> None:
        """Do what is left to do, and ask jobs that could not be done once more."""
        if sys.is_finalizing():
            return                        # no thread goes on by now, nor begins
        with self._own():
            if threading.current_thread() is self._thread:
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
            thread = self._thread
            if thread is None or thread is threading.current_thread() or sys.is_finalizing():
                return
            self._later.clear()
            self._ends = True
            self._lock.notify_all()
        thread.join()
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
        while True:
            with self._lock:
                if not self._wait():
                    self._thread = None
                    return
            self._do_next()

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
