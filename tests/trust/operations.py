"""Every operation that faults are walked over: the call, what it needs first, whether its result is right, how it is undone."""

import hashlib
import io
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import disk
import faultkit
import tarkit
from driven import DRIVER, FILES, LAYERDB
from faultkit import EVERY_KIND, LARGE, Ground
from stored import read
from tarkit import end, file

import layerstore
from layerstore import CreateRWLayerOpts
from layerstore.disk.textfile import naming
from layerstore.drivers import registry
from layerstore.ids import random_id


class Operation(NamedTuple):
    run: Callable[[Ground], Any]
    right: Callable[[Ground, Any], bool] = lambda g, value: True
    undo: Callable[[Ground, Any], object] = lambda g, value: None
    prepare: Callable[[Ground], object] = lambda g: None
    # What an error may leave on disk: nothing; or what a writable layer got so far; or what cleanup() finishes.
    leaves: str = "nothing"
    durability: str = "none"
    deletes: bool = False


def registers(tar: bytes, source: Callable[[Ground], Any] | None = None, **how: Any) -> Operation:
    """A register of this tar, which may come as a source of it."""

    def right(g: Ground, layer: Any) -> bool:
        return layer.diff_id == tarkit.diff_id(tar) and faultkit.tar_of(layer.tar_stream) == hashlib.sha256(tar).hexdigest()

    def run(g: Ground) -> Any:
        return g.store.register(source(g) if source else tar, g.base.chain_id)

    return Operation(run, right, release, (source if source else lambda g: None), **how)


def packed(program: str, tar: bytes = LARGE) -> Operation:
    def source(g: Ground) -> Path:
        path = g.root.parent / f"packed-{program}"
        if not path.exists():
            path.write_bytes(subprocess.run([program, "-c"], input=tar, capture_output=True, check=True).stdout)
        return path

    return registers(tar, source)


def release(g: Ground, handle: Any) -> None:
    handle.release()


def names_in(tar: bytes) -> list[bytes]:
    return sorted(subprocess.run(["tar", "-t"], input=tar, capture_output=True, check=True).stdout.split())


# ---- layers out ----
def large_layer(g: Ground) -> None:
    if not hasattr(g, "large"):
        g.large = g.store.register(LARGE, g.base.chain_id)


def copy_to(g: Ground) -> bytes:
    """To a file; what Python does to open, read back and close it is none of the library's."""
    path = str(g.root.parent / "out")
    with naming(path):
        out = open(path, "wb+")  # noqa: SIM115
    try:
        with g.large.tar_stream() as stream:
            stream.copy_to(out)
        with naming(path):
            return out.seek(0) or out.read()
    finally:
        with naming(path):
            out.close()


def size_of_stream(g: Ground) -> int:
    with g.large.tar_stream() as stream:
        return stream.size


# ---- stores ----
def open_and_get(g: Ground) -> Any:
    with g.again() as store:
        return store.get(g.above.chain_id), store.get_rw_layer("rw"), sorted(store.map()), store.mounts()


def got(g: Ground, value: Any) -> bool:
    """What cannot be read is told by the log and verify(), and hides nothing else."""
    layer, rw, layers, mounts = value
    return layer.cache_id == g.above.cache_id and rw.name == "rw" and set(layers) >= {g.base.chain_id, g.above.chain_id} and "rw" in mounts


def told(g: Ground, value: Any) -> bool:
    """A fault may well be told as a problem."""
    return all(isinstance(problem, layerstore.Problem) and problem.kind != "orphan" for problem in value)


# ---- writable layers ----
def init(path: str) -> None:
    os.mkdir(f"{path}/etc")
    with naming(hosts := f"{path}/etc/hosts"):      # what fails in here is ours to name
        Path(hosts).write_text("localhost\n")


INIT = CreateRWLayerOpts(init_func=init)


def shows(*names: str) -> Callable[[Ground, Any], bool]:
    def right(g: Ground, shown: Any) -> bool:
        if isinstance(shown, str):
            return sorted(os.listdir(shown)) == [*names]
        with shown.mounted() as path:
            return sorted(os.listdir(path)) == [*names]

    return right


def diff_is_there(g: Ground, value: Any) -> bool:
    with g.bare.mounted() as path:
        return Path(path, "again").read_text() == "second" and Path(path, "a/new").read_text() == "new"


COMMITTED = [b".wh.a", b"c", b"new", b"sub/", b"sub/x"]


