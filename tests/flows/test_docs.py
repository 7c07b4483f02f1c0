"""What is written for people is true: README's examples run and print what they say, names are documented, demo ends well.

Enters: README.md, the public names, examples/demo.py. The examples run in order in one namespace, in a directory of their own.
"""

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import disk
import pages
import pytest

import layerstore

PROJECT = Path(__file__).resolve().parents[2]
PAGE = PROJECT / "README.md"
README = PAGE.read_text(encoding="utf-8")
BLOCKS = pages.blocks(PAGE)
INSTALL = (PROJECT / "docs" / "install.md").read_text(encoding="utf-8")


# ---- README -------------------------------------------------------------------------------------
def test_every_example_runs_in_order_and_prints_what_it_says(room, monkeypatch):
    monkeypatch.chdir(room)
    pages.prepare(PAGE)
    namespace = {"__name__": "readme"}
    try:
        for line, source in BLOCKS:
            assert pages.run(source, line, namespace, PAGE) == pages.promised(source), f"the example at line {line + 1}"
        assert disk.mounts_below(room) == [], "an example leaves something mounted"
    finally:
        namespace["store"].close()
    left = [path for path in disk.inventory(room / "my-layers") if (room / "my-layers" / path).is_file()]
    assert left == ["image/overlay2/repositories.json"]


def test_the_readme_is_short_and_begins_with_an_example_of_five_lines():
    assert len(README.splitlines()) <= 200
    assert len([line for line in BLOCKS[0][1].splitlines() if line and "import" not in line]) <= 5


def test_the_examples_say_what_they_print():
    """Else the comparison above would pass on silence."""
    assert len(BLOCKS) >= 6
    assert all(pages.promised(source) for _, source in BLOCKS)


def test_each_section_of_the_readme_links_to_a_page():
    sections = dict(re.findall(r"^## (.*)\n((?:(?!^## ).*\n)*)", README, re.MULTILINE))
    for title in ("Install", "Register a layer and read it back", "Sandboxes", "Images and registries",
                  "Reading without a mount", "Command line", "Safety", "What it is not", "Status and support"):
        assert "](docs/" in sections[title], title


def make_targets() -> set[str]:
    rules = re.findall(r"^([a-z][a-z-]*):", (PROJECT / "Makefile").read_text(), re.MULTILINE)
    return set(rules)


def test_every_make_target_named_exists():
    written = README + INSTALL
    named = set(re.findall(r"\bmake ([a-z][a-z-]*)(?=[`\s])", written))
    assert {"demo", "test"} <= named <= make_targets()


def test_every_variable_named_is_read_somewhere():
    source = "".join(
        path.read_text(encoding="utf-8")
        for folder in ("src", "ext")
        for path in sorted((PROJECT / folder).rglob("*.py"))
    )
    named = set(re.findall(r"\bLAYERSTORE_[A-Z_]+\b", README + INSTALL))
    assert named
    assert [name for name in sorted(named) if name not in source] == []


def test_links_within_the_readme_lead_somewhere():
    assert pages.broken_links(PAGE) == []


# ---- docstrings ---------------------------------------------------------------------------------
@pytest.mark.parametrize("name", layerstore.__all__)
def test_every_public_name_has_a_docstring(name):
    thing = getattr(layerstore, name)
    if not (inspect.isclass(thing) or callable(thing)):
        thing = type(thing)  # a constant: its class says what it is
    assert inspect.getdoc(thing)


@pytest.mark.parametrize("name", ["Store", "FileMetadataStore"])
def test_what_a_constructor_takes_is_documented(name):
    assert (getattr(layerstore, name).__init__.__doc__ or "").strip()


# ---- the demo -----------------------------------------------------------------------------------
DEMO = PROJECT / "examples" / "demo.py"


