"""Print the stub of layerstore.aio from what its classes are made of: `make stub` writes it, a test compares it.

A type checker cannot follow how they are made (src/layerstore/aio/mirror.py), so the stub spells it out.
"""

import ast
import inspect
import sys
import textwrap
import typing
from collections.abc import Iterator
from pathlib import Path

from layerstore import aio
from layerstore.aio.mirror import NAMES

ALIASES = ["Parent = str | Layer | layerstore.Layer | layerstore.Image", "_Excluded = Parent"]


def declaration(name: str, function: typing.Any, indent: str = "") -> str:
    """Return one function, as a stub has it."""
    inner = inspect.unwrap(function)
    signature = inspect.signature(inner)
    parameters: list[str] = []
    for each in signature.parameters.values():
        if each.kind is each.KEYWORD_ONLY and "*" not in parameters:
            parameters.append("*")
        kind = "" if each.name == "self" else f": {each.annotation}"
        parameters.append(f"{each.name}{kind}{'' if each.default is each.empty else ' = ...'}")
    returns = signature.return_annotation
    if inner is not function:
        returns = returns.replace("AsyncIterator", "AbstractAsyncContextManager")
    word = "async def" if inspect.iscoroutinefunction(inner) else "def"
    text = f"{word} {name}({', '.join(parameters)}) -> {returns}: ..."
    return textwrap.fill(text, 120, initial_indent=indent, subsequent_indent=indent + "    ")


def declarations(name: str, cls: type) -> Iterator[str]:
    """Return the lines of one class."""
    base = cls.__mro__[1].__name__
    yield f"class {name}({base if base == 'File' else f'{base}[layerstore.{name}]'}):"
    for attribute, kind in inspect.get_annotations(cls).items():
        yield f"    {attribute}: {kind}"
    for member, thing in vars(cls).items():
        if member.startswith("_") and member != "__init__":
            continue
        if isinstance(thing, (property, staticmethod)):
            yield f"    @{type(thing).__name__}"
            thing = thing.fget if isinstance(thing, property) else thing.__func__
        yield declaration(member, thing, "    ")
    yield ""


def home(name: str) -> str:
    """Return the module that defines a name; "" for what needs no import."""
    for module in ("collections.abc", "contextlib", "datetime", "subprocess", "typing"):
        if name in sys.modules[module].__all__:
            return module
    for module in sorted(name for name in sys.modules if name.startswith("layerstore.")):
        file = getattr(sys.modules[module], "__file__", None) or ""
        if getattr(sys.modules[module], name, "") != {**NAMES, **vars(aio)}.get(name):
            continue
        for node in ast.parse(Path(file).read_bytes()).body if file.endswith(".py") else []:
            targets = node.targets if isinstance(node, ast.Assign) else []
            if name in [getattr(node, "name", ""), *(target.id for target in targets if isinstance(target, ast.Name))]:
                return module
    return ""


def stub() -> Iterator[str]:
    """Return the lines of the stub."""
    body: list[str] = []
    for name in sorted(set(aio.__all__) - {"File"}, key=lambda name: (inspect.isfunction(getattr(aio, name)), name)):
        thing = getattr(aio, name)
        body += declarations(name, thing) if inspect.isclass(thing) else [declaration(name, thing)]
    body += ["", *ALIASES]
    body = [line.replace("datetime.datetime", "datetime") for line in body]       # as inspect spells the class
    nodes = [*ast.walk(ast.parse("\n".join(body)))]
    made = {getattr(node, "name", "") for node in nodes} | {line.split()[0] for line in ALIASES}
    imported: dict[str, list[str]] = {"layerstore.aio.streams": ["File as File"]}
    for name in sorted({node.id for node in nodes if isinstance(node, ast.Name)} - made - {"File"}):
        imported.setdefault(home(name), []).append(name)
    imported.pop("")
    yield '"""What __init__.py of this directory makes, for a type checker; `make stub` writes it."""\n'
    for ours in (False, True):
        for module in sorted(module for module in imported if module.startswith("layerstore") is ours):
            names = sorted(imported[module], key=lambda name: (not name.isupper(), name))
            line = f"from {module} import {', '.join(names)}"
            yield line if len(line) <= 120 else f"from {module} import (\n    {(',' + chr(10) + '    ').join(names)},\n)"
        yield "" if ours else "\nimport layerstore"
    yield textwrap.fill(f"__all__ = {sorted(aio.__all__)!r}", 120, subsequent_indent="    ").replace("'", '"') + "\n"
    yield from body


if __name__ == "__main__":
    print("\n".join(stub()))
