"""What a store has on disk, and which threads run: looked at before and after what must change neither."""

import os
import threading
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