def committed(g: Ground, layer: Any) -> bool:
    """Its own directory as a tar, or, where that cannot be had, what a mount of it shows."""
    tar = read(layer.tar_stream())
    return hashlib.sha256(tar).hexdigest() == layer.diff_id.encoded and names_in(tar) == COMMITTED


def changes_between(g: Ground) -> list[str]:
    one, other = (g.root / DRIVER / layer.cache_id / FILES for layer in (g.above, g.base))
    return sorted(str(change) for change in layerstore.changes_between(one, other))


def disassemble(g: Ground) -> Any:
    record = io.BytesIO()
    return layerstore.disassemble(io.BytesIO(LARGE), record), record.getvalue()


# ---- copies of what a writable layer holds, by the driver ----
def copied(how: str) -> Operation:
    """Of a box: a clone, a copy by links, and a merge with what stands on it."""

    def prepare(g: Ground) -> None:
        g.upper = g.store.create_rw_layer("upper", g.above.chain_id)
        g.upper.apply_diff(EVERY_KIND)

    def run(g: Ground) -> str:
        writables, ids = g.store._engine.driver.writables, [g.store.get_mount_id(name) for name in ("upper", "rw")]
        into, stack = random_id(), writables.stack_of(ids[0])
        if how == "merge":
            writables.merge(ids, into, stack)
        else:
            getattr(writables, how)(ids[0], into, stack)
        return into

    def right(g: Ground, into: str) -> bool:
        """Directories, kinds and sizes are those of the box."""
        diff = g.root / DRIVER
        found = disk.shape(diff / into / FILES)
        wanted = disk.shape(diff / g.store.get_mount_id("upper") / FILES)
        if how == "merge":                # rw has no a: what upper has there hides what is below, and needs no whiteout
            return found.keys() == wanted.keys() - {"a/f"} | {"new", "c", "sub", "sub/x"}
        return found == wanted

    def undo(g: Ground, into: str) -> None:
        g.store._engine.driver.writables.remove(into)

    return Operation(run, right, undo, prepare)


# ---- what deletes ----
EXTRA = file("x", b"x" * 9000) + file("y/z") + end()


def extra_layer(g: Ground) -> None:
    g.extra = g.store.register(EXTRA, g.base.chain_id)


def extra_box(g: Ground) -> None:
    g.extra = g.store.create_rw_layer("extra", g.above.chain_id, INIT)
    g.extra.apply_diff(Ground.EDIT)
    g.extra.mount()


def litter(g: Ground) -> None:
    g.store._engine.metadata.set_aside(g.store.register(EXTRA, g.base.chain_id).chain_id)
    os.mkdir(g.root / LAYERDB / "tmp/write-set-77")
    (g.root / LAYERDB / "tmp/write-set-77/size").write_text("1")
    os.makedirs(g.root / DRIVER / ("7" * 64) / FILES / "deep/er")
    os.symlink(f"../{'8' * 64}/{FILES}", g.root / DRIVER / "l/EIGHT")
    g.store.close()
    g.store = g.again()
    g.above, g.base = g.store.get(g.above.chain_id), g.store.get(g.base.chain_id)


# ---- the other half of the root ----
OTHER = next(name for name in registry.DRIVERS if name != DRIVER)


def other_layers(g: Ground) -> None:
    with layerstore.Store(g.root, driver=OTHER, options=g.options) as other:
        g.extra = other.register(EXTRA, other.register(Ground.BASE).chain_id)


def convert(g: Ground) -> Any:
    """From the other half: what comes is looked at as what is registered here is."""
    with layerstore.Store(g.root, driver=OTHER, options=g.options) as other:
        return other.convert(g.extra.chain_id, DRIVER)


def converted(g: Ground, made: Any) -> bool:
    return made == [g.extra.chain_id] and faultkit.tar_of(g.store.find(made[0]).tar_stream) == hashlib.sha256(EXTRA).hexdigest()


# ---- directories and snapshots ----
def tree_to_pack(g: Ground) -> Path:
    place = g.root.parent / "to pack"
    if not place.exists():
        (place / "d").mkdir(parents=True)
        (place / "d/f").write_bytes(b"f" * 3_000_000)
        os.link(place / "d/f", place / "again")
        os.setxattr(place / "d", "user.note", b"n")
        (place / "left out").touch()
    return place


