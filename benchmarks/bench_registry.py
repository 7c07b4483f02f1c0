"""Pull and push, beside docker, containerd, podman and skopeo: a docker-registry of the loopback, stores on a tmpfs.

    python -m benchmarks.bench_registry [--quick] [--only pull push] [--no-docker] [--save]

In: five layers of layers.py, gzip, as an image; its first three as another; 100 layers of 1 KB. Out: two tables; --save
writes them into README.md beside this file. Needs root. check_ratios.py takes its ratios from here.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import hashlib
import http.client
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import disk
import tarkit
from realregistry import Registry

from benchmarks import ROOT, baselines, layers, measure, peers, registries, report
from benchmarks.measure import Case, Figure
from layerstore import Images, Store
from layerstore._core._pack import Packer

README = ROOT / "benchmarks" / "README.md"
BEGIN, END = "<!-- registries: begin -->", "<!-- registries: end -->"
FIVE = ("debian-base", "build-layer", "pip-layer", "node-layer", "whiteout-layer")
SIDE_BY_SIDE = 3
RATIOS = {"pull", "pull_memory", "pull_again", "push", "push_again"}
WITH_REGISTRIES = ("docker-registry", "docker", "containerd", "podman", "skopeo")
NO_SYNC = {"durability": "none"}

Blob = tuple[Path, str]


# ---- images -----------------------------------------------------------------------------------------
def five(names: Sequence[str] = FIVE) -> list[Blob]:
    """Return the blobs of the layers, gzip -6, each with its DiffID."""
    made = layers.make(names)
    for layer in made:
        layers.compress(layer)
    layers.warm(made)
    return [(layer.packed(".gz"), baselines.hashlib_sha256(layer.path)) for layer in made]


def small(place: Path, count: int = 100) -> list[Blob]:
    """Return the blobs of layers of about a KB."""
    made = []
    for number in range(count):
        tar = tarkit.file(f"file-{number}", os.urandom(700)) + tarkit.end()
        path = place / f"small-{number}.tar.gz"
        path.write_bytes(gzip.compress(tar))
        made.append((path, "sha256:" + hashlib.sha256(tar).hexdigest()))
    return made


def alike(tar: Path, place: Path, count: int) -> list[Blob]:
    """Return blobs of one tar with another file at the end of each: as many layers of the same work."""
    content = tar.read_bytes().rstrip(b"\0")
    content += bytes(-len(content) % 512)
    packer = Packer("gzip")
    packed = packer.compress(content) + packer.flush()
    made = []
    for number in range(count):
        rest = tarkit.file(f"mark-{number}", b"%d" % number) + tarkit.end()
        path = place / f"alike-{number}.tar.gz"
        path.write_bytes(packed + gzip.compress(rest))
        made.append((path, "sha256:" + hashlib.sha256(content + rest).hexdigest()))
    return made


# ---- ours -------------------------------------------------------------------------------------------
class Ours:
    """A store of ours that is fresh for each run, or one that stays."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._opened: list[Store] = []

    def open(self) -> None:
        self._opened.append(Store(measure.fresh(self.root), options=NO_SYNC))

    def close(self) -> None:
        while self._opened:
            self._opened.pop().close()
        measure.wipe(self.root)

    @property
    def store(self) -> Store:
        return self._opened[-1]

    @contextlib.contextmanager
    def holding(self, reference: str) -> Iterator[Images]:
        """Hold an image that was pulled."""
        self.open()
        images = Images(self.store)
        images.pull(reference)
        try:
            yield images
        finally:
            self.close()

    def pulls(self, reference: str) -> Case:
        return Case("layerstore", lambda: Images(self.store).pull(reference), self.open, self.close, inside=True)

    def pulls_in_own_process(self, reference: str) -> Case:
        words = ["-m", "benchmarks.pulled", reference, self.root]
        return Case("layerstore, own process", lambda: measure.run(sys.executable, *words),
                    lambda: measure.fresh(self.root), lambda: measure.wipe(self.root))  # fmt: skip

    def registers(self, blobs: Sequence[Blob], who: str = "register() of the same files, side by side") -> Case:
        """What a pull does to each layer, without a network, a digest of the blob, and an image."""

        def run() -> None:
            with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
                made = pool.map(self.store.register, [path for path, _ in blobs])
            assert [layer.diff_id for layer in made] == [diff_id for _, diff_id in blobs]

        return Case(who, run, self.open, self.close, inside=True)


