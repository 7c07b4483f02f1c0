"""The writable layers of a driver that mounts overlays: an upper directory each, mounted over what it stands on."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from layerstore._core import _apply, _changes
from layerstore.disk import mounts
from layerstore.disk.mounts import Switch
from layerstore.disk.textfile import placing
from layerstore.drivers import Finding, Stack
from layerstore.drivers.overlay.copying import Copying
from layerstore.drivers.overlay.directories import MAX_LOWERS
from layerstore.drivers.overlay.freezing import Freezing
from layerstore.drivers.overlay.ground import Ground, pump
from layerstore.drivers.quota import leave_project
from layerstore.errors import InvalidOptionError, NotSupportedError
from layerstore.sizes import parse_size
from layerstore.streams.sources import TarInput, refuse_nothing


class Writables:
    """The drivers.Writables of overlays; the methods are the protocol's."""

    def __init__(self, ground: Ground) -> None:
        self._ground, self._at, self._mounting = ground, ground.at, ground.mounting
        self.remove, self.paths = ground.remove, ground.paths
        self.exists, self.publish, self.mend = ground.at.exists, ground.at.recorded, ground.at.mend
        self.seize = ground.at.keep
        self.holders, self.unmount = ground.mounting.holders, ground.mounting.put
        self._freezing = Freezing(ground)
        self.hold, self.stack_of, self.named_in = ground.at.held, ground.at.stack_of, ground.at.named_in
        self.lower_text, self.is_used = ground.at.lower_text, ground.mounting.is_upper_used
        self.discard = ground.discarding.discard
        copying = Copying(ground)
        self.clone, self.copy, self.merge = copying.clone, copying.copy, copying.merge

    def create(
        self, id: str, stack: Stack, options: Mapping[str, str] | None, *, most: int = MAX_LOWERS, like: str = ""
    ) -> None:
        """Make the directory of a writable layer.

        options   {"size": bytes or a text as "10G"}
        """
        given = {str(key).lower(): str(value) for key, value in (options or {}).items()}
        ground = self._ground
        if "size" not in given and ground.default_size:
            given["size"] = ground.default_size
        quota = ground.find_quota() if "size" in given else None
        if "size" in given and quota is None:
            raise NotSupportedError("--storage-opt is supported only for overlay over xfs with 'pquota' mount option")
        for key in given:
            if key != "size":
                raise InvalidOptionError(f"Unknown option {key}")
        size = parse_size(given["size"]) if "size" in given else 0
        parent = stack[0] if stack else ""
        user = ground.classes.for_new(parent)

        def prepare(path: str) -> None:
            ground.classes.write(path, user)
            if quota and size:
                quota.limit(path, size)

        lower = self._at.lower_on(stack) if most > MAX_LOWERS else self._at.lower_over(stack)
        self._at.create(id, parent, prepare, lower=lower, most=most)
        if like:
            self._freezing.follow(id, like)

    def settle(self, id: str, stack: Stack) -> None:
        self._at.settle(stack)

    def mount(self, id: str, label: str = "") -> str:
        return self._mounting.get(id, label)

    def apply(self, id: str, stack: Stack, given: TarInput) -> int:
        """Unpack a tar through the mount: the kernel puts the marks, and who has it mounted sees all of it."""
        with self._mounting.mounted(id) as root, placing(self._at.files_of(id)):
            apply = _apply.over_mount(root, flags=self._ground.marks(id), limits=self._ground.limits)
            refuse_nothing(pump(given, apply))
        with self._at.opened_files(id) as root:
            return _changes.tree_size(root)

    def standing(self, id: str, stack: Stack) -> list[Finding]:
        return self._ground.problems(id, stack, marks=False)

    def check(self, id: str, stack: Stack) -> list[Finding]:
        return self._ground.problems(id, stack)

    # ---- snapshots and rollback ----

    def _durable(self, given: bool | None) -> bool:
        return self._ground.durable if given is None else given

    def restand(self, id: str, stack: Stack, *, text: str | None = None, durable: bool | None = None) -> None:
        lower = self._at.lower_for(stack) if text is None else text
        self._at.restand(id, lower, durable=self._durable(durable))

    def freeze(
        self, id: str, into: str, stack: Stack, sync: Callable[[str], None], *, durable: bool | None = None
    ) -> None:
        self._freezing.freeze(id, into, stack, sync, durable=self._durable(durable))

    def make_fresh(self, id: str, fresh: str, *, like: str = "") -> int:
        return self._freezing.make_fresh(id, fresh, like)

    def require_idle(self, id: str, *, force: bool) -> bool:
        with self._at.held(id):
            return self._ground.switching.require_idle(id, force=force)

    def turn(self, id: str, fresh: str, upper: int, stack: Stack, *, durable: bool | None = None) -> None:
        self._freezing.turn(id, fresh, upper, self._at.lower_for(stack), durable=self._durable(durable))

    def switch(self, id: str, *, force: bool, is_read: bool | None = None) -> None:
        switching = self._ground.switching
        with self._at.held(id):
            lazy = switching.require_idle(id, force=force) if is_read is None else is_read
            switching.switch(id, Switch(), lazy=lazy, stops=not force)

    # ---- what is on disk ----

    def text_of(self, stack: Stack) -> str:
        return self._at.lower_for(stack)

    def changed(self, id: str) -> int:
        return os.stat(self._at.path(id)).st_mtime_ns

    def upper(self, id: str) -> int:
        return os.stat(self._at.files_of(id), follow_symlinks=False).st_ino

    def is_mounted(self, id: str) -> bool:
        if not self._at.lower_items(id):
            return self._mounting.is_counted(id)
        return mounts.is_mounted(self._at.path(id, "merged"))

    def empty(self, id: str, stack: Stack) -> None:
        self._at.empty(id, self._at.files)
        self.restand(id, stack)

    def disown(self, id: str) -> None:
        if self._ground.has_projects:
            leave_project(self._at.path(id))
