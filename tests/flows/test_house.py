"""Who may know whom: the arrows between files go down only, in C, in Cython and in Python.

The floors below are the house. A file may use files on lower floors; a neighbour only where NEIGHBOURS
names it; a family (one reader in several files) knows itself.
"""
import ast
import re
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
CORE = TOP / "ext" / "core"
BIND = TOP / "ext" / "bind"
PACKAGE = TOP / "src" / "layerstore"

# ext/core, from the ground up: a folder uses those before it only.
C_FLOORS = ["base", "tar", "codec", "tree", "tarsplit", "changes", "source", "apply", "inspect"]

PY_FLOORS = [
    {"errors", "_files", "_changes", "_locks"},
    {"ids", "logs", "locks", "holds", "dockerd", "textfile", "decompress", "_apply", "_tarstream", "_listing", "_pack", "_mount", "_walk"},
    {"values", "_compiled"},
    {"sources", "descriptor"},
    {"transaction"},
    {"metadata", "imagedb", "tarstream", "compare", "files", "merged", "drivers.mounts", "drivers.counter", "drivers.options",
     "drivers.graft"},
    {"drivers.checks", "drivers.quota", "drivers.directories", "drivers.holders", "limits", "detached", "opaque", "keeping"},
    {"drivers.classes", "drivers.unowned"},
    {"drivers.mounting"},
    {"drivers.overlay2"},
    {"drivers"},
    {"layer", "leftout"},
    {"rwlayer"},
    {"records", "verify"},
    {"reclaim", "repair", "references", "durability", "contents"},
    {"registration"},
    {"writable"},
    {"mending"},
    {"store"},
    {"images.archive", "images.references", "images.gojson", "images.platforms"},
    {"images.catalogue", "images.configs"},
    {"images.shelf", "images.v1"},
    {"images.documents", "images.planned"},
    {"images.layouts"},
    {"images.plan"},
    {"images.gather", "images.image"},
    {"images.stream", "images.unpack", "images.targets", "images.history", "images.removing"},
    {"images.packing"},
    {"images.save"},
    {"images.load"},
    {"images.images"},
    {"images"},
    {"__init__"},
    {"cli.exits", "cli.texts"},
    {"cli.screen"},
    {"cli.opening", "cli.parser"},
    {"cli.mistakes", "cli.layers", "cli.host", "cli.doctor", "cli.completion"},
    {"cli.writable", "cli.contents", "cli.health", "cli.images", "cli.bench"},
    {"cli.commands"},
    {"cli.main"},
    {"cli"},
    {"aio.calls"},
    {"aio.streams"},
    {"aio.sources"},
    {"aio.layers"},
    {"aio.store"},
    {"aio"},
]


def floor_of(name: str, floors: list[set[str]], extra: dict[str, int] | None = None) -> int:
    for number, names in enumerate(floors):
        if name in names:
            return number
    if extra and name in extra:
        return extra[name]
    raise AssertionError(f"{name} stands on no floor: give it one in {Path(__file__).name}")


def c_files() -> list[Path]:
    return sorted([*CORE.rglob("*.c"), *CORE.rglob("*.h")])


def test_every_folder_of_the_core_has_a_floor() -> None:
    assert sorted(C_FLOORS) == sorted(p.name for p in CORE.iterdir() if p.is_dir())


@pytest.mark.parametrize("path", c_files(), ids=lambda p: p.name)
def test_c_includes_only_what_stands_below(path: Path) -> None:
    here = path.relative_to(CORE).parent.name
    for included in re.findall(r'^\s*#\s*include\s+"([^"]+)"', path.read_text(), re.M):
        there = Path(included).parent.name
        assert (CORE / included).is_file(), f"{path.name} includes {included}: write its path from ext/core"
        if there:  # lay.h, which stands in none, is below all
            assert here and C_FLOORS.index(there) <= C_FLOORS.index(here), f"{here}/{path.name} includes {included}"


def test_core_never_sees_python() -> None:
    for path in c_files():
        assert "Python.h" not in path.read_text().replace("no Python.h", ""), path.name


def test_bindings_know_the_core_and_the_errors_only() -> None:
    for path in sorted([*BIND.glob("*.pyx"), *BIND.glob("*.pxd")]):
        for line in path.read_text().splitlines():
            named = re.match(r"\s*(?:from\s+([\w.]+)\s+c?import|c?import\s+([\w.]+))", line)
            if not named:
                continue
            module = named.group(1) or named.group(2)
            if module.startswith("layerstore"):
                assert module in ("layerstore.errors", "layerstore"), f"{path.name}: {line.strip()}"


def module_name(path: Path) -> str:
    relative = path.relative_to(PACKAGE).with_suffix("")
    parts = [p for p in relative.parts if p != "__init__"]
    return ".".join(parts) or "__init__"


def for_types_only(tree: ast.Module) -> set[ast.AST]:
    """What stands in `if TYPE_CHECKING`: words of annotations, no arrow at run time."""
    blocks = [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    return {inner for block in blocks for inner in ast.walk(block)}


def imports_of(path: Path) -> set[str]:
    package = ("layerstore", *path.relative_to(PACKAGE).parent.parts)
    found: set[str] = set()
    tree = ast.parse(path.read_text())
    skipped = for_types_only(tree)
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names if a.name.split(".")[0] == "layerstore"}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(p for p in (base, node.module or "") if p)
            if module.split(".")[0] != "layerstore":
                continue
            for alias in node.names:
                inner = PACKAGE.joinpath(*module.split(".")[1:], alias.name)
                is_module = inner.with_suffix(".py").exists() or inner.is_dir() or inner.with_suffix(".pyi").exists()
                found.add(f"{module}.{alias.name}" if is_module else module)
    return {name.removeprefix("layerstore").lstrip(".") or "__init__" for name in found}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_python_imports_only_what_stands_below(path: Path) -> None:
    here = module_name(path)
    if here in ("__main__",):
        return
    for there in imports_of(path):
        if there == here:
            continue
        assert floor_of(there, PY_FLOORS) < floor_of(here, PY_FLOORS), f"{here} imports {there}"


def test_store_knows_no_driver_by_name() -> None:
    assert "overlay2" not in (PACKAGE / "store.py").read_text()
