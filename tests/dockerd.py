"""A real dockerd for tests: started by hand on a data root of its own, ended by its process ID.

Enters: Debian's docker.io (dockerd, containerd, the docker client) and a directory that can carry
overlay uppers. Leaves: nothing running, nothing mounted. Its socket, exec root and process ID file lie in a
run directory of its own, and it lives in a network namespace without any network. What is wanted is its image store, its
layer store and its `diff`. With network=True it reaches the registries of the loopback, and may run a container.

adopt(root) gives a bare layer store what dockerd needs beside it to see images and containers.
"""

import contextlib
import hashlib
import io
import json
import os
import posixpath
import re
import shutil
import signal
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import disk
import tarkit

SECONDS_TO_START = 60
SECONDS_TO_STOP = 30
SECONDS_TO_ANSWER = 120
LONG_AGO = "2024-01-01T00:00:00Z"


class DockerError(Exception):
    """dockerd did not come up, or the docker client said no."""


def programs() -> tuple[str, str] | None:
    """(dockerd, docker), or None where one is missing. Debian's own before anything else."""
    daemon = next((p for p in ("/usr/sbin/dockerd", "/usr/bin/dockerd") if os.access(p, os.X_OK)), None)
    client = "/usr/bin/docker" if os.access("/usr/bin/docker", os.X_OK) else None
    return (daemon, client) if daemon and client else None


