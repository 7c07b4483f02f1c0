"""Find out whether a dockerd is using a data root now.

dockerd locks nothing that belongs to layers, but keeps databases below its root open for as long as it runs, each
under flock(2): volumes/metadata.db and those of buildkit/ (seen on 20.10), the metadata of a containerd of its
own. Asking takes a shared lock for a moment, for which a dockerd that is just starting waits.
"""

from __future__ import annotations

import os

from layerstore._core import _files

_DATABASES = (
    "volumes/metadata.db",
    "network/files/local-kv.db",
    "containerd/daemon/io.containerd.metadata.v1.bolt/meta.db",
)
_BUILDKIT = "buildkit"


def locked_database(root: str) -> str | None:
    """Name a database below root that a running dockerd holds locked; None when there is none."""
    for path in _databases(root):
        try:
            # Not by _files: mostly there is none, and Cython swallows a signal that comes while it makes the traceback.
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            if _files.is_locked(fd):
                return path
        except OSError:
            continue                      # a file system without locks: no process has locked anything there
        finally:
            _files.close(fd, path)
    return None


def _databases(root: str) -> list[str]:
    found = [os.path.join(root, path) for path in _DATABASES]
    try:
        names = sorted(os.listdir(os.path.join(root, _BUILDKIT)))
    except OSError:
        return found
    return found + [os.path.join(root, _BUILDKIT, name) for name in names if name.endswith(".db")]
