"""The writable layers of overlay2: an upper directory each, mounted over what it stands on."""

from __future__ import annotations

from collections.abc import Mapping

from layerstore._core import _apply, _changes
from layerstore.disk.textfile import placing
from layerstore.drivers import Finding, Stack
from layerstore.drivers.overlay2.differences import Differences
from layerstore.drivers.overlay2.ground import Ground, pump
from layerstore.errors import InvalidOptionError, NotSupportedError
from layerstore.sizes import parse_size
from layerstore.streams.sources import TarInput, refuse_nothing
from layerstore.streams.tarstream import TarStream
from layerstore.values import Change


class Writables:
    """The drivers.Writables of overlay2; the methods are the protocol's."""

    def __init__(self, ground: Ground) -> None:
        self._ground, self._at, self._mounting = ground, ground.at, ground.mounting
        self._differences = Differences(ground)
        self.remove, self.paths = ground.remove, ground.paths
        self.exists, self.publish, self.mend = ground.at.exists, ground.at.recorded, ground.at.mend
        self.holders, self.unmount = ground.mounting.holders, ground.mounting.put

    def create(self, id: str, stack: Stack, options: Mapping[str, str] | None) -> None:
        """Make the directory of a writable layer.

        options   {"size": bytes or a text as "10G"}
        """
        given = {str(key).lower(): str(value) for key, value in (options or {}).items()}
        ground = self._ground
        if "size" not in given and ground.default_size:
            given["size"] = ground.default_size
        if "size" in given and ground.quota is None:
            raise NotSupportedError("--storage-opt is supported only for overlay over xfs with 'pquota' mount option")
        for key in given:
            if key != "size":
                raise InvalidOptionError(f"Unknown option {key}")
        quota, size = ground.quota, parse_size(given["size"]) if "size" in given else 0
        parent = stack[0] if stack else ""
        user = ground.classes.for_new(parent)

        def prepare(path: str) -> None:
            ground.classes.write(path, user)
            if quota and size:
                quota.limit(path, size)

        self._at.create(id, parent, prepare)

    def settle(self, id: str, stack: Stack) -> None:
        self._at.settle(stack)

    def mount(self, id: str, label: str = "") -> str:
        return self._mounting.get(id, label)

    def size(self, id: str) -> int:
        with self._at.opened_diff(id) as root:
            return _changes.tree_size(root)

    def changes(self, id: str, stack: Stack) -> list[Change]:
        return self._differences.changes(id, stack[0] if stack else "")

    def diff(self, id: str, stack: Stack, flags: int = 0) -> TarStream:
        return self._differences.tar(id, stack[0] if stack else "", flags=flags)

    def apply(self, id: str, stack: Stack, given: TarInput) -> int:
        """Unpack a tar through the mount: the kernel puts the marks, and who has it mounted sees all of it."""
        with self._mounting.mounted(id) as root, placing(self._at.path(id, "diff")):
            apply = _apply.over_mount(root, flags=self._ground.marks(id), limits=self._ground.limits)
            refuse_nothing(pump(given, apply))
        return self.size(id)

    def standing(self, id: str, stack: Stack) -> list[Finding]:
        return self._ground.problems(id, stack, marks=False)

    def check(self, id: str, stack: Stack) -> list[Finding]:
        return self._ground.problems(id, stack)

    def stack_of(self, id: str) -> list[str]:
        return self._at.lower_ids(self._at.lower_items(id))
