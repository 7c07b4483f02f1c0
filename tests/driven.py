"""Which driver a run of the tests is about: overlay2, or the one that LAYERSTORE_TEST_DRIVER names.

Then every store of a test that names no driver has that one, in programs that a test begins, too. A test of what one
driver alone has is marked `only(driver, reason)`.
"""

import os

DRIVER = os.environ.get("LAYERSTORE_TEST_DRIVER", "overlay2")
FILES = {"overlay2": "diff", "erofs": "fs"}[DRIVER]
"""The directory of what a box has written."""
LAYERDB = f"image/{DRIVER}/layerdb"


def choose() -> None:
    """Make it the first of the table, which is the one of an empty root."""
    from layerstore.drivers import registry

    table = dict(registry.DRIVERS)
    registry.DRIVERS.clear()
    registry.DRIVERS.update({DRIVER: table[DRIVER], **table})
