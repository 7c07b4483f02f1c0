"""How a figure is got: a place on a fresh tmpfs, cases run in turn, medians.

A Case is prepared, run and cleaned up; only the run is timed. interleaved() runs all cases of a group one after the
other and then all of them again, so that what the machine does meanwhile falls on all alike, and gives medians.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import disk

from benchmarks import ROOT

SLOW_SECONDS = 3.0
SAMPLE_SECONDS = 0.02
_TICK = os.sysconf("SC_CLK_TCK")


def nothing() -> None:
    pass


@dataclass
class Case:
    """Something to measure. run's result is kept of the last run; daemons gives the process IDs that work for it."""

    who: str
    run: Callable[[], Any]
    prepare: Callable[[], Any] = nothing
    clean: Callable[[], Any] = nothing
    daemons: Callable[[], Sequence[int]] = tuple
    inside: bool = False  # it runs in this process, whose memory says nothing


class Once(NamedTuple):
    seconds: float
    cpu_seconds: float
    foreign_seconds: float  # what other processes of the machine used meanwhile


@dataclass
class Figure:
    """A case's runs. peak_mb: resident memory of all its processes together; 0 where it runs in this process."""

    who: str
    runs: list[Once] = field(default_factory=list)
    peak_mb: float = 0.0
    result: Any = None
    error: str = ""
    note: str = ""

    @property
    def seconds(self) -> float:
        return statistics.median(run.seconds for run in self.runs)

    @property
    def cpu_seconds(self) -> float:
        return statistics.median(run.cpu_seconds for run in self.runs)

    @property
    def spread(self) -> tuple[float, float]:
        return min(run.seconds for run in self.runs), max(run.seconds for run in self.runs)

    @property
    def disturbed(self) -> bool:
        """Others used more than a fifth of a core in the median run."""
        return statistics.median(run.foreign_seconds / max(run.seconds, 0.02) for run in self.runs) > 0.2


# ---- places ---------------------------------------------------------------------------------------
@contextlib.contextmanager
def room(at: Path | None = None) -> Iterator[Path]:
    """An empty directory: on a tmpfs of its own, or below `at` on whatever file system that is."""
    place = Path(tempfile.mkdtemp(prefix="layerstore-bench-", dir=at))
    try:
        if at is None:
            disk.mount("tmpfs", place, "tmpfs", 0, "mode=755,size=80%,nr_inodes=0")
        yield place
    finally:
        disk.unmount_below(place)
        if at is None:
            disk.unmount(place)
        shutil.rmtree(place, ignore_errors=True)


def wipe(place: Path) -> None:
    """Delete a tree with whatever is mounted in it."""
    disk.unmount_below(place)
    with contextlib.suppress(OSError):
        disk.unmount(place)
    subprocess.run(["rm", "-rf", place], check=True)


def fresh(place: Path) -> Path:
    wipe(place)
    place.mkdir(parents=True)
    return place


