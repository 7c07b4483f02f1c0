"""What all benchmarks share: the layers, warm in the page cache; a store on a tmpfs of its own; a table with units.

    --layers small|usual|full|NAME,NAME    which layers (usual); small is quick to make and to run
    --rounds N    timed rounds each, after one that warms up (3)
    --at DIR      stores below DIR, on that file system, instead of a fresh tmpfs

durability is "none" unless a benchmark's name says "full": on a tmpfs there is nothing to wait for either way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import layers, measure, peers

NO_SYNC = {"durability": "none"}
_rows: list[tuple[str, float, str]] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--layers", default="usual", help="small, usual, full, or names with commas between")
    parser.addoption("--rounds", type=int, default=3, help="timed rounds of each benchmark")
    parser.addoption("--at", type=Path, default=None, help="stores below this directory instead of on a tmpfs")


def chosen(config: pytest.Config) -> list[str]:
    return [name for what in config.getoption("--layers").split(",") for name in layers.SETS.get(what, (what,))]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "layer" in metafunc.fixturenames:
        metafunc.parametrize("layer", chosen(metafunc.config), indirect=True)
    if "packed_layer" in metafunc.fixturenames:
        metafunc.parametrize(
            "packed_layer", [n for n in chosen(metafunc.config) if n in layers.COMPRESSED], indirect=True
        )


def _made(name: str) -> layers.Layer:
    (layer,) = layers.make([name])
    layers.warm([layer])
    return layer


@pytest.fixture(scope="session")
def layer(request: pytest.FixtureRequest) -> layers.Layer:
    """Each layer of the chosen set in turn."""
    return _made(request.param)


@pytest.fixture(scope="session")
def packed_layer(request: pytest.FixtureRequest) -> layers.Layer:
    """Each chosen layer that is there as .gz and .zst too."""
    return _made(request.param)


@pytest.fixture(scope="session")
def real_layer(request: pytest.FixtureRequest) -> layers.Layer:
    """The first of the chosen layers: for what is measured on one layer only."""
    return _made(chosen(request.config)[0])


@pytest.fixture(scope="session")
def ground(request: pytest.FixtureRequest) -> Iterator[Path]:
    with measure.room(request.config.getoption("--at")) as place:
        yield place


@pytest.fixture
def place(ground: Path) -> Iterator[Path]:
    """An empty directory for one benchmark."""
    fresh = measure.fresh(ground / "one")
    yield fresh
    measure.wipe(fresh)


Measured = Callable[..., Any]


@pytest.fixture
def measured(benchmark: Any, request: pytest.FixtureRequest) -> Measured:
    """measured(job, setup=..., mb=..., entries=..., times=...): rounds of job(), and what they are in units.

    setup     before every round, not timed; what it returns is given to job
    mb        megabytes (10**6) the job passes on; gives mb_per_s
    entries   how many things it works through; gives entries_per_s
    times     how often one round does a small job; gives us_each
    """

    def measure_it(
        job: Callable[..., Any],
        *,
        setup: Callable[[], Any] | None = None,
        mb: float = 0,
        entries: int = 0,
        times: int = 0,
    ) -> Any:
        def prepared() -> tuple[tuple[Any, ...], dict[str, Any]]:
            return (setup(),) if setup else (), {}

        result = benchmark.pedantic(job, setup=prepared, rounds=request.config.getoption("--rounds"), warmup_rounds=1)
        seconds = benchmark.stats.stats.median if benchmark.stats else 0
        units = {}
        if seconds:
            units = {"mb_per_s": mb / seconds, "entries_per_s": entries / seconds}
            units = {unit: value for unit, value in units.items() if value}
            if times:
                units["us_each"] = seconds / times * 1e6
        benchmark.extra_info.update(units)
        for unit, value in (units or {"ms": seconds * 1e3}).items():
            _rows.append((request.node.name, value, unit))
        return result

    return measure_it


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if _rows:
        terminalreporter.section("medians in units")
        for name, value, unit in _rows:
            terminalreporter.write_line(f"{name:70s} {value:14,.1f} {unit}")


@pytest.fixture
def new_store(place: Path) -> Iterator[Callable[..., Any]]:
    """new_store(durability=..., driver=...): an empty store; the one before it is closed and deleted."""
    import layerstore

    opened: list[Any] = []

    def close() -> None:
        while opened:
            opened.pop().close()

    def fresh(durability: str = "none", driver: str | None = None) -> Any:
        close()
        root, options = measure.fresh(place / "root"), {"durability": durability}
        opened.append(layerstore.Store(root, driver=driver, options=options))
        return opened[-1]

    yield fresh
    close()


@pytest.fixture
def edited(new_store: Callable[..., Any], layer: layers.Layer) -> Any:
    """A writable layer over a layer, up to 10,000 of its files changed."""
    store = new_store()
    below = store.register(layer.path)
    rw = store.create_rw_layer("edited", below.chain_id)
    with rw.mounted() as merged:
        peers.edit(Path(merged), Path(below.metadata()["UpperDir"]))
    return rw