def memory(reference: str, root: Path) -> float:
    """Return the most memory that a process has that pulls and does nothing else, in MB."""
    words = [sys.executable, "-m", "benchmarks.pulled", reference, str(measure.fresh(root))]
    try:
        return float(subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
    finally:
        measure.wipe(root)


# ---- the tables -------------------------------------------------------------------------------------
class Ground(NamedTuple):
    """A place on a tmpfs, a registry with images, and peers."""

    place: Path
    registry: Registry
    peers: list[registries.Peer]
    blobs: list[Blob]
    runs: int


def add(rows: dict[str, dict[str, Any]], column: str, figures: Sequence[Figure]) -> None:
    """Put figures into a column of a table."""
    for figure in figures:
        if figure.error:
            cell: dict[str, Any] = {"error": figure.error}
        else:
            names = ("seconds", "cpu_seconds", "peak_mb", "disturbed")
            cell = {name: getattr(figure, name) for name in names}
        rows.setdefault(figure.who, {})[column] = cell


def pull_table(ground: Ground) -> tuple[str, list[str], dict[str, dict[str, Any]]]:
    ours, rows = Ours(ground.place / "ours"), {}
    image = registries.publish(ground.registry, "five", ground.blobs)
    many = registries.publish(ground.registry, "small", small(ground.place))
    cases = [ours.pulls(image), ours.pulls_in_own_process(image), ours.registers(ground.blobs)]
    add(rows, "five layers", measure.interleaved([*cases, *(peer.pulls(image) for peer in ground.peers)], ground.runs))
    with ours.holding(image) as images:
        again = Case("layerstore", lambda: images.pull(image), inside=True)
        add(rows, "again", measure.interleaved([again], ground.runs))
    for peer in ground.peers:  # one after the other: all of them together would take much memory
        peer.pull(image)
        add(rows, "again", measure.interleaved([peer.pulls_again(image)], ground.runs))
        peer.forget(image)
    cases = [ours.pulls(many), *(peer.pulls(many) for peer in ground.peers)]
    add(rows, "100 layers of 1 KB", measure.interleaved(cases, ground.runs))
    size = sum(path.stat().st_size for path, _ in ground.blobs) / 1e6
    most = memory(image, ground.place / "child")
    said = f"five layers, {size:.0f} MB of gzip; VmHWM of a process of ours that pulls them: {most:.0f} MB"
    return f"pull: {said}", ["five layers", "again", "100 layers of 1 KB"], rows


def push_table(ground: Ground) -> tuple[str, list[str], dict[str, dict[str, Any]]]:
    """To an empty registry; then to one that has all."""
    ours, rows = Ours(ground.place / "ours"), {}
    image = registries.publish(ground.registry, "three", ground.blobs[:3])
    target, full = registries.Target(ground.place / "target"), registries.Target(ground.place / "full")
    pushing = [peer for peer in ground.peers if isinstance(peer, registries.Pusher)]
    for peer in pushing:
        peer.pull(image)
    with ours.holding(image) as images:

        def pushes(who: str, compression: str | None) -> Case:
            def run() -> None:
                images.push(image, target.reference, compression=compression, force_compression=True)

            return Case(who, run, target.start, target.stop, inside=True)

        def saved(who: str, compression: str | None) -> Case:
            def run() -> None:
                with open(os.devnull, "wb") as sink:
                    images.save([image], sink, format="oci", compression=compression)

            return Case(who, run, inside=True)

        kinds = {"layerstore, gzip": "gzip", "layerstore, zstd": "zstd", "layerstore, not compressed": None}
        cases = [pushes(who, compression) for who, compression in kinds.items()]
        cases.append(saved("save() to /dev/null, gzip", "gzip"))
        cases += [peer.pushes(image, target) for peer in pushing]
        add(rows, "three layers", measure.interleaved(cases, ground.runs))
        full.start()
        try:
            images.push(image, full.reference)
            again = Case("layerstore, gzip", lambda: images.push(image, full.reference), inside=True)
            for peer in pushing:
                peer.push(image, full.reference)
            others = [peer.pushes_again(image, full.reference) for peer in pushing]
            add(rows, "again", measure.interleaved([again, *others], ground.runs))
        finally:
            full.stop()
    plain = sum(path.with_suffix("").stat().st_size for path, _ in ground.blobs[:3]) / 1e6
    return f"push: three layers, {plain:.0f} MB of tars", ["three layers", "again"], rows


TABLES = {"pull": pull_table, "push": push_table}


@contextlib.contextmanager
def started(place: Path, blobs: list[Blob], runs: int, *, docker: bool) -> Iterator[Ground]:
    """Start a registry, and the peers that are installed."""
    with contextlib.ExitStack() as stack:
        registry = stack.enter_context(Registry(place / "registry"))
        daemon = stack.enter_context(peers.Docker.started(place, network=True)) if docker else None
        yield Ground(place, registry, registries.found(place, daemon), blobs, runs)


# ---- ratios -----------------------------------------------------------------------------------------
def ratios(tar: Path, runs: int) -> dict[str, float]:
    """Return what check_ratios.py holds, of three layers alike: the shortest of `runs` runs over that of a baseline."""
    with measure.room() as place:
        blobs = alike(tar, place, SIDE_BY_SIDE)
        with started(place, blobs, runs, docker=False) as ground:
            return dict(_ratios(ground))


def _ratios(ground: Ground) -> Iterator[tuple[str, float]]:
    ours, place = Ours(ground.place / "ours"), ground.place
    image = registries.publish(ground.registry, "alike", ground.blobs)
    little = registries.publish(ground.registry, "little", small(place, SIDE_BY_SIDE))
    target, full = registries.Target(place / "target"), registries.Target(place / "full")

    def shortest(*cases: Case) -> list[float]:
        figures = measure.interleaved(cases, ground.runs, tell=False)
        if failed := [figure.error for figure in figures if figure.error]:
            sys.exit(f"check_ratios: {failed}")
        return [min(run.seconds for run in figure.runs) for figure in figures]

    def several(job: Callable[[], Any]) -> Callable[[], None]:
        return lambda: [job() for _ in range(10)] and None

    pull, register = shortest(ours.pulls(image), ours.registers(ground.blobs))
    yield "pull", pull / register
    yield "pull_memory", memory(image, place / "child") / memory(little, place / "child")
    with ours.holding(image) as images, contextlib.closing(http.client.HTTPConnection(ground.registry.host)) as bare:

        def ask(method: str, path: str) -> None:
            bare.request(method, path)
            bare.getresponse().read()

        def save() -> None:
            with open(os.devnull, "wb") as sink:
                images.save([image], sink, format="oci", compression="gzip")

        again, get = shortest(
            Case("", several(lambda: images.pull(image))),
            Case("", several(lambda: ask("GET", "/v2/alike/manifests/1"))),
        )
        yield "pull_again", again / get
        push, saved = shortest(
            Case("", lambda: images.push(image, target.reference, force_compression=True), target.start, target.stop),
            Case("", save),
        )  # fmt: skip
        yield "push", push / saved
        full.start()
        try:
            images.push(image, full.reference)
            again, get = shortest(
                Case("", several(lambda: images.push(image, full.reference))),
                Case("", several(lambda: ask("HEAD", "/v2/alike/manifests/1"))),
            )
            yield "push_again", again / get
        finally:
            full.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="medians of 3 instead of 5")
    parser.add_argument("--only", nargs="*", choices=[*TABLES], default=[*TABLES])
    parser.add_argument("--no-docker", action="store_true", help="leave dockerd and containerd out")
    parser.add_argument("--save", action="store_true", help="write the tables into benchmarks/README.md")
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("stores, overlay mounts and dockerd need root")
    if not peers.has("docker-registry"):
        print("no docker-registry on this machine: pull and push are not measured", file=sys.stderr)
        return
    disk.leave_mount_namespace()
    runs = 3 if options.quick else 5
    about = [f"- {name}: {text}" for name, text in measure.machine().items()]
    versions = {name: version for name, version in peers.versions().items() if name in WITH_REGISTRIES}
    about.append("- peers: " + ", ".join(f"{name} {version}" for name, version in versions.items()))
    lines = [f"Medians of {runs} runs in turn. A cell: seconds of wall / CPU seconds of all processes but the "
             "registry / peak MB of all processes that are not this one. `!` other programs, with the registry, "
             "took more than a fifth of a core meanwhile.", "", *about]  # fmt: skip
    blobs = five()
    with measure.room() as place, started(place, blobs, runs, docker=not options.no_docker) as ground:
        for name in options.only:
            title, columns, rows = TABLES[name](ground)
            lines += ["", f"### {title}", "", *report.table({"rows": rows}, columns)]
    print("\n".join(lines))
    if options.save:
        head, rest = README.read_text().split(BEGIN, 1)
        text = "\n".join(lines)
        README.write_text(f"{head}{BEGIN}\n\n{text}\n\n{END}{rest.split(END, 1)[1]}")


if __name__ == "__main__":
    main()
