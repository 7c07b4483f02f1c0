"""Power cuts, kills and crowds. A short round by itself, a long one in `make soak`; both say what they did.

TRUST_CUTS and TRUST_SECONDS make the round longer; what else does stands in tests/soak.py.
"""

import os
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import soak

sys.path.insert(0, str(Path(__file__).resolve().parent))

FIGURES = pytest.StashKey[list[str]]()


class Round(NamedTuple):
    cuts: int           # power cuts, over all file systems and durabilities
    seconds: int        # of the crowd
    seed: int


@pytest.fixture(scope="session")
def the_round():
    return Round(int(os.environ.get("TRUST_CUTS", soak.budget(12, 200))), int(os.environ.get("TRUST_SECONDS", soak.budget(4, 180))), soak.SEED)


@pytest.fixture(scope="session")
def figures(request):
    """Lines for the end of the run."""
    return request.config.stash.setdefault(FIGURES, [])


def pytest_terminal_summary(terminalreporter):
    if lines := terminalreporter.config.stash.get(FIGURES, []):
        terminalreporter.section("trust")
        for line in lines:
            terminalreporter.line(line)
