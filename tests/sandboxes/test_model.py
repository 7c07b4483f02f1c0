"""Acts drawn at random on real stores and on a plain model of them, held beside each other after each.

A seed draws layers, boxes, edits through mounts, snapshots, forks, rollbacks, squashes, commits and releases, by two stores
on one root, over each file system. By hand: SANDBOX_SEED=17 pytest tests/sandboxes/test_model.py -k "course and tmpfs"
"""

import os

import pytest
import soak
from soak import budget
from world import World

pytestmark = [pytest.mark.filterwarnings("ignore::layerstore.LeftOutWarning"), pytest.mark.usefixtures("tmpfs")]
SEED = int(os.environ.get("SANDBOX_SEED", 0))


@pytest.mark.soak(60, 900)
def test_a_course_of_acts_leaves_what_the_model_says(ground):
    first = SEED or 100 * soak.SEED
    for seed in range(first, first + (1 if SEED else budget(2, 40))):
        with World(ground / f"docker {seed}", seed) as world:
            world.run(budget(40, 150))
