"""The layers that are measured: real files, packed by GNU tar, made once into build/corpus/.

    python -m benchmarks.layers [small|usual|full] [NAME ...]

In: Debian's packages (apt-get download, unpacked by dpkg-deb; nothing is installed), wheels (pip download), a
node_modules (npm). Out: NAME.tar, for some NAME.tar.gz and NAME.tar.zst, and layers.json, which says what is in them.
What cannot be fetched is replaced by a layer made from a seed, under the name like_NAME: its figures are not those of
the real layer, and every table shows the name.
LAYERSTORE_CORPUS=DIR keeps the layers elsewhere. A layer that is there is not made again.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import os
import random
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import tarkit

from benchmarks import ROOT

CORPUS = Path(os.environ.get("LAYERSTORE_CORPUS") or ROOT / "build" / "corpus").resolve()

SMALL_PACKAGES = ("bash", "coreutils", "perl", "python3", "tzdata")
# What every Debian image holds; apt's solver adds what they need.
BASE_PACKAGES = (
    "apt", "base-files", "base-passwd", "bash", "coreutils", "debconf", "debian-archive-keyring", "debianutils",
    "diffutils", "dpkg", "findutils", "grep", "gzip", "hostname", "libc-bin", "login", "mawk", "mount", "ncurses-base",
    "ncurses-bin", "passwd", "perl-base", "sed", "tar", "tzdata", "util-linux",
)  # fmt: skip
BUILD_PACKAGES = ("build-essential", "curl", "git", "perl", "python3", "python3-dev")
WHEELS = ("numpy", "scipy", "pandas", "scikit-learn", "matplotlib", "pyarrow")
NODE_PACKAGES = (
    "typescript", "webpack", "webpack-cli", "react", "react-dom", "eslint", "next", "@babel/core", "@babel/preset-env",
    "@babel/preset-react", "jest", "lodash", "lodash-es", "date-fns", "rxjs", "antd", "@mui/material", "vue", "vite",
    "core-js", "moment",
)  # fmt: skip

SETS = {
    "small": ("few-debs",),
    "usual": ("debian-base", "node-layer"),
    "full": ("debian-base", "build-layer", "pip-layer", "node-layer", "many-tiny", "big-layer", "whiteout-layer"),
}
COMPRESSED = ("debian-base", "node-layer")
MADE_FROM = {
    "few-debs": "bash, coreutils, perl, python3, tzdata and what they need, from Debian; GNU tar, sorted",
    "debian-base": "the packages of a minimal Debian, unpacked and not configured; GNU tar, sorted",
    "build-layer": "what build-essential, git, curl, perl and python3-dev add to it; PAX headers where needed",
    "pip-layer": "numpy, scipy, pandas, scikit-learn, matplotlib, pyarrow from their wheels; a PAX header an entry",
    "node-layer": "a node_modules (typescript, next, webpack, antd ...); PAX headers where needed",
    "many-tiny": "100,000 files of 0-200 bytes of real text in 1,000 directories, placed from a seed; ustar",
    "big-layer": "3 files: packages, wheels and shared objects, joined; GNU tar",
    "whiteout-layer": "whiteouts, opaque directories, hard links, odd names, an xattr, devices; byte by byte",
}


class Layer(NamedTuple):
    """One layer tar on disk. name begins with like_ where it was made from a seed."""

    name: str
    path: Path
    size_bytes: int
    entries: int
    made_from: str

    @property
    def megabytes(self) -> float:
        """Of 10**6 bytes."""
        return self.size_bytes / 1e6

    def packed(self, suffix: str) -> Path:
        """NAME.tar.gz or .zst."""
        return self.path.with_name(self.path.name + suffix)


class CannotFetchError(Exception):
    """A package cannot be had here."""


def say(text: str) -> None:
    print(f"layers: {text}", file=sys.stderr, flush=True)


def run(*command: str | Path, cwd: Path | None = None, stdout: int = subprocess.PIPE, timeout: float = 600) -> None:
    try:
        done = subprocess.run(
            [str(c) for c in command], cwd=cwd, stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE,
            env={**os.environ, "LC_ALL": "C"}, check=False, timeout=timeout,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotFetchError(f"{command[0]}: {error}") from error
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise CannotFetchError(f"{command[0]}: {' '.join(last)}")


def pack(tree: Path, to: Path, *options: str, what: str = ".") -> None:
    """A tree as a tar, by GNU tar, in the order of its names."""
    run("tar", "-C", tree, "--numeric-owner", "--sort=name", *options, "-cf", to, what)


PAX_WHERE_NEEDED = (
    "--format=posix",
    "--pax-option=delete=atime,delete=ctime,delete=mtime,exthdr.name=%d/PaxHeaders/%f",
)


class Kitchen:
    """Trees and packages while layers are made; deleted at the end."""

    def __init__(self, place: Path) -> None:
        """Work below place, an empty directory."""
        self.place = place
        self._debs: dict[tuple[str, ...], list[Path]] = {}

    def room(self, name: str) -> Path:
        path = self.place / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    # ---- fetching ----
    def debs(self, packages: Sequence[str]) -> list[Path]:
        """These packages and all they need, as if nothing were installed yet."""
        key = tuple(packages)
        if key not in self._debs:
            cache, nothing, before = self.room("debs"), self.room("nothing"), self.place / "nothing-installed"
            before.touch()
            for place in (cache, nothing):
                (place / "partial").mkdir(exist_ok=True)

            def get(archives: Path, *more: str) -> list[str]:
                return [
                    "apt-get", "-y", "-q",
                    "-o", f"Dir::State::status={before}", "-o", f"Dir::Cache::archives={archives}",
                    "-o", "Debug::NoLocking=true", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=2",
                    "--no-install-recommends", *more, "install", *packages,
                ]  # fmt: skip

            try:
                run(*get(cache, "--download-only"))
            except CannotFetchError:
                run("apt-get", "-q", "update")
                run(*get(cache, "--download-only"))
            # Where no archive is there yet, apt lists all it would fetch: 'URI' FILE SIZE DIGEST.
            listed = subprocess.run(get(nothing, "--print-uris"), capture_output=True, text=True, check=True).stdout
            names = [line.split("'")[2].split()[0] for line in listed.splitlines() if line.startswith("'")]
            self._debs[key] = sorted(cache / name for name in names)
        return self._debs[key]

    def tree_of(self, name: str, debs: Sequence[Path]) -> Path:
        tree = self.place / name
        if not tree.exists():
            self.room(name)
            for deb in debs:
                with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE) as packed:
                    subprocess.run(
                        ["tar", "-C", tree, "--keep-directory-symlink", "-xpf", "-"], stdin=packed.stdout, check=True
                    )
        return tree

    def wheels(self) -> list[Path]:
        place = self.room("wheels")
        if not any(place.iterdir()):
            run(sys.executable, "-m", "pip", "download", "-q", "--only-binary", ":all:", "-d", place, *WHEELS)
        return sorted(place.glob("*.whl"))

    def wheel_tree(self) -> Path:
        tree = self.place / "pip"
        if not tree.exists():
            packages = self.room("pip/opt/venv/lib/python3/site-packages")
            for wheel in self.wheels():
                with zipfile.ZipFile(wheel) as archive:
                    archive.extractall(packages)
        return tree


# ---- one function a layer: writes the tar, or raises CannotFetchError ---------------------------
def few_debs(kitchen: Kitchen, to: Path) -> None:
    pack(kitchen.tree_of("few", kitchen.debs(SMALL_PACKAGES)), to, "--format=gnu")


def debian_base(kitchen: Kitchen, to: Path) -> None:
    pack(kitchen.tree_of("base", kitchen.debs(BASE_PACKAGES)), to, "--format=gnu")


def build_layer(kitchen: Kitchen, to: Path) -> None:
    below = kitchen.debs(BASE_PACKAGES)
    above = [deb for deb in kitchen.debs(BUILD_PACKAGES) if deb not in below]
    pack(kitchen.tree_of("build", above), to, *PAX_WHERE_NEEDED)


def pip_layer(kitchen: Kitchen, to: Path) -> None:
    pack(kitchen.wheel_tree(), to, "--format=pax", what="opt")


def node_layer(kitchen: Kitchen, to: Path) -> None:
    if not shutil.which("npm"):
        raise CannotFetchError("there is no npm")
    app = kitchen.room("node/app")
    (app / "package.json").write_text('{"name":"app","version":"1.0.0","private":true}\n')
    run("npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--legacy-peer-deps", "--loglevel=error",
        "--cache", kitchen.room("npm-cache"), *NODE_PACKAGES, cwd=app)  # fmt: skip
    pack(kitchen.place / "node", to, *PAX_WHERE_NEEDED, what="app")
    shutil.rmtree(kitchen.place / "npm-cache")


def many_tiny(kitchen: Kitchen, to: Path) -> None:
    drawn = random.Random(1)
    text = _real_text()
    tree = kitchen.room("many")
    for directory in range(1000):
        place = tree / "tiny" / f"{directory // 100:02d}" / f"{directory:03d}"
        place.mkdir(parents=True)
        for number in range(directory * 100, directory * 100 + 100):
            length, at = drawn.randint(0, 200), drawn.randrange(len(text) - 200)
            (place / f"f{number:06d}.txt").write_bytes(text[at : at + length])
    pack(tree, to, "--format=ustar", what="tiny")
    shutil.rmtree(tree)


def big_layer(kitchen: Kitchen, to: Path) -> None:
    data = kitchen.room("big/data")
    debs = [*kitchen.debs(BASE_PACKAGES), *kitchen.debs(BUILD_PACKAGES)]
    trees = [kitchen.tree_of("build", debs), kitchen.wheel_tree()]
    shared = sorted(p for tree in trees for p in tree.rglob("*") if _is_large_binary(p))
    for name, parts in (("debs.bin", debs), ("wheels.bin", kitchen.wheels()), ("binaries.bin", shared)):
        with open(data / name, "wb") as out:
            for part in parts:
                with open(part, "rb") as file:
                    shutil.copyfileobj(file, out, 1 << 20)
    pack(kitchen.place / "big", to, "--format=gnu", what="data")
    shutil.rmtree(kitchen.place / "big")


def whiteout_layer(kitchen: Kitchen, to: Path) -> None:
    t = tarkit
    parts = [
        t.dir("etc/"),
        t.whiteout("etc/gone"),
        t.file("etc/kept", b"kept\n"),
        t.dir("cleared/"),
        t.opaque("cleared/"),
    ]
    parts += [t.file(f"cleared/new{n}", b"x" * n) for n in range(8)]
    parts += [t.whiteout(f"etc/gone{n}") for n in range(5)]
    parts += [
        t.dir("odd/"),
        t.file("odd/ name ", b"blanks"),
        t.file("odd/\u00fcml\u00e4ut", b"utf-8"),
        t.file(b"odd/\xff\xfe", b"raw"),
    ]
    parts += [
        t.with_pax_path("odd/" + "deep/" * 60 + "end", t.file, b"deep"),
        t.with_gnu_path("odd/" + "n" * 200, t.file, b"long"),
    ]
    parts += [
        t.hardlink("odd/again", "etc/kept"),
        t.hardlink("odd/twice", "etc/kept"),
        t.symlink("odd/link", "../etc/kept"),
    ]
    parts += [
        t.xattrs({"user.kind": b"odd"}) + t.file("odd/marked", b"xattr"),
        t.fifo("odd/fifo"),
        t.node("odd/null", "c", 1, 3),
    ]
    to.write_bytes(b"".join(parts) + t.end())


def _is_large_binary(path: Path) -> bool:
    found = path.lstat()
    return (
        stat.S_ISREG(found.st_mode) and found.st_size > 64 << 10 and (".so" in path.name or bool(found.st_mode & 0o111))
    )


def _real_text() -> bytes:
    """Python's own library: text that is on every machine this runs on."""
    sources = sorted(Path(os.__file__).parent.glob("*.py"))
    return b"".join(path.read_bytes() for path in sources)[: 32 << 20]


