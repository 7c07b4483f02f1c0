"""Layers whose directory came first: the tar was made of it, and nothing was copied.

Enters: a directory of a writable layer's files that is written to no longer. Leaves: its tar-split record and DiffID.
Such a tar does not say all: user attributes, ACLs, parts of a second and sockets stay in the directory alone. A check
must not report them as damage; so an attribute of the directory remembers that it came first.
"""

from __future__ import annotations

import contextlib
import errno
import os

from layerstore._core import _apply, _tarstream
from layerstore.drivers import Received
from layerstore.ids import diff_id_of
from layerstore.limits import Limits

# In place of user attributes, which a tmpfs does not have before Linux 6.6.
_MARKS = ("user.layerstore.adopted", "trusted.layerstore.adopted")


def note(directory: str) -> None:
    """Remember of an id's directory that its files came before their tar. Raises OSError: no attribute can say so."""
    for name in _MARKS:
        try:
            os.setxattr(directory, name, b"y")
        except OSError as err:
            if err.errno != errno.EOPNOTSUPP or name == _MARKS[-1]:
                raise
        else:
            return


def came_first(directory: str) -> bool:
    """Return True if the files of an id came before their tar."""
    for name in _MARKS:
        with contextlib.suppress(OSError):
            return bool(os.getxattr(directory, name))
    return False


def record(root_fd: int, record_fd: int, *, userxattr: bool, limits: Limits) -> Received:
    """Read a directory once, as the tar that is made of it, and write the record of that.

    userxattr  its marks are user.overlay.*
    Raises     BreakoutError        a name would be a mark in the tar
               NotSupportedError    only a mount can tell what a mark stands for
               LimitExceededError, OSError
    """
    flags = _tarstream.EXPORT_OVERLAY | (_tarstream.EXPORT_USERXATTR if userxattr else 0)
    with contextlib.closing(_tarstream.export_tree(root_fd, flags)) as source:
        with contextlib.closing(_apply.record(record_fd, limits=limits)) as apply:
            while not apply.pump_source(source):
                pass
            done = apply.finish()
        return Received(diff_id_of(done.diff_id), done.tar_size, source.files_size(), source.left_out())
