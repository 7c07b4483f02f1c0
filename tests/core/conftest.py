"""The core's tests: the door is built and opened before the first test, so that no test's time counts it."""

import sys
from pathlib import Path

import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))
import door

# Sanitizers and a busy machine make single examples slow; conftest.py's alarm is the time limit.
settings.register_profile("core", deadline=None, max_examples=100 if not door.sanitizers() else 30)
settings.load_profile("core")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Programs that have sanitizers of their own run once, beside the plain core."""
    if door.sanitizers():
        own = [item for item in items if item.get_closest_marker("own_sanitizers")]
        config.hook.pytest_deselected(items=own)
        items[:] = [item for item in items if item not in own]


@pytest.fixture(scope="session", autouse=True)
def opened_door() -> None:
    assert door.lib.LAY_OK == 0
