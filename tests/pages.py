"""What a page shows is run: its ```python blocks, in order, in one namespace, and what they print is what it says.

Enters: a Markdown file. `# -> text` behind or below a print is what has to be printed, line by line.
"""

import ast
import builtins
import io
import re
import runpy
import subprocess
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
PROMISED = re.compile(r"# -> ?(.*)$", re.MULTILINE)


def blocks(page: Path) -> list[tuple[int, str]]:
    """Each ```python block of a page: how many lines stand above it, and its text."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text[: block.start(1)].count("\n"), block.group(1)) for block in found]


def prepare(page: Path) -> None:
    """Make in the current directory what a page's examples read: the tars of examples/tars.py, and what its ```sh blocks say."""
    runpy.run_path(str(PROJECT / "examples" / "tars.py"))["write"](Path())
    for script in re.findall(r"^```sh\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        subprocess.run(["sh", "-ec", script], check=True)


def promised(source: str) -> list[str]:
    """What a block says that it prints."""
    return [text.rstrip() for text in PROMISED.findall(source)]


def run(source: str, line: int, namespace: dict, page: Path) -> list[str]:
    """Run one block; what it printed, line by line. A traceback shows the page's own line."""
    printed = io.StringIO()

    def to_page(*values, **how):
        builtins.print(*values, **{"file": printed, **how})

    namespace["print"] = to_page
    tree = ast.increment_lineno(ast.parse(source, page.name), line)
    exec(compile(tree, str(page), "exec"), namespace)
    return [text.rstrip() for text in printed.getvalue().splitlines()]


def anchors(page: Path) -> set[str]:
    """What a link may lead to within a page: its headings, as they become anchors."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^a-z0-9 _-]", "", title.lower()).replace(" ", "-") for title in titles}


def broken_links(page: Path) -> list[str]:
    """Links of a page to files and headings of this project that are not there."""
    broken = []
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        there = (page.parent / file).resolve() if file else page
        if not there.exists() or (anchor and anchor not in anchors(there)):
            broken.append(target)
    return broken