def run_demo(room, *arguments: str, script: Path = DEMO, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    """Run it with its temporary directory in room, on our tmpfs."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(layerstore.__file__).parents[1]),
        "PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": str(room),
    }
    command = [*before, sys.executable, str(script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def traces(room) -> set[str]:
    """Its directories and mounts in room. Elsewhere another one may be running at this very moment."""
    return {str(path) for path in room.glob("layerstore-demo-*")} | set(disk.mounts_below(room))


def test_the_demo_runs_to_its_end_and_leaves_nothing(room):
    done = run_demo(room, "--local")
    assert (done.returncode, done.stderr) == (0, "")
    assert str(room) in done.stdout.splitlines()[0]
    assert "All digests were the same and nothing is left." in done.stdout.splitlines()[-1]
    for shown in ("MB/s", "sha256:", "changes()", "commit()", "verify()", "DiffID"):
        assert shown in done.stdout
    assert traces(room) == set()


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ("(next(root.rglob('os.py'))).write_text('other bytes')", "verify() found"),
        ("next(root.iterdir()).rename(root.parent / 'gone')", "verify() found"),
        ("Path(layers[0]._engine.root, 'image', 'stray').write_text('')", "still on disk")],
    ids=["a file changed", "a tree gone", "a file left"]
)
def test_a_demo_that_meets_a_fault_says_so_and_leaves_nothing(room, damage, told):
    """The last line is earned: a fault planted behind the export is found, and all is swept away."""
    text, behind = DEMO.read_text(), "    target.unlink()\n"
    assert text.count(behind) == 1
    planted = f"    root = Path(layers[2].metadata()['UpperDir'])\n    {damage}\n"
    (room / "faulty.py").write_text(text.replace(behind, behind + planted))
    done = run_demo(room, "--local", script=room / "faulty.py")
    assert done.returncode == 1, done.stderr
    assert told in done.stderr.splitlines()[-1]
    assert "nothing is left" not in done.stdout
    assert traces(room) == set()


def test_an_interrupted_demo_leaves_nothing(room):
    """Ctrl-C while the writable layer is mounted, the moment with most to release."""
    text, moment = DEMO.read_text(), "    compiler = ["
    assert text.count(moment) == 1
    (room / "interrupted.py").write_text(text.replace(moment, "    os.kill(os.getpid(), signal.SIGINT)\n" + moment))
    done = run_demo(room, "--local", script=room / "interrupted.py")
    assert done.returncode == 130
    assert "interrupted" in done.stderr
    assert "Traceback" not in done.stderr
    assert traces(room) == set()


def test_the_demo_says_who_may_run_it(room):
    nobody = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")
    # Root without its rights: what a user's shell is, for a Python that may lie in root's home.
    weak = ("setpriv", "--bounding-set", "-all", "--inh-caps", "-all")
    before = weak if run_demo(room, "--help", before=nobody).returncode else nobody
    done = run_demo(room, "--local", before=before)
    assert done.returncode == 2
    assert ("has to run as root" if before == nobody else "cannot be mounted here") in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert traces(room) == set()


def test_a_deb_is_taken_apart_as_ar_wrote_it(room, monkeypatch):
    """The members of a .deb have an odd length now and then, and a padding byte behind it."""
    monkeypatch.setattr(sys, "path", [str(DEMO.parent), *sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    import demo

    for name, content in (("debian-binary", b"2.0\n"), ("control.tar.gz", b"odd"), ("data.tar.xz", b"the layer")):
        (room / name).write_bytes(content)
    subprocess.run(["ar", "rc", "x_1%3a2_all.deb", "debian-binary", "control.tar.gz", "data.tar.xz"], cwd=room, check=True)
    blob = demo.data_tar(room / "x_1%3a2_all.deb")
    assert (blob.name, blob.path.read_bytes()) == ("x 1:2", b"the layer")
    assert blob.unpack == ("xz", "-dc", str(blob.path))


# ---- narrow screens -----------------------------------------------------------------------------
def test_the_chart_can_be_read_on_a_screen_of_400_pixels():
    """Its text, scaled to the 350 pixels that a page has there, is at least 9 pixels high."""
    chart = (PROJECT / "benchmarks" / "results" / "compare.svg").read_text(encoding="utf-8")
    width = float(re.search(r'viewBox="0 0 ([\d.]+) ', chart)[1])
    sizes = [float(size) for size in re.findall(r"font-size: ([\d.]+)px", chart)]
    assert len(sizes) > 20
    assert min(sizes) * min(350 / width, 96 / 72) >= 9


def test_the_pages_have_the_styles_for_narrow_screens():
    assert 'html_css_files = ["narrow.css"]' in (PROJECT / "docs" / "conf.py").read_text()
    style = (PROJECT / "docs" / "_static" / "narrow.css").read_text()
    assert re.search(r"div.table-wrapper \{ overflow-x: auto", style)
