"""A home of erofs with layers of a few files and boxes on them: what overlays stand on, without the rest of a driver."""

import hashlib
import io
import os
import tarfile
from pathlib import Path

import disk

from layerstore._core import _erofs
from layerstore.disk import erofs
from layerstore.disk.holds import Holds
from layerstore.drivers import StoreView
from layerstore.drivers.erofs.ground import ErofsGround
from layerstore.drivers.erofs.options import Options
from layerstore.ids import DiffID, random_id
from layerstore.layerdb.detached import Detached
from layerstore.layerdb.store import FileMetadataStore
from layerstore.limits import Limits


class Home:
    """One store's view of a home."""

    def __init__(self, place: Path, options: Options | None = None, *, read_only: bool = False) -> None:
        (place / "holds").mkdir(exist_ok=True)
        self.place, self.path = place, place / "home"
        self.holds = Holds(str(place / "holds"))
        self.holds.open()
        self.diff_ids: dict[str, DiffID] = {}
        layerdb = FileMetadataStore(place / "layerdb", make=False)
        view = StoreView(
            read_only=read_only, limits=Limits(), lock_timeout=20, holds=self.holds, boxes=Detached(layerdb), layer_in=layerdb.layer_in,
            diff_id_of=self.diff_ids.get,
        )  # fmt: skip
        self.ground = ErofsGround(str(self.path), options or Options(), view)
        self.at, self.mounted, self.mounting = self.ground.at, self.ground.below, self.ground.mounting

    def close(self) -> None:
        self.ground.background.close()
        self.holds.close()

    def layer(self, parent: str = "", **files: str) -> str:
        """Make a layer with these files."""
        id = random_id()
        self.at.create(id, parent)
        self.become(id, **files)
        self.at.settle([id])
        self.at.recorded(id)
        return id

    def become(self, id: str, **files: str) -> None:
        """Let what id is be a layer with these files."""
        tar = io.BytesIO()
        with tarfile.open(fileobj=tar, mode="w") as out:
            for name, text in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(text)
                out.addfile(entry, io.BytesIO(text.encode()))
        data = tar.getvalue()
        digest = hashlib.sha256(data)
        with open(self.path / id / "layer.erofs", "w+b") as file:
            file.write(bytes(4096) + data)
            file.flush()
            _erofs.rebuild(file.fileno(), len(data), digest.digest())
        (self.path / id / "length").write_text(str(len(data)))
        self.diff_ids[id] = DiffID(f"sha256:{digest.hexdigest()}")

    def layers(self, n: int) -> list[str]:
        """Make a stack, the nearest first."""
        stack: list[str] = []
        for at in range(n):
            stack.insert(0, self.layer(stack[0] if stack else "", **{f"of{at}": str(at), "top": str(at)}))
        return stack

    def box(self, parent: str) -> str:
        """Make a box on a layer."""
        id = random_id()
        self.at.create(id, parent)
        self.at.recorded(id)
        return id

    def files(self, id: str) -> Path:
        return self.path / id / "fs"

    def shown(self, ids: list[str]) -> list[str]:
        """Which of these are mounted."""
        return [id for id in ids if erofs.is_erofs(str(self.files(id)))]

    def mounts(self) -> set[str]:
        """What is mounted below the home."""
        return {os.path.relpath(point, self.path) for point in disk.mounts_below(self.path)}


def loops(where: Path) -> list[str]:
    """The loop devices on files below a directory."""
    found = []
    for device in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            if device.read_text().strip().startswith(os.fspath(where)):
                found.append(device.parts[3])
        except OSError:
            pass
    return found
