"""The words of the prose: python tests/prose/check.py [FILE...] finds the phrases of phrases.txt and says what is better.

In: pages, docstrings, comments and messages of the project, or of the files named. Out: one line per finding, and exit
code 1 if there is one. Code in pages, names in backticks and the docstrings' own examples are not looked at.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PROJECT = Path(__file__).resolve().parents[2]
WHERE = ("docs", "src", "ext", "tests", "examples", "benchmarks", "*.md", ".ci", "Makefile", "pyproject.toml")
PYTHON = (".py", ".pyi", ".pyx", ".pxd")
NO_WORDS = {"benchmarks/results/compare.md"}


class Piece(NamedTuple):
    """A run of prose: where it begins, whether it is a docstring, its text."""

    line: int
    docstring: bool
    text: str


class Phrase(NamedTuple):
    """A phrase to avoid, and the better words."""

    pattern: re.Pattern[str]
    better: str


def phrases() -> dict[str, list[str]]:
    """Return the lines of phrases.txt by their sections."""
    found: dict[str, list[str]] = {}
    for line in (Path(__file__).parent / "phrases.txt").read_text(encoding="utf-8").splitlines():
        if re.fullmatch(r"\[\w+\]", line):
            found[line[1:-1]] = []
        elif line.strip() and not line.startswith("#"):
            found[list(found)[-1]].append(line)
    return found


def rules(lines: list[str], flags: re.RegexFlag) -> list[Phrase]:
    """Return what lines "expression -> better words" say."""
    return [Phrase(re.compile(left, flags), right) for left, _, right in (line.rpartition(" -> ") for line in lines)]


SECTIONS = phrases()
TEXT = rules(SECTIONS["text"], re.IGNORECASE)
DOCSTRING = rules(SECTIONS["docstring"], re.NOFLAG)


def of_page(text: str) -> Iterator[Piece]:
    """Split a page into paragraphs, without its code."""
    hidden = re.sub(r"^```.*?^```$|<!--.*?-->|`[^`\n]+`", lambda m: re.sub(r"[^\n]", " ", m[0]), text, flags=re.M | re.S)
    for found in re.finditer(r"(?:.+\n?)+", hidden):
        yield Piece(text.count("\n", 0, found.start()) + 1, False, found[0])


def of_python(text: str, *, messages: bool) -> Iterator[Piece]:
    """Split Python or Cython into docstrings, comments and, if asked for, other strings."""
    comment: list[tokenize.TokenInfo] = []
    begins = True                           # a string here is a statement of its own: a docstring
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        kind = tokenize.tok_name[token.type]
        if comment and kind not in ("NL", "COMMENT"):
            yield Piece(comment[0].start[0], False, "\n".join(each.string.lstrip("# ") for each in comment))
            comment = []
        if kind == "COMMENT":
            comment.append(token)
        elif kind == "STRING" and (begins or messages):
            words = re.sub(r"^\w*(\"{3}|'{3}|\"|')|(\"{3}|'{3}|\"|')$", "", token.string)
            yield Piece(token.start[0], begins, words)
        elif kind == "FSTRING_MIDDLE" and messages:
            yield Piece(token.start[0], False, token.string)
        if kind not in ("NL", "COMMENT"):
            begins = kind in ("NEWLINE", "INDENT", "DEDENT", "ENCODING")


def of_c(text: str, *, messages: bool) -> Iterator[Piece]:
    """Split C into comments and, if asked for, strings."""
    for found in re.finditer(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'', text, re.S):
        if found[0][0] == "/" or (found[0][0] == '"' and messages):
            words = re.sub(r"^[ \t]*\*+(?!/)", "", found[0].strip("/*\""), flags=re.M)
            yield Piece(text.count("\n", 0, found.start()) + 1, False, words)


def pieces(path: Path) -> Iterator[Piece]:
    """Split a file into its prose."""
    text = path.read_text(encoding="utf-8")
    messages = "tests" not in path.relative_to(PROJECT).parts
    if path.suffix == ".md":
        return of_page(text)
    if path.suffix in PYTHON:
        return of_python(text, messages=messages)
    if path.suffix in (".c", ".h"):
        return of_c(text, messages=messages)
    comments = (match for match in re.finditer(r"(?:^[ \t]*#.*\n)+", text, re.M))
    return iter([Piece(text.count("\n", 0, c.start()) + 1, False, re.sub(r"^[ \t]*#", "", c[0], flags=re.M)) for c in comments])


def findings(path: Path) -> Iterator[str]:
    """Check one file."""
    name = path.relative_to(PROJECT)
    for piece in pieces(path):
        text = re.sub(r"`[^`\n]+`", lambda m: " " * len(m[0]), piece.text)
        for quoted in SECTIONS["quoted"]:
            text = text.replace(quoted, " " * len(quoted))
        flat = re.sub(r"\s", " ", text)
        found = [(each.start(), each[0], rule.better) for rule in TEXT for each in rule.pattern.finditer(flat)]
        if piece.docstring:
            begin = text.lstrip()
            first = ((rule.pattern.match(begin), rule.better) for rule in DOCSTRING)
            found += [(0, match[0], better) for match, better in first if match]
        for at, words, better in sorted(found):
            yield f"{name}:{piece.line + text.count(chr(10), 0, at)}: {' '.join(words.split())!r}: better: {better}"


def main(names: list[str]) -> int:
    """Check the files named, else all that git knows."""
    if not names:
        listed = subprocess.run(["git", "ls-files", *WHERE], cwd=PROJECT, capture_output=True, text=True, check=True)
        names = [name for name in listed.stdout.splitlines() if name not in NO_WORDS and (PROJECT / name).is_file()]
    suffixes = (*PYTHON, ".md", ".c", ".h", ".toml")
    chosen = [PROJECT / name for name in names if Path(name).suffix in suffixes or name.startswith((".ci", "Makefile"))]
    found = [line for path in chosen for line in findings(path)]
    print("\n".join(found) or f"{len(chosen)} files: no phrase of phrases.txt")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
