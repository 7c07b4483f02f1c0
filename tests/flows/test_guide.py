"""The pages are true: every example of docs/ runs and prints what it says; they hang together; the scripts of examples/ work.

Enters: docs/, examples/, the public names. Each page is a program of its own, in a directory of its own; the one about Docker's
root runs beside a real dockerd on a root of ours. That Sphinx makes the pages without a warning is a step of .ci/run.
"""

import contextlib
import hashlib
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import disk
import dockerd
import pages
import programs
import pytest
import realregistry
import tarkit
from machine import needs

import layerstore
import layerstore.aio
from layerstore.registry import credentials

PROJECT = pages.PROJECT
DOCS = PROJECT / "docs"
DOCKER_PAGE = DOCS / "guide" / "docker.md"
PAGES = sorted(DOCS.rglob("*.md"))
GUIDE = [page for page in PAGES if page.parent.name == "guide"]
RUN = [page for page in PAGES if pages.blocks(page) and page != DOCKER_PAGE]
REGISTRY = re.compile(r"localhost:50[0-9]{2}")      # as pages call the registries that they ask
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(layerstore.__file__).parents[1]), "PYTHONDONTWRITEBYTECODE": "1"}


# ---- the guide ----------------------------------------------------------------------------------
def run_page(page: Path, **replaced: str) -> None:
    """Run a page from its first block to its last; close what it left open, however it ends."""
    namespace: dict = {"__name__": page.stem}
    try:
        for line, source in pages.blocks(page):
            for old, new in replaced.items():
                assert old in "".join(text for _, text in pages.blocks(page))
                source = source.replace(old, new)
            printed = pages.run(source, line, namespace, page)
            assert printed == pages.promised(source), f"the example at line {line + 1}"
    finally:
        if (server := namespace.get("server")) is not None:
            server.shutdown()
            server.server_close()
        for store in namespace.values():
            if isinstance(store, layerstore.Store):
                store.close()


@pytest.fixture
def ours(page, room, monkeypatch):
    """What stands in place of a page's words: registries of ours for its registries, asked with no credentials of this machine."""
    for name in programs.ELSEWHERE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(room / "home"))
    with contextlib.ExitStack() as stack:
        names = sorted(set(REGISTRY.findall("".join(source for _, source in pages.blocks(page)))))
        registries = {name: stack.enter_context(realregistry.Registry(room / name)) for name in names}
        yield {name: f"localhost:{registry.port}" for name, registry in registries.items()}


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_every_example_of_a_page_runs_and_prints_what_it_says(page, room, monkeypatch, ours):
    monkeypatch.chdir(room)
    pages.prepare(page)
    run_page(page, **ours)
    assert disk.mounts_below(room) == [], "an example leaves something mounted"


@pytest.mark.time_limit(240)
def test_a_docker_root_reads_as_the_guide_says_beside_a_running_dockerd(root, room, monkeypatch):
    needs("dockerd to compare with", there=dockerd.programs())
    monkeypatch.chdir(room)
    (room / "motd").write_text("hello\n")
    with dockerd.Dockerd(root) as docker:
        docker.load([tarkit.dir("etc/") + tarkit.file("etc/hostname", b"box\n") + tarkit.end()], "theirs/one")
        container = docker.create("theirs/one")
        docker.docker("cp", str(room / "motd"), f"{container}:/etc/motd")
        before = disk.inventory(root / "image")
        run_page(DOCKER_PAGE, **{"/var/lib/docker": str(root)})
        assert disk.inventory(root / "image") == before, "something was written"


def test_every_page_of_the_guide_has_examples_that_print():
    """Else the comparison above would pass on silence."""
    assert len(GUIDE) >= 5
    for page in GUIDE:
        if page.name == "rootless.md":      # what a user namespace can do is in test_user_namespaces.py
            continue
        assert len(pages.blocks(page)) >= 2, page.name
        assert sum(len(pages.promised(source)) for _, source in pages.blocks(page)) >= 5, page.name


# ---- the pages ----------------------------------------------------------------------------------
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_links_of_a_page_lead_somewhere(page):
    assert pages.broken_links(page) == []


def test_every_page_is_in_the_table_of_contents():
    listed = re.findall(r"^(?:[\w ]+<)?([a-z/-]+)>?$", "\n".join(toctrees()), re.MULTILINE)
    assert sorted(listed) == sorted(str(p.relative_to(DOCS).with_suffix("")) for p in PAGES if p.name != "index.md")


