"""A fleet works on one base image through a registry: as root `python examples/fleet.py localhost:5000`.

In: a registry that may be written to. Out: what each machine fetched and sent, line by line. A coordinator pushes a
base; workers pull it, each tries its own parameters in a box and pushes what came out; the coordinator pulls the
results and gives the best one a name. Each machine is a thread with a store of its own, in a temporary directory (below
TMPDIR), which is gone afterwards. The registry keeps the images: fleet/base, fleet/worker-1 and so on, fleet/best.
"""

from __future__ import annotations

import io
import sys
import tarfile
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from layerstore import Images, Registry, Store
from layerstore.values import Done

WORKERS = 3
NUMBERS = range(2, 30)


class Told:
    """A progress that keeps how many bytes there were."""

    bytes = 0

    def __call__(self, done: Done) -> None:
        self.bytes = done.total or 0


def data_tar() -> bytes:
    """Return a layer tar with the data that every worker needs."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        text = "".join(f"{number}\n" for number in NUMBERS).encode() + b"# padding\n" * 100_000
        entry = tarfile.TarInfo("data/numbers")
        entry.size = len(text)
        tar.addfile(entry, io.BytesIO(text))
    return out.getvalue()


def score(numbers: list[int], divisor: int) -> int:
    """Return how many of the numbers a divisor divides: the fleet looks for the best divisor."""
    return sum(number % divisor == 0 for number in numbers)


def work(place: Path, host: str, number: int) -> str:
    """Be one machine: pull the base, work in a box on it, push the result. Return what it cost."""
    with Store(place / f"worker-{number}") as store, Registry(host) as registry:
        images, fetched, compressed = Images(store), Told(), Told()
        base = images.pull(f"{host}/fleet/base:1", registry=registry, progress=fetched)
        with store.create_rw_layer("task", base) as box:
            with box.mounted() as root:
                lines = Path(root, "data/numbers").read_text().splitlines()
                found = score([int(line) for line in lines if line.isdigit()], number + 1)
                Path(root, "result").write_text(f"{found} with {number + 1}\n")
            with box.commit() as layer:
                images.create(layer, tags=f"{host}/fleet/worker-{number}:1")
        images.push(f"{host}/fleet/worker-{number}:1", registry=registry, progress=compressed)
        return f"fetched {fetched.bytes:,} bytes, sent a layer of {compressed.bytes:,}"


def main(host: str) -> None:
    with tempfile.TemporaryDirectory(prefix="layerstore-fleet-") as name:
        place = Path(name)
        with Store(place / "coordinator") as store, Registry(host) as registry:
            images = Images(store)
            with store.register(data_tar()) as layer:
                images.create(layer, {"created": "2026-01-01T00:00:00Z"}, tags=f"{host}/fleet/base:1")
            digest = images.push(f"{host}/fleet/base:1", registry=registry)
            print(f"base          {digest[:19]}, {layer.size:,} bytes of files")

            with ThreadPoolExecutor(WORKERS) as pool:
                costs = pool.map(lambda number: work(place, host, number), range(1, WORKERS + 1))
                for number, cost in enumerate(costs, 1):
                    print(f"worker {number}      {cost}")

            results = {}
            for number in range(1, WORKERS + 1):
                fetched = Told()
                image = images.pull(f"{host}/fleet/worker-{number}:1", registry=registry, progress=fetched)
                with store.get(image.top) as layer, layer.open("result") as file:
                    results[image.references[0]] = file.read().decode().strip()
                print(f"result {number}      {results[image.references[0]]}; fetched {fetched.bytes:,} bytes")

            best = max(results, key=lambda name: int(results[name].split()[0]))
            sent = Told()
            images.push(best, f"{host}/fleet/best:1", registry=registry, progress=sent)
            print(f"best          {best.removeprefix(host + '/')}, sent {sent.bytes:,} bytes")
            print(f"in the store  {len(store.map())} layers, {len(images.list())} images")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python examples/fleet.py HOST[:PORT]")
    main(sys.argv[1])
