"""Blocks that another thread makes while the ones before are worked on."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Generator

Blocks = Generator[bytes, None, None]

# So many blocks wait at most.
_DEPTH = 2


def ahead(blocks: Blocks) -> Blocks:
    """Return the same blocks, made in a thread of their own. It ends with the generator; what it raises is raised."""
    made: queue.Queue[bytes | BaseException | None] = queue.Queue(_DEPTH)
    stopped = threading.Event()

    def work() -> None:
        end: BaseException | None = None
        try:
            with contextlib.closing(blocks):
                for block in blocks:
                    made.put(block)
                    if stopped.is_set():
                        return
        except BaseException as err:
            end = err
        made.put(end)

    thread = threading.Thread(target=work, name="layerstore-ahead", daemon=True)
    thread.start()
    try:
        while (block := made.get()) is not None:
            if isinstance(block, BaseException):
                raise block
            yield block
    finally:
        stopped.set()
        while thread.is_alive():
            with contextlib.suppress(queue.Empty):
                made.get(timeout=0.01)
        thread.join()
