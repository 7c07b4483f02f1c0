"""verify, repair, orphans, gc."""

import contextlib
import fcntl
import os
import shutil
from pathlib import Path

import pytest
import tarkit
from driven import DRIVER, LAYERDB
from tarkit import dir, end, file

import layerstore

TAR = dir("bin/") + file("bin/tool", b"#!/bin/sh\n") + file("other", b"x" * 5000) + end()
ID = tarkit.diff_id(TAR)


@pytest.fixture
def layer(made, cli, room):
    """A store with one layer; return the directory of its files."""
    (room / "layer.tar").write_bytes(TAR)
    made("register", room / "layer.tar")
    return Path(cli("show", ID, "--json").json["directories"]["UpperDir"])


def test_a_sound_store(layer, cli):
    done = cli("verify")
    assert (done.code, done.out, done.err) == (0, "", "1 layer, all as registered\n")
    assert cli("verify", "-q") == (0, "", "")
    assert cli("verify", "--json").json == {"layers": 1, "problems": []}
    assert cli("verify", ID[:20], ID).code == 0


@pytest.mark.only("overlay2", "of the files in a layer's directory")
def test_problems_are_listed_and_the_exit_code_says_so(layer, cli):
    (layer / "bin/tool").write_text("#!/bin/no\n")
    for words in (["verify"], ["verify", ID]):
        done = cli(*words)
        assert done.code == 1
        assert done.out.splitlines()[1].split()[:3] == ["content", ID[7:19], "bin/tool"]
        assert done.err == "problems: 1; see: layerstore repair --help\n"
    found = cli("verify", "--json")
    assert found.code == 1
    problem, = found.json["problems"]
    assert (problem["kind"], problem["subject"], problem["path"]) == ("content", ID, "bin/tool")


def test_a_writable_layer_is_told_and_mended_by_its_name(layer, cli, made):
    made("rw", "create", "box", ID)
    (home,) = {path.parent for path in layer.parents[1].glob("*/lower")}
    (home / "lower").write_bytes(b"")
    done = cli("verify")
    assert done.code == 1 and done.out.splitlines()[1].split()[:2] == ["metadata", "box"]
    assert cli("repair", "box").code == 0
    assert cli("verify").code == 0
    assert cli("repair", "nobody").code == 3


@pytest.mark.only("overlay2", "of the files in a layer's directory")
def test_repair_from_a_tar(layer, cli, ok, room):
    (layer / "bin/tool").write_text("#!/bin/no\n")
    done = cli("repair", ID, room / "layer.tar", "--json")
    assert done.code == 0 and [problem["path"] for problem in done.json["mended"]] == ["bin/tool"]
    assert (layer / "bin/tool").read_text() == "#!/bin/sh\n"
    assert cli("verify").code == 0
    done = cli("repair", ID)
    assert (done.code, done.out, done.err) == (0, "", "nothing to mend\n")


@pytest.mark.only("overlay2", "of the files in a layer's directory")
def test_repair_from_standard_input_and_from_another_store(layer, cli, program, room):
    (layer / "bin/tool").write_text("#!/bin/no\n")
    assert program("repair", ID, "-", input=TAR).code == 0
    with layerstore.Store(room / "other") as other:
        other.register(TAR)
    (layer / "bin/tool").write_text("#!/bin/no\n")
    done = cli("repair", ID, "--store", room / "other")
    assert done.code == 0 and done.err == "all mended\n" and "bin/tool" in done.out
    assert cli("verify").code == 0


@pytest.mark.only("overlay2", "of the files in a layer's directory")
def test_repair_that_cannot_be(layer, refused, room):
    (layer / "bin/tool").write_text("#!/bin/no\n")
    (room / "wrong.tar").write_bytes(file("x", b"") + end())
    for words, code in (([ID], 1), ([ID, room / "wrong.tar"], 1), ([ID, room / "none.tar"], 3), ([ID, "--store", room / "none"], 3),
                        ([ID, room / "layer.tar", "--store", room], 2)):  # fmt: skip
        assert refused(code, "repair", *words), words
    assert (layer / "bin/tool").read_text() == "#!/bin/no\n"


def test_a_layer_that_cannot_be_read_is_told(layer, cli, root):
    (root / LAYERDB / "sha256" / ID[7:] / "cache-id").write_text("")
    done = cli("verify", "--json")
    assert done.code == 1 and done.json["problems"][0]["kind"] == "metadata"
    done = cli("show", ID)
    assert done.code == 3 and "layer does not exist" in done.err.splitlines()[-1]
    assert cli("info", "--json").json["unreadable_layers"] == 1


