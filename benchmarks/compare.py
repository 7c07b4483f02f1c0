"""layerstore beside every peer that is installed here: one run, cases in turn, medians; a table and a picture.

    python -m benchmarks.compare [--quick] [--layers NAME,NAME] [--only TITLE] [--no-docker]

In: the layers of benchmarks/layers.py. Out: benchmarks/results/compare.json, .md and .svg, and the table in
benchmarks/README.md. --only gives one section, and then README.md stays as it is. Needs root.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import dockerd

import layerstore
from benchmarks import baselines, costs, layers, measure, ours, peers, report, stages
from benchmarks.layers import Layer
from benchmarks.measure import Case, Figure
from benchmarks.ours import register, stored

LAYERS = ("debian-base", "node-layer", "big-layer", "many-tiny")
CHANGED = ("debian-base", "node-layer")
# What takes longest is left out where it says nothing new: the whole has to end in a quarter of an hour.
LEFT_OUT = {
    "node-layer": {"umoci raw unpack", "docker load, gzip", "containers-storage, gzip"},
    "big-layer": {"umoci raw unpack", "containers-storage", "containers-storage diff", "containerd (ctr import)"},
    "many-tiny": {
        "umoci raw unpack", "containers-storage", "containers-storage diff", "containerd (ctr import)",
        "tarfile + hashlib (no record)", "libarchive-c (no hash, no record)", "tar-split asm", "tar-split disasm",
    },
}  # fmt: skip


def wanted(cases: list[Case], layer: Layer) -> list[Case]:
    left_out = LEFT_OUT.get(layer.name.removeprefix("like_"), set())
    return [case for case in cases if case.who not in left_out]


# ---- ours ---------------------------------------------------------------------------------------------
def own_process(layer: Layer, place: Path) -> Case:
    root = place / "own"
    return Case("layerstore, own process", lambda: measure.run(*baselines.job("layerstore", layer.path, root)),
                lambda: measure.fresh(root), lambda: measure.wipe(root))  # fmt: skip


# ---- sections: each gives the figures of one layer -------------------------------------------------------
def unpacking(who: str, words: Callable[[Path, Path], list[Any]], layer: Layer, place: Path) -> Case:
    into = place / "into"
    return Case(
        who, lambda: measure.run(*words(layer.path, into)), lambda: measure.fresh(into), lambda: measure.wipe(into)
    )


@contextlib.contextmanager
def inputs(place: Path) -> Iterator[Path]:
    """Where images made around a layer lie while they are loaded."""
    yield measure.fresh(place / "inputs")
    measure.wipe(place / "inputs")


def on_register(layer: Layer, place: Path, docker: peers.Docker | None, runs: int) -> list[Figure]:
    cases = [
        *(register(layer, place, driver=driver) for driver in ours.DRIVERS),
        register(layer, place, durability="full"),
        own_process(layer, place),
        Case("openssl sha256 (hash only)", lambda: measure.run(*baselines.openssl_sha256(layer.path))),
        unpacking("tar xf (no hash, no record)", baselines.tar_extract, layer, place),
    ]
    if peers.has("bsdtar"):
        cases.append(unpacking("bsdtar xf (no hash, no record)", baselines.bsdtar_extract, layer, place))
    for who, name in (
        ("libarchive-c (no hash, no record)", "libarchive"),
        ("tarfile + hashlib (no record)", "tarfile"),
    ):
        cases.append(unpacking(who, lambda tar, into, name=name: baselines.job(name, tar, into), layer, place))
    with inputs(place) as made:
        if docker:
            archive = peers.docker_archive(layer, made / "image.tar")
            cases.append(docker.load(archive))
            if peers.has("ctr"):
                cases.append(docker.ctr_import(archive))
        if peers.has("containers-storage"):
            cases.append(peers.ContainersStorage(place).register(layer.path))
        if peers.has("umoci"):
            cases.append(peers.umoci_unpack(peers.oci_layout(layer, made / "oci"), place))
        return measure.interleaved(wanted(cases, layer), runs)


def on_packed(layer: Layer, place: Path, docker: peers.Docker | None, runs: int) -> list[Figure]:
    gz = layer.packed(".gz")
    if not gz.exists():
        return []
    cases = [
        *(register(layer, place, driver=driver, packed=".gz") for driver in ours.DRIVERS),
        Case("gzip -dc (inflate only)", lambda: measure.drained("gzip", "-dc", gz)),
    ]
    if peers.has("pigz"):
        cases.append(Case("pigz -dc (inflate only)", lambda: measure.drained("pigz", "-dc", gz)))
    with inputs(place) as made:
        if docker:
            cases.append(
                docker.load(peers.docker_archive(layer, made / "image.tar", packed=".gz"), "docker load, gzip")
            )
        if peers.has("containers-storage"):
            cases.append(peers.ContainersStorage(place).register(gz, "containers-storage, gzip"))
        return measure.interleaved(wanted(cases, layer), runs)


def on_stream(layer: Layer, place: Path, docker: peers.Docker | None, runs: int) -> list[Figure]:
    """Every tar goes through a pipe to cat."""
    with contextlib.ExitStack() as stack:
        kept = {driver: stack.enter_context(stored(layer, place, driver))[1] for driver in ours.DRIVERS}
        tree = kept[ours.DEFAULT].metadata()["UpperDir"]

        def out(layer_of_ours: Any) -> None:
            with layer_of_ours.tar_stream() as stream, measure.drain() as pipe:
                assert stream.copy_to(pipe) == layer.size_bytes

        cases = [
            *(Case(ours.called(driver), partial(out, made), inside=True) for driver, made in kept.items()),
            Case("openssl sha256 (hash only)", lambda: measure.run(*baselines.openssl_sha256(layer.path))),
            Case("tar cf (another tar, no hash)", lambda: measure.drained(*baselines.tar_create(tree))),
        ]
        left_out = LEFT_OUT.get(layer.name, set())
        if docker:
            archive = peers.docker_archive(layer, place / "image.tar")
            docker.run("load", "-q", "-i", archive)
            archive.unlink()
            stack.callback(docker.remove_image)
            cases.append(docker.save())
        if peers.has("containers-storage") and "containers-storage diff" not in left_out:
            storage = peers.ContainersStorage(place)
            storage.fill(layer.path)
            stack.callback(storage.wipe)
            cases.append(storage.diff())
        if peers.has("tar-split") and "tar-split asm" not in left_out:
            record = place / "tar-split.json.gz"
            peers.tar_split_disasm(layer.path, record).run()
            stack.callback(record.unlink)
            cases.append(peers.tar_split_asm(record, tree))
        return measure.interleaved(cases, runs)


def on_record(layer: Layer, place: Path, docker: peers.Docker | None, runs: int) -> list[Figure]:
    """The record and the DiffID alone, no files."""

    def record() -> None:
        with open(place / "record.json", "wb") as out:
            layerstore.disassemble(layer.path, out)

    cases = [
        Case("layerstore (record and DiffID)", record, inside=True),
        Case("openssl sha256 (hash only)", lambda: measure.run(*baselines.openssl_sha256(layer.path))),
    ]
    if peers.has("tar-split"):
        cases.append(peers.tar_split_disasm(layer.path, place / "record.json.gz"))
    return measure.interleaved(wanted(cases, layer), runs)


def on_changes(layer: Layer, place: Path, docker: peers.Docker | None, runs: int) -> list[Figure]:
    """What a writable layer changed, after the same edits in each store."""
    if layer.name.removeprefix("like_") not in CHANGED:
        return []
    with contextlib.ExitStack() as stack:
        store, stands = stack.enter_context(stored(layer, place))
        rw, idle = (store.create_rw_layer(name, stands.chain_id) for name in ("edited", "idle"))
        below = Path(stands.metadata()["UpperDir"])
        with rw.mounted() as merged:
            edits = peers.edit(Path(merged), below)
        upper = Path(rw.metadata()["UpperDir"])
        cases = [
            Case("layerstore", lambda: len(rw.changes()), inside=True),
            Case("layerstore, nothing changed", lambda: len(idle.changes()), inside=True),
            Case("os.walk over the upper directory", lambda: baselines.walk(upper), inside=True),
        ]
        if docker:
            archive = peers.docker_archive(layer, place / "image.tar")
            docker.run("load", "-q", "-i", archive)
            archive.unlink()
            stack.callback(docker.remove_image)
            names = []
            for _ in range(2):
                names.append(docker.daemon.create(f"{peers.NAME}:1"))
                stack.callback(docker.run, "rm", "-f", names[-1])
            with dockerd.container_tree(docker.daemon, names[0], place / "merged") as tree:
                peers.edit(tree, below)
            cases.append(docker.case("docker diff", "diff", names[0], lines=True))
            cases.append(docker.case("docker diff, nothing changed", "diff", names[1], lines=True))
        if peers.has("containers-storage"):
            storage = peers.ContainersStorage(place)
            storage.fill(layer.path)
            stack.callback(storage.wipe)
            peers.edit(storage.mounted(), below)
            cases.append(storage.changes())
        figures = measure.interleaved(cases, runs)
        for figure in figures:
            if isinstance(figure.result, int):
                figure.note = f"{figure.result} paths"
        print(f"    {edits} edits; " + ", ".join(f"{f.who}: {f.note}" for f in figures), file=sys.stderr)
        return figures


def on_stages(layer: Layer, place: Path, docker: peers.Docker | None, runs: int) -> list[Figure]:
    """Each of the core's stages alone in one thread, and register, which runs them side by side."""
    return measure.interleaved([register(layer, place), *stages.cases(layer.path, place / "stage")], runs)


