"""Fail when something has become slow: ratios to baselines measured in the same run, against bounds.toml.

    python -m benchmarks.check_ratios [--runs N]

Never absolute times: the baselines run on the same machine in the same minute, in turn with ours. Machines are noisy
all the same, so the whole is measured a second time before it fails. In: the small layer of benchmarks/layers.py,
made if it is not there; for sandboxes what bench_sandbox.py writes; for pull and push a docker-registry. Out: a line a
ratio; exit status 1 when one is beyond its bound both times. Needs root.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import disk

import layerstore
from benchmarks import ROOT, baselines, bench_registry, bench_sandbox, layers, measure, ours, peers
from benchmarks.layers import Layer
from benchmarks.measure import Case
from benchmarks.ours import register, stored
from layerstore.disk.locks import OpenDirectory
from layerstore.drivers.overlay2 import adopted
from layerstore.limits import Limits

BOUNDS = ROOT / "benchmarks" / "bounds.toml"
RUNS = 7
IMAGES = "erofs"


def measured(layer: Layer, runs: int) -> dict[str, float]:
    """Each job's time over its baseline's: the ratio of medians."""
    with measure.room() as place:
        into = place / "into"
        with stored(layer, place) as (store, below), stored(layer, place, IMAGES) as (images, image):
            rw = store.create_rw_layer("edited", below.chain_id)
            with rw.mounted() as merged:
                peers.edit(Path(merged), Path(below.metadata()["UpperDir"]))
            upper = Path(rw.metadata()["UpperDir"])

            def out(made: layerstore.Layer = below) -> None:
                with made.tar_stream() as stream, open(os.devnull, "wb") as sink:
                    assert stream.copy_to(sink) == layer.size_bytes

            def record() -> None:
                with open(place / "record.json", "wb") as sink:
                    layerstore.disassemble(layer.path, sink)

            def adopt() -> None:
                with OpenDirectory(below.metadata()["UpperDir"]) as root, open(place / "adopted.gz", "w+b") as sink:
                    adopted.record(root, sink.fileno(), userxattr=False, limits=Limits())

            def several(job: Callable[[], Any]) -> Callable[[], None]:
                return lambda: [job() for _ in range(5)] and None

            openssl = baselines.openssl_sha256(layer.path)
            cases = {
                "register": register(layer, place),
                "tar xf": Case("", lambda: measure.run(*baselines.tar_extract(layer.path, into)),
                               lambda: measure.fresh(into), lambda: measure.wipe(into)),
                "tar_stream": Case("", out),
                "openssl": Case("", lambda: measure.run(*openssl)),
                "disassemble": Case("", record),
                "adopt": Case("", adopt),
                "changes": Case("", several(rw.changes)),
                "os.walk": Case("", several(lambda: baselines.walk(upper))),
                "register_image": register(layer, place, driver=IMAGES),
                "tar_stream_image": Case("", lambda: out(image)),
                "remove": ours.remove(layer, place, ours.DEFAULT),
                "remove_image": ours.remove(layer, place, IMAGES),
                "mount": ours.mounting(store, below, "mounted"),
                "mount_image": ours.mounting(images, image, "mounted"),
            }  # fmt: skip
            figures = dict(zip(cases, measure.interleaved(list(cases.values()), runs, tell=False), strict=True))
    failed = {name: figure.error for name, figure in figures.items() if figure.error}
    if failed:
        sys.exit(f"check_ratios: {failed}")
    pairs = {
        "register": "tar xf", "tar_stream": "openssl", "disassemble": "openssl", "adopt": "openssl",
        "changes": "os.walk", "register_image": "openssl", "tar_stream_image": "openssl", "remove_image": "remove",
        "mount_image": "mount",
    }  # fmt: skip
    return {
        job: statistics.median(run.seconds for run in figures[job].runs) / figures[base].seconds
        for job, base in pairs.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=RUNS, help=f"of which the medians are taken ({RUNS})")
    runs = parser.parse_args().runs
    if os.geteuid() != 0:
        parser.error("stores and overlay mounts need root")
    disk.leave_mount_namespace()
    bounds = tomllib.loads(BOUNDS.read_text())
    if not peers.has("docker-registry"):
        lacking = "no docker-registry on this machine: pull and push are not measured"
        if os.environ.get("CI"):
            sys.exit(f"check_ratios: {lacking}")
        print(f"check_ratios: {lacking}")
        bounds = {name: known for name, known in bounds.items() if name not in bench_registry.RATIOS}
    (layer,) = layers.make(layers.SETS["small"])
    layers.warm([layer])
    print(f"check_ratios: {layer.name}, {layer.megabytes:.0f} MB, {layer.entries} entries, medians of {runs}")
    beyond = set(bounds)
    for attempt in range(2):
        ratios = measured(layer, runs) | bench_sandbox.ratios(runs)
        if beyond & bench_registry.RATIOS:
            ratios |= bench_registry.ratios(layer.path, runs)
        for name in sorted(beyond):
            known = bounds[name]
            mark = "" if ratios[name] <= known["bound"] else "  BEYOND"
            print(f"  {name:14s} {ratios[name]:5.2f} times {known['over']}; bound {known['bound']:.1f}{mark}")
        beyond = {name for name in beyond if ratios[name] > bounds[name]["bound"]}
        if not beyond:
            return
        if attempt == 0:
            print("  once more, for machines are noisy", flush=True)
    sys.exit(f"check_ratios: slower than its bound, twice: {', '.join(sorted(beyond))}")


if __name__ == "__main__":
    main()
