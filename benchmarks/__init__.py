"""Benchmarks. The tests' helpers (tarkit, disk, dockerd, the door into the core) are used as they are."""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

for _place in (ROOT / "tests" / "core", ROOT / "tests"):
    if str(_place) not in sys.path:
        sys.path.insert(0, str(_place))
if importlib.util.find_spec("layerstore") is None:
    sys.path.insert(0, str(ROOT / "src"))
