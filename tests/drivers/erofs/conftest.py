import sys
from pathlib import Path

import disk
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
from home import Home, loops


@pytest.fixture
def driver_name():
    """What is tested here is erofs alone."""
    return "erofs"


@pytest.fixture(params=["loop", "file"])
def place(room, request):
    """A directory whose layers are mounted by loop devices, or themselves. Nothing may be left of them."""
    if request.param == "loop":
        yield room
        assert loops(room) == []
        return
    with disk.sized_file_system(room, "ext4", size=64 << 20) as place:
        yield place
        assert loops(place) == []


@pytest.fixture
def open_home(place):
    """Open one home as often as is asked for."""
    made = []

    def opened(**options):
        made.append(Home(place, **options))
        return made[-1]

    yield opened
    for home in made:
        home.close()


@pytest.fixture
def home(open_home):
    return open_home()
