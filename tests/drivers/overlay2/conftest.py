import pytest


@pytest.fixture
def driver_name():
    """What is tested here is overlay2 alone."""
    return "overlay2"
