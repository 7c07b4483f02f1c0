"""Programs that push and pull beside us, each on directories of its own: skopeo, podman, dockerd, containerd. And an image that runs.

Enters: the programs. Leaves: no process, no mount; none of them reads the settings or the credentials of this machine.
"""

import os
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import imagekit
import tarkit
from dockerd import Dockerd

SECONDS_TO_ANSWER = 60
# What says where settings and credentials are, and what would send a request elsewhere.
ELSEWHERE = (
    "DOCKER_AUTH_CONFIG", "DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_RUNTIME_DIR", "CONTAINER_HOST",
    "CONTAINERS_CONF", "CONTAINERS_REGISTRIES_CONF", "CONTAINERS_STORAGE_CONF", "DOCKER_HOST", "SSL_CERT_FILE", "SSL_CERT_DIR",
    "http_proxy", "https_proxy", "all_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY",
)  # fmt: skip


class ProgramError(Exception):
    """A program said no: its words."""


def environment(home: Path, **more: str) -> dict[str, str]:
    """This process's environment, without what names settings, and with a home of its own."""
    kept = {name: value for name, value in os.environ.items() if name not in ELSEWHERE}
    return {**kept, "HOME": str(home), **more}


def run(*words, feed: bytes = b"", env: Mapping[str, str] | None = None) -> bytes:
    """Run a program to its end; what it printed."""
    said = [str(word) for word in words]
    done = subprocess.run(said, input=feed, capture_output=True, check=False, env=env, timeout=SECONDS_TO_ANSWER)
    if done.returncode:
        raise ProgramError(f"{' '.join(said)[:300]}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


# ---- an image that runs --------------------------------------------------------------------------
@cache
def busybox() -> bytes:
    """A layer tar with a static busybox and two of its names."""
    program = Path(shutil.which("busybox") or "/bin/busybox").read_bytes()
    names = b"".join(tarkit.symlink(f"bin/{name}", "busybox") for name in ("sh", "cat"))
    return tarkit.dir("bin/") + tarkit.file("bin/busybox", program, mode=0o755) + names + tarkit.end()


def layers() -> list[bytes]:
    """The layer tars of an image that `cat /etc/new` runs in and prints "new"; one of them deletes, one has owners."""
    return [busybox(), imagekit.BASE, imagekit.MIDDLE, imagekit.TOP]


def archive(place: Path, name: str = "app:1", **config) -> Path:
    """Write a Docker archive of that image. config: fields of its config that are others."""
    files = imagekit.docker([(layers(), [name])])
    usual = imagekit.config(layers())
    files = {key: imagekit.config(layers(), **config) if value == usual else value for key, value in files.items()}
    place.write_bytes(imagekit.tar_of(files))
    return place


# ---- skopeo --------------------------------------------------------------------------------------
class Skopeo:
    """skopeo with a home of its own; it speaks plain HTTP, and takes any certificate."""

    def __init__(self, home: Path):
        home.mkdir(parents=True, exist_ok=True)
        # It remembers where it saw which blob, for all of the machine; of a user's it has a file below XDG_DATA_HOME, if it can.
        self.env = environment(home, _CONTAINERS_ROOTLESS_UID="1", XDG_DATA_HOME="/dev/null/none")

    def __call__(self, *words, feed: bytes = b"") -> bytes:
        return run("skopeo", "--insecure-policy", *words, feed=feed, env=self.env)

    def copy(self, source: str, target: str, *words: str) -> None:
        unverified = ["--src-tls-verify=false"] * source.startswith("docker:") + ["--dest-tls-verify=false"] * target.startswith("docker:")
        self("copy", "-q", *unverified, *words, source, target)

    def inspect(self, reference: str, *words: str) -> bytes:
        return self("inspect", "--tls-verify=false", *words, f"docker://{reference}")


# ---- podman --------------------------------------------------------------------------------------
class Podman:
    """podman on a root of its own, without mounts of its own; a context manager."""

    def __init__(self, place: Path):
        self.place = place
        place.mkdir(parents=True, exist_ok=True)
        policy = place / ".config/containers/policy.json"
        policy.parent.mkdir(parents=True, exist_ok=True)
        policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        self.env = environment(place)

    def __enter__(self) -> "Podman":
        # It takes no longer a path than 50 bytes.
        self.run_root = Path(tempfile.mkdtemp(prefix="podman-", dir="/tmp"))
        return self

    def __exit__(self, *_) -> None:
        self("rm", "--all", "--force")
        shutil.rmtree(self.run_root)

    def __call__(self, *words, feed: bytes = b"") -> bytes:
        where = ["--root", self.place / "root", "--runroot", self.run_root, "--tmpdir", self.place / "tmp"]
        how = ["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--events-backend", "none"]
        return run("podman", *where, *how, *words, feed=feed, env=self.env)

    def load(self, archive: Path) -> str:
        """The name of the one image of an archive, as podman has it from now on."""
        return self("load", "-q", "-i", archive).decode().partition(": ")[2].strip()

    def pull(self, reference: str) -> str:
        """The id of the image that is pulled."""
        return "sha256:" + self("pull", "-q", "--tls-verify=false", reference).decode().strip()

    def push(self, image: str, reference: str, *words: str) -> None:
        self("push", "-q", "--tls-verify=false", *words, image, reference)

    def run(self, image: str, *command: str) -> bytes:
        """What a command prints in a container. It may have as many files and processes as we may."""
        limits = {"nofile": resource.RLIMIT_NOFILE, "nproc": resource.RLIMIT_NPROC}
        most = {name: min(value for value in (*resource.getrlimit(which), 4096) if value > 0) for name, which in limits.items()}
        ulimits = [word for name, value in most.items() for word in ("--ulimit", f"{name}={value}:{value}")]
        return self("run", "--rm", "--network", "none", *ulimits, image, *command)


# ---- dockerd -------------------------------------------------------------------------------------
def docker_run(dockerd: Dockerd, image: str, *command: str) -> bytes:
    """What a command prints in a container of dockerd."""
    return dockerd.docker("run", "--rm", "--network", "none", image, *command)


# ---- containerd ----------------------------------------------------------------------------------
class Containerd:
    """The containerd that a dockerd of ours has started, in a namespace that dockerd does not look at."""

    def __init__(self, dockerd: Dockerd):
        self.address = dockerd.run / "exec/containerd/containerd.sock"

    def __call__(self, *words) -> bytes:
        return run("ctr", "--address", self.address, "--namespace", "tests", *words, env=environment(self.address.parent))

    def pull(self, reference: str) -> str:
        """The digest of what is pulled."""
        self("images", "pull", "--plain-http", reference)
        [line] = [line.split() for line in self("images", "ls", f"name=={reference}").decode().splitlines()[1:]]
        return line[2]

    def run(self, image: str, *command: str) -> bytes:
        """What a command prints in a container."""
        return self("run", "--rm", image, "box-" + os.urandom(4).hex(), *command)
