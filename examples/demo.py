"""The whole life of a file system in a layer store, on real data: `make demo`, or as root `python examples/demo.py`.

In: the data tars of real Debian packages, fetched with apt-get, and the running Python's own library. Out: a report
of what is done, with sizes and speeds, and a last line that says whether every digest was the same and nothing is
left. Everything happens in one temporary directory (below TMPDIR, /var/tmp, /dev/shm or /tmp, whichever can carry
overlay mounts, else on a tmpfs) that is gone afterwards, also after Ctrl-C or a failure.

    --local   take no packages, only directories of this machine; smaller

Exit code: 0 all was well, 1 something was not, 2 this cannot run here, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import layerstore

T = TypeVar("T")

PACKAGES = ("libc6", "git")  # a base and what lies on it; their names carry no version
LOCAL = ("/usr/share/zoneinfo", "/usr/share/perl", "/usr/share/perl5", "/usr/include/linux")
NEEDED_BYTES = 700_000_000
LOCAL_BYTES = 100_000_000
FETCH_SECONDS = 40
SANDBOXES = 20
NO_MOUNTS = "file systems cannot be mounted here (in a container: run it with --privileged)"


class Blob(NamedTuple):
    """A layer tar as it would come from a registry: compressed, in a file."""

    name: str
    path: Path
    unpack: tuple[str, ...]  # the command that gives the plain tar, to check us by


class CannotRunError(Exception):
    """This machine cannot show it; the sentence says why."""


class WrongError(Exception):
    """Something came out that is not what it should be."""


# ---- telling ------------------------------------------------------------------------------------
def title(text: str) -> None:
    bold, plain = ("\033[1m", "\033[0m") if sys.stdout.isatty() and os.environ.get("TERM") != "dumb" else ("", "")
    print(f"\n{bold}{text}{plain}", flush=True)


def say(label: str, text: str = "") -> None:
    print(f"  {label:<24}{text}".rstrip(), flush=True)


def size(n: float) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= factor:
            return f"{n / factor:.1f} {unit}"
    return f"{n:.0f} bytes"


def took(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{seconds * 1e3:.1f} ms"


def short(digest: str) -> str:
    return digest[:19] + "…"


def timed(work: Callable[[], T]) -> tuple[T, float]:
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def expect(is_true: bool, otherwise: str) -> None:
    if not is_true:
        raise WrongError(otherwise)


# ---- a place --------------------------------------------------------------------------------------
def mounts_below(place: str) -> list[str]:
    """Mount points at place and below, deepest first."""
    with open("/proc/self/mountinfo", errors="surrogateescape") as table:
        points = [line.split(" ")[4] for line in table]
    return sorted((p for p in points if p == place or p.startswith(place + "/")), key=len, reverse=True)


def why_not(place: str) -> str:
    """Return "" if a store can live there, else the reason."""
    try:
        layerstore.Store(os.path.join(place, "probe")).close()
    except (layerstore.NotSupportedError, OSError) as err:
        return str(err)
    finally:
        shutil.rmtree(os.path.join(place, "probe"), ignore_errors=True)
    return ""


@contextlib.contextmanager
def workplace(needed: int) -> Iterator[str]:
    """A temporary directory on a file system that overlay mounts can write to; afterwards nothing is there."""
    place = ""
    try:
        why = ""
        for parent in (os.environ.get("TMPDIR"), "/var/tmp", "/dev/shm", "/tmp", ""):
            if parent is None or (parent and not (os.path.isdir(parent) and shutil.disk_usage(parent).free >= needed)):
                continue
            place = os.path.realpath(tempfile.mkdtemp(prefix="layerstore-demo-", dir=parent or None))
            if not parent:
                mount = ["mount", "-t", "tmpfs", "-o", f"mode=755,size={needed}", "layerstore-demo", place]
                done = subprocess.run(mount, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise CannotRunError(f"{NO_MOUNTS}: {done.stderr.strip().splitlines()[0]}")
            why = why_not(place)
            if not why:
                break
            sweep(place)
            place = ""
        if not place:
            raise CannotRunError(f"{NO_MOUNTS}: {why}")
        yield place
    finally:
        if place:
            sweep(place)


def sweep(place: str) -> None:
    """Remove a directory with all that is mounted in it. Ctrl-C waits for that."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        for point in mounts_below(place):
            if point != place:
                subprocess.run(["umount", "-l", point], check=False, stderr=subprocess.DEVNULL)
        if place in mounts_below(place):
            subprocess.run(["umount", place], check=False)
        shutil.rmtree(place, ignore_errors=True)
    finally:
        signal.signal(signal.SIGINT, before)


