"""What register and tar_stream cost beside time: memory, and what a busy Python thread beside them does.

    python -m benchmarks.costs memory TAR       peak memory, before and after, in this fresh process: JSON
    python -m benchmarks.costs threads TAR N    medians of N, beside a spinning thread and a spinning process: JSON

Each is a process of its own: memory that another job needed before would hide what this one needs.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import layerstore
from benchmarks import ROOT, measure

NO_SYNC = {"durability": "none"}


def _peak_kb() -> int:
    # As ru_maxrss, but of this program alone: that one also knows the process that started it.
    with open("/proc/self/status") as file:
        return int(re.search(r"^VmHWM:\s+(\d+)", file.read(), re.M).group(1))  # type: ignore[union-attr]


def memory(tar: Path) -> dict[str, float]:
    """MB the peak grows by: one register, then one tar_stream."""
    with measure.room() as place, layerstore.Store(place / "root", options=NO_SYNC) as store:
        before = _peak_kb()
        layer = store.register(tar)
        registered = _peak_kb()
        with layer.tar_stream() as stream, measure.drain() as pipe:
            stream.copy_to(pipe)
        streamed = _peak_kb()
    return {
        "before_mb": before * 1024 / 1e6,
        "register_mb": (registered - before) * 1024 / 1e6,
        "tar_stream_mb": (streamed - registered) * 1024 / 1e6,
    }


# ---- beside a spinning thread ------------------------------------------------------------------------
@contextlib.contextmanager
def spinning_thread() -> Iterator[None]:
    """A Python thread of this process that never lets go of the GIL of itself."""
    stop = False

    def spin() -> None:
        while not stop:
            pass

    thread = threading.Thread(target=spin)
    thread.start()
    try:
        yield
    finally:
        stop = True
        thread.join()


@contextlib.contextmanager
def spinning_process() -> Iterator[None]:
    """The same loop in a process of its own: it takes as much of the CPU, and none of our GIL."""
    with subprocess.Popen(
        [sys.executable, "-S", "-c", "print(flush=True)\nwhile True: pass"], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield
        finally:
            process.kill()


def threads(tar: Path, runs: int) -> dict[str, dict[str, float]]:
    """Medians, in turn: seconds of each job alone, beside the process, beside the thread."""
    found: dict[str, dict[str, list[float]]] = {}
    beside: dict[str, Callable[[], Any]] = {
        "alone": contextlib.nullcontext, "process": spinning_process, "thread": spinning_thread,
    }  # fmt: skip
    # Opened before: beside a busy thread Python's own open() waits for the GIL several times.
    with measure.room() as place, open(os.devnull, "wb") as out:
        for turn in range(runs + 1):
            for name, company in beside.items():
                root = measure.fresh(place / "root")
                with layerstore.Store(root, options=NO_SYNC) as store, company():
                    began = time.perf_counter()
                    layer = store.register(tar)
                    registered = time.perf_counter()
                    with layer.tar_stream() as stream:
                        stream.copy_to(out)
                    streamed = time.perf_counter()
                    with layer.tar_stream() as stream:
                        while stream.read(1 << 20):
                            pass
                    read = time.perf_counter()
                if turn:
                    times = {"register": registered - began, "tar_stream copy_to": streamed - registered,
                             "tar_stream read(1 MiB)": read - streamed}  # fmt: skip
                    for job, seconds in times.items():
                        found.setdefault(job, {}).setdefault(name, []).append(seconds)
    return {job: {name: statistics.median(times) for name, times in by.items()} for job, by in found.items()}


def in_fresh_process(*words: Any) -> Any:
    """One of the above, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.costs", *map(str, words)], cwd=ROOT, stdout=subprocess.PIPE, check=True
    )
    return json.loads(done.stdout)


if __name__ == "__main__":
    if sys.argv[1] == "memory":
        print(json.dumps(memory(Path(sys.argv[2]))))
    else:
        print(json.dumps(threads(Path(sys.argv[2]), int(sys.argv[3]))))