# ---- from a seed ----------------------------------------------------------------------------------
# name: files, mean bytes, files a directory
SHAPES = {
    "few-debs": (5000, 22_000, 8), "debian-base": (5200, 22_000, 7), "build-layer": (9000, 50_000, 10),
    "pip-layer": (14_000, 45_000, 10), "node-layer": (60_000, 9_700, 13), "big-layer": (3, 300_000_000, 3),
}  # fmt: skip


def from_seed(name: str, to: Path) -> None:
    """A tar of the same shape: as many files, sizes drawn log-normal, half of each file compressible."""
    files, mean, width = SHAPES[name]
    drawn = random.Random(name)
    text, noise = _real_text(), hashlib.shake_256(name.encode()).digest(4 << 20)
    with tarfile.open(to, "w", format=tarfile.GNU_FORMAT) as tar:
        for number in range(files):
            place = f"like/{number // width % 50:02d}/{number // width:05d}"
            if number % width == 0:
                directory = tarfile.TarInfo(place)
                directory.type, directory.mode, directory.mtime = tarfile.DIRTYPE, 0o755, 1_700_000_000
                tar.addfile(directory)
            size = mean if files < 10 else max(0, int(drawn.lognormvariate(0, 1.6) * mean / 3.6))
            member = tarfile.TarInfo(f"{place}/file{number}")
            member.size, member.mode, member.mtime = size, drawn.choice((0o644, 0o644, 0o755)), 1_700_000_000 + number
            tar.addfile(member, _Mixed(size, text, noise, drawn.randrange(len(noise) - 65536)))