# ---- the data -------------------------------------------------------------------------------------
def members(deb: Path) -> Iterator[tuple[str, int, int]]:
    """Name, offset and length of what a .deb holds: an `ar` archive."""
    with deb.open("rb") as file:
        expect(file.read(8) == b"!<arch>\n", f"{deb.name} is no Debian package")
        while len(header := file.read(60)) == 60:
            length = int(header[48:58])
            yield header[:16].decode().strip().rstrip("/"), file.tell(), length
            file.seek(length + length % 2, os.SEEK_CUR)


def data_tar(deb: Path) -> Blob:
    """Take data.tar.xz (or .zst, .gz) out of a .deb as it is: this is the layer."""
    for name, offset, length in members(deb):
        if name.startswith("data.tar"):
            path = deb.with_suffix(f".{name}")
            with deb.open("rb") as file, path.open("wb") as out:
                file.seek(offset)
                out.write(file.read(length))
            if path.suffix == ".zst" and not layerstore.build_info()["zstd"]:
                raise OSError(f"{deb.name} is packed with zstd, and this build of layerstore is without libzstd")
            package, version = deb.name.split("_")[:2]
            command = {".xz": "xz", ".zst": "zstd", ".gz": "gzip", ".bz2": "bzip2"}.get(path.suffix, "cat")
            unpack = (command, "-dc", str(path)) if command != "cat" else (command, str(path))
            return Blob(f"{package} {version.replace('%3a', ':')}", path, unpack)
    raise WrongError(f"{deb.name} holds no data.tar")


def fetch(place: str) -> list[Path]:
    """Download PACKAGES into place with apt-get. Raises OSError, or TimeoutExpired."""
    directory = Path(place, "debs")
    directory.mkdir()
    # As root, since apt's own user may not write here; once, since what cannot be reached has a stand-in.
    command = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=0",
               "-o", "Acquire::http::Timeout=10", "-o", "Acquire::https::Timeout=10"]  # fmt: skip
    own_lists = Path(place, "apt")
    own = ["-o", f"Dir::State::Lists={own_lists}", "-o", f"Dir::Cache={own_lists}"]
    output: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "timeout": FETCH_SECONDS}
    done = subprocess.run([*command, "download", *PACKAGES], cwd=directory, check=False, **output)
    if done.returncode:
        # No package lists, or old ones: fresh ones in our own place, so that the system's stay as they are.
        own_lists.mkdir()
        subprocess.run([*command, *own, "update"], check=False, **output)
        again = subprocess.run([*command, *own, "download", *PACKAGES], cwd=directory, check=False, **output)
        shutil.rmtree(own_lists)
        if again.returncode:
            said = [line for line in done.stdout.splitlines() if line.startswith("E: ")]
            raise OSError(said[0] if said else "it gave no reason")
    found = [path for package in PACKAGES for path in directory.glob(f"{package}_*.deb")]
    expect(len(found) == len(PACKAGES), f"apt-get brought {len(found)} of {len(PACKAGES)} packages")
    return found


