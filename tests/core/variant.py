"""Core sources built another way than this machine's libraries ask for, so that both ways are tested on one."""

import hashlib
import subprocess
from pathlib import Path
from typing import Any

import door
import probe


def without_isal(place: Path, *sources: str) -> Any:
    """These core sources as a machine without ISA-L would have them: zlib, and a CRC-64 of our own."""
    flags, link_args = door.build_flags()
    target = place / f"{hashlib.sha256(repr(sources).encode()).hexdigest()[:8]}.so"
    command = [
        *probe.compiler(),
        *flags,
        "-UHAVE_ISAL",
        "-shared",
        *(str(door.CORE / name) for name in sources),
        "-o",
        str(target),
        *(arg for arg in link_args if arg != "-lisal"),
        "-lz",
    ]
    done = subprocess.run(command, capture_output=True, check=False, text=True)
    assert done.returncode == 0, done.stderr
    return door.ffi.dlopen(str(target))
