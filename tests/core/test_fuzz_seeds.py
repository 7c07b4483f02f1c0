"""Every recipe through every fuzz target, with sanitizers: what `make fuzz` starts from holds on any machine.

The targets are built as .ci/fuzz builds them, but by the compiler at hand and with driver.c for a main().
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "fuzz"))
import build

pytestmark = pytest.mark.own_sanitizers


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("fuzz")
    build.build(made, "address,undefined", driver=True)
    build.write_seeds(made / "seeds")
    return made


@pytest.mark.parametrize("target", build.TARGETS)
def test_seeds_keep_every_promise(place: Path, room: Path, target: str) -> None:
    seeds = [place / "seeds" / kind for kind in build.seeds_of(target)]
    environment = {key: value for key, value in os.environ.items() if key not in ("LD_PRELOAD", "PYTHONMALLOC")}
    environment |= {"FUZZ_ROOM": str(room), "ASAN_OPTIONS": "detect_leaks=1", "UBSAN_OPTIONS": "print_stacktrace=1"}
    done = subprocess.run(
        [place / target, *seeds], env=environment, capture_output=True, check=False, text=True, timeout=55
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("\n") == sum(len(os.listdir(seed)) for seed in seeds)


def test_seeds_are_of_every_kind(place: Path) -> None:
    counts = {kind: len(os.listdir(place / "seeds" / kind)) for kind in ("tars", "records", "packed", "images")}
    assert all(count > 50 for count in counts.values()), counts
