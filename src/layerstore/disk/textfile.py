"""Small files of the layerdb and of the drivers: read with suspicion, written with an exact mode.

A path comes in, bytes go out, and back. Nothing here follows a link in the last component, waits on a
fifo, or depends on the process's umask.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
from collections.abc import Iterator
from typing import Any

from layerstore._core import _changes, _files
from layerstore.errors import InvalidMetadataError, readable

# More than any small file of a store holds (`lower` of 128 layers has under 4 KiB).
_LIMIT = 1 << 20
BESIDE = ".tmp-"
"""How the name of a file begins that is written beside the one in whose place it comes."""

# Go's unicode.IsSpace, which is what moby trims; str.strip() alone would take \x1c-\x1f too.
_GO_SPACE = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)


def trimmed(data: bytes) -> str:
    """Decode a file's bytes and take off the white space around them, as Go does."""
    return data.decode("utf-8", "surrogateescape").strip(_GO_SPACE)


def read_small(path: str, limit: int = _LIMIT) -> bytes:
    """Read a whole small file.

    limit   bytes it may have
    Raises  OSError                with filename
            InvalidMetadataError   it is no regular file, or larger than any such file is
    """
    data = _files.read_regular(path, limit + 1)
    if data is None:
        raise InvalidMetadataError(f"{readable(path)} is not a regular file", path=path)
    if len(data) > limit:
        raise InvalidMetadataError(f"{readable(path)} is larger than {limit} bytes", path=path)
    return data


def read_text(path: str) -> str:
    """Read a small file that holds one name or a few.

    Raises  OSError                with filename
            InvalidMetadataError   as read_small(); or there are NUL bytes in it, as a power cut leaves them
    """
    text = trimmed(read_small(path))
    if "\0" in text:
        raise InvalidMetadataError(f"{readable(path)} holds NUL bytes", path=path)
    return text


def write_small(path: str, data: bytes, mode: int = 0o644, *, sync: bool = True) -> None:
    """Create or overwrite a file in place; its mode is exactly `mode`."""
    fd = _files.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
    try:
        _files.fchmod(fd, mode)
        _files.write_all(fd, data)
        if sync:
            _files.fsync(fd)
    finally:
        _files.close(fd, path)


def random_number() -> int:
    """Draw a number of 32 bits, for names that only must not be taken."""
    return int.from_bytes(_files.random(4))


