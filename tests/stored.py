"""What a store holds, asked for in one call: a layer's tar, what a mount shows, the driver's directories; and work at once."""

import contextlib
import glob
import io
import os
import tarfile
import threading
from pathlib import Path

from disk import shape
from driven import DRIVER

# What no store has.
UNKNOWN = "sha256:" + "1" * 64


def read(stream) -> bytes:
    """All of it, and it is closed."""
    with stream:
        return stream.read()


def tar_of(layer) -> bytes:
    return read(layer.tar_stream())


def comes_back(layer, tar: bytes) -> bool:
    """Return True if it is this tar. (pytest would spend minutes on the difference of two megabytes.)"""
    return tar_of(layer) == tar


def names_of(tar: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(tar), encoding="utf-8") as archive:
        return archive.getnames()


def shown(store, layer, of=shape):
    """What a mount of a layer shows."""
    with store.create_rw_layer("to be shown", layer) as rw, rw.mounted() as path:
        return of(path)


def driver_directories(root: Path) -> list[str]:
    """The directories of layers, of any store that uses this root."""
    return sorted(name for name in os.listdir(root / DRIVER) if len(name) >= 64)


def at_once(*jobs) -> list:
    """Run all jobs in threads that start together; gives their results, raises their first error."""
    gate, results, errors = threading.Barrier(len(jobs)), [None] * len(jobs), []

    def run(index, job):
        gate.wait()
        try:
            results[index] = job()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


class BoomError(Exception):
    """What a caller's own code raises."""


class Failing:
    """A source that gives so many bytes, at most step at once, and then raises."""

    def __init__(self, data: bytes, after: int, error: BaseException | type[BaseException] = BoomError, step: int = 1 << 30):
        self.left, self.error, self.step, self.asked = data[:after], error, step, 0

    def read(self, n: int) -> bytes:
        self.asked += 1
        if not self.left:
            raise self.error
        piece, self.left = self.left[: min(n, self.step)], self.left[min(n, self.step) :]
        return piece


class Trickle(io.BytesIO):
    """Return at most so many bytes at once, whatever it is asked for."""

    def __init__(self, data: bytes, step: int = 1):
        super().__init__(data)
        self.step = step

    def read(self, n: int = -1) -> bytes:
        return super().read(self.step if n < 0 else min(n, self.step))


def size_below(place: Path, pattern: str) -> int:
    """How many bytes the files of a pattern have, some of which come and go."""
    total = 0
    for path in glob.glob(f"{place}/{pattern}"):
        with contextlib.suppress(FileNotFoundError):
            total += os.stat(path).st_size
    return total