class _Mixed:
    """size bytes, 32 KiB of text and 32 KiB of noise in turn."""

    def __init__(self, size: int, text: bytes, noise: bytes, at: int) -> None:
        self.block = text[at % (len(text) - 32768) :][:32768] + noise[at:][:32768]
        self.size, self.position = size, 0

    def read(self, n: int) -> bytes:
        n = min(n, self.size - self.position)
        start = self.position % len(self.block)
        self.position += n
        return (self.block * ((start + n) // len(self.block) + 1))[start : start + n]


# ---- all of it --------------------------------------------------------------------------------------
MAKERS: dict[str, Callable[[Kitchen, Path], None]] = {
    "few-debs": few_debs, "debian-base": debian_base, "build-layer": build_layer, "pip-layer": pip_layer,
    "node-layer": node_layer, "many-tiny": many_tiny, "big-layer": big_layer, "whiteout-layer": whiteout_layer,
}  # fmt: skip


def _facts(path: Path) -> tuple[int, dict[str, int]]:
    kinds: collections.Counter[str] = collections.Counter()
    with tarfile.open(path, "r|", errors="surrogateescape") as tar:
        for member in tar:
            kind = (
                "files"
                if member.isreg()
                else "directories"
                if member.isdir()
                else "links"
                if member.islnk()
                else "others"
            )
            kinds[kind] += 1
            tar.members.clear()
    return sum(kinds.values()), dict(kinds)


def _book() -> dict[str, dict]:
    try:
        return json.loads((CORPUS / "layers.json").read_text())
    except FileNotFoundError:
        return {}


def _note(name: str, facts: dict) -> None:
    book = _book() | {name: facts}
    part = CORPUS / "layers.json.part"
    part.write_text(json.dumps(book, indent=1, sort_keys=True) + "\n")
    part.rename(CORPUS / "layers.json")


def _layer(name: str, book: dict[str, dict]) -> Layer | None:
    for real in (name, "like_" + name):
        path = CORPUS / f"{real}.tar"
        if path.exists():
            if real not in book:
                entries, kinds = _facts(path)
                book[real] = {"entries": entries, **kinds}
                _note(real, book[real])
            origin = MADE_FROM[name] if real == name else "made from a seed in the shape of " + name
            return Layer(real, path, path.stat().st_size, book[real]["entries"], origin)
    return None


def compress(layer: Layer) -> None:
    """NAME.tar.gz by gzip -6 and NAME.tar.zst by zstd -3, as registries hold them."""
    for suffix, command in ((".gz", ["gzip", "-6", "-n", "-c"]), (".zst", ["zstd", "-q", "-3", "-c"])):
        packed = layer.packed(suffix)
        if not packed.exists() and shutil.which(command[0]):
            part = packed.with_name(packed.name + ".part")
            with open(part, "wb") as out, open(layer.path, "rb") as source:
                subprocess.run(command, stdin=source, stdout=out, check=True)
            part.rename(packed)


def make(names: Sequence[str]) -> list[Layer]:
    """Return the layers of these names, and make those that are missing; an interrupt leaves whole files only."""
    CORPUS.mkdir(parents=True, exist_ok=True)
    made = []
    with tempfile.TemporaryDirectory(prefix="layerstore-corpus-", dir=_roomy_place()) as place:
        kitchen = Kitchen(Path(place))
        for name in names:
            layer = _layer(name, _book())
            if layer is None:
                began = time.monotonic()
                _make_one(kitchen, name)
                layer = _layer(name, _book())
                assert layer is not None
                say(
                    f"{layer.name}: {layer.megabytes:.0f} MB, {layer.entries} entries, {time.monotonic() - began:.0f} s"
                )
            if name in COMPRESSED:
                compress(layer)
            made.append(layer)
    return made


def _make_one(kitchen: Kitchen, name: str) -> None:
    part = CORPUS / f"{name}.tar.part"
    try:
        MAKERS[name](kitchen, part)
        part.rename(CORPUS / f"{name}.tar")
    except (CannotFetchError, OSError, subprocess.SubprocessError) as error:
        say(f"{name} cannot be made of real files ({error}); like_{name} is made from a seed instead")
        if name not in SHAPES:
            raise
        from_seed(name, part)
        part.rename(CORPUS / f"like_{name}.tar")
    finally:
        part.unlink(missing_ok=True)


def _roomy_place() -> str | None:
    """Trees of many files are made in memory where there is enough of it."""
    try:
        found = os.statvfs("/dev/shm")
    except OSError:
        return None
    return "/dev/shm" if found.f_bavail * found.f_frsize > 6 << 30 else None


def warm(layers: Sequence[Layer]) -> None:
    """Read them once, so that every measurement finds them in the page cache."""
    for layer in layers:
        for path in (layer.path, layer.packed(".gz"), layer.packed(".zst")):
            if path.exists():
                for _ in _blocks(path):
                    pass


def _blocks(path: Path) -> Iterator[bytes]:
    with open(path, "rb", buffering=0) as file:
        while block := file.read(1 << 20):
            yield block


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the layers that the benchmarks use.")
    parser.add_argument("what", nargs="*", default=["full"], help="small, usual, full (default), or names of layers")
    chosen = parser.parse_args().what
    names = [name for what in chosen for name in SETS.get(what, (what,))]
    unknown = [name for name in names if name not in MAKERS]
    if unknown:
        parser.error(f"no such layer: {', '.join(unknown)}")
    for layer in make(names):
        print(f"{layer.name:20s} {layer.megabytes:8.1f} MB {layer.entries:8d} entries  {layer.made_from}")


if __name__ == "__main__":
    main()