@pytest.mark.parametrize("words", ["rollback", "disk usage", "rootless"])
def test_what_people_search_for_is_in_a_title(words):
    titles = [page.read_text(encoding="utf-8").partition("\n")[0].lower() for page in GUIDE]
    assert any(words in title for title in titles)


def toctrees() -> list[str]:
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    return [re.sub(r"^:.*\n", "", tree, flags=re.MULTILINE) for tree in re.findall(r"^```\{toctree\}\n(.*?)^```$", index, re.MULTILINE | re.DOTALL)]


def test_every_public_name_is_in_the_reference_once():
    text = "\n".join(page.read_text(encoding="utf-8") for page in sorted((DOCS / "api").glob("*.md")))
    named = re.findall(r"^\.\. (?:auto\w+|py:data):: layerstore\.([\w.]+)$", text, re.MULTILINE)
    assert sorted(named) == sorted([*layerstore.__all__, *(f"aio.{name}" for name in layerstore.aio.__all__)])


def test_every_exception_has_its_row_in_the_reference():
    text = (DOCS / "api" / "errors.md").read_text(encoding="utf-8")
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| `")]
    for name in layerstore.errors.__all__:
        kind = getattr(layerstore.errors, name)
        if kind is layerstore.LayerStoreError:
            continue
        row = next((row for row in rows if f"`{name}`" in row[1]), None)
        assert row, f"the table of errors lacks {name}"
        builtin = [base.__name__ for base in kind.__mro__ if base in (ValueError, LookupError)]
        assert re.findall(r"`(\w+)`", row[2]) == builtin, name


def test_the_page_of_registries_has_every_place_that_is_read():
    """Files with credentials as they are looked for without any variable, and all that looks like one in the client's sources."""
    text = (DOCS / "registries.md").read_text(encoding="utf-8")
    source = "".join(path.read_text(encoding="utf-8") for path in Path(credentials.__file__).parent.glob("*.py"))
    variables = re.findall(r"""["']([A-Z]+(?:_[A-Z]+)+|[a-z]+_proxy)["']""", source)
    assert {"DOCKER_AUTH_CONFIG", "XDG_CONFIG_HOME", "no_proxy"} <= set(variables)
    files = [place.name.replace(f"/{os.getuid()}/", "/<uid>/") for place in credentials.places({"HOME": "~"})]
    assert len(files) >= 4
    assert [name for name in [*variables, *files] if f"`{name}`" not in text and f"${name}" not in text] == []


def test_figures_are_quoted_not_made_up():
    """A number with a unit of time on the page about speed stands in README or in a measured table."""
    tables = ("README.md", "benchmarks/README.md", "benchmarks/results/compare.md")
    measured = "".join((PROJECT / table).read_text(encoding="utf-8") for table in tables)
    text = (DOCS / "performance.md").read_text(encoding="utf-8")
    numbers = set(re.findall(r"\b(\d+\.\d+)\b(?= ?m?s\b| times| seconds| milliseconds)", text))
    assert [number for number in sorted(numbers) if number not in measured] == []


# ---- the examples -------------------------------------------------------------------------------
def test_the_sandbox_example_runs_to_its_end_and_leaves_nothing(room):
    command = [sys.executable, str(PROJECT / "examples" / "sandbox.py")]
    done = subprocess.run(command, capture_output=True, text=True, env={**ENVIRONMENT, "TMPDIR": str(room)}, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    told = {line[:12].strip(): line[12:].strip() for line in done.stdout.splitlines()}
    assert told["changed"] == "A /answer.txt  A /log  A /log/1"
    assert told["spoilt"] == "2 changes"
    assert told["rolled back"] == "answer.txt is 42"
    assert told["diff"] == "C /answer.txt"
    assert told["released"] == "3 layers removed"
    assert list(room.iterdir()) == []
    assert disk.mounts_below(room) == []


def test_the_repair_example_keeps_what_passes_and_leaves_nothing(room):
    needs("bwrap")
    command = [sys.executable, str(PROJECT / "examples" / "repair.py")]
    done = subprocess.run(command, capture_output=True, text=True, env={**ENVIRONMENT, "TMPDIR": str(room)}, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    told = [(line[:12].strip(), line[12:].strip()) for line in done.stdout.splitlines()]
    assert told[0] == ("before", "4 of 8 pass")
    assert [text for what, text in told if what == "kept"] == ["not the centuries: 7 of 8 pass", "but every 400 years: 8 of 8 pass"]
    assert [text for what, text in told if what == "tried"].count("wait for one: 0") == 2
    assert ("changed", "C /project  C /project/leap") in told
    assert told[-1] == ("left", "0 layers, 0 boxes, 0 snapshots")
    assert list(room.iterdir()) == []
    assert disk.mounts_below(room) == []


def test_the_fleet_example_fetches_the_base_once_per_machine_and_leaves_nothing(room):
    with realregistry.Registry(room / "registry") as registry:
        command = [sys.executable, str(PROJECT / "examples" / "fleet.py"), registry.host]
        environment = programs.environment(room, TMPDIR=str(room), PYTHONPATH=ENVIRONMENT["PYTHONPATH"])
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        told = {line[:14].strip(): line[14:].strip() for line in done.stdout.splitlines()}
        base = registry.manifest("fleet/base", "1")["layers"][0]["size"]
        for number, best in enumerate(["14 with 2", "9 with 3", "7 with 4"], 1):
            assert told[f"worker {number}"].startswith(f"fetched {base:,} bytes, sent a layer of ")
            top = registry.manifest(f"fleet/worker-{number}", "1")["layers"][1]["size"]
            assert told[f"result {number}"] == f"{best}; fetched {top:,} bytes"
        assert told["best"] == "fleet/worker-1:1, sent 0 bytes"
        assert told["in the store"] == "4 layers, 4 images"
        assert registry.tag("fleet/best", "1") == registry.tag("fleet/worker-1", "1")
    assert [path.name for path in room.iterdir()] == ["registry"]
    assert disk.mounts_below(room) == []


@pytest.fixture
def served(root, open_store):
    """examples/serve.py on a store with two layers: the address, and the tars by DiffID."""
    tars = [b"".join([tarkit.file(f"f/{n}", bytes([n]) * size) for n in range(50)]) + tarkit.end() for size in (3000, 70_000)]
    with open_store() as store:
        parent = ""
        for tar in tars:
            parent = store.register(tar, parent).chain_id
    command = [sys.executable, str(PROJECT / "examples" / "serve.py"), str(root), "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT, text=True) as server:
        try:
            yield server.stdout.readline().strip(), {tarkit.diff_id(tar): tar for tar in tars}
            server.send_signal(signal.SIGINT)
            _, said = server.communicate(timeout=20)
            assert (server.returncode, "Traceback" in said) == (0, False), said
        finally:
            server.kill()


def fetch(url: str, method: str = "GET", **headers: str):
    """Status, headers and body; a refusal is no exception."""
    request = urllib.request.Request(url, headers=headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


def test_the_server_example_lists_and_gives_whole_layers(served):
    address, tars = served
    status, _, listed = fetch(address)
    assert status == 200
    assert dict(line.split() for line in listed.decode().splitlines()) == {name: str(len(tar)) for name, tar in tars.items()}
    for name, tar in tars.items():
        status, headers, body = fetch(address + name)
        assert (status, headers["Accept-Ranges"], headers["ETag"]) == (200, "bytes", f'"{name}"')
        assert "sha256:" + hashlib.sha256(body).hexdigest() == name
        status, headers, body = fetch(address + name, "HEAD")
        assert (status, headers["Content-Length"], body) == (200, str(len(tar)), b"")
    assert fetch(address + "sha256:" + "0" * 64)[0] == 404


@pytest.mark.parametrize(
    "asked, first, behind",
    [("0-0", 0, 1), ("0-", 0, None), ("511-1024", 511, 1025), ("100000-", 100_000, None), ("-1", -1, None),
     ("3000000-99999999", 3_000_000, None), ("-99999999", 0, None)],
)  # fmt: skip
def test_the_server_example_gives_the_range_that_is_asked_for(served, asked, first, behind):
    address, tars = served
    name, tar = max(tars.items(), key=lambda item: len(item[1]))
    status, headers, body = fetch(address + name, Range=f"bytes={asked}")
    start = first % len(tar)
    assert status == 206
    assert headers["Content-Range"] == f"bytes {start}-{(behind or len(tar)) - 1}/{len(tar)}"
    assert body == tar[first:behind]


@pytest.mark.parametrize("asked, status", [("99999999-", 416), ("-0", 416), ("9-1", 200), ("a-b", 200), ("0-1,5-6", 200)])
def test_the_server_example_refuses_or_passes_over_other_ranges(served, asked, status):
    address, tars = served
    name, tar = max(tars.items(), key=lambda item: len(item[1]))
    told, headers, body = fetch(address + name, Range=f"bytes={asked}")
    assert (told, body) == (status, tar if status == 200 else b"")
    if status == 416:
        assert headers["Content-Range"] == f"bytes */{len(tar)}"
