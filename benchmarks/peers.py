"""The peers, driven as their users drive them: dockerd, containerd's ctr, containers-storage, umoci, tar-split.

Each function gives Cases for measure.interleaved. All stores lie in the place given, a tmpfs. dockerd is the one of
tests/dockerd.py, started on a root of its own and ended by its process ID; ctr speaks to the containerd that this
dockerd starts. A program that is not installed gives no cases.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
import re
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dockerd

from benchmarks import baselines, measure
from benchmarks.layers import Layer
from benchmarks.measure import Case

NAME = "peers/bench"


# ---- versions ---------------------------------------------------------------------------------------
VERSIONS = {
    "docker": (["dockerd", "--version"], r"version (\S+?),"),
    "containerd": (["containerd", "--version"], r"containerd/containerd (\S+)"),
    "docker-registry": (["docker-registry", "--version"], r" v?(\d\S*)"),
    "podman": (["podman", "--version"], r"version (\S+)"),
    "skopeo": (["skopeo", "--version"], r"version (\S+)"),
    "containers-storage": (["dpkg-query", "-W", "-f", "${Version}", "containers-storage"], r"(\S+)"),
    "umoci": (["umoci", "--version"], r"version (\S+)"),
    "tar-split": (["dpkg-query", "-W", "-f", "${Version}", "tar-split"], r"(\S+)"),
    "GNU tar": (["tar", "--version"], r"\) (\S+)"),
    "bsdtar": (["bsdtar", "--version"], r"bsdtar (\S+)"),
    "openssl": (["openssl", "version"], r"OpenSSL (\S+)"),
    "gzip": (["gzip", "--version"], r"gzip (\S+)"),
    "pigz": (["pigz", "--version"], r"pigz (\S+)"),
}


def versions() -> dict[str, str]:
    found = {}
    for name, (command, pattern) in VERSIONS.items():
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            if match := re.search(pattern, done.stdout + done.stderr):
                found[name] = match.group(1)
    return found


def has(program: str) -> bool:
    return shutil.which(program) is not None


# ---- images around layers -----------------------------------------------------------------------------
def docker_archive(layer: Layer, to: Path, *, packed: str = "") -> Path:
    """What docker load and ctr import take: one layer, as a tar or packed (".gz"), with its config."""
    source = layer.packed(packed) if packed else layer.path
    config = dockerd.image_config([baselines.hashlib_sha256(layer.path)])
    manifest = json.dumps([{"Config": "config.json", "RepoTags": [f"{NAME}:1"], "Layers": ["0/layer.tar"]}]).encode()
    with tarfile.open(to, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in (("manifest.json", manifest), ("config.json", config)):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        member = tarfile.TarInfo("0/layer.tar")
        member.size = source.stat().st_size
        with open(source, "rb") as file:
            tar.addfile(member, file)
    return to


def oci_layout(layer: Layer, to: Path) -> Path:
    """An OCI layout of one uncompressed layer, tag latest."""
    blobs = to / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def blob(content: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        (blobs / digest).write_bytes(content)
        return {"digest": "sha256:" + digest, "size": len(content)}

    diff_id = baselines.hashlib_sha256(layer.path)
    shutil.copyfile(layer.path, blobs / diff_id[7:])
    kind = "application/vnd.oci.image"
    manifest = blob(json.dumps({
        "schemaVersion": 2,
        "config": {"mediaType": kind + ".config.v1+json", **blob(dockerd.image_config([diff_id]))},
        "layers": [{"mediaType": kind + ".layer.v1.tar", "digest": diff_id, "size": layer.size_bytes}],
    }).encode())  # fmt: skip
    tag = {"org.opencontainers.image.ref.name": "latest"}
    index = {
        "schemaVersion": 2,
        "manifests": [{"mediaType": kind + ".manifest.v1+json", **manifest, "annotations": tag}],
    }
    (to / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (to / "index.json").write_text(json.dumps(index))
    return to


# ---- dockerd and its containerd -------------------------------------------------------------------------
class Docker:
    """A running dockerd on a root below place; None of Docker.started() where there is none."""

    def __init__(self, daemon: dockerd.Dockerd, place: Path) -> None:
        """Talk to a daemon that runs."""
        self.daemon, self.place = daemon, place
        self.environment = {
            "PATH": os.environ.get("PATH", ""),
            "HOME": str(daemon.run),
            "DOCKER_CONFIG": str(daemon.run),
        }

    @classmethod
    @contextlib.contextmanager
    def started(cls, place: Path, *, network: bool = False) -> Iterator[Docker | None]:
        if dockerd.programs() is None:
            yield None
            return
        with dockerd.Dockerd(place / "docker", network=network) as daemon:
            yield cls(daemon, place)

    def pids(self) -> list[int]:
        assert self.daemon.process is not None
        return [self.daemon.process.pid]

    def words(self, *words: Any) -> list[Any]:
        return [self.daemon.client, "--host", self.daemon.address, *words]

    def run(self, *words: Any) -> str:
        return measure.run(*self.words(*words), environment=self.environment)

    def remove_image(self) -> None:
        with contextlib.suppress(RuntimeError):
            self.run("rmi", "-f", f"{NAME}:1")

    def case(self, who: str, *words: Any, clean: Any = measure.nothing, out: bool = False, lines: bool = False) -> Case:
        """out: what it prints goes through a pipe to cat. lines: the result is how many lines it prints."""

        def start() -> Any:
            if out:
                return measure.drained(*self.words(*words), environment=self.environment)
            printed = measure.run(*self.words(*words), environment=self.environment)
            return len(printed.splitlines()) if lines else None

        return Case(who, start, clean=clean, daemons=self.pids)

    def load(self, archive: Path, who: str = "docker load") -> Case:
        return self.case(who, "load", "-q", "-i", archive, clean=self.remove_image)

    def save(self) -> Case:
        return self.case("docker save", "save", f"{NAME}:1", out=True)

    # ---- containerd ----
    def ctr(self, *words: Any) -> str:
        return measure.run("ctr", "-a", self.daemon.run / "exec/containerd/containerd.sock", "-n", "bench", *words)

    def ctr_import(self, archive: Path) -> Case:
        def clean() -> None:
            for name in self.ctr("images", "ls", "-q").split():
                self.ctr("images", "rm", "--sync", name)

        return Case(
            "containerd (ctr import)", lambda: self.ctr("images", "import", archive), clean=clean, daemons=self.pids
        )


# ---- containers/storage -----------------------------------------------------------------------------
class ContainersStorage:
    """containers-storage on a store of its own."""

    def __init__(self, place: Path) -> None:
        """Keep the store below place."""
        self.graph, self.state = place / "cs", place / "cs-run"

    def wipe(self) -> None:
        measure.wipe(self.graph)
        measure.wipe(self.state)

    def words(self, verb: str, *words: Any) -> list[Any]:
        return ["containers-storage", verb, "-g", self.graph, "-R", self.state, "-s", "overlay", *words]

    def fill(self, tar: Path) -> None:
        self.wipe()
        measure.run(*self.words("import-layer", "-f", tar, "-i", "a"))

    def register(self, tar: Path, who: str = "containers-storage") -> Case:
        words = self.words("import-layer", "-f", tar, "-i", "a")
        return Case(who, lambda: measure.run(*words), self.wipe, self.wipe)

    def diff(self) -> Case:
        """Of layer a, which fill() made."""
        return Case("containers-storage diff", lambda: measure.drained(*self.words("diff", "-u", "a")))

    def mounted(self) -> Path:
        """A writable layer rw over layer a, mounted."""
        measure.run(*self.words("create-layer", "-i", "rw", "a"))
        return Path(measure.run(*self.words("mount", "rw")).split()[-1])

    def changes(self) -> Case:
        with contextlib.suppress(RuntimeError):
            measure.run(*self.words("unmount", "rw"))
        return Case("containers-storage changes", lambda: len(measure.run(*self.words("changes", "rw")).splitlines()))


# ---- umoci, tar-split -------------------------------------------------------------------------------
def umoci_unpack(layout: Path, place: Path) -> Case:
    bundle = place / "bundle"
    words = ["umoci", "raw", "unpack", "--image", f"{layout}:latest", bundle]
    return Case(
        "umoci raw unpack", lambda: measure.run(*words), lambda: measure.wipe(bundle), lambda: measure.wipe(bundle)
    )


def tar_split_disasm(tar: Path, record: Path) -> Case:
    words = ["tar-split", "disasm", "--no-stdout", "--output", record, tar]
    return Case("tar-split disasm", lambda: measure.run(*words))


def tar_split_asm(record: Path, tree: Path) -> Case:
    # It logs to standard error, which stays out of the stream.
    return Case("tar-split asm", lambda: measure.drained("tar-split", "asm", "--input", record, "--path", tree))


# ---- edits --------------------------------------------------------------------------------------------
def edit(merged: Path, tree: Path, *, appended: int = 6000, removed: int = 2000, added: int = 2000) -> int:
    """Change a mounted file system, the same each time: files appended to, removed, added. How many.

    tree is the layer's own: what a store adds to it (dockerd's /etc/hosts ...) moves no edit elsewhere.
    """
    files = sorted(
        os.path.relpath(os.path.join(place, name), tree)
        for place, _, names in os.walk(tree)
        for name in names
        if stat.S_ISREG(os.lstat(os.path.join(place, name)).st_mode)
    )
    random.Random(7).shuffle(files)
    share = min(1.0, len(files) / 2 / (appended + removed + added))
    appended, removed, added = (int(count * share) for count in (appended, removed, added))
    for path in files[:appended]:
        with open(merged / path, "ab") as file:
            file.write(b"\n# changed\n")
    for path in files[appended : appended + removed]:
        (merged / path).unlink()
    for path in files[appended + removed : appended + removed + added]:
        (merged / (path + ".added")).write_bytes(b"new\n")
    return appended + removed + added
