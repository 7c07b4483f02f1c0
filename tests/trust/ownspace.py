"""A script of this folder as a process with a mount namespace and a tmpfs of its own.

    result = ownspace.call("powercut.py", plan, seconds=60)     in a test
    ownspace.main(function)                                     at the end of the script
    python tests/trust/ownspace.py powercut.py '{"kind": "ext4", ...}'      by hand

The script's function is given (plan, place) and returns what JSON can carry. When the process ends, however it ends,
its mounts, loop devices and files go with it.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
INSIDE = "TRUST_INSIDE"
PATIENCE = 100      # seconds that a busy machine may take longer, before too little work is a failure


def paths() -> list[str]:
    """What sys.path needs for this folder, tests/ and the package in this checkout."""
    return [str(HERE), str(HERE.parent), str(HERE.parent.parent / "src")]


def python(script: str, *arguments: str) -> list[str]:
    return [sys.executable, str(HERE / script), *arguments]


def environment() -> dict[str, str]:
    began = [str(HERE.parent / "began")] if "LAYERSTORE_TEST_DRIVER" in os.environ else []
    return {**os.environ, "PYTHONPATH": os.pathsep.join([*began, *paths()]), "PYTHONDONTWRITEBYTECODE": "1"}


def call(script: str, plan: dict[str, Any], seconds: float) -> Any:
    """The script's result; its own error, if it has none."""
    command = ["unshare", "--mount", "--propagation", "private", "--", *python(script, json.dumps(plan))]
    place = tempfile.mkdtemp(prefix="layerstore-trust-")
    try:
        done = subprocess.run(command, env={**environment(), INSIDE: place}, stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, check=False, timeout=seconds)
    finally:
        os.rmdir(place)     # what was mounted and written there was the process's own
    if done.returncode:
        raise RuntimeError(f"{done.args} ended with {done.returncode}\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def goes_on(until: float, too_little: bool) -> bool:
    """Return True while work of a bounded time goes on: until then, and longer on a busy machine that did too little."""
    now = time.monotonic()
    return now < until or (too_little and now < until + PATIENCE)


def forked(work: Callable[[], object]) -> int:
    """Fork a process that does this work; return its id. What work raises is printed, and ends it with 9."""
    pid = os.fork()
    if not pid:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(9)
    return pid


def ended(pid: int, seconds: float) -> int:
    """How a child ended; one that takes longer is killed."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if (done := os.waitpid(pid, os.WNOHANG))[0]:
            return os.waitstatus_to_exitcode(done[1])
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return -signal.SIGKILL


def main(function: Callable[[dict[str, Any], Path], Any]) -> None:
    """The script's side: its function is given the plan and the place, its result goes to call()."""
    import disk

    place = os.environ.pop(INSIDE)
    disk.mount("tmpfs", place, "tmpfs", 0, "mode=755")
    print(json.dumps(function(json.loads(sys.argv[1]), Path(place))))


if __name__ == "__main__":
    result = call(sys.argv[1], json.loads(sys.argv[2]), 7200)
    print(json.dumps(result, indent=1))
    sys.exit(bool(result["problems"]))
