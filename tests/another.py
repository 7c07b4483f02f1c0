"""Another Python, which finds the package and these kits: what it printed, or by how much its memory grew."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import layerstore

HERE = Path(__file__).resolve().parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(Path(layerstore.__file__).parents[1]), str(HERE)]))}

PEAK = '''
import sys, layerstore, tarkit
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) / 1024
class Reads:
    """read(n) of what a list has: bytes, and numbers of zeros."""
    def __init__(self, *parts): self.parts = list(parts)
    def read(self, n):
        while self.parts:
            first = self.parts.pop(0)
            if isinstance(first, int):
                if first > n: self.parts.insert(0, first - n)
                first = bytes(min(n, first))
            if first: return first
        return b""
'''


def command(code: str, *arguments: Any, front: tuple[str, ...] = ()) -> list[str]:
    return [*front, sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]


def python(code: str, *arguments: Any) -> str:
    """What this code prints; it must end well."""
    done = subprocess.run(command(code, *arguments), capture_output=True, text=True, check=False, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def growth(work: str, *arguments: Any, before: str = "") -> float:
    """By how many MB the peak of memory grows while it does its work, once what is before was done."""
    return float(python(f"{PEAK}\n{before}\nbegan = peak()\n{work}\nprint(peak() - began)", *arguments).split()[-1])


@contextlib.contextmanager
def at_work(code: str, *arguments: Any) -> Iterator[subprocess.Popen[bytes]]:
    """It works beside the block, from when it has printed "ready" until it is killed."""
    with subprocess.Popen(command(code, *arguments), stdout=subprocess.PIPE, env=ENVIRONMENT) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == b"ready\n"
            yield process
        finally:
            process.kill()