class Dockerd:
    """One run of dockerd on `root`, a context manager; docker(...) talks to it."""

    def __init__(self, root: Path, *, run: Path | None = None, network: bool = False):
        self.root = Path(root)
        self.network = network
        # A socket's path is limited to 107 bytes, so it stays away from deep test directories.
        self.run = run or Path(tempfile.mkdtemp(prefix="dockerd-run-"))
        self.log = self.run / "dockerd.log"
        self.process: subprocess.Popen | None = None
        found = programs()
        if found is None:
            raise DockerError("no dockerd on this machine")
        self.daemon, self.client = found

    def __enter__(self) -> "Dockerd":
        self.root.mkdir(parents=True, exist_ok=True)
        self.mounted_before = disk.mounts_below(self.root)
        command = [
            *["unshare", "--net", "--"] * (not self.network), "setpriv", "--pdeathsig", "TERM", "--", self.daemon,
            "--data-root", str(self.root), "--exec-root", str(self.run / "exec"),
            "--host", self.address, "--pidfile", str(self.run / "pid"), "--config-file", str(self.run / "none.json"),
            "--storage-driver", "overlay2", "--bridge", "none",
            "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false",
        ]  # fmt: skip
        (self.run / "none.json").write_text("{}")
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    @property
    def address(self) -> str:
        return f"unix://{self.run}/docker.sock"

    def _wait(self) -> None:
        deadline = time.monotonic() + SECONDS_TO_START
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise DockerError(f"dockerd ended with {self.process.returncode}:\n{self.last_words()}")
            with contextlib.suppress(DockerError):
                self.docker("version")
                return
            time.sleep(0.1)
        raise DockerError(f"dockerd does not answer after {SECONDS_TO_START} s:\n{self.last_words()}")

    def last_words(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])

    def stop(self) -> None:
        """End it, its containerd too should that survive, and detach what it left mounted."""
        containerd = self._containerd()
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(SECONDS_TO_STOP)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None
        if containerd is not None and self._is_ours(containerd):
            with contextlib.suppress(ProcessLookupError):
                os.kill(containerd, signal.SIGKILL)
        for place in (self.root, self.run):
            kept = list(self.mounted_before) if place == self.root else []
            for point in reversed(disk.mounts_below(place)):
                if point in kept:
                    kept.remove(point)
                else:
                    disk.unmount(point)
        shutil.rmtree(self.run, ignore_errors=True)

    def _containerd(self) -> int | None:
        try:
            return int((self.run / "exec/containerd/containerd.pid").read_text())
        except (OSError, ValueError):
            return None

    def _is_ours(self, pid: int) -> bool:
        try:
            return os.fsencode(self.run) in Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return False

    # ---- talking to it ------------------------------------------------------------------------
    def docker(self, *words: str, feed: bytes | None = None, timeout: float = SECONDS_TO_ANSWER) -> bytes:
        """Run the docker client; what it printed. DockerError with its words if it fails."""
        # A client without settings and credentials.
        environment = {"PATH": os.environ.get("PATH", ""), "HOME": str(self.run), "DOCKER_CONFIG": str(self.run)}
        try:
            done = subprocess.run(
                [self.client, "--host", self.address, *words], input=feed or b"", capture_output=True, check=False,
                env=environment, timeout=timeout,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise DockerError(f"docker {' '.join(words)[:200]}: nothing for {timeout} s") from error
        if done.returncode:
            raise DockerError(f"docker {' '.join(words)[:200]}: {done.stderr.decode(errors='replace').strip()}")
        return done.stdout

    def load(self, layers: Sequence[bytes], name: str) -> str:
        """docker load of an image made of these layer tars; its image ID."""
        self.docker("load", "--quiet", feed=image_archive(layers, name))
        return self.inspect(name)["Id"]

    def inspect(self, name: str) -> dict:
        return json.loads(self.docker("inspect", name))[0]

    def images(self) -> list[str]:
        return sorted(set(self.docker("images", "--all", "--quiet", "--no-trunc").decode().split()))

    def containers(self) -> list[str]:
        return sorted(self.docker("ps", "--all", "--quiet", "--no-trunc").decode().split())

    def create(self, image: str) -> str:
        """A container that is never started; its ID."""
        return self.docker("create", "--network", "none", image, "/nothing").decode().strip()

    def diff(self, container: str) -> list[str]:
        """`docker diff`, its lines sorted: "C /etc". Names that are not UTF-8 come back with U+FFFD."""
        return sorted(self.docker("diff", container).decode().splitlines())

    def saved(self, *images: str) -> dict[str, list[tuple[str, str]]]:
        """`docker save`: for each image ID the (DiffID its config names, digest of the tar saved) from the base up."""
        archive = self.run / "saved.tar"
        self.docker("save", "--output", str(archive), *images)
        try:
            return read_saved(archive)
        finally:
            archive.unlink()


def read_saved(archive: Path) -> dict[str, list[tuple[str, str]]]:
    digests: dict[str, str] = {}
    images = {}
    with tarfile.open(archive) as tar:

        def digest(name: str) -> str:
            member = tar.getmember(name)
            while member.issym():
                member = tar.getmember(posixpath.normpath(posixpath.join(posixpath.dirname(member.name), member.linkname)))
            if member.name not in digests:
                hashed = hashlib.sha256()
                content = tar.extractfile(member)
                assert content is not None
                while block := content.read(1 << 20):
                    hashed.update(block)
                digests[member.name] = "sha256:" + hashed.hexdigest()
            return digests[member.name]

        for entry in json.load(tar.extractfile("manifest.json")):
            config = tar.extractfile(entry["Config"]).read()
            promised = json.loads(config)["rootfs"]["diff_ids"]
            image = "sha256:" + hashlib.sha256(config).hexdigest()
            images[image] = list(zip(promised, map(digest, entry["Layers"] or ()), strict=True))
    return images


# ---- images and containers ---------------------------------------------------------------------
def image_config(diff_ids: Sequence[str]) -> bytes:
    """The least that names these layers as an image."""
    history = [{"created": LONG_AGO, "created_by": f"layer {n}"} for n in range(len(diff_ids))]
    config = {
        "architecture": "amd64", "os": "linux", "created": LONG_AGO,
        "config": {"Cmd": ["/nothing"]}, "rootfs": {"type": "layers", "diff_ids": list(diff_ids)},
        "history": history,
    }  # fmt: skip
    return json.dumps(config, separators=(",", ":")).encode()


def image_archive(layers: Sequence[bytes], name: str) -> bytes:
    """What `docker load` takes: config, manifest, and the layer tars as they are."""
    config = image_config([tarkit.diff_id(layer) for layer in layers])
    files = {f"{n}/layer.tar": layer for n, layer in enumerate(layers)}
    manifest = [{"Config": "config.json", "RepoTags": [name + ":latest"], "Layers": list(files)}]
    files |= {"config.json": config, "manifest.json": json.dumps(manifest).encode()}
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for path, content in files.items():
            member = tarfile.TarInfo(path)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return archive.getvalue()


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        return ""


def adopt(root: Path, names: Mapping[str, str] | None = None) -> dict[str, str]:
    """Write beside a bare layer store what dockerd's image and container stores expect.

    Every chain that no other layer and no image covers becomes an image, every writable layer with a container's
    name a container. names: ChainID -> repository, for images with a name.
    Returns ChainID -> image ID.
    """
    store = Path(root) / "image/overlay2"
    layers = {
        "sha256:" + place.name: (_read(place / "diff"), _read(place / "parent"))
        for place in (store / "layerdb/sha256").iterdir()
        if re.fullmatch("[0-9a-f]{64}", place.name)
    }

    def diff_ids(chain: str) -> list[str]:
        return [*diff_ids(layers[chain][1]), layers[chain][0]] if chain else []

    def parent_of(mount: Path) -> str:
        return _read(mount / "parent")

    configs = store / "imagedb/content/sha256"
    configs.mkdir(parents=True, exist_ok=True)
    mounts = sorted((store / "layerdb/mounts").glob("*"))
    wanted = set(layers) - {parent for _, parent in layers.values()} | {parent_of(m) for m in mounts} | set(names or ())
    tags: dict[str, dict[str, str]] = {}
    images: dict[str, str] = {}
    for chain in sorted(wanted - {""}):
        assert tarkit.chain_id(*diff_ids(chain)) == chain, f"{chain} does not follow from its DiffIDs"
        config = image_config(diff_ids(chain))
        image = hashlib.sha256(config).hexdigest()
        (configs / image).write_bytes(config)
        images[chain] = "sha256:" + image
        repository = (names or {}).get(chain, "ours/" + chain[7:19])
        tags[repository] = {repository + ":latest": images[chain]}
    (store / "repositories.json").write_text(json.dumps({"Repositories": tags}))
    for mount in mounts:
        if re.fullmatch("[0-9a-f]{64}", mount.name):
            _write_container(Path(root) / "containers" / mount.name, images.get(parent_of(mount), ""))
    return images


def _write_container(place: Path, image: str) -> None:
    if place.exists():  # made by dockerd itself
        return
    place.mkdir(parents=True)
    config = {
        "ID": place.name, "Name": "/ours_" + place.name[:12], "Created": LONG_AGO, "State": {}, "Path": "/nothing", "Args": [],
        "Config": {"Image": image, "Cmd": ["/nothing"]}, "Image": image, "Driver": "overlay2", "OS": "linux",
        "NetworkSettings": {},
    }  # fmt: skip
    (place / "config.v2.json").write_text(json.dumps(config))
    (place / "hostconfig.json").write_text(json.dumps({"NetworkMode": "none", "LogConfig": {"Type": "json-file", "Config": {}}}))


@contextlib.contextmanager
def container_tree(dockerd: Dockerd, container: str, at: Path) -> Iterator[Path]:
    """The file system of a container that is not running, mounted from its own directories."""
    data = dockerd.inspect(container)["GraphDriver"]["Data"]
    at.mkdir(exist_ok=True)
    options = f"index=off,lowerdir={data['LowerDir']},upperdir={data['UpperDir']},workdir={data['WorkDir']}"
    disk.mount("overlay", at, "overlay", 0, options)
    try:
        yield at
    finally:
        disk.unmount(at, 0)
