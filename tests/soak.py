"""How long a check goes on: briefly in `make test`, whole in `make soak`, which runs what is marked `soak`.

Where walks, draws and races have a short budget they have both here, side by side; each still does its kind of work.

LAYERSTORE_SOAK   1: `make soak`; 2: each errno of each system call besides, which takes hours
LAYERSTORE_SEED   draws another round
"""

import os

LEVEL = int(os.environ.get("LAYERSTORE_SOAK") or 0)
SEED = int(os.environ.get("LAYERSTORE_SEED") or 1)


def budget(short, whole):
    return whole if LEVEL else short