SECTIONS: dict[str, tuple[str, Callable[..., list[Figure]]]] = {
    "register": ("a layer tar comes in: files, DiffID, tar-split record", on_register),
    "register gzip": ("the same from a .tar.gz", on_packed),
    "out again": ("the same tar again, through a pipe", on_stream),
    "record": ("the tar-split record and the DiffID, no files", on_record),
    "changes": ("what a writable layer changed, up to 10,000 edits", on_changes),
    **ours.SECTIONS,
    "stages": ("register beside its stages, each alone in one thread", on_stages),
}


def cells(figure: Figure, layer: Layer) -> dict[str, Any]:
    if figure.error:
        return {"error": figure.error.splitlines()[0][:200]}
    low, high = figure.spread
    return {
        "seconds": figure.seconds, "low": low, "high": high, "cpu_seconds": figure.cpu_seconds,
        "runs": len(figure.runs), "peak_mb": figure.peak_mb, "disturbed": figure.disturbed,
        "mb_per_s": layer.megabytes / figure.seconds, "note": figure.note,
    }  # fmt: skip


def section(title: str, chosen: list[Layer], place: Path, docker: peers.Docker | None, runs: int) -> dict[str, Any]:
    sentence, measured = SECTIONS[title]
    rows: dict[str, dict[str, Any]] = {}
    for layer in chosen:
        print(f"{title}: {layer.name}", file=sys.stderr, flush=True)
        for figure in measured(layer, place, docker, runs):
            rows.setdefault(figure.who, {})[layer.name] = cells(figure, layer)
    return {"title": title, "sentence": sentence, "rows": rows}


