"""erofs, opened: the parts of the driver on one ground."""

from __future__ import annotations

from collections.abc import Mapping

from layerstore.drivers import Driver, StoreView
from layerstore.drivers.erofs.ground import ErofsGround
from layerstore.drivers.erofs.host import ErofsHost
from layerstore.drivers.erofs.layers import Layers
from layerstore.drivers.erofs.options import parse_driver_options
from layerstore.drivers.erofs.trees import ErofsTrees
from layerstore.drivers.overlay.writables import Writables


def open_erofs(home: str, options: Mapping[str, str], view: StoreView) -> Driver:
    """Open the driver at home, as drivers.Open has it."""
    ground = ErofsGround(home, parse_driver_options(options), view)
    return Driver(Layers(ground, view.same), Writables(ground), ErofsHost(ground), ErofsTrees(ground))