def test_what_is_damaged_is_still_listed_and_shown(layer, cli, ok, root):
    ok("rw", "create", "box", ID)
    shutil.rmtree(layer.parent)
    mount_id = (root / LAYERDB / "mounts/box/mount-id").read_text()
    shutil.rmtree(root / DRIVER / mount_id)
    done = cli("show", ID, "--json")
    assert done.code == 0 and done.json["tar_size"] is None and done.json["directories"] == {}
    assert "?" in next(line for line in ok("show", ID) if line.startswith("tar "))
    assert cli("rw", "ls", "--json").json[0]["size"] is None and ok("rw", "ls")[1].split()[2] == "?"
    assert len(ok("ls")) == 3 and cli("info").code == 0 and cli("verify").code == 1
    assert cli("rw", "changes", "box").code != 0 and cli("cat", ID, "other").code != 0 and cli("rw", "mount", "box").code != 0 and cli("export", ID, "-o", "/dev/null").code != 0
    assert ok("rw", "rm", "box") == [] and cli("rw", "ls", "--json").json == []
    assert ok("release", ID) == [f"removed {ID}  5.0 kB"] and ok("ls") == []


def nobody(root) -> Path:
    left = root / DRIVER / ("0123456789abcdef" * 4) / "diff"
    left.mkdir(parents=True)
    (left / "big").write_bytes(bytes(3000))
    return left.parent


def test_orphans_and_gc(layer, cli, ok, root):
    left = nobody(root)
    done = cli("orphans")
    assert done.out.splitlines()[1].split() == ["directory", "3.0", "kB", f"{DRIVER}/{left.name}"]
    assert done.err == "left over: 3.0 kB in 1\n"
    assert cli("orphans", "--json").json == [{"kind": "directory", "path": f"{DRIVER}/{left.name}", "size": 3000}]
    assert cli("gc", "--dry-run", "--json").json == cli("orphans", "--json").json
    assert left.exists()
    done = cli("gc")
    assert done.code == 0 and done.err == "gone: 3.0 kB in 1\n" and not left.exists()
    assert cli("gc").err == "nothing is left over\n"
    assert cli("show", ID).code == 0


def test_gc_beside_another_store(layer, cli, refused, open_store, root):
    open_store()
    left = nobody(root)
    for words in (["gc"], ["gc", "-n"]):
        assert "in use" in refused(4, *words)
    assert left.exists() and cli("orphans").code == 0


@contextlib.contextmanager
def running_dockerd(root):
    """The mark of a running dockerd: a database that is locked."""
    path = root / "volumes/metadata.db"
    path.parent.mkdir(parents=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(fd)


@pytest.fixture
def dockerd(root):
    with running_dockerd(root):
        yield


def test_beside_a_dockerd_changes_are_read_off_the_upper_directory(layer, cli, ok, root):
    ok("rw", "create", "box", ID)
    Path(ok("rw", "mount", "box")[0], "bin/new").write_text("")
    ok("rw", "unmount", "box")
    with running_dockerd(root):
        assert ok("rw", "changes", "box") == ["C /bin", "A /bin/new"]


def test_beside_a_dockerd_what_reads_works(layer, dockerd, cli, room):
    for words in (["ls"], ["show", ID], ["verify"], ["info"], ["rw", "ls"], ["ls-files", ID], ["export", ID, "-o", room / "o"],
                  ["find", "other"], ["diff", ID, ID], ["image", "ls"]):  # fmt: skip
        done = cli(*words)
        assert done.code == 0, done
        assert "layerstore:" not in done.err
    assert "a dockerd" not in cli("ls").err
    assert any(line.split()[:2] == ["dockerd", "is"] for line in cli("info").out.splitlines())


def test_beside_a_dockerd_what_writes_says_why_it_does_not(layer, dockerd, cli, room, root):
    for words in (["register", room / "layer.tar"], ["release", ID], ["rw", "create", "box", ID], ["rw", "mount", "box"],
                  ["rw", "unmount", "box"], ["rw", "rm", "box"], ["repair", ID], ["gc"], ["gc", "-n"], ["init"], ["orphans"],
                  ["image", "load", room / "layer.tar"], ["image", "rm", "x"], ["image", "tag", "x", "y"]):  # fmt: skip
        done = cli(*words)
        assert done.code == 4 and "dockerd" in done.said and "volumes/metadata.db" in done.said, words
    assert cli("show", ID).code == 0