def side_costs(chosen: list[Layer], runs: int) -> dict[str, Any]:
    """Memory, each layer; what a spinning thread does, on the first."""
    print("memory and threads", file=sys.stderr, flush=True)
    memory = {layer.name: costs.in_fresh_process("memory", layer.path) for layer in chosen}
    return {"memory": memory, "threads": {chosen[0].name: costs.in_fresh_process("threads", chosen[0].path, runs)}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="medians of 3 instead of 5")
    parser.add_argument("--layers", default=",".join(LAYERS), help="names with commas between, or small, usual, full")
    parser.add_argument("--only", choices=[*SECTIONS, "costs"], help="one section")
    parser.add_argument("--no-docker", action="store_true", help="leave dockerd and containerd out")
    parser.add_argument("--results", type=Path, default=report.RESULTS, help="where the table and the picture go")
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("stores, overlay mounts and dockerd need root")
    names = [name for what in options.layers.split(",") for name in layers.SETS.get(what, (what,))]
    chosen = layers.make(names)
    layers.warm(chosen)
    runs, began = 3 if options.quick else 5, time.monotonic()
    stages.ready()
    found: dict[str, Any] = {"machine": measure.machine(), "versions": peers.versions(), "runs": runs, "sections": []}
    found["layers"] = {layer.name: [layer.megabytes, layer.entries, layer.made_from] for layer in chosen}
    with measure.room() as place:
        with contextlib.nullcontext() if options.no_docker else peers.Docker.started(place) as docker:
            found["file system"] = "tmpfs"
            for title in SECTIONS:
                if options.only in (None, title):
                    found["sections"].append(section(title, chosen, place, docker, runs))
    if options.only in (None, "costs"):
        found["costs"] = side_costs(chosen, runs)
    minutes = (time.monotonic() - began) / 60
    found["minutes"] = round(minutes, 1)
    report.write(found, options.results, readme=options.only is None and options.results == report.RESULTS)
    print(f"{minutes:.1f} minutes; the table is in {os.path.relpath(options.results)}", file=sys.stderr)


if __name__ == "__main__":
    main()
