"""The command line under test: in this process for most, as a real program where the process matters."""

import fcntl
import json
import os
import pty
import select
import signal
import subprocess
import termios
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from commandline import command

import layerstore
from layerstore.cli.main import main

SOURCE = str(Path(layerstore.__file__).parents[1])


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)

    @property
    def said(self) -> str:
        """The one line of a failure; anything else is none."""
        assert self.out == "", self.out
        lines = self.err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("layerstore: "), self.err
        return lines[0].removeprefix("layerstore: ")


@pytest.fixture
def environment(root, monkeypatch):
    """What every command sees: our store, no colours asked for, this source."""
    for name in ("NO_COLOR", "FORCE_COLOR", "LAYERSTORE_DEBUG", "TTY_COMPATIBLE", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"LAYERSTORE_ROOT": str(root), "PYTHONPATH": SOURCE, "TERM": "xterm-256color", "COLUMNS": "100"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)


@pytest.fixture
def cli(environment, capfd):
    """Run a command line in this process."""

    def run(*argv) -> Done:
        code = main([str(word) for word in argv])
        out, err = capfd.readouterr()
        return Done(int(code), out, err)

    return run


@pytest.fixture
def ok(cli):
    """The same, and it must go well; return its lines on standard output."""

    def run(*argv) -> list[str]:
        done = cli(*argv)
        assert done.code == 0, done.err
        return done.out.splitlines()

    return run


@pytest.fixture
def refused(cli):
    """Run a command line that must fail with this exit code; return its one line of text."""

    def run(code: int, *argv) -> str:
        done = cli(*argv)
        assert done.code == code, done
        return done.said

    return run


@pytest.fixture
def made(ok):
    """A store."""
    ok("init")
    return ok


@pytest.fixture
def register(made, room):
    """Register layer tars, each on the one before; they lie in room as 0.tar, 1.tar; gives the command line."""

    def lay(*tars: bytes):
        parent = []
        for number, tar in enumerate(tars):
            (room / f"{number}.tar").write_bytes(tar)
            parent = ["--parent", *made("register", room / f"{number}.tar", *parent)]
        return made

    return lay


@pytest.fixture
def program(environment):
    """Run a command line as a program of its own."""

    def run(*argv, rich: bool = True, front: tuple[str, ...] = (), **how) -> Done:
        how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **how}
        done = subprocess.run([*front, *command(rich), *map(str, argv)], check=False, **how)
        return Done(done.returncode, (done.stdout or b"").decode("utf-8", "surrogateescape"),
                    (done.stderr or b"").decode("utf-8", "surrogateescape"))  # fmt: skip

    return run


@pytest.fixture
def terminal(environment):
    """Run a command line on a terminal of its own; return the exit code and what stood on it."""

    def run(*argv, rich: bool = True, feed=None, keys: bytes = b"", seconds: float = 20) -> tuple[int, str]:
        ours, theirs = pty.openpty()
        try:
            process = subprocess.Popen(
                [*command(rich), *map(str, argv)], stdin=subprocess.PIPE if feed else theirs, stdout=theirs, stderr=theirs,
                start_new_session=True, preexec_fn=None if feed else take_terminal,
            )  # fmt: skip
        finally:
            os.close(theirs)
        shown, until = b"", time.monotonic() + seconds
        try:
            if feed:
                feed(process.stdin)
                process.stdin.close()
            if keys:
                os.write(ours, keys)
            while time.monotonic() < until:
                if select.select([ours], [], [], 0.1)[0]:
                    try:
                        block = os.read(ours, 65536)
                    except OSError:      # the other side has closed it
                        break
                    if not block:
                        break
                    shown += block
            return process.wait(10), shown.decode("utf-8", "surrogateescape").replace("\r\n", "\n")
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                process.wait()
            os.close(ours)

    return run


def take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