def replace_small(path: str, data: bytes, mode: int, *, sync: bool = True) -> None:
    """Write a file beside path and rename it over path: readers see the old bytes or the new.

    Source   moby, sys/atomicwriter
    """
    directory, name = os.path.split(path)
    beside = os.path.join(directory, f"{BESIDE}{name}{random_number()}")
    try:
        write_small(beside, data, mode, sync=sync)
        _files.rename(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            _files.unlink(beside)
        raise


def left_beside(directory: str) -> list[str]:
    """Return the paths of files in a directory that replace_small() was stopped at, or has not renamed yet."""
    try:
        names = os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [os.path.join(directory, name) for name in names if name.startswith(BESIDE)]


@contextlib.contextmanager
def new_file(path: str) -> Iterator[int]:
    """Write a file that is at path, whole and on the disk, once the block ended well; before, and else, path stays.

    A link is followed; what is no regular file, as /dev/stdout, is written to and stays.
    """
    path = os.path.realpath(path)
    if os.path.exists(path) and not os.path.isfile(path):
        fd = _files.open(path, os.O_WRONLY)
        try:
            with naming(path):
                yield fd
        finally:
            _files.close(fd)
        return
    beside = f"{path}.tmp-{random_number()}"
    with naming(path, instead_of=beside):
        fd = _files.open(beside, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
        try:
            yield fd
            _files.fsync(fd)
            _files.rename(beside, path)
            sync_directory(os.path.dirname(path))
        except BaseException:
            with contextlib.suppress(OSError):
                _files.unlink(beside)
            raise
        finally:
            _files.close(fd)


@contextlib.contextmanager
def naming(path: str, *, instead_of: str = "") -> Iterator[None]:
    """Name path in an OSError that names no file, or only a temporary one."""
    try:
        yield
    except OSError as err:
        if _names_none(err) or (err.errno is not None and err.filename == instead_of):
            err.filename = path
        raise


@contextlib.contextmanager
def naming_file(file: Any) -> Iterator[None]:
    """Name an open file, as the kernel does, in an OSError that names none.

    file   a descriptor or one of Python's own files; what any other object raises is left as it is
    """
    try:
        yield
    except OSError as err:
        if _names_none(err):
            with contextlib.suppress(ValueError):           # it is closed
                fd = descriptor_of(file)
                if fd is not None and (name := _files.name_of(fd)) is not None:
                    err.filename = name
        raise


def _names_none(err: OSError) -> bool:
    return err.errno is not None and not isinstance(err.filename, (str, bytes))


def descriptor_of(file: Any) -> int | None:
    """Return the descriptor of a file of Python's own, or one as it is. None: it has none."""
    if isinstance(file, (io.FileIO, io.BufferedReader, io.BufferedWriter, io.BufferedRandom)):
        try:
            return file.fileno()
        except io.UnsupportedOperation:                     # a buffer around something else
            return None
    return file if isinstance(file, int) else None


# What concerns a whole file system, so that the name of an entry does not say where; no source that is read gives it.
_OF_A_FILE_SYSTEM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@contextlib.contextmanager
def placing(directory: str) -> Iterator[None]:
    """Put directory before the name of an entry in an OSError that concerns a whole file system."""
    try:
        yield
    except OSError as err:
        if err.errno in _OF_A_FILE_SYSTEM and isinstance(err.filename, str):
            err.filename = os.path.join(directory, err.filename)            # which an absolute name stays
        raise


def sync_directory(path: str) -> None:
    """Put a directory's entries on the disk."""
    _sync(path, os.O_DIRECTORY)


def sync_file(path: str) -> None:
    """Put a regular file's bytes on the disk."""
    _sync(path, os.O_NONBLOCK | os.O_NOFOLLOW)


def _sync(path: str, flags: int) -> None:
    fd = _files.open(path, os.O_RDONLY | flags)
    try:
        _files.fsync(fd)
    finally:
        _files.close(fd, path)


def remove_directory(path: str) -> None:
    """Remove a directory with all in it; fine if it is gone, or going by another's hand. Raises OSError.

    Not by shutil: interrupted, its rmtree may close a descriptor twice, the second time perhaps another one.
    """
    above, name = os.path.split(os.path.abspath(path))
    with contextlib.suppress(FileNotFoundError):
        fd = _files.open(above, os.O_RDONLY | os.O_DIRECTORY)
        try:
            remove_below(fd, above, name)
        finally:
            _files.close(fd, above)


def remove_below(fd: int, directory: str, name: str) -> None:
    """Remove a directory with all in it. Raises OSError, with the whole path of what cannot be removed.

    fd   of directory, beneath which all happens
    """
    try:
        _changes.remove_tree(fd, name)
    except OSError as err:
        err.filename = os.path.join(directory, os.fsdecode(err.filename or name))
        raise


def make_directory(path: str, mode: int) -> None:
    """Make one directory with exactly this mode; one that exists stays as it is.

    Raises  NotADirectoryError   something else is there, a link to a directory too
    """
    try:
        _files.mkdir(path, mode)
    except FileExistsError:
        if not stat.S_ISDIR(_files.mode_of(path)):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path) from None
        return  # perhaps another thread was quicker
    _files.chmod(path, mode)


def is_directory(path: str) -> bool:
    """Return True if path is a directory, and not a link to one."""
    try:
        return stat.S_ISDIR(_files.mode_of(path))
    except OSError:
        return False


def modified(path: str) -> float:
    """Return when a file was written, in seconds since 1970; 0.0 if that is unknown."""
    try:
        return os.stat(path, follow_symlinks=False).st_mtime
    except OSError:
        return 0.0


def make_directories(path: str, mode: int) -> None:
    """Make path and the missing parents of it, each with exactly this mode.

    What exists stays as it is. A file in the way, or a link as the last component: NotADirectoryError.
    """
    try:
        make_directory(path, mode)
    except FileNotFoundError:
        parent = os.path.dirname(path)
        if not parent or parent == path:
            raise
        # Links above are the administrator's.
        if not os.path.isdir(parent):
            make_directories(parent, mode)
        make_directory(path, mode)


def tree_bytes(path: str) -> int:
    """Count the bytes of the files in a directory of small files; what vanishes meanwhile counts nothing."""
    total = 0
    for directory, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(directory, name)).st_size
    return total


def drop_acls(path: str | int) -> None:
    """Remove the ACLs that a default ACL of the directory gave to what was made; the files of a layer have none."""
    for name in ("system.posix_acl_default", "system.posix_acl_access"):
        try:
            os.removexattr(path, name)
        except OSError as err:
            if err.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
                raise
