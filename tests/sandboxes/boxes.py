"""Small words for tests of boxes: write one file, see one file, run a piece of Python in another process."""

import contextlib
import os
import re
import subprocess
from pathlib import Path

from another import ENVIRONMENT, command
from disk import shape
from driven import DRIVER

CREATED = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z")


def write(box, name: str, text: str = "x") -> None:
    """A file in the box, through a mount; a directory on the way is made."""
    with box.mounted() as path:
        Path(path, name).parent.mkdir(exist_ok=True)
        Path(path, name).write_text(text)


def shown(box) -> dict[str, str]:
    with box.mounted() as path:
        return shape(path)


def tar_of(thing) -> bytes:
    with thing.tar_stream() as stream:
        return stream.read()


def lowers(root, id: str) -> list[str]:
    """The driver's ids that a `lower` file names, nearest first."""
    path = Path(root, DRIVER, id, "lower")
    if not path.exists():
        return []
    return [os.readlink(Path(root, DRIVER, item)).split("/")[1] for item in path.read_text().split(":")]


@contextlib.contextmanager
def child(code: str, *arguments, front: tuple[str, ...] = ()):
    """A Python beside the test: it goes on while its stdin is open; its first line must be "ready"."""
    with subprocess.Popen(command(code, *arguments, front=front), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
        try:
            line = process.stdout.readline()
            assert line == "ready\n", line
            yield process
        finally:
            process.kill()


def answer(process, word: str = "") -> str:
    """Say a line to a child, and return the line that it says."""
    process.stdin.write(word + "\n")
    process.stdin.flush()
    return process.stdout.readline().rstrip("\n")


def is_clone(box, snap) -> bool:
    """Return True if the box went on as it was, on the base it had."""
    return getattr(box.base, "id", None) != snap.id
