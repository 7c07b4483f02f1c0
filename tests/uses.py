"""Uses of a mounted box by another process, and what holders() tells of each.

The box has the files /etc/hosts, of 600 lines, and /top.
"""

import contextlib
import os
import subprocess
import sys

ALL = {
    "root": ("root", "/"), "cwd": ("cwd", "/etc"), "directory": ("directory", "/etc"), "path of a directory": ("directory", "/"),
    "path of a file": ("read", "/etc/hosts"), "write": ("write", "/etc/new"), "append": ("write", "/etc/hosts"),
    "read": ("read", "/etc/hosts"), "deleted": ("read", "/top (deleted)"), "shared map": ("map", "/etc/hosts"),
    "private map": ("map", "/etc/hosts"), "line": ("read", "/a\nb"),
}  # fmt: skip

# One use of the box at sys.argv[1] for as long as nothing comes at stdin.
USE = r"""
import ctypes, mmap, os, sys, threading
path, use = sys.argv[1:]
os.chdir("/")
keep = []

def begin():
    hosts = path + "/etc/hosts"
    opened = {
        "directory": (path + "/etc", os.O_RDONLY | os.O_DIRECTORY), "path of a directory": (path, os.O_PATH),
        "path of a file": (hosts, os.O_PATH), "write": (path + "/etc/new", os.O_WRONLY | os.O_CREAT), "read": (hosts, os.O_RDONLY),
        "append": (hosts, os.O_RDWR | os.O_APPEND), "deleted": (path + "/top", os.O_RDONLY), "line": (path + "/a\nb", os.O_RDONLY | os.O_CREAT),
    }
    if use in opened:
        keep.append(os.open(*opened[use]))
    if use == "root":
        os.chroot(path)
    elif use == "cwd":
        os.chdir(path + "/etc")
    elif use == "deleted":
        os.unlink(path + "/top")
    elif use.endswith("map"):
        shared = use == "shared map"
        fd = os.open(hosts, os.O_RDWR if shared else os.O_RDONLY)
        libc = ctypes.CDLL(None, use_errno=True)             # Python's own mmap keeps a descriptor
        libc.mmap.restype = ctypes.c_void_p
        prot = mmap.PROT_READ | (mmap.PROT_WRITE if shared else 0)
        at = libc.mmap(None, ctypes.c_size_t(4096), prot, mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE, fd, ctypes.c_long(0))
        os.close(fd)
        if shared:
            ctypes.memset(at, 57, 1)

def in_thread():
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.unshare({"cwd": 0x200, "root": 0x200}.get(use, 0x400)) == 0       # CLONE_FS or CLONE_FILES: its own
    begin()
    print("ready", flush=True)
    threading.Event().wait()

if os.environ.get("IN_THREAD"):
    threading.Thread(target=in_thread, daemon=True).start()
else:
    begin()
    print("ready", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def using(path, use, front=(), **environment):
    command = [*front, sys.executable, "-c", USE, path, use]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                          env={**os.environ, **environment}) as child:  # fmt: skip
        try:
            assert child.stdout.readline() == "ready\n"
            yield child
        finally:
            child.kill()
