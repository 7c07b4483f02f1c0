"""The reference is whole: every public name, its methods and its attributes, has a docstring and an example that runs.

Enters: the public classes and docs/api. What a class takes over from Python itself is Python's to document.
"""

import ast
import enum
import inspect
import re
import textwrap

import pages
import pytest

import layerstore
import layerstore.aio

API = {page: page.read_text(encoding="utf-8") for page in sorted((pages.PROJECT / "docs" / "api").glob("*.md"))}
CLASSES = {f"layerstore.{name}": getattr(layerstore, name) for name in layerstore.__all__}
CLASSES |= {f"layerstore.aio.{name}": getattr(layerstore.aio, name) for name in layerstore.aio.__all__}
CLASSES = {name: kind for name, kind in CLASSES.items() if inspect.isclass(kind) and kind.__module__.startswith("layerstore")}
# What the package's own parts use between them, though without an underscore; no example could call them.
OWN = {
    "TarStream": {"about", "copy_some", "left_out", "lying", "pass_over", "pump_into", "pump_once", "read_block"}, "LayerStoreError": {"about"},
    "Registry": {"chunk", "connections", "mirrors", "name", "place", "session", "slots"},
}  # fmt: skip


def set_in_init(kind: type) -> set[str]:
    """Return the attributes that __init__ gives an object."""
    init = vars(kind).get("__init__")
    if not inspect.isfunction(init) or init.__module__ == "dataclasses" or init.__code__.co_filename.startswith("<"):
        return set()
    tree = ast.parse(textwrap.dedent(inspect.getsource(init)))
    targets = [node for each in ast.walk(tree) if isinstance(each, ast.Assign | ast.AnnAssign)
               for target in (each.targets if isinstance(each, ast.Assign) else [each.target]) for node in ast.walk(target)]  # fmt: skip
    return {node.attr for node in targets if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"}


def own_classes(kind: type) -> list[type]:
    return [each for each in kind.__mro__ if each.__module__.startswith("layerstore")]


def attributes(kind: type) -> set[str]:
    """Name the public methods, properties and attributes of a class, as far as they are ours."""
    found: set[str] = set()
    for each in own_classes(kind):
        found |= {*vars(each), *getattr(each, "__annotations__", {}), *set_in_init(each)}
    return {name for name in found if not name.startswith("_")} - {own for each in kind.__mro__ for own in OWN.get(each.__name__, ())}


def is_documented(kind: type, name: str) -> bool:
    """Return True if it has a docstring, or a row in its class's."""
    thing = next((vars(each)[name] for each in own_classes(kind) if name in vars(each)), None)
    named_tuple_field = isinstance(thing, type(layerstore.Change.path))
    if not named_tuple_field and not isinstance(thing, str | int | None) and (getattr(thing, "__doc__", None) or "").strip():
        return True
    return any(re.search(rf"^\s*(?:\w+, )*{name}(?:, \w+)*  +", text or "", re.MULTILINE)
               for each in own_classes(kind) for text in (each.__doc__, vars(each).get("__init__", each).__doc__))  # fmt: skip


def examples(page) -> str:
    """Return the code of a page's examples, without comments."""
    return re.sub(r"#.*", "", "\n".join(source for _, source in pages.blocks(page)))


@pytest.mark.parametrize("name", CLASSES)
def test_every_attribute_of_a_public_class_has_a_docstring(name):
    kind = CLASSES[name]
    assert [each for each in sorted(attributes(kind)) if not is_documented(kind, each)] == []


@pytest.mark.parametrize("name", [f"layerstore.{name}" for name in layerstore.__all__])
def test_every_public_name_has_an_example_beside_its_entry(name):
    page = next(page for page, text in API.items() if re.search(rf":: {re.escape(name)}$", text, re.MULTILINE))
    code, short = examples(page), name.rpartition(".")[2]
    if short not in ("NotMountedError", "LayerStoreError"):     # never raised; the class of all others
        assert re.search(rf"\b{short}\b", code) or f"-> {short} " in "\n".join(API[page].splitlines()), f"no example of {name} in {page.name}"
    kind = CLASSES.get(name)
    if kind is None or issubclass(kind, BaseException) or short == "FileMetadataStore":
        return
    used = r"\b{}\b" if issubclass(kind, enum.Enum | tuple) else r"\.{}\b"
    missing = [each for each in sorted(attributes(kind)) if not re.search(used.format(each), code)]
    assert missing == [], f"docs/api/{page.name} has no example of these of {name}"


@pytest.mark.parametrize("name", layerstore.aio.__all__)
def test_every_name_of_aio_has_an_example(name):
    page = next(page for page in API if page.name == "aio.md")
    if name in ("Layer", "RWLayer", "Snapshot", "TarStream", "File"):       # a Store gives them
        assert any(each in examples(page) for each in ("register(", "create_rw_layer(", "snapshot(", "tar_stream(", "open("))
    else:
        assert f"aio.{name}(" in examples(page) or f"aio.{name}." in examples(page)
