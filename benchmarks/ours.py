"""Ours, under each driver, beside the peers: the cases of compare.py that need a store.

"layerstore" in a table is the driver of a new store; any other one is named behind it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tarkit

import layerstore
from benchmarks import ROOT, baselines, measure
from benchmarks.layers import Layer
from benchmarks.measure import Case, Figure
from layerstore.drivers import checks, registry

NO_SYNC = {"durability": "none"}
DEFAULT, *MORE = registry.DRIVERS
DRIVERS = (DEFAULT, *MORE)
MOUNTS, DEPTH = 20, 20


def called(driver: str, *more: str) -> str:
    """Return how a row is called."""
    return ", ".join(["layerstore", *[driver] * (driver != DEFAULT), *more])


def register(
    layer: Layer, place: Path, *, driver: str = DEFAULT, durability: str = "none", packed: str = ""
) -> Case:
    """Into an open, empty store; what comes back must be the layer's DiffID."""
    root, opened = place / "ours", []
    source = layer.packed(packed) if packed else layer.path
    expected = baselines.hashlib_sha256(layer.path)

    def prepare() -> None:
        store = layerstore.Store(measure.fresh(root), driver=driver, options={"durability": durability})
        opened.append(store)

    def run() -> None:
        assert opened[0].register(source).diff_id == expected

    def clean() -> None:
        while opened:
            opened.pop().close()
        measure.wipe(root)

    told = [] if durability == "none" else [f"durability {durability}"]
    return Case(called(driver, *told), run, prepare, clean, inside=True)


@contextlib.contextmanager
def stored(layer: Layer, place: Path, driver: str = DEFAULT) -> Iterator[tuple[Any, Any]]:
    """(store, the layer in it)."""
    root = measure.fresh(place / f"stored-{driver}")
    with layerstore.Store(root, driver=driver, options=NO_SYNC) as store:
        yield store, store.register(layer.path)
    measure.wipe(root)


# ---- sections that compare drivers ----------------------------------------------------------------------
def remove(layer: Layer, place: Path, driver: str) -> Case:
    """A layer is released that nothing needs: its files and its record go."""
    root, opened, made = place / "ours", [], []

    def prepare() -> None:
        opened.append(layerstore.Store(measure.fresh(root), driver=driver, options=NO_SYNC))
        made.append(opened[0].register(layer.path))

    def run() -> None:
        assert len(made.pop().release()) == 1

    def clean() -> None:
        made.clear()
        while opened:
            opened.pop().close()
        measure.wipe(root)

    return Case(called(driver), run, prepare, clean, inside=True)


def on_remove(layer: Layer, place: Path, _docker: object, runs: int) -> list[Figure]:
    into = place / "into"

    def unpack() -> None:
        measure.run(*baselines.tar_extract(layer.path, measure.fresh(into)))

    plain = Case("rm -r of the same files", lambda: measure.run("rm", "-r", into), unpack, lambda: measure.wipe(into))
    return measure.interleaved([*(remove(layer, place, driver) for driver in DRIVERS), plain], runs)


def mounting(store: Any, on: Any, who: str) -> Case:
    """A writable layer is mounted and unmounted, again and again: nothing else is mounted of its layers."""

    def run() -> None:
        for _ in range(MOUNTS):
            box.mount()
            box.unmount()

    box = store.create_rw_layer(who, on)
    return Case(who, run, inside=True)


def on_mount(layer: Layer, place: Path, _docker: object, runs: int) -> list[Figure]:
    with contextlib.ExitStack() as stack:
        cases = []
        for driver in DRIVERS:
            store, top = stack.enter_context(stored(layer, place, driver))
            cases.append(mounting(store, top, called(driver)))
            for number in range(DEPTH - 1):
                top = store.register(tarkit.file(f"f{number}") + tarkit.end(), top)
            cases.append(mounting(store, top, called(driver, f"on {DEPTH} layers")))
        return measure.interleaved(cases, runs)


def dropped() -> None:
    """Let no file of a disk be in memory."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def on_cold_read(layer: Layer, _place: Path, _docker: object, runs: int) -> list[Figure]:
    """Every file through a mount, from the disk that the corpus lies on; none where that is a tmpfs or an overlay."""
    if checks.fs_name(str(ROOT)) in ("tmpfs", "ramfs", "overlayfs"):
        return []

    def reading(driver: str) -> Callable[[], None]:
        box = store.create_rw_layer("box", top)
        path = stack.enter_context(box.mounted())
        return lambda: measure.drained(*baselines.tar_create(Path(path)))

    with measure.room(ROOT / "build") as place, contextlib.ExitStack() as stack:
        cases = []
        for driver in DRIVERS:
            store, top = stack.enter_context(stored(layer, place, driver))
            cases.append(Case(called(driver), reading(driver), dropped))
        into = measure.fresh(place / "into")
        measure.run(*baselines.tar_extract(layer.path, into))
        cases.append(Case("tar cf of a plain directory", lambda: measure.drained(*baselines.tar_create(into)), dropped))
        return measure.interleaved(cases, runs)


SECTIONS: dict[str, tuple[str, Callable[..., list[Figure]]]] = {
    "remove": ("a layer is released: its files go", on_remove),
    "mount": (f"a writable layer is mounted and unmounted, {MOUNTS} times", on_mount),
    "cold read": ("every file through a mount, none of them in memory, from a disk", on_cold_read),
}