def pack(place: str, name: str, tree: str, program: str, *exclude: str) -> Blob:
    """Make a compressed tar of a directory of this machine with the tar command."""
    path = Path(place, f"{name.replace(' ', '-').replace('/', '_')}.tar.{ {'zstd': 'zst', 'gzip': 'gz'}[program] }")
    command = ["tar", "-C", "/", *(f"--exclude={pattern}" for pattern in exclude), "-cf", "-", tree.lstrip("/")]
    with path.open("wb") as out, subprocess.Popen(command, stdout=subprocess.PIPE) as tar:
        subprocess.run([program, "-3", "-c"], stdin=tar.stdout, stdout=out, check=True)
    expect(tar.returncode == 0, f"tar could not read all of {tree}")
    return Blob(name, path, (program, "-dc", str(path)))


def two_local(place: str) -> list[Blob]:
    """Two layers from directories of this machine, the stand-in for packages."""
    trees = [tree for tree in LOCAL if os.path.isdir(tree)][:2]
    expect(len(trees) == 2, f"this machine has hardly any of {', '.join(LOCAL)}")
    return [pack(place, tree, tree, "gzip") for tree in trees]


def blobs(place: str, local: bool) -> list[Blob]:
    """Three compressed layer tars: two packages (or stand-ins), and this Python's library."""
    found: list[Blob] = []
    if not local:
        try:
            debs, seconds = timed(lambda: fetch(place))
            found = [data_tar(deb) for deb in debs]
            say("apt-get download", f"{', '.join(deb.name for deb in debs)}  ({took(seconds)})")
        except (OSError, subprocess.SubprocessError, WrongError) as err:
            say("NOTE", "apt-get cannot fetch packages here; taking directories of this machine instead")
            say("", f"({err})")
    if not found:
        found = two_local(place)
    library = os.path.realpath(sysconfig.get_path("stdlib"))
    leave_out = ["site-packages", "dist-packages", "__pycache__", "config-*"]
    if local:
        leave_out += ["test", "tests", "idlelib", "lib-dynload"]
    name = f"Python {platform.python_version()}"
    program = "zstd" if shutil.which("zstd") and layerstore.build_info()["zstd"] else "gzip"
    found.append(pack(place, name, library, program, *leave_out))
    for blob in found:
        say(blob.name, f"{size(blob.path.stat().st_size)} of {blob.path.name.partition('.data.')[2] or blob.path.name}")
    return found


def sha256sum(*command: str) -> str:
    """The digest of a command's output, by the sha256sum program and no code of ours."""
    with subprocess.Popen(command, stdout=subprocess.PIPE) as source:
        done = subprocess.run(["sha256sum"], stdin=source.stdout, stdout=subprocess.PIPE, check=True, text=True)
    expect(source.returncode == 0, f"{command[0]} failed")
    return "sha256:" + done.stdout.split()[0]


# ---- the life of a file system --------------------------------------------------------------------
def register(store: layerstore.Store, given: list[Blob]) -> list[layerstore.Layer]:
    """Blobs in, layers out, each on the one before."""
    layers: list[layerstore.Layer] = []
    print(f"  {'layer':<24}{'compressed':>11}{'tar':>11}{'files':>8}{'time':>10}{'tar a second':>15}")
    for blob in given:
        parent = layers[-1].chain_id if layers else ""
        layer, seconds = timed(partial(store.register, blob.path, parent))
        layers.append(layer)
        with layer.tar_stream() as stream:
            tar_size = stream.size
        files = sum(len(names) for _, _, names in os.walk(layer.metadata()["UpperDir"]))
        print(f"  {blob.name[:23]:<24}{size(blob.path.stat().st_size):>11}{size(tar_size):>11}{files:>8}"
              f"{took(seconds):>10}{size(tar_size / seconds) + '/s':>15}", flush=True)  # fmt: skip
    return layers


def change(root: str, library: str) -> None:
    """What an agent, a build or a user might do in there."""
    inside = Path(root, library.lstrip("/"))
    with (inside / "os.py").open("a") as file:
        file.write("# a line more, in this sandbox only\n")
    say("edited", f"{library}/os.py")
    shutil.rmtree(inside / "email")
    say("removed", f"{library}/email/ and all in it")
    compiler = [sys.executable, "-I", "-m", "compileall", "-q", str(inside / "asyncio"), str(inside / "json")]
    subprocess.run(compiler, check=True)
    say("compiled", "asyncio/ and json/, by a Python of this machine that works in the mounted tree")


