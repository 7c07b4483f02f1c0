"""overlay2, opened: the parts of the driver on one ground."""

from __future__ import annotations

from collections.abc import Mapping

from layerstore.drivers import Driver, StoreView
from layerstore.drivers.overlay.host import Host
from layerstore.drivers.overlay.trees import Trees
from layerstore.drivers.overlay.writables import Writables
from layerstore.drivers.overlay2.ground import Overlay2Ground
from layerstore.drivers.overlay2.layers import Layers
from layerstore.drivers.overlay2.options import parse_driver_options


def open_overlay2(home: str, options: Mapping[str, str], view: StoreView) -> Driver:
    """Open the driver at home, as drivers.Open has it."""
    ground = Overlay2Ground(home, parse_driver_options(options), view)
    return Driver(Layers(ground), Writables(ground), Host(ground), Trees(ground))
