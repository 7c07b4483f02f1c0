"""pack: a reproducible layer tar of a directory."""

import io
import os
import tarfile

import pytest

import layerstore
from layerstore.cli.exits import Exit


@pytest.fixture
def site(room):
    (room / "site/css").mkdir(parents=True)
    (room / "site/index.html").write_text("hi")
    (room / "site/css/main.css").write_text("h1 {}")
    (room / "site/css/.cache").write_text("x")
    return room / "site"


def names(tar):
    return tarfile.open(fileobj=io.BytesIO(tar)).getnames()


def test_pack_to_a_file(cli, site, room):
    said = cli("pack", site, "--prefix", "srv", "--owner", "5:6", "--mtime", "7", "--exclude", "**/.*", "-o", room / "out.tar", "--json").json
    tar = (room / "out.tar").read_bytes()
    with layerstore.pack_directory(site, prefix="srv", owner=(5, 6), mtime=7, exclude=["**/.*"]) as stream:
        assert stream.read() == tar
    assert names(tar) == ["srv/css", "srv/css/main.css", "srv/index.html"]
    assert said == {"directory": os.fspath(site), "output": os.fspath(room / "out.tar"), "bytes": len(tar)}


def test_pack_into_register(program, made, site, root):
    packed = program("pack", site, "--mtime", "0", "--owner", "0:0")
    assert packed.code == 0
    chain = program("register", "-", input=packed.out.encode()).out.strip()
    with layerstore.Store(root, options={"read_only": "true"}) as store:
        assert [entry.path for entry in store.map()[chain].files()] == ["css", "css/.cache", "css/main.css", "index.html"]


@pytest.mark.parametrize(
    "words, said",
    [
        (["--owner", "root:root"], "--owner is UID:GID"), (["--owner", "5"], "--owner is UID:GID"), (["--prefix", "../x"], "no directory of a layer"),
        (["--exclude", "/"], "below the directory"), (["--json"], "name a file with -o"), (["--mtime", "now"], "invalid int value"),
    ],
)  # fmt: skip
def test_what_is_wrong_on_the_command_line(program, site, words, said):
    done = program("pack", site, *words)
    assert (done.code, said in done.err) == (Exit.USAGE, True), done.err


def test_a_directory_that_is_not_there(program, room):
    done = program("pack", room / "gone")
    assert done.code == Exit.NOT_THERE, done.err
    assert str(room / "gone") in done.err


def test_a_failure_leaves_no_file(program, site, room):
    (site / ".wh.x").touch()
    done = program("pack", site, "-o", room / "out.tar")
    assert done.code != 0
    assert "rename it, or exclude it" in done.err
    assert not (room / "out.tar").exists()