def work_in_a_layer(store: layerstore.Store, top: layerstore.Layer, library: str) -> layerstore.Layer:
    """Mount, change, look at the changes, commit."""
    rw, seconds = timed(lambda: store.create_rw_layer("sandbox", top.chain_id))
    with rw:
        root, mounting = timed(rw.mount)
        say("made and mounted", f"{took(seconds)} + {took(mounting)}, nothing was copied")
        try:
            change(root, library)
        finally:
            rw.unmount()
        changes, seconds = timed(rw.changes)
        kinds = [str(change.kind) for change in changes]
        counted = (f"{kinds.count(kind)} {word}" for kind, word in (("A", "added"), ("C", "changed"), ("D", "deleted")))
        say("changes()", f"{', '.join(counted)}  ({took(seconds)})")
        longest = sorted((c for c in changes if not c.path.endswith("__pycache__")), key=lambda c: -len(c.path))
        picked = [next((c for c in longest if c.kind == kind), None) for kind in layerstore.ChangeKind]
        for change_ in filter(None, picked):
            say("", str(change_))
        expect(all(kind in kinds for kind in "ACD"), "an edit, a deletion or a new file was not seen")
        say("size()", size(rw.size()))
        with rw.tar_stream() as stream:
            exported = sha256_of(stream)
        layer, seconds = timed(rw.commit)
    say("commit()", f"{took(seconds)}: now a read-only layer, {short(layer.diff_id)}")
    expect(exported == layer.diff_id, "the tar of the writable layer and the committed layer differ")
    return layer


