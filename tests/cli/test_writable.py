"""rw create, ls, mount, unmount, changes, size, commit, rm; each command a process of its own, as it is used."""

import json
import os
import subprocess
from pathlib import Path

import disk
import pytest
import tarkit
from commandline import command
from driven import DRIVER
from tarkit import dir, end, file

from layerstore.drivers import checks

BASE = dir("etc/") + file("etc/motd", b"hello\n") + end()
BASE_ID = tarkit.diff_id(BASE)


@pytest.fixture
def base(register):
    return register(BASE)


@pytest.fixture
def box(base):
    """A writable layer called box."""
    assert base("rw", "create", "box", BASE_ID) == ["box"]
    return base


def test_a_mount_outlives_its_process_and_a_later_one_unmounts_it(box, program, root):
    path = Path(program("rw", "mount", "box").out.strip())
    assert disk.mounts_below(root) == [str(path)]
    assert (path / "etc/motd").read_bytes() == b"hello\n"
    (path / "etc/new").write_text("12345")
    assert program("rw", "changes", "box").out.splitlines() == ["C /etc", "A /etc/new"]
    assert disk.mounts_below(root) == [str(path)], "a look at it unmounts it"
    done = program("rw", "unmount", "box")
    assert (done.code, done.out, done.err) == (0, "", "")
    assert disk.mounts_below(root) == [] and not path.exists()
    assert program("rw", "changes", "box").out.splitlines() == ["C /etc", "A /etc/new"]


def test_mounting_twice_wants_one_unmount(box, cli, root):
    first, second = box("rw", "mount", "box"), box("rw", "mount", "box")
    assert first == second and disk.mounts_below(root) == first
    assert cli("rw", "unmount", "box", "--json").json == {"name": "box", "unmounted": True}
    assert disk.mounts_below(root) == []
    assert cli("rw", "unmount", "box", "--json").json == {"name": "box", "unmounted": False}
    assert "was not mounted" in cli("rw", "unmount", "box").err


def test_a_process_inside_is_named_and_refuses_the_unmount(box, cli, refused, root):
    path = box("rw", "mount", "box")[0]
    assert box("rw", "holders", "box") == []
    with subprocess.Popen(["sleep", "60"], cwd=path) as inside:
        listed = cli("rw", "holders", "box", "--json").json
        assert listed == [{"pid": inside.pid, "command": "sleep", "uses": ["cwd"], "paths": ["/"]}]
        assert str(inside.pid) in cli("rw", "holders", "box").out
        assert f"box is in use by sleep ({inside.pid}): cwd /" in refused(4, "rw", "unmount", "box")
        assert disk.mounts_below(root) == [path]
        box("rw", "unmount", "--lazy", "box")
        assert disk.mounts_below(root) == []
        assert f"({inside.pid})" in refused(4, "rw", "mount", "box")
        assert cli("rw", "holders", "box", "--json").json == listed
        inside.kill()
    assert box("rw", "mount", "box") == [path]
    box("rw", "unmount", "box")


def test_what_another_process_has_mounted_stays(box, refused, open_store, root):
    other = open_store().get_rw_layer("box")
    with other.mounted() as path:
        assert box("rw", "mount", "box") == [path]
        assert "another process uses the mount" in refused(4, "rw", "unmount", "box")
        assert disk.mounts_below(root) == [path]
    assert disk.mounts_below(root) == []


def test_a_mount_that_was_found_is_unmounted_by_the_command_not_by_a_program_that_shares_it(box, open_store, root):
    path, = box("rw", "mount", "box")
    store = open_store()
    with store.get_rw_layer("box").mounted() as shared:
        assert shared == path
    assert disk.mounts_below(root) == [path]
    box("rw", "unmount", "box")
    assert disk.mounts_below(root) == []