# ---- commands ---------------------------------------------------------------------------------------
def run(*command: Any, environment: Mapping[str, str] | None = None, timeout: float = 600) -> str:
    """Run a command to its end, nothing shown; RuntimeError with its last words if it fails."""
    done = subprocess.run(
        [str(word) for word in command], stdin=subprocess.DEVNULL, capture_output=True, cwd=ROOT,
        check=False, env=environment, timeout=timeout,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: {done.stderr.decode(errors='replace')[-400:]}")
    return done.stdout.decode(errors="replace")


def drained(*command: Any, environment: Mapping[str, str] | None = None, timeout: float = 600) -> None:
    """Run a command whose output goes through a pipe to cat: no tool sees /dev/null and skips its work."""
    with drain() as pipe:
        done = subprocess.run(
            [str(word) for word in command], stdin=subprocess.DEVNULL, stdout=pipe, stderr=subprocess.PIPE, check=False,
            env=environment, timeout=timeout,
        )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: {done.stderr.decode(errors='replace')[-400:]}")


@contextlib.contextmanager
def drain() -> Iterator[int]:
    """A pipe's writing end; cat takes what comes and drops it."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as cat:
        assert cat.stdin is not None
        yield cat.stdin.fileno()
        cat.stdin.close()


# ---- processes --------------------------------------------------------------------------------------
def _stat(pid: int) -> list[str]:
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rsplit(")", 1)[1].split()


def tree(roots: Sequence[int]) -> list[int]:
    """These processes and all below them."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                children.setdefault(int(_stat(int(name))[1]), []).append(int(name))
    found, todo = [], list(roots)
    while todo:
        pid = todo.pop()
        found.append(pid)
        todo += children.get(pid, [])
    return found


def cpu_of(pids: Sequence[int]) -> float:
    """Seconds these processes, and children they have waited for, have used."""
    total = 0.0
    for pid in pids:
        with contextlib.suppress(OSError, IndexError):
            total += sum(map(int, _stat(pid)[11:15])) / _TICK
    return total


def own_cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(part.ru_utime + part.ru_stime for part in used)


def machine_cpu() -> float:
    with open("/proc/stat") as file:
        fields = file.readline().split()
    return (sum(map(int, fields[1:4])) + sum(map(int, fields[6:9]))) / _TICK


def resident(pid: int) -> int:
    with contextlib.suppress(OSError, IndexError, ValueError):
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


class _Sampler:
    """Peak of the resident memory of what a case starts, and of its daemons, together."""

    def __init__(self, daemons: Sequence[int], strangers: set[int]) -> None:
        self.daemons, self.strangers, self.peak = daemons, strangers, 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        me = os.getpid()
        while not self._stop.wait(SAMPLE_SECONDS):
            pids = (set(tree([me])) - {me} - self.strangers) | set(tree(self.daemons))
            self.peak = max(self.peak, sum(resident(pid) for pid in pids))

    def __enter__(self) -> _Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def once(case: Case, *, figure: Figure | None = None) -> Once:
    """One run. figure: note its peak memory, too, which costs a little time."""
    case.prepare()
    try:
        daemons = tree(case.daemons())
        sampler = _Sampler(daemons, set(tree([os.getpid()])) - set(daemons)) if figure else contextlib.nullcontext()
        with sampler:
            cpu, machine = own_cpu() + cpu_of(daemons), machine_cpu()
            began = time.perf_counter()
            result = case.run()
            seconds = time.perf_counter() - began
            used, machine = own_cpu() + cpu_of(tree(case.daemons())) - cpu, machine_cpu() - machine
        if figure is not None:
            figure.result = result
            figure.peak_mb = 0.0 if case.inside else sampler.peak / 1e6
        return Once(seconds, used, max(0.0, machine - used))
    finally:
        case.clean()


def interleaved(cases: Sequence[Case], runs: int, *, tell: bool = True) -> list[Figure]:
    """Measure all cases in turn, `runs` times each.

    The first run of a case warms up, shows its memory and is not counted, unless it took more than three seconds:
    then a cold start is nothing beside it. A case that fails is left out from there on and its figure says why.
    """
    figures = [Figure(case.who) for case in cases]
    for turn in range(runs + 1):
        for at in range(len(cases)):
            case, figure = cases[(at + turn) % len(cases)], figures[(at + turn) % len(cases)]
            if figure.error or len(figure.runs) >= runs:
                continue
            try:
                measured = once(case, figure=figure if turn == 0 else None)
            except Exception as error:
                figure.error = f"{type(error).__name__}: {error}"
                print(f"    {case.who} failed: {figure.error}", file=sys.stderr, flush=True)
                continue
            if turn > 0 or measured.seconds > SLOW_SECONDS:
                figure.runs.append(measured)
    if tell:
        for figure in figures:
            if not figure.error:
                low, high = figure.spread
                line = f"    {figure.who:40s} {figure.seconds:8.3f} s  ({low:.3f}-{high:.3f})"
                line += f"  cpu {figure.cpu_seconds:7.2f}"
                line += f"  {figure.peak_mb:5.0f} MB" if figure.peak_mb else ""
                print(line + ("  disturbed" if figure.disturbed else ""), file=sys.stderr, flush=True)
    return figures


# ---- the machine ------------------------------------------------------------------------------------
def machine() -> dict[str, str]:
    """What a figure depends on; nothing that names this machine."""
    import layerstore

    cpu, flags = platform.machine(), set()
    with open("/proc/cpuinfo") as file:
        text = file.read()
    if found := re.search(r"^model name\s*: (.+)$", text, re.M):
        cpu = found.group(1)
    if found := re.search(r"^flags\s*: (.+)$", text, re.M):
        flags = set(found.group(1).split())
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return {
        "CPU": f"{cpu}, {os.cpu_count()} cores, {'SHA-NI' if 'sha_ni' in flags else 'no SHA-NI'}",
        "memory": f"{memory:.0f} GiB",
        "kernel": re.sub(r"^(\d+\.\d+(\.\d+)?).*", r"\1", platform.release()),
        "Python": platform.python_version(),
        "layerstore": layerstore.__version__
        + " ("
        + ", ".join(f"{k}: {v}" for k, v in layerstore.build_info().items())
        + ")",
        "load before": f"{os.getloadavg()[0]:.1f}",
    }
