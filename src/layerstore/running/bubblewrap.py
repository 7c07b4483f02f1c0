"""bubblewrap: where its program is, whether it is recent enough, and what it is told."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import subprocess
from collections.abc import Iterable
from typing import Final

from layerstore.errors import NotSupportedError
from layerstore.running.command import Bind

OLDEST: Final = (0, 4)
_NEEDS: Final = "run() needs bubblewrap 0.4 or later; install the package `bubblewrap`"

# What root of a sandbox keeps: Docker's without MKNOD, NET_RAW and AUDIT_WRITE. The kernel's numbers.
RIGHTS: Final = {
    "CAP_CHOWN": 0, "CAP_DAC_OVERRIDE": 1, "CAP_FOWNER": 3, "CAP_FSETID": 4, "CAP_KILL": 5, "CAP_SETGID": 6,
    "CAP_SETUID": 7, "CAP_SETPCAP": 8, "CAP_NET_BIND_SERVICE": 10, "CAP_SYS_CHROOT": 18,
}  # fmt: skip
# What only the first process has, until the command starts: it makes more read-only, see ext/enter.
_FIRST: Final = {"CAP_SYS_ADMIN": 21}
# Below /proc: what the kernel lets uid 0 change of the machine, whatever capabilities it has.
_HOSTS: Final = ("sys", "sysrq-trigger", "irq", "bus")

_versions: dict[tuple[str, int, int, int], tuple[int, ...]] = {}


def find() -> str:
    """Return the path of bubblewrap's program. Raises NotSupportedError: there is none, or it is too old."""
    path, found = _in_path()
    if found is None:
        raise NotSupportedError(f"there is no `bwrap` in PATH: {_NEEDS}")
    try:
        key = path, found.st_dev, found.st_ino, found.st_mtime_ns
        version = _versions.get(key)
        if version is None:
            version = _versions[key] = _version(path)
    except (OSError, subprocess.SubprocessError) as err:
        raise NotSupportedError(f"{path} cannot be asked for its version ({err}): {_NEEDS}") from err
    if version < OLDEST:
        text = ".".join(map(str, version)) or "unknown"
        raise NotSupportedError(f"{path} has version {text}: {_NEEDS}")
    return path


def _in_path() -> tuple[str, os.stat_result | None]:
    """Return the path of the program, and what it is; None: there is none."""
    for directory in os.get_exec_path():
        path = os.path.join(directory, "bwrap")
        with contextlib.suppress(OSError, ValueError):
            found = os.stat(path)
            if stat.S_ISREG(found.st_mode) and os.access(path, os.X_OK):
                return path, found
    return "", None


def _version(path: str) -> tuple[int, ...]:
    said = subprocess.run([path, "--version"], capture_output=True, check=False, timeout=20).stdout
    numbers = re.search(rb"(\d+)\.(\d+)(?:\.(\d+))?", said)
    return tuple(int(number) for number in numbers.groups() if number) if numbers else ()


def rights() -> int:
    """Return what root of a sandbox keeps of the caller's own capabilities, a bit each."""
    return _held() & sum(1 << number for number in RIGHTS.values())


def _held() -> int:
    """Return the capabilities of this thread, a bit each."""
    with open("/proc/thread-self/status", "rb") as file:
        for line in file:
            if line.startswith(b"CapEff:"):
                return int(line.split()[1], 16)
    return 0


def arguments(program: str, path: str, proc: str, dev: str, binds: Iterable[Bind], *, network: bool) -> list[str]:
    """Return the arguments of bubblewrap up to "--": path is the root, proc and dev are in it."""
    told = [program, "--bind", path, "/", "--proc", proc]
    for name in _HOSTS:
        if os.access(f"/proc/{name}", os.F_OK):
            told += ["--ro-bind", f"/proc/{name}", f"{proc}/{name}"]
    told += ["--dev", dev]
    for bind in binds:
        told += ["--ro-bind" if bind.read_only else "--bind", bind.outside, bind.inside]
    told += ["--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    if not network:
        told.append("--unshare-net")
    # --as-pid-1: the first process is ours, so the namespace ends with the command.
    told += ["--die-with-parent", "--new-session", "--as-pid-1", "--cap-drop", "ALL"]
    held = _held()
    for name, number in (RIGHTS | _FIRST).items():
        if held >> number & 1:
            told += ["--cap-add", name]
    return [*told, "--chdir", "/", "--"]
