"""EROFS images as mounts: of the file itself, or of a loop device where the file system below cannot back a mount.

Open files and paths come in. A mount comes out, an OSError with the kernel's own reason, or a NotSupportedError where
no image can be mounted at all. The C side is ext/core/mount/erofs.c.
"""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, NamedTuple

from layerstore._core import _erofs
from layerstore._core._mount import ffi, lib
from layerstore.disk import mounts
from layerstore.errors import NotSupportedError, readable

MAGIC: Final = 0xE0F5E1E2
_DETACH_NOT_FOLLOWING: Final = mounts.MNT_DETACH | 8  # UMOUNT_NOFOLLOW

# Bytes of a tar with no entry. Its image, of one directory, has 6 KiB.
_EMPTY = 1024

Mode = Literal["file", "loop"]
"""What is mounted: files themselves, or loop devices on them."""

_REFUSED = {
    errno.EPERM: "mounting EROFS needs CAP_SYS_ADMIN in the initial namespace",
    errno.ENODEV: "this kernel has no EROFS",
    errno.EINVAL: "needs Linux 6.4 or later for blocks of 512 bytes",
}


class File(NamedTuple):
    """An open file of a mount."""

    fd: int
    path: str
    """Names it in errors, and in the mount table if it leads there."""


def _request(alive: list[Any], files: Sequence[File], at: str, mode: Mode, *, directio: bool) -> Any:
    """Return a lay_erofs_mount. cffi frees what is not referenced: it lives as long as alive."""
    paths = [ffi.new("char[]", os.fsencode(file.path)) for file in files]
    told = ffi.new("lay_erofs_file[]", [(file.fd, path) for file, path in zip(files, paths, strict=True)])
    target = ffi.new("char[]", os.fsencode(at))
    alive += [paths, told, target]
    loop = mode == "loop"
    return ffi.new("lay_erofs_mount *", (told, len(files), target, loop, directio and not loop))


def mount_file(files: Sequence[File], at: str, mode: Mode, *, directio: bool = False) -> None:
    """Mount an image, read-only.

    files      the image, then the files of its device table in their order
    at         a directory
    directio   files are read past their page cache; loop devices never are
    Raises     OSError   ENOTBLK: no regular file, or mode "file" is not for this file system
    """
    alive: list[Any] = []
    mounts.call(lib.lay_mount_erofs, _request(alive, files, at, mode, directio=directio))


def make_mount(files: Sequence[File], mode: Mode, *, directio: bool = False) -> mounts.Detached:
    """Do what mount_file() does, but attach the mount nowhere."""
    alive: list[Any] = []
    made = mounts.Detached()
    mounts.call(lib.lay_make_erofs, _request(alive, files, "", mode, directio=directio), made.fd)
    return made


def unmount(at: str) -> None:
    """Unmount what is mounted at a directory; who is inside keeps what is open. Raises OSError (EINVAL: nothing is)."""
    mounts.unmount(at, _DETACH_NOT_FOLLOWING)


def is_erofs(path: str) -> bool:
    """Return True if path shows an EROFS image; False where nothing is. Raises OSError."""
    try:
        return mounts.fs_magic(path) == MAGIC
    except (FileNotFoundError, NotADirectoryError):
        return False


def probe(directory: str, *, directio: bool = False) -> Mode:
    """Find out how images in a directory can be mounted. Nothing is left of it.

    Raises  NotSupportedError   not at all; or not with directio
            OSError             the directory cannot be written to
    """
    with tempfile.TemporaryFile(dir=directory) as file:
        os.ftruncate(file.fileno(), _erofs.HEADER + _EMPTY)
        _erofs.rebuild(file.fileno(), _EMPTY, hashlib.sha256(bytes(_EMPTY)).digest())
        return mode_of(File(file.fileno(), directory), directio=directio)


def mode_of(image: File, *, directio: bool = False) -> Mode:
    """Find out how an image, of which the kernel is known to take the contents, can be mounted where it lies.

    Raises  NotSupportedError   not at all; or not with directio
            OSError             as the kernel says
    """
    return _first_mode(lambda mode: make_mount([image], mode, directio=directio).close(), image.path, directio)


def mount_first(files: Sequence[File], at: str, *, directio: bool = False) -> Mode:
    """Do what mount_file() does, and find out how that can be done; raise as mode_of() does."""
    return _first_mode(lambda mode: mount_file(files, at, mode, directio=directio), files[0].path, directio)


def _first_mode(mount: Callable[[Mode], None], path: str, directio: bool) -> Mode:
    try:
        mount("file")
        return "file"
    except OSError as err:
        if err.errno != errno.ENOTBLK:
            raise _refused(err) from None
    if directio:
        text = f"directio needs a file system whose files can be mounted, and {readable(path)} is on none"
        raise NotSupportedError(text)
    try:
        mount("loop")
    except OSError as err:
        raise _refused(err) from None
    return "loop"


def _refused(err: OSError) -> Exception:
    text = _REFUSED.get(err.errno or 0)
    return NotSupportedError(text) if text else err
