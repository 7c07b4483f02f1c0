"""Of which class the marks of each directory are: trusted.overlay.*, or user.overlay.* as in a user namespace.

A mount sees the marks of one class alone. An opaque mark of the other class is not seen, and what the layer deleted
comes back; whiteouts are devices, which both see. So the class is remembered as an attribute of the layer's directory,
which Docker does not look at, and a mount takes the class of its layers; where no class shows them all, it is refused.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
from collections.abc import Callable, Iterator, Sequence

from layerstore.drivers import Sidecar
from layerstore.drivers.overlay.directories import Directories
from layerstore.drivers.record import recorded
from layerstore.errors import NotSupportedError
from layerstore.ids import ChainID

MARK = "user.layerstore.marks"
_NAMES = {True: "user", False: "trusted"}


class Classes:
    """The classes of the directories below one home. True stands for user.overlay.*, False for trusted.overlay.*."""

    def __init__(
        self, at: Directories, layer_in: Callable[[str], tuple[ChainID, Sidecar] | None], *, userxattr: bool
    ) -> None:
        """layer_in    as StoreView has it
        userxattr   this process can see and write user.overlay.* alone
        """
        self._at, self._layer_in, self._userxattr = at, layer_in, userxattr
        self._known: dict[str, bool] = {}
        self._opaque: dict[str, bool] = {}

    # ---- what is remembered ----

    def for_new(self, parent: str) -> bool:
        """Choose the class of what is made on parent, or on ""."""
        return self._userxattr or (bool(parent) and self.is_user(parent))

    def write(self, directory: str, user: bool) -> None:
        """Remember the class of a directory. Raises OSError, but not where the file system has no such attributes."""
        try:
            os.setxattr(directory, MARK, _NAMES[user].encode())
        except OSError as err:
            if err.errno != errno.EOPNOTSUPP:
                raise

    def set(self, id: str, user: bool) -> None:
        """id is written to as this class from now on."""
        if self._known.get(id) != user:
            self.write(self._at.path(id), user)
            self._known[id] = user

    def forget(self, id: str) -> None:
        self._known.pop(id, None)
        self._opaque.pop(id, None)

    def is_user(self, id: str) -> bool:
        """Say of which class id's marks are."""
        known = self._known.get(id)
        if known is None:
            known = self._known[id] = self._read(id)
        return known

    def _read(self, id: str) -> bool:
        with contextlib.suppress(OSError):
            value = os.getxattr(self._at.path(id), MARK)
            for user, name in _NAMES.items():
                if value == name.encode():
                    return user
        return self._guessed(id)

    def _guessed(self, id: str) -> bool:
        """Return the class of a directory that Docker made, or an earlier version."""
        owner = os.stat(self._at.path(id)).st_uid
        if not self._userxattr:
            return owner != os.geteuid() and self._is_marked(id, user=True)
        layer = recorded(id, self._layer_in)
        if layer is None:
            return owner == os.geteuid()
        places = [self._at.path(id, self._at.files, path) for path in layer.opaque]
        return not places or any(self._has_mark(place, user=True) for place in places)

    # ---- opaque marks ----

    @staticmethod
    def _has_mark(directory: str, *, user: bool) -> bool:
        with contextlib.suppress(OSError):
            return os.getxattr(directory, f"{_NAMES[user]}.overlay.opaque", follow_symlinks=False) == b"y"
        return False

    def _directories(self, id: str) -> Iterator[str]:
        todo = [self._at.files_of(id)]
        while todo:
            directory = todo.pop()
            yield directory
            with os.scandir(directory) as listed:
                todo += [entry.path for entry in listed if entry.is_dir(follow_symlinks=False)]

    def _is_marked(self, id: str, *, user: bool) -> bool:
        return any(self._has_mark(directory, user=user) for directory in self._directories(id))

    def hides(self, id: str) -> bool:
        """Return True if something below is hidden by id's opaque marks; True if that cannot be known."""
        user = self.is_user(id)
        layer = None
        try:
            if user or not self._userxattr:
                return self._is_marked(id, user=user)
            layer = recorded(id, self._layer_in)
            if layer is None:             # any directory in it may be marked
                return len(list(itertools.islice(self._directories(id), 2))) > 1
        except OSError:
            return True
        return bool(layer.opaque)

    def _layer_hides(self, id: str) -> bool:
        known = self._opaque.get(id)
        if known is None:
            known = self._opaque[id] = self.hides(id)
        return known

    # ---- one view ----

    def view(self, top: str, lowers: Sequence[str]) -> bool:
        """Choose the class that shows all of these as they were registered and written.

        top      what is written to, perhaps; lowers: ids of layers below
        Raises   NotSupportedError   there is none
        """
        user = {id for id in (top, *lowers) if self.is_user(id)}
        trusted = [id for id in (top, *lowers) if id not in user]
        if not trusted:
            return True
        if not user and not self._userxattr:
            return False
        hidden = next((id for id in trusted if (self.hides(id) if id == top else self._layer_hides(id))), None)
        if hidden is None:
            return True
        if self._userxattr or any(self.hides(id) if id == top else self._layer_hides(id) for id in user):
            raise self._refused(hidden)
        return False

    def _refused(self, id: str) -> NotSupportedError:
        layer = recorded(id, self._layer_in)
        of = f"layer {layer.chain_id}" if layer else self._at.path(id)
        where = "a user namespace" if self._userxattr else "a mount of layers with user.overlay.*"
        return NotSupportedError(
            f"the opaque marks of {of} are attributes trusted.overlay.*, which {where} does not see: "
            "deleted files would come back. "
            "Mount it as root outside of a user namespace, or register its layers anew in one root, by one user",
            chain_id=layer.chain_id if layer else "", path="" if layer else self._at.path(id),
        )  # fmt: skip

    def problem(self, id: str) -> str | None:
        """Say in a sentence that a mount of this process would not see id's marks; None if it does."""
        user = self.is_user(id)
        if user == self._userxattr or not self.hides(id):
            return None
        who = "Docker run as root does" if user else "a user namespace does"
        return f"the opaque marks in {id} are attributes {_NAMES[user]}.overlay.*, which {who} not see"
