"""bench: how fast a store is on this host, in a temporary store."""

from __future__ import annotations

import argparse
import io
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from layerstore import Store
from layerstore.cli.doctor import room_in
from layerstore.cli.layers import add_durability
from layerstore.cli.opening import nearest, root_of
from layerstore.cli.parser import Commands
from layerstore.cli.screen import Cell, Screen

EDITS = 1000


class Result(NamedTuple):
    """One measurement: the median of the rounds, and how much was done in one."""

    what: str
    seconds: float
    amount: int
    unit: str


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number


def add(commands: Commands) -> None:
    bench = commands.command(
        "bench", run_bench, "measure how fast a store is here",
        more="In a store of its own, which is gone afterwards. Medians; compare figures of one machine and hour only.",
        examples=["bench", "bench --at /srv --mb 512", "bench --tar layer.tar --durability none"])  # fmt: skip
    bench.add_argument("--at", metavar="DIR", help="where (default: at the root, or the nearest directory above)")
    bench.add_argument("--tar", metavar="TAR", help="the layer to use (default: a generated one)")
    bench.add_argument("--mb", metavar="N", type=_positive, default=64, help="size of the generated layer (64)")
    bench.add_argument("--files", metavar="N", type=_positive, default=2000, help="files in it (2000)")
    bench.add_argument("--rounds", metavar="N", type=_positive, default=3, help="how often each is done (3)")
    add_durability(bench)


def run_bench(args: Any, screen: Screen) -> None:
    at = os.path.abspath(args.at) if args.at is not None else nearest(root_of(args))
    with room_in(at, "bench") as place:
        tar = args.tar
        if tar is None:
            tar = os.path.join(place, "layer.tar")
            _make_tar(tar, args.mb * 10**6, args.files)
        options = {"durability": args.durability or "full"}
        with Store(os.path.join(place, "store"), driver=args.driver, options=options) as store:
            results = _measure(store, tar, args.rounds, screen)
    facts = {"at": at, "results": [{**r._asdict(), "per_second": r.amount / r.seconds} for r in results]}
    rows: list[list[Cell]] = [
        [result.what, f"{result.seconds * 1e3:.1f} ms",
         f"{result.amount / result.seconds / 1e6:.0f} MB/s" if result.unit == "bytes"
         else f"{result.amount / result.seconds:,.0f} {result.unit}/s"]
        for result in results
    ]  # fmt: skip
    screen.table(("WHAT", ">TIME", ">RATE"), rows, facts=facts)


def _make_tar(path: str, size: int, files: int) -> None:
    """Return a layer of files of one size, whose bytes do not compress."""
    import tarfile

    each = max(size // files, 1)
    noise = os.urandom(each + files)
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for at in range(files):
            entry = tarfile.TarInfo(f"data/{at // 100:04}/{at:06}")
            entry.size = each
            tar.addfile(entry, io.BytesIO(noise[at : at + each]))


def _measure(store: Store, tar: str, rounds: int, screen: Screen) -> list[Result]:
    import statistics  # not for every command that starts

    results: list[Result] = []

    def timed(
        what: str, amount: int, unit: str, run: Callable[[], object], after: Callable[[], object] = lambda: 0
    ) -> None:
        screen.note(f"{what} ...")
        taken = []
        for _ in range(rounds):
            start = time.perf_counter()
            run()
            taken.append(time.perf_counter() - start)
            after()
        results.append(Result(what, statistics.median(taken), amount, unit))

    size = os.path.getsize(tar)
    held: list[Any] = []
    timed("register", size, "bytes", lambda: held.append(store.register(tar)), lambda: held.pop().release())
    layer = store.register(tar)

    def export() -> None:
        sink = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        try:
            with layer.tar_stream() as stream:
                stream.copy_to(sink)
        finally:
            os.close(sink)

    timed("export", size, "bytes", export)
    timed("verify", max(layer.diff_size, 1), "bytes", lambda: store.verify(layer.chain_id))
    timed("rw create", 1, "calls", lambda: held.append(store.create_rw_layer("bench", layer.chain_id)),
          lambda: held.pop().release())  # fmt: skip
    with store.create_rw_layer("bench", layer.chain_id) as rw:
        timed("rw mount", 1, "calls", rw.mount, rw.unmount)
        with rw.mounted() as path:
            for at in range(EDITS):
                with open(os.path.join(path, f"edit-{at:04}"), "wb") as file:
                    file.write(b"an edit\n")
        timed("rw changes", EDITS, "paths", rw.changes)
        timed("rw commit", EDITS, "paths", lambda: held.append(rw.commit()), lambda: held.pop().release())
    layer.release()
    return results
