"""One suite for every driver of the table, and for a toy that proves what is no driver's own."""

import os
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
from toy import open_toy

from layerstore.disk.holds import Holds
from layerstore.drivers import Driver, StoreView, registry
from layerstore.layerdb.detached import Detached
from layerstore.layerdb.store import FileMetadataStore
from layerstore.limits import Limits


@pytest.fixture(params=[*registry.DRIVERS, "toy"])
def driver_name(request, monkeypatch):
    """The name of a driver; the toy is in the table for the length of the test."""
    monkeypatch.setitem(registry.DRIVERS, "toy", open_toy)
    return request.param


@pytest.fixture
def open_store(open_store, driver_name):
    return lambda where=None, driver=driver_name, **options: open_store(where, driver=driver, **options)


class Opened(NamedTuple):
    """A driver alone, without a store; the sidecars of an id are in a directory of their own."""

    driver: Driver
    home: Path
    sidecars: Path

    def new(self, id):
        """What opens sidecars while a layer is made."""
        (self.sidecars / id).mkdir(exist_ok=True)
        return lambda name: os.open(self.sidecars / id / name, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)

    def stored(self, id):
        """What opens them later."""
        return lambda name: os.open(self.sidecars / id / name, os.O_RDONLY)

    def layer(self, id, stack=()):
        return self.driver.layers.open(id, list(stack), self.stored(id))


@pytest.fixture
def opened(room, driver_name):
    layerdb = FileMetadataStore(room / "layerdb", make=False)
    view = StoreView(
        read_only=False, limits=Limits(), lock_timeout=10, holds=Holds(""), boxes=Detached(layerdb), layer_in=layerdb.layer_in
    )
    (room / "sidecars").mkdir()
    opened = Opened(registry.open_driver(driver_name, str(room), {}, view), room / driver_name, room / "sidecars")
    yield opened
    for id in os.listdir(opened.sidecars):
        opened.driver.layers.remove(id)