def sha256_of(stream: layerstore.TarStream) -> str:
    """Send a stream through the sha256sum program."""
    with subprocess.Popen(["sha256sum"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program:
        assert program.stdin and program.stdout
        stream.copy_to(program.stdin.fileno())
        program.stdin.close()
        return "sha256:" + program.stdout.read().split()[0].decode()


def fork(store: layerstore.Store, top: layerstore.Layer, how: str) -> None:
    """Many short lives on one layer: what an agent's sandboxes do."""

    def lives() -> None:
        for number in range(SANDBOXES):
            with store.create_rw_layer(f"agent-{number}", top.chain_id) as rw:
                with rw.mounted() as root:
                    Path(root, "answer").write_text(f"{number}\n")
                expect([str(change) for change in rw.changes()] == ["A /answer"], "a sandbox saw another one's files")

    _, seconds = timed(lives)
    say(f"{SANDBOXES} sandboxes", f"{took(seconds)}, {took(seconds / SANDBOXES)} each; {how}")


def export(place: str, layers: list[layerstore.Layer], plain: list[tuple[str, ...] | None], names: list[str]) -> None:
    """Each layer's tar out again; digests by sha256sum of what came in and of what went out."""
    target = Path(place, "exported.tar")
    print(f"  {'layer':<24}{'tar':>9}{'a second':>13}   {'in | sha256sum':<16}{'DiffID':<16}out | sha256sum")
    for layer, unpack, name in zip(layers, plain, names, strict=True):
        with layer.tar_stream() as stream, target.open("wb") as out:
            written, seconds = timed(partial(stream.copy_to, out))
        came_in = sha256sum(*unpack) if unpack else ""
        went_out = sha256sum("cat", str(target))
        print(f"  {name[:23]:<24}{size(written):>9}{size(written / seconds) + '/s':>13}   "
              f"{came_in[7:19] or '(made here)':<16}{layer.diff_id.encoded[:12]:<16}{went_out[7:19]}", flush=True)
        expect({came_in or went_out, went_out} == {layer.diff_id}, f"the digests of {name} differ")
    target.unlink()


def release(store: layerstore.Store, layers: list[layerstore.Layer]) -> None:
    """Release every reference, and look for anything that stayed."""
    removed, seconds = timed(lambda: [item for layer in layers for item in layer.release()])
    freed = size(sum(item.diff_size for item in removed))
    say("release()", f"{len(removed)} layers removed, {freed} of files  ({took(seconds)})")
    expect(len(removed) == len(layers), "a layer is still there")
    expect(not store.map() and not store.mounts(), "the store still knows a layer")
    left = [os.path.join(at, name) for at, _, names in os.walk(store.root) for name in names]
    deep = [str(path) for path in Path(store.root, "overlay2").iterdir() if path.name not in ("l", "backingFsBlockDev")]
    left = [path for path in left if not path.endswith("/backingFsBlockDev")] + deep
    expect(not left, f"still on disk: {left[:5]}")
    expect(not [p for p in mounts_below(store.root) if p != store.root], "something is still mounted")
    say("left in the store", "no layer, no file, no mount")


def life(place: str, local: bool) -> None:
    title("1. Three layers, compressed as a registry would send them")
    given = blobs(place, local)
    names = [blob.name for blob in given]
    library = os.path.realpath(sysconfig.get_path("stdlib"))
    with layerstore.Store(os.path.join(place, "docker")) as store:
        title("2. register(): decompress, digest, record and unpack in one pass, safe on disk before it returns")
        layers = register(store, given)
        title("3. The chain: every layer named by what it holds and stands on")
        for layer, name in zip(reversed(layers), reversed(names), strict=True):
            say(name[:23], f"ChainID {short(layer.chain_id)}  DiffID {short(layer.diff_id)}  {size(layer.diff_size)}")
        say("all together", size(layers[-1].size))
        title("4. A writable layer on top")
        layers.append(work_in_a_layer(store, layers[-1], library))
        title("5. Fork often: make, mount, write, list the changes, throw away")
        fork(store, layers[-1], "each of them safe on disk")
        with layerstore.Store(store.root, options={"durability": "none"}) as quick:
            # Held and not released: with its last reference a store deletes a layer.
            fork(quick, quick.get(layers[-1].chain_id), "the store opened with durability none")
        title("6. Export: the first bytes again, put together from the files in the store")
        export(place, layers, [*(blob.unpack for blob in given), None], [*names, "the commit"])
        problems, seconds = timed(store.verify)
        expect(not problems, f"verify() found {problems}")
        say("verify()", f"every file of every layer is what was registered  ({took(seconds)})")
        title("7. Release")
        release(store, layers)


def run(local: bool) -> None:
    start = time.perf_counter()
    descriptors = len(os.listdir("/proc/self/fd"))
    build = layerstore.build_info()
    with workplace(LOCAL_BYTES if local else NEEDED_BYTES) as place:
        print(f"layerstore {layerstore.__version__}: the life of a file system, on real data, in {place}")
        say("host", f"Linux {platform.release()}, Python {platform.python_version()}, {os.cpu_count()} CPUs")
        say("core", ", ".join(f"{what}: {library}" for what, library in build.items()))
        life(place, local)
    left = [place] if os.path.lexists(place) or mounts_below(place) else []
    expect(not left, f"could not be removed: {place}")
    expect(len(os.listdir("/proc/self/fd")) == descriptors, "a descriptor is still open")
    title(f"All digests were the same and nothing is left. ({took(time.perf_counter() - start)})")


def main() -> int:
    arguments = argparse.ArgumentParser(description="The whole life of a file system in a layer store, on real data.")
    arguments.add_argument("--local", action="store_true", help="take only directories of this machine; smaller")
    local = arguments.parse_args().local
    if os.geteuid() != 0:
        print("This mounts file systems, so it has to run as root: sudo make demo", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        run(local)
    except KeyboardInterrupt:
        print("\ninterrupted; the temporary directory is gone", file=sys.stderr)
        return 130
    except CannotRunError as err:
        print(f"This cannot run here: {err}", file=sys.stderr)
        return 2
    except WrongError as err:
        print(f"\nNOT WELL: {err}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
