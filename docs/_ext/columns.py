"""Docstrings as this house writes them, made into reStructuredText: columns of names become lists of definitions.

Enters: every docstring autodoc reads. Leaves: the same words. Lines that are `name   what it is` (two blanks or more
between) become a list, a line that goes on is joined to its own; behind `Raises` each class of errors is one.
"""

from __future__ import annotations

import re
from typing import Any

ROW = re.compile(r"^(\S(?:.*?\S)?)\s{2,}(\S.*)$")
ERRORS = re.compile(r"^((?:[A-Z]\w*Error)(?:, [A-Z]\w*Error)*)(?:,?\s*$|\s{2,}(\S.*)$)")
MORE_ERRORS = re.compile(r"^((?:[A-Z]\w*Error)(?:, [A-Z]\w*Error)*),? (.*)$")
NAME = re.compile(r"^[\w.\"']+(\[[^]]*\])?(\([^)]*\))?$")


def plain(text: str) -> str:
    """Words as they are: nothing in them is markup but `code`."""
    parts = text.split("`")
    for number, part in enumerate(parts):
        parts[number] = f"``{part}``" if number % 2 and part.strip() else re.sub(r"([\\*|_])", r"\\\1", part)
    return "".join(parts)


def named(text: str) -> str:
    """A list of names in code letters; anything else as it is."""
    names = text.split(", ")
    return ", ".join(f"``{name}``" for name in names) if all(NAME.match(name) for name in names) else plain(text)


def errors(lines: list[str]) -> list[str]:
    """What stands behind Raises: a list of classes where each has its own line, else a sentence.

    lines   those that are indented beyond the names of classes begin with a tab
    """
    if not any(ERRORS.match(line) for line in lines):
        return [plain(" ".join(line.strip() for line in lines))]
    out: list[str] = []
    for line in lines:
        found = ERRORS.match(line) or MORE_ERRORS.match(line)
        if found:
            if out and not out[-1].startswith("    "):        # a sentence stands before it
                out.append("")
            out += [named(found.group(1)), f"    {plain(found.group(2) or '')}"]
        elif line.startswith("\t") and out:
            out[-1] = f"{out[-1]} {plain(line.strip())}"
        else:
            out += ["", plain(line.strip())]
    return [line if line == "" or line.strip() else "    \\ " for line in out]


def block(rows: list[tuple[str, list[str]]]) -> list[str]:
    """One definition a row."""
    out = [""]
    for name, lines in rows:
        section = name in ("Raises", "Returns", "Source")
        out.append(f"*{name}*" if section else named(name))
        told = errors(lines) if name == "Raises" else [plain(" ".join(line.strip() for line in lines))]
        out += [f"    {line}".rstrip() for line in told]
    return [*out, ""]


def rest(lines: list[str]) -> list[str]:
    """Return one docstring's lines as reStructuredText."""
    out: list[str] = []
    rows: list[tuple[str, list[str]]] = []
    column = 0
    for line in [*lines, ""]:
        row = None if line.startswith(" ") else ROW.match(line)
        if row:
            rows.append((row.group(1), [row.group(2)]))
            column = row.start(2)
        elif rows and NAME.match(line[: column - 1]) and line[column - 1 : column] == " ":
            rows.append((line[: column - 1], [line[column:]]))        # a name as wide as its column
        elif rows and line.startswith(" "):
            deeper = len(line) - len(line.lstrip()) > column
            rows[-1][1].append("\t" * deeper + line.strip())
        else:
            if rows:
                out += block(rows)
                rows = []
            out.append(plain(line.strip()))
    return out


def process(_app: Any, _what: str, _name: str, _obj: Any, _options: Any, lines: list[str]) -> None:
    """Called by autodoc with each docstring; what Python says of every named tuple is left out."""
    lines[:] = rest([line for line in lines if not line.startswith("Create new instance of")])


def skip(_app: Any, _what: str, _name: str, obj: Any, _skip: bool, _options: Any) -> bool | None:
    """Fields that say nothing of themselves are described by their class."""
    return True if (getattr(obj, "__doc__", None) or "").startswith("Alias for field number") else None


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", process)
    app.connect("autodoc-skip-member", skip)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
