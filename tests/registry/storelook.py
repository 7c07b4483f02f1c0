"""What a store has on disk, and which threads run: looked at before and after what must change neither."""

import os
import threading
import time
from pathlib import Path

import disk


def state(root) -> dict[str, tuple]:
    """All that a store has on disk, but for directories that are empty and files that are locked on."""
    found = disk.disk_state(root)
    names = {os.fsdecode(name): value for name, value in found.items()}
    full = {str(parent) for name, value in names.items() if value[0] != "dir" for parent in Path(name).parents}
    layers = {name for name in names if name.startswith("overlay2/")}
    return {name: value for name, value in names.items() if value[0] != "dir" or name in full or name in layers}


def threads() -> set[str]:
    return {each.name for each in threading.enumerate() if not each.name.startswith("scripted")}


def left(before: set[str]) -> set[str]:
    """Threads that are still there, where there were these; one that ends is waited for."""
    until = time.monotonic() + 0.5
    while threads() - before and time.monotonic() < until:
        time.sleep(0.005)
    return threads() - before
