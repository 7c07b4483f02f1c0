"""Processes that are inside a box: each use that the kernel knows, in a process, a thread, another namespace, or through a bind.

using(path, use) begins one and waits until it is there. write(child) lets it write by that use alone, read(child) read.
"""

import contextlib
import os
import sys
import tempfile
from pathlib import Path

import disk
from boxes import answer, child

MS_BIND = 4096
# use: (word of holders(), path inside the box, what it writes is read there; "": it cannot write)
INSIDE = {
    "root": ("root", "/", "made"), "cwd": ("cwd", "/etc", "etc/made"), "directory": ("directory", "/etc", "etc/made"),
    "path of a directory": ("directory", "/", "made"), "write": ("write", "/etc/new", "etc/new"), "append": ("write", "/etc/hosts", "etc/hosts"),
    "shared map": ("map", "/etc/hosts", "etc/hosts"), "deleted, to write": ("write", "/top (deleted)", ""),
}  # fmt: skip
READING = {"read": ("read", "/etc/hosts"), "path of a file": ("read", "/etc/hosts"), "private map": ("map", "/etc/hosts"), "shared map to read": ("map", "/etc/hosts"), "deleted": ("read", "/top (deleted)")}
NAME = os.path.basename(os.path.realpath(sys.executable))[:15]

PROGRAM = r"""
import ctypes, mmap, os, sys, threading
path, use, thread = sys.argv[1:]
os.chdir("/")
fd, at = None, None
hosts = path + "/etc/hosts"
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p

def begin():
    global fd, at
    opened = {
        "directory": (path + "/etc", os.O_RDONLY | os.O_DIRECTORY), "path of a directory": (path, os.O_PATH),
        "path of a file": (hosts, os.O_PATH), "write": (path + "/etc/new", os.O_RDWR | os.O_CREAT), "read": (hosts, os.O_RDONLY),
        "append": (hosts, os.O_RDWR | os.O_APPEND), "deleted": (path + "/top", os.O_RDONLY), "deleted, to write": (path + "/top", os.O_RDWR),
    }
    if use in opened:
        fd = os.open(*opened[use])
    if use.startswith("deleted"):
        os.unlink(path + "/top")
    if use == "root":
        os.chroot(path)
    elif use == "cwd":
        os.chdir(path + "/etc")
    elif use in ("shared map", "private map", "shared map to read"):
        write = use == "shared map"
        opened = os.open(hosts, os.O_RDWR if write else os.O_RDONLY)
        prot = mmap.PROT_READ | (mmap.PROT_WRITE if write else 0)
        at = libc.mmap(None, ctypes.c_size_t(4096), prot, mmap.MAP_PRIVATE if use == "private map" else mmap.MAP_SHARED, opened, ctypes.c_long(0))
        os.close(opened)

def made(name, **how):
    opened = os.open(name, os.O_WRONLY | os.O_CREAT, **how)
    os.write(opened, b"by the child")
    os.close(opened)

def write():
    if use == "root":
        made("/made")
    elif use == "cwd":
        made("made")
    elif use in ("directory", "path of a directory"):
        made("made", dir_fd=fd)
    elif use == "shared map":
        ctypes.memmove(at, b"by the child", 12)
    else:
        os.write(fd, b"by the child")

def read():
    if at is not None:
        return ctypes.string_at(at, 12)
    if use in ("root", "cwd", "directory", "path of a directory"):
        name = {"root": "/etc/hosts", "cwd": "hosts", "directory": "hosts"}.get(use, "etc/hosts")
        opened = os.open(name, os.O_RDONLY, **({"dir_fd": fd} if fd is not None else {}))
        try:
            return os.read(opened, 12)
        finally:
            os.close(opened)
    return os.pread(fd, 12, 0) if use != "path of a file" else b"-"

def serve():
    begin()
    print("ready", flush=True)
    for line in sys.stdin:
        try:
            print({"write": write, "read": read}[line.strip()](), flush=True)
        except OSError as error:
            print(error, flush=True)

def in_thread():
    flags = {"cwd": 0x200, "root": 0x200}.get(use, 0x400)       # CLONE_FS or CLONE_FILES: its own
    assert libc.unshare(flags) == 0
    serve()
    os._exit(0)

if thread == "thread":
    threading.Thread(target=in_thread).start()
else:
    serve()
"""


@contextlib.contextmanager
def using(path, use, place="process"):
    """A use of the box at path; place: "process", "thread", "namespace" (a private copy of all mounts) or "bind" (elsewhere)."""
    with contextlib.ExitStack() as stack:
        if place == "bind":
            other = tempfile.mkdtemp(dir=Path(path).parents[2])
            disk.mount(path, other, "", MS_BIND)
            stack.callback(os.rmdir, other)
            stack.callback(disk.unmount, other)
            path = other
        front = ("unshare", "--mount", "--propagation", "private") if place == "namespace" else ()
        yield stack.enter_context(child(PROGRAM, path, use, place, front=front))


def write(process) -> str:
    return answer(process, "write")


def read(process) -> str:
    return answer(process, "read")
