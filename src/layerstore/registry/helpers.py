"""Credential helpers: programs named docker-credential-NAME that keep the passwords of registries.

The program is looked up in PATH and started without a shell. It reads the server on its standard input and writes a
small JSON document; it ends by itself, or is killed, with all that it started, at the deadline.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from layerstore.documents import gojson
from layerstore.errors import AuthenticationError
from layerstore.registry.credentials import Credentials

# Bytes of an answer.
_ANSWER_LIMIT = 64 << 10
# Seconds between two looks whether the caller has given up.
_LOOK = 0.05
_QUOTED = 200
# What helpers print where they have nothing: docker-credential-helpers, credentials/error.go.
_NOTHING_KNOWN = (
    "credentials not found in native keychain", "no credentials server URL", "no credentials username",
)  # fmt: skip
# With this user, the secret is an identity token.
_TOKEN_USER = "<token>"
_ANSWER: gojson.Table = {"Username": gojson.text, "Secret": gojson.text}


class _Ended(NamedTuple):
    status: int
    output: bytes


def ask(
    helper: str, server: str, timeout: float, check: Callable[[], None], environ: Mapping[str, str] = os.environ
) -> Credentials | None:
    """Ask a helper for a server's credentials. None: it has none.

    helper    its name, without "docker-credential-"
    timeout   seconds; a helper that takes longer is killed
    check     raises what stopped the caller; called often

    Raises    AuthenticationError   it is not there, failed, was killed, or its answer is malformed
    """
    program = f"docker-credential-{helper}"
    path = located(program, environ)
    if path is None:
        raise _failed(program, server, "no such program is in PATH")
    ended = _run(path, program, server, timeout, check, environ)
    if ended.status != 0:
        said = ended.output.decode("utf-8", "replace")
        if any(text in said for text in _NOTHING_KNOWN):
            return None
        line = next((line.strip() for line in said.splitlines() if line.strip()), "")
        how = f"exit status {ended.status}" if ended.status > 0 else f"killed by signal {-ended.status}"
        raise _failed(program, server, f"{how}: {line[:_QUOTED]}" if line else how)
    return read(ended.output, program, server)


def read(answer: bytes, program: str, server: str) -> Credentials | None:
    """Read what a helper answered. None: it has no credentials. Raises AuthenticationError: it is malformed."""
    found = gojson.or_none(gojson.parse_struct, answer, _ANSWER, "the answer")
    if found is None or not {"Username", "Secret"} <= found.keys():
        raise _failed(program, server, "its answer is not the JSON document of a credential helper")
    user, secret = found["Username"], found["Secret"]
    if user == _TOKEN_USER:
        return Credentials(refresh=secret) if secret else None
    return Credentials(user, secret) if user or secret else None


def _failed(program: str, server: str, why: str) -> AuthenticationError:
    return AuthenticationError(f"the credential helper {program} failed for {server}: {why}")


def located(program: str, environ: Mapping[str, str]) -> str | None:
    """Return the path of a program in PATH; directories that depend on where the process stands are passed over."""
    for directory in environ.get("PATH", os.defpath).split(os.pathsep):
        path = os.path.join(directory, program)
        if os.path.isabs(directory) and os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return None


def _run(
    path: str, program: str, server: str, timeout: float, check: Callable[[], None], environ: Mapping[str, str]
) -> _Ended:
    until = time.monotonic() + timeout
    child = None
    try:
        # A session of its own: what it starts can be killed with it.
        child = subprocess.Popen(
            [path, "get"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            start_new_session=True, bufsize=0, env=environ,
        )  # fmt: skip
        return _talked(child, program, server, until, check)
    except OSError as err:
        why = err.strerror or "it cannot be started"
    finally:
        if child is not None:
            _end(child)
    raise _failed(program, server, why)


def _talked(
    child: subprocess.Popen[bytes], program: str, server: str, until: float, check: Callable[[], None]
) -> _Ended:
    assert child.stdin is not None and child.stdout is not None
    with contextlib.suppress(BrokenPipeError):             # it may end without reading; a name fits into any pipe
        child.stdin.write(server.encode())
    with contextlib.suppress(BrokenPipeError):
        child.stdin.close()
    output = b""
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while True:
            _check(program, server, until, check)
            if selector.select(_LOOK):
                block = child.stdout.read(_ANSWER_LIMIT)
                if not block:
                    break
                output += block
                if len(output) > _ANSWER_LIMIT:
                    raise _failed(program, server, f"its answer has more than {_ANSWER_LIMIT} bytes")
            elif _is_over(child):                          # what it started may still hold the pipe
                break
    while not _is_over(child):                             # it closed its output before its end
        _check(program, server, until, check)
        time.sleep(_LOOK)
    _end(child)
    return _Ended(child.returncode, output)


def _is_over(child: subprocess.Popen[bytes]) -> bool:
    """Return True if a child has ended. It stays a zombie, so that its number is still that of its process group."""
    try:
        return os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:                              # the program ignores SIGCHLD: the kernel keeps no zombie
        return True


def _check(program: str, server: str, until: float, check: Callable[[], None]) -> None:
    check()
    if time.monotonic() >= until:
        raise _failed(program, server, "it did not answer in time and was killed")


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kill what still runs of a helper, and leave no zombie and no pipe of it."""
    if child.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    child.wait()
