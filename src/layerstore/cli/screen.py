"""Screen: what a command prints, for people and for programs.

Results go to standard output, notes and progress to standard error. Where a terminal is, and rich is installed, there
are colours and progress bars; anywhere else plain lines. Names that others chose could play tricks on a terminal:
every line is made readable on its way out. Only names() prints them byte for byte, into pipes and files alone.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TextIO

from layerstore.cli.exits import Exit, Failure
from layerstore.cli.texts import human_age
from layerstore.errors import readable
from layerstore.sizes import format_size
from layerstore.values import Done, Progress

Cell = str | tuple[str, str]
"""A text, or a text and its style ("bold", "dim", "red", ...: rich's words)."""

_PLAIN_SECONDS = 2.0


def _rich() -> bool:
    """Return True if rich is installed. Only a terminal asks: it takes as long to load as all of layerstore."""
    try:
        import rich  # noqa: F401
    except ImportError:
        return False
    return True


def _text(cell: Cell) -> str:
    return cell if isinstance(cell, str) else cell[0]


def _shown(cell: Cell) -> Cell:
    return readable(cell) if isinstance(cell, str) else (readable(cell[0]), cell[1])


# The standard files that the caller had closed; /dev/null stands in their place.
closed_at_start: set[int] = set()


class Screen:
    """Where one command prints."""

    def __init__(
        self, *, as_json: bool = False, in_bytes: bool = False, quiet: bool = False, color: str = "auto"
    ) -> None:
        """Look at what standard output and standard error are.

        as_json    results are one JSON document
        in_bytes   sizes are plain numbers
        quiet      no notes, no progress
        color      "auto": on a terminal; "always"; "never"
        """
        self.as_json, self.in_bytes, self.quiet = as_json, in_bytes, quiet
        self.out: TextIO = sys.stdout
        self.err: TextIO = sys.stderr
        if isinstance(self.out, io.TextIOWrapper):
            self.out.reconfigure(encoding=sys.getfilesystemencoding(), errors="surrogateescape")
        if isinstance(self.err, io.TextIOWrapper):
            self.err.reconfigure(errors="backslashreplace")
        self.on_terminal = self.out.isatty()
        self._color = color
        self._consoles: dict[str, Any] = {}

    # ---- results ----

    def json(self, value: Any) -> None:
        """Print one JSON document."""
        self.out.write(json.dumps(value, indent=2) + "\n")

    def line(self, *cells: Cell) -> None:
        """Print one line; the cells stand side by side."""
        self._print("out", cells)

    def names(self, names: Iterable[str], *, null: bool = False) -> int:
        """Print names, each with a line of its own or with a NUL behind it; return how many there were."""
        count, end = 0, "\0" if null else "\n"
        for name in names:
            self.out.write((readable(name) if self.on_terminal else name) + end)
            count += 1
        return count

    def result(self, facts: Any, names: Iterable[str] = (), note: str = "", *, null: bool = False) -> None:
        """Print facts as JSON if that is asked for, else names and a note."""
        if self.as_json:
            self.json(facts)
            return
        self.names(names, null=null)
        if note:
            self.note(note)

    def table(
        self, titles: Sequence[str], rows: Sequence[Sequence[Cell]], *, facts: Any = None, none: str = ""
    ) -> None:
        """Print rows below their titles; a title that begins with ">" heads a column of numbers.

        facts   what is printed instead as JSON, if that is asked for
        none    the note if there are no rows
        """
        if self.as_json and facts is not None:
            self.json(facts)
            return
        if not rows:
            if none:
                self.note(none)
            return
        heads = [title.lstrip(">") for title in titles]
        shown = [[_shown(cell) for cell in row] for row in rows]
        widths = [max(len(_text(cell)) for cell in column) for column in zip(heads, *shown, strict=True)]

        def laid(cells: Sequence[Cell]) -> list[Cell]:
            parts: list[Cell] = []
            for at, (cell, width) in enumerate(zip(cells, widths, strict=True)):
                text, last = _text(cell), at == len(cells) - 1
                padded = text.rjust(width) if titles[at].startswith(">") else text if last else text.ljust(width)
                gap = "" if last else "  "
                parts.append(padded + gap if isinstance(cell, str) else (padded + gap, cell[1]))
            return parts

        self._print("out", laid([(head, "bold") for head in heads]))
        for row in shown:
            self._print("out", laid(row))

    def pairs(self, pairs: Iterable[tuple[str, Cell]]) -> None:
        """Print names and what they stand for, in two columns."""
        listed = list(pairs)
        width = max((len(name) for name, _ in listed), default=0)
        for name, cell in listed:
            self._print("out", [(name.ljust(width) + "  ", "bold"), cell])

    def size(self, size: int) -> str:
        """Return a size as the options ask for."""
        return str(size) if self.in_bytes else format_size(size)

    def age(self, since: float) -> str:
        """Return how long ago a time (seconds since 1970) is."""
        return human_age(time.time() - since)

    def branches(self) -> tuple[str, str, str, str]:
        """Return what trees are drawn with: a branch, the last one, a line that continues, blanks."""
        try:
            "├└│─".encode(self.out.encoding or "ascii")
        except UnicodeEncodeError:
            return "|- ", "`- ", "|  ", "   "
        return "├─ ", "└─ ", "│  ", "   "

    def binary(self, what: str) -> int:
        """Return standard output's descriptor, for bytes. Raises Failure if it is a terminal."""
        if self.on_terminal:
            why = f"{what} is not printed on a terminal: name a file with -o, or send it into a pipe"
            raise Failure(why, Exit.USAGE)
        if 1 in closed_at_start:
            raise Failure(f"{what} goes to standard output, which is closed: name a file with -o", Exit.USAGE)
        self.out.flush()
        return self.out.fileno()

    # ---- notes ----

    def note(self, text: str, style: str = "dim") -> None:
        """Print a note for people, beside the result."""
        if not self.quiet:
            self._print("err", [(text, style)])

    def warn(self, text: str) -> None:
        """Print a warning, also with --quiet."""
        self._print("err", [("layerstore: ", ""), (text, "yellow")])

    @contextlib.contextmanager
    def progress(self, label: str) -> Iterator[Progress | None]:
        """Show how far a call has come, for the length of a `with` block that passes on what it gets."""
        if self.quiet:
            yield None
        elif self.err.isatty() and self._console("err") is not None:
            with self._bar(label) as tell:
                yield tell
        else:
            yield self._plain_progress(label)

    def _plain_progress(self, label: str) -> Progress:
        last = time.monotonic()

        def tell(done: Done) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= _PLAIN_SECONDS and done != done.total:
                last = now
                of = f" of {format_size(done.total)}, {100 * done // done.total} %" if done.total else ""
                self.err.write(f"{label}: {format_size(done)}{of}\n")
                self.err.flush()

        return tell

    @contextlib.contextmanager
    def _bar(self, label: str) -> Iterator[Progress]:
        from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
        from rich.progress import Progress as Bars

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with Bars(*columns, console=self._console("err"), transient=True) as bars:
            task = bars.add_task(label, total=None)
            yield lambda done: bars.update(task, completed=int(done), total=done.total)

    # ---- both ----

    def _console(self, where: str) -> Any:
        """Return a rich console, or None for plain lines."""
        if where not in self._consoles:
            stream = self.out if where == "out" else self.err
            colored = self._color == "always" or (self._color == "auto" and stream.isatty())
            console = None
            if colored and os.environ.get("TERM") != "dumb" and _rich():
                from rich.console import Console

                force = True if self._color == "always" else None
                console = Console(
                    file=stream, force_terminal=force, highlight=False, markup=False, emoji=False, soft_wrap=True
                )
            self._consoles[where] = console
        return self._consoles[where]

    def _print(self, where: str, cells: Sequence[Cell]) -> None:
        cells = [_shown(cell) for cell in cells]
        stream, console = (self.out if where == "out" else self.err), self._console(where)
        if console is None:
            stream.write("".join(map(_text, cells)).rstrip(" ") + "\n")
            return
        from rich.text import Text

        console.print(Text.assemble(*(c if isinstance(c, str) else (c[0], c[1]) for c in cells)))


Run = Callable[[Any, Screen], int | None]
"""What a command is: called with the parsed arguments, returns the exit code; None: OK."""
