"""layerstore.aio: the same for asyncio. Every call that may wait is a coroutine; its work is done in a thread.

Cancelling what awaits a call stops the work, and CancelledError goes out when all is undone. What gives something
back (release, unmount, close) is always carried through. Progress is told in the event loop's thread, which is never
kept waiting. A Store and all it gave belong to one event loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, BinaryIO

import layerstore
from layerstore.aio.calls import Slots, in_thread
from layerstore.aio.layers import Layer, RWLayer, StrPath
from layerstore.aio.sources import source_for
from layerstore.aio.store import Store
from layerstore.aio.streams import File, TarStream
from layerstore.ids import DiffID
from layerstore.values import Change, Progress

__all__ = [
    "File", "Layer", "RWLayer", "Store", "TarStream", "assemble", "changes_between", "disassemble", "overlay_changes",
]  # fmt: skip


async def disassemble(source: Any, tar_split: BinaryIO | int, *, progress: Progress | None = None) -> DiffID:
    """Record a tar's framing as JSON lines (not compressed) into tar_split; source as Store.register takes it."""
    return await in_thread(
        lambda call: layerstore.disassemble(source_for(call, source), tar_split, progress=call.hook(progress)), None
    )


async def assemble(tar_split: BinaryIO | int, root: StrPath, *, diff_id: DiffID | None = None) -> TarStream:
    """Give the tar again that a record describes, payloads read beneath root."""
    made = await in_thread(
        lambda _: layerstore.assemble(tar_split, root, diff_id=diff_id), None, lambda stream: stream.close()
    )
    return TarStream(made, Slots(None))


async def changes_between(new: StrPath, old: StrPath) -> list[Change]:
    """List how new differs from old, as moby compares two trees."""
    return await in_thread(lambda _: layerstore.changes_between(new, old), None)


async def overlay_changes(upper: StrPath, lowers: Sequence[StrPath]) -> list[Change]:
    """List how an overlay differs from its lowers (nearest first), by reading upper alone."""
    return await in_thread(lambda _: layerstore.overlay_changes(upper, lowers), None)
