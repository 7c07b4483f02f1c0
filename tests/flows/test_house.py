"""Who may know whom: the arrows between folders go down only, in C, in Cython and in Python.

The floors below are the house. A file uses files of its own folder and of those before it.
"""
import ast
import graphlib
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from layerstore.drivers import registry

TOP = Path(__file__).resolve().parents[2]
CORE = TOP / "ext" / "core"
BIND = TOP / "ext" / "bind"
PACKAGE = TOP / "src" / "layerstore"

# ext/core, from the ground up: a folder uses those before it only.
C_FLOORS = ["base", "locks", "process", "mount", "tar", "codec", "tree", "union", "erofs", "clone", "tarsplit", "changes", "source", "apply", "inspect"]

# src/layerstore, likewise: the names and values that all use, then folders, the faces, and who uses them.
PY_FLOORS = [
    "version", "errors", "_core", "ids", "values", "sizes", "limits", "logs", "disk", "streams", "running", "contents", "layerdb", "drivers", "engine", "layer", "rwlayer",
    "store", "documents", "registry", "images", "__init__", "cli", "aio", "__main__",
]


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


def c_arrows() -> dict[str, set[str]]:
    """What each unit (the .c and .h files of one stem) includes of the others, or names of what they define."""
    texts: dict[str, str] = {}
    for path in c_files():
        texts[path.stem] = texts.get(path.stem, "") + (path.read_text() if path.suffix == ".c" else "")
        texts[path.stem] += "".join(re.findall(r'^#include "[^"]+"\n', path.read_text(), re.M))
    owners = {name: unit for unit, text in texts.items() for name in re.findall(r"^\w[^\n;=(]*\b(lay_\w+)\(", text, re.M)}
    arrows = {}
    for unit, text in texts.items():
        named = {owners[name] for name in re.findall(r"\blay_\w+", text) if name in owners}
        included = {Path(name).stem for name in re.findall(r'^#include "([^"]+)"', text, re.M)}
        arrows[unit] = (named | included & set(texts)) - {unit}
    return arrows


def check_no_circle(arrows: Mapping[str, set[str]]) -> None:
    try:
        graphlib.TopologicalSorter(arrows).prepare()
    except graphlib.CycleError as circle:
        pytest.fail(" -> ".join(reversed(circle.args[1])))


def test_no_circle_among_the_units_of_the_core() -> None:
    arrows = c_arrows()
    assert {"ring", "unpack_names"} <= arrows["unpack"]
    assert {"tar_head", "tar_pax"} <= arrows["tar_read"]
    check_no_circle(arrows)


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


def imports_of(path: Path) -> set[str]:
    """What a module imports of the package, for annotations alone too."""
    package = ("layerstore", *path.relative_to(PACKAGE).parent.parts)
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
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


def folder_of(module: str) -> str:
    return module.split(".")[0]


def test_every_folder_of_the_package_has_a_floor() -> None:
    found = {folder_of(module_name(path)) for path in PACKAGE.rglob("*.py")}
    assert found == set(PY_FLOORS)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_python_imports_only_what_stands_below(path: Path) -> None:
    here = module_name(path)
    for there in imports_of(path):
        assert PY_FLOORS.index(folder_of(there)) <= PY_FLOORS.index(folder_of(here)), f"{here} imports {there}"


def test_no_circle_among_the_modules_of_the_package() -> None:
    arrows = {module_name(path): imports_of(path) for path in PACKAGE.rglob("*.py")}
    assert "engine.engine" in arrows["store"] and "disk.holds" in arrows["engine.record"]
    check_no_circle(arrows)


# ---- drivers: what a stored layer is, they alone know ----

# What the host can mount, and what goes out as one file, is in a format that has a driver's name.
IMAGE_FORMAT = {"cli/doctor.py", "cli/layers.py", "layer.py"}
ABOVE = [path for path in sorted(PACKAGE.rglob("*.py")) if PY_FLOORS.index(folder_of(module_name(path))) > PY_FLOORS.index("drivers")]


@pytest.mark.parametrize("path", ABOVE, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_room_above_the_drivers_names_one_or_what_it_keeps_beside_a_layer(path: Path) -> None:
    named = re.findall(r"overlay2|(?<!errno\.)erofs|\btoy\b|tar.?split", path.read_text(), re.I)
    assert [name for name in named if name.lower() != "erofs" or str(path.relative_to(PACKAGE)) not in IMAGE_FORMAT] == []


def test_the_table_alone_knows_a_driver() -> None:
    arrows = {module_name(path): imports_of(path) for path in PACKAGE.rglob("*.py")}
    for driver in registry.DRIVERS:
        room = f"drivers.{driver}"
        know = {here for here, there in arrows.items() if any(name.split(".")[:2] == room.split(".") for name in there)}
        assert {here for here in know if not here.startswith(f"{room}.")} == {"drivers.registry"}


def test_what_drivers_share_knows_none_of_them() -> None:
    for path in sorted((PACKAGE / "drivers" / "overlay").glob("*.py")):
        named = re.findall("|".join(registry.DRIVERS), re.sub(r"^(# )?Source:.*", "", path.read_text(), flags=re.M))
        assert named == [], f"{path.name} names {named}"


# Documented methods of a named tuple, whose names only look private.
NAMED_TUPLES = {"_asdict", "_fields", "_replace"}


def private_names(tree: ast.AST) -> tuple[set[str], set[str]]:
    """Return the private names that a module has of its own (by def, or on self or cls), and those it takes of objects."""
    own: set[str] = set()
    taken: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            own.add(node.name)
        elif isinstance(node, ast.Attribute) and re.match(r"_[^_]", node.attr):
            itself = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            (own if itself else taken).add(node.attr)
    return own, taken - NAMED_TUPLES


def test_private_attributes_are_told_apart() -> None:
    own, taken = private_names(ast.parse("self._mine = other._mine + store._engine + value._replace(a=1).__doc__\ndef _f(): pass"))
    assert (own, taken - own) == ({"_mine", "_f"}, {"_engine"})


@pytest.mark.parametrize("room", ["images", "cli", "aio", "streams", "contents", "disk"])
def test_no_private_attribute_of_another_modules_object_is_touched(room: str) -> None:
    for path in sorted((PACKAGE / room).rglob("*.py")):
        own, taken = private_names(ast.parse(path.read_text()))
        assert taken <= own, f"{path.relative_to(PACKAGE)} touches {sorted(taken - own)}"
