"""Pages whose text lies elsewhere in the project, and links between files that are to hold between pages, too.

Enters: each page's source. Leaves: for a page of ELSEWHERE the text of that file instead; in every page links led from
files to the pages made of them. What is no page (a script, the licence) becomes a download.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

TOP = Path(__file__).resolve().parents[2]
DOCS = TOP / "docs"
ELSEWHERE = {
    "contributing": "CONTRIBUTING.md",
    "changelog": "CHANGELOG.md",
    "security": "SECURITY.md",
    "figures": "benchmarks/README.md",
}
LINK = re.compile(r"(!?)\[((?:[^\]\[]|\[[^\]]*\])*)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def led(text: str, file: Path, docname: str) -> str:
    """Return the text of file with its links as the page docname needs them."""
    page = (DOCS / docname).parent

    def lead(link: re.Match[str]) -> str:
        image, words, target, anchor = link.groups()
        there = (file.parent / target).resolve()
        if re.match(r"[a-z]+:", target) or not there.exists():
            return link.group(0)
        made = next((name for name, path in ELSEWHERE.items() if TOP / path == there), None)
        if made:
            there = DOCS / f"{made}.md"
        path = os.path.relpath(there, page)
        if there.is_dir():
            return words
        if not image and not (there.suffix == ".md" and there.is_relative_to(DOCS)):
            path = f"path:{path}"
        return f"{image}[{words}]({path}{anchor or ''})"

    return LINK.sub(lead, text)


def read(_app: Any, docname: str, source: list[str]) -> None:
    """Called by Sphinx with each page."""
    file = TOP / ELSEWHERE[docname] if docname in ELSEWHERE else DOCS / f"{docname}.md"
    source[0] = led(file.read_text(encoding="utf-8"), file, docname)


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("source-read", read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