def pack(g: Ground) -> Any:
    with layerstore.pack_directory(tree_to_pack(g), prefix="p", mtime=5, exclude=["left*"]) as stream:
        return g.store.register(stream, g.base.chain_id)


def packed_right(g: Ground, layer: Any) -> bool:
    return [(entry.path, entry.type, entry.mtime_ns) for entry in layer.files()] == [
        ("p/again", "file", 5 * 10**9), ("p/d", "directory", 5 * 10**9), ("p/d/f", "link", 5 * 10**9),
    ]  # fmt: skip


def weigh(g: Ground) -> None:
    g.extra = g.store.usage()


CREATE = Operation(lambda g: g.store.create_rw_layer("new", g.above.chain_id, INIT), shows("a", "c", "e", "etc"), release)
OPERATIONS = {
    "Register": registers(LARGE),
    "RegisterSmall": registers(EVERY_KIND),
    "RegisterDurable": registers(EVERY_KIND, durability="full"),
    "RegisterFromReader": registers(LARGE, lambda g: io.BytesIO(LARGE)),
    "RegisterGzip": packed("gzip"),
    "RegisterZstd": packed("zstd"),
    "RegisterBzip2": packed("bzip2", EVERY_KIND),           # libarchive takes its time
    "RegisterAgain": registers(Ground.ABOVE, leaves="litter"),      # it is there already: the second copy is thrown away
    "Read": Operation(lambda g: read(g.large.tar_stream()), lambda g, value: value == LARGE, prepare=large_layer),
    "CopyTo": Operation(copy_to, lambda g, value: value == LARGE, prepare=large_layer),
    "SizeOfStream": Operation(size_of_stream, lambda g, value: value == len(LARGE), prepare=large_layer),
    "ReadDifference": Operation(lambda g: read(g.above.tar_stream_from("")), lambda g, value: names_in(value) == [b"a/", b"a/f", b"c", b"e/", b"e/1"]),
    "OpenAndGet": Operation(open_and_get, got),
    "OpenFresh": Operation(lambda g: layerstore.Store(g.root / "fresh", options=g.options).close(),
                           undo=lambda g, value: faultkit.disk.remove_tree(g.root / "fresh"), leaves="scaffold"),
    "Verify": Operation(lambda g: g.store.verify(workers=1), told),
    "CreateRWLayer": CREATE,
    "CreateRWLayerDurable": CREATE._replace(durability="full"),
    "Mount": Operation(lambda g: g.rw.mount(), shows("c", "e", "new", "sub"), lambda g, path: g.rw.unmount()),
    "ApplyDiff": Operation(lambda g: g.bare.apply_diff(EVERY_KIND), diff_is_there, leaves="a part"),
    "Commit": Operation(lambda g: g.rw.commit(), committed, release),
    "Changes": Operation(lambda g: sorted(str(change) for change in g.rw.changes()), lambda g, value: value == ["A /new", "A /sub", "A /sub/x", "C /c", "D /a"]),
    "SizeOfRWLayer": Operation(lambda g: g.rw.size(), lambda g, value: value == 9002),
    "ReadRWLayer": Operation(lambda g: read(g.rw.tar_stream()), lambda g, value: names_in(value) == COMMITTED),
    "ChangesBetween": Operation(changes_between, lambda g, value: value == ["A /c", "A /e", "A /e/1", "C /b", "D /a"]),
    "Clone": copied("clone"),
    "CopyByLinks": copied("copy"),
    "Merge": copied("merge"),
    "Disassemble": Operation(disassemble, lambda g, value: value[0] == tarkit.diff_id(LARGE) and value[1].startswith(b'{"type"')),
    "PackDirectory": Operation(pack, packed_right, release, tree_to_pack),
    "Usage": Operation(lambda g: g.store.usage(), lambda g, value: value == g.extra, prepare=weigh),
    "Release": Operation(lambda g: g.extra.release(), lambda g, value: [item.chain_id for item in value] == [g.extra.chain_id],
                         prepare=extra_layer, leaves="litter", deletes=True),
    "ReleaseRWLayer": Operation(lambda g: g.extra.release(), lambda g, value: value == [], prepare=extra_box, leaves="litter", deletes=True),
    "Convert": Operation(convert, converted, lambda g, made: g.store.remove(made[0]), other_layers),
    "Cleanup": Operation(lambda g: g.store.cleanup(), prepare=litter, leaves="litter", deletes=True),
}  # fmt: skip
