"""Of which class the marks of boxes and snapshots are. Those of layers are trusted.overlay.*, in every image.

A box whose marks are user.overlay.* was made in a user namespace. It stands on no layer, as no image is mounted there;
or it stands on one, and was never mounted: then nothing is marked in it yet.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence

from layerstore.drivers.overlay.directories import Directories

MARK = "user.layerstore.marks"
_USER = b"user"


class BoxMarks:
    """The drivers.overlay.marks.Marks of erofs; the methods are the protocol's."""

    def __init__(self, at: Directories, is_image: Callable[[str], bool], *, userxattr: bool) -> None:
        """is_image    tells which ids are layers
        userxattr   this process can see and write user.overlay.* alone
        """
        self._at, self._is_image, self._userxattr = at, is_image, userxattr
        self._known: dict[str, bool] = {}

    def for_new(self, parent: str) -> bool:
        return self._userxattr or (bool(parent) and self.is_user(parent))

    def write(self, directory: str, user: bool) -> None:
        """Remember the class of a directory in the making; one without a note is trusted."""
        if not user:
            return
        try:
            os.setxattr(directory, MARK, _USER)
        except OSError as err:
            if err.errno != errno.EOPNOTSUPP:
                raise

    def set(self, id: str, user: bool) -> None:
        if self.is_user(id) == user:
            return
        directory = self._at.path(id)
        if user:
            self.write(directory, user)
        else:
            os.removexattr(directory, MARK)
        self._known[id] = user

    def forget(self, id: str) -> None:
        self._known.pop(id, None)

    def is_user(self, id: str) -> bool:
        known = self._known.get(id)
        if known is None:
            known = self._known[id] = self._read(id)
        return known

    def _read(self, id: str) -> bool:
        try:
            return os.getxattr(self._at.path(id), MARK) == _USER
        except OSError as err:
            if err.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
                raise
            return False

    def view(self, top: str, lowers: Sequence[str]) -> bool:
        """Choose the class; with a layer below, it is that of all layers."""
        ids = (top, *lowers)
        if not self._userxattr and not any(map(self.is_user, ids)):
            return False
        return not any(map(self._is_image, ids))

    def problem(self, id: str) -> str | None:
        return None
