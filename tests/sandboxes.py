"""Boxes to run commands in: a static busybox, some users, and what a hostile layer may hold."""

import os
import re
import subprocess
import sys
from pathlib import Path

import machine
import tarkit
from another import ENVIRONMENT

BUSYBOX = "/bin/busybox"
COMMANDS = re.findall(r"\w+", """
    cat chmod chown chroot dd echo env false find grep head hostname id ip kill ln ls mkdir mknod mount mv nproc printf ps pwd readlink
    rm rmdir seq setpriv setsid sh sha256sum sleep stat su test touch tr true umount unshare wc yes
""")
PASSWD = b"root:x:0:0:root:/root:/bin/sh\njoe:x:1000:100:Joe:/home/joe:/bin/sh\nann:x:1001:1001::/nowhere:/bin/sh\n"
DIRECTORIES = {"bin": 0o755, "etc": 0o755, "home/joe": 0o755, "tmp": 0o1777, "secret": 0o700}


def layer_tar(*more: bytes) -> bytes:
    """The tar of the layer; more: further entries of it."""
    machine.needs("bwrap", "busybox")
    entries = [tarkit.dir(f"{name}/", mode=mode) for name, mode in DIRECTORIES.items()]
    entries += [tarkit.file("bin/busybox", Path(BUSYBOX).read_bytes(), mode=0o755), tarkit.file("etc/passwd", PASSWD)]
    entries += [tarkit.symlink(f"bin/{name}", "busybox") for name in COMMANDS]
    return b"".join([*entries, *more, tarkit.end()])


def processes_with(mark: str) -> list[str]:
    """Command lines of this machine's processes that have a word in them, without ours."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if mark in line and int(pid) != os.getpid():
            found.append(f"{pid}: {line}")
    return found


def children() -> list[int]:
    """The processes that this one has begun and not waited for."""
    return [int(pid) for task in os.listdir("/proc/self/task") for pid in Path(f"/proc/self/task/{task}/children").read_text().split()]


def caller(code: str, *arguments: object, **how) -> subprocess.Popen:
    """Another Python that runs this code, which finds the package and the kits of the tests."""
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], env=ENVIRONMENT, stdout=subprocess.PIPE, **how)