def test_all_of_it_in_a_user_namespace(environment, room):
    """Without root's rights: a store, a mount and a commit, in one shell with mounts of its own."""
    (room / "base.tar").write_bytes(file("etc/motd", b"hello\n", uid=0, gid=0) + end())
    room.chmod(0o777)
    program = " ".join(command())
    lines = [
        "init -q", "register -q base.tar", "rw create -q box $(cat out2)", "rw mount box", "rw changes box", "rw commit -q box", "rw unmount box",
        "rw rm box", "verify --json",
    ]  # fmt: skip
    script = "set -e\n" + "".join(f"{program} {line} > out{at}\n" for at, line in enumerate(lines, 1))
    script = script.replace("> out4\n", '> out4\necho new > "$(cat out4)/new"\n')
    done = subprocess.run(["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script], cwd=room, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert (room / "out5").read_text() == "A /new\n"
    assert json.loads((room / "out9").read_text()) == {"layers": 2, "problems": []}


def test_one_that_stands_on_nothing_needs_no_mount(made, cli, root):
    made("rw", "create", "empty")
    path, = made("rw", "mount", "empty")
    Path(path, "f").write_text("abc")
    assert disk.mounts_below(root) == []
    made("rw", "unmount", "empty")
    assert made("rw", "changes", "empty") == ["A /f"]
    chain, = made("rw", "commit", "empty")
    assert cli("show", chain, "--json").json["parent"] is None


def test_ls(box, cli, root):
    box("rw", "create", "alone")
    path, = box("rw", "mount", "box")
    Path(path, "f").write_bytes(bytes(1500))
    alone, mounted = cli("rw", "ls", "--json").json
    assert (alone["name"], alone["parent"], alone["size"], alone["mounted"]) == ("alone", None, 0, None)
    assert (mounted["name"], mounted["parent"], mounted["size"], mounted["mounted"]) == ("box", BASE_ID, 1500, path)
    lines = box("rw", "ls")
    assert lines[1].split()[:4] == ["alone", "-", "0", "B"]
    assert lines[2].split()[:4] == ["box", BASE_ID[7:19], "1.5", "kB"] and lines[2].endswith(path)
    box("rw", "unmount", "box")


def test_ls_of_none(made, cli):
    assert cli("rw", "ls", "--json").json == []
    assert "no writable layers" in cli("rw", "ls").err


def test_size_and_changes_as_json(box, cli):
    path, = box("rw", "mount", "box")
    Path(path, "f").write_bytes(bytes(2_500_000))
    Path(path, "etc/motd").unlink()
    box("rw", "unmount", "box")
    assert box("rw", "size", "box") == ["2.5 MB"]
    assert box("rw", "size", "box", "--bytes") == ["2500000"]
    assert cli("rw", "size", "box", "--json").json == {"name": "box", "size": 2_500_000}
    assert cli("rw", "changes", "box", "--json").json == [
        {"kind": "C", "path": "/etc"}, {"kind": "D", "path": "/etc/motd"}, {"kind": "A", "path": "/f"},
    ]  # fmt: skip
    assert cli("rw", "changes", "box", "-0").out == "C /etc\0D /etc/motd\0A /f\0"


def test_changes_where_both_trees_must_be_mounted_for_it(box, root, monkeypatch):
    path, = box("rw", "mount", "box")
    Path(path, "f").write_text("")
    box("rw", "unmount", "box")
    monkeypatch.setattr(checks, "native_diff_problem", lambda _where: "as an old kernel")
    assert box("rw", "changes", "-q", "box") == ["A /f"]
    assert disk.mounts_below(root) == []


def test_commit_leaves_a_layer_and_the_box(box, cli, room):
    path, = box("rw", "mount", "box")
    Path(path, "f").write_text("abc")
    chain, = box("rw", "commit", "box", "--durability", "none")
    assert cli("rw", "commit", "box", "--json").json["new"] is False
    assert cli("show", chain, "--json").json["below"] == [BASE_ID]
    assert box("cat", chain, "f") == ["abc"]
    box("rw", "rm", "--force", "box")
    assert cli("show", chain).code == 0


def test_commit_says_once_what_it_leaves_out_and_keeps_it_where_asked(box, cli):
    path, = box("rw", "mount", "box")
    Path(path, "f").touch()
    os.setxattr(Path(path, "f"), "user.x", b"1")
    plain = cli("rw", "commit", "box")
    assert plain.code == 0 and plain.err.count("extended attributes of 1 file (f)") == 1
    kept = cli("rw", "commit", "box", "--keep", "all")
    assert kept.code == 0 and "leaves out" not in kept.err and kept.out != plain.out
    assert cli("rw", "commit", "-q", "box").err == ""
    box("rw", "unmount", "box")


def test_commit_refuses_names_that_are_marks_or_leaves_them_out(box, cli):
    path, = box("rw", "mount", "box")
    Path(path, "etc/.wh.motd").touch()
    Path(path, "f").touch()
    refused = cli("rw", "commit", "box")
    assert refused.code == 1 and "etc/.wh.motd" in refused.err
    chain = cli("rw", "commit", "box", "--marks", "skip")
    assert chain.code == 0 and "etc/.wh.motd" in chain.err
    assert box("cat", chain.out.split()[0], "etc/motd") == ["hello"]
    box("rw", "unmount", "box")


def test_rm_deletes_it_and_leaves_the_layer_below(box, cli, root):
    assert box("rw", "rm", "box") == []
    assert cli("rw", "ls", "--json").json == []
    assert cli("show", BASE_ID).code == 0
    assert len(os.listdir(root / DRIVER)) == 2         # l and the layer


def test_rm_with_the_layers_below(box, cli):
    done = cli("rw", "rm", "box", "--layers", "--json")
    assert done.json == {"removed": ["box"], "layers": [BASE_ID], "kept": []}
    assert cli("show", BASE_ID).code == 3


def test_rm_of_a_mounted_one_wants_force(box, cli, refused, root):
    box("rw", "create", "other")
    box("rw", "mount", "box")
    assert "box is mounted" in refused(4, "rw", "rm", "other", "box")
    assert len(cli("rw", "ls", "--json").json) == 2
    box("rw", "rm", "-f", "other", "box")
    assert disk.mounts_below(root) == [] and cli("rw", "ls", "--json").json == []


def test_rm_of_what_another_process_holds(box, cli, refused, open_store):
    held = open_store().get_rw_layer("box")
    assert refused(4, "rw", "rm", "box") == "box stays: another process uses it"
    assert held.size() == 0 and cli("rw", "ls", "--json").json != []


@pytest.mark.parametrize("verb", ["mount", "unmount", "changes", "size", "commit", "rm"])
def test_one_that_is_not_there(made, refused, verb):
    assert "there is no writable layer nobody" in refused(3, "rw", verb, "nobody")


def test_a_name_twice(box, cli, refused):
    assert refused(1, "rw", "create", "box", BASE_ID) == "mount already exists with name: box"
    assert cli("show", BASE_ID).code == 0


@pytest.mark.parametrize("name", ["a/b", "..", "", "x" * 256])
def test_a_name_that_is_none(base, cli, refused, name):
    assert len(refused(2, "rw", "create", name, BASE_ID)) < 500
    assert cli("show", BASE_ID).code == 0


def test_a_size_where_there_are_no_quotas(base, cli, refused):
    assert "pquota" in refused(5, "rw", "create", "box", BASE_ID, "--size", "10G")
    assert cli("show", BASE_ID).code == 0 and cli("rw", "ls", "--json").json == []


def test_names_that_are_not_utf_8_come_out_byte_for_byte(box, program, terminal):
    path = os.fsencode(box("rw", "mount", "box")[0])
    with open(path + b"/odd-\xff\n\x1b[31m", "wb"):
        pass
    box("rw", "unmount", "box")
    assert os.fsencode(program("rw", "changes", "box").out) == b"A /odd-\xff\n\x1b[31m\n"
    code, shown = terminal("rw", "changes", "box")
    assert (code, shown) == (0, "A /odd-\\xff\\n\\x1b[31m\n")
    assert os.fsencode(program("rw", "changes", "box", "--json").json[0]["path"]) == b"/odd-\xff\n\x1b[31m"
