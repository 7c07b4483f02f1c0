"""ls-files, cat, find: from the record, with nothing mounted."""

import os

import disk
import pytest
import tarkit
from tarkit import dir, end, file, opaque, whiteout

BASE = (
    dir("etc/") + file("etc/motd", b"hello\n", mode=0o640, uid=5, gid=6, mtime=86400) + dir("bin/")
    + file("bin/tool", b"#!/bin/sh\n", mode=0o755) + tarkit.hardlink("bin/same", "bin/tool") + tarkit.symlink("bin/sh", "tool")
    + tarkit.node("null", "c", 1, 3) + file(b"odd-\xff\n", b"odd") + end()
)  # fmt: skip
APP = dir("app/") + file("app/main", b"print\n") + whiteout("bin/tool") + dir("etc/") + opaque("etc") + file("etc/new", b"n") + end()
BASE_ID = tarkit.diff_id(BASE)
APP_ID = tarkit.chain_id(BASE_ID, tarkit.diff_id(APP))


@pytest.fixture
def two(register, root):
    yield register(BASE, APP)
    assert disk.mounts_below(root) == []


def test_the_files_of_a_layer_with_all_below_it(two):
    listed = two("ls-files", APP_ID)
    assert listed == ["/app", "/app/main", "/bin", "/bin/same", "/bin/sh", "/etc", "/etc/new", "/null", "/odd-\udcff", ""]


def test_the_files_of_a_layer_alone(two):
    assert sorted(two("ls-files", "--own", APP_ID)) == [
        "/app", "/app/main", "/etc", "/etc/new", "opaque /etc", "whiteout /bin/tool",
    ]  # fmt: skip


def test_some_of_the_files(two, refused):
    assert two("ls-files", APP_ID, "bin/s*") == ["/bin/same", "/bin/sh"]
    assert two("ls-files", APP_ID, "**/new") == ["/etc/new"]
    assert two("ls-files", BASE_ID, "/etc/motd") == ["/etc/motd"]
    assert refused(3, "ls-files", APP_ID, "etc/motd") == f"nothing in {APP_ID[7:19]} is called etc/motd"


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("bin/tool", ["/bin/tool"]), ("/bin/tool", ["/bin/tool"]), ("bin", ["/bin"]), ("*", ["/bin", "/etc", "/null", "/odd-\udcff", ""]),
        ("b?n/s[ah]*", ["/bin/same", "/bin/sh"]), ("b?n/s[!a]*", ["/bin/sh"]), ("**/t*", ["/bin/tool"]), ("**/bin/sh", ["/bin/sh"]),
        ("[", []), ("b.n", []), ("bin/*/x", []), ("**", None),
    ],
)  # fmt: skip
def test_one_language_of_patterns_for_a_layer_alone_and_for_all(two, cli, pattern, found):
    own = cli("ls-files", "--own", BASE_ID, pattern).out.splitlines()
    merged = cli("ls-files", BASE_ID, pattern).out.splitlines()
    assert sorted(own) == sorted(merged)
    if found is not None:
        assert sorted(merged) == sorted(found)


def test_the_long_list(two):
    lines = {line.split()[-1]: line.split() for line in two("ls-files", "-l", BASE_ID, "--own")[1:] if line and "odd" not in line}
    assert lines["/etc/motd"] == ["-rw-r-----", "5:6", "6", "B", "1970-01-02", "00:00", "/etc/motd"]
    assert lines["tool"][0] == "lrwxrwxrwx" and lines["tool"][-3:] == ["/bin/sh", "->", "tool"]
    assert lines["bin/tool"][-3:] == ["/bin/same", "=", "bin/tool"]
    assert lines["/null"][0][0] == "c" and lines["/null"][2:4] == ["1,", "3"]
    assert [line.split()[2] for line in two("ls-files", "-l", BASE_ID, "etc/motd", "--bytes")[1:]] == ["6"]


def test_the_list_as_json(two, cli):
    found = {entry["path"]: entry for entry in cli("ls-files", BASE_ID, "--json").json}
    assert found["/etc/motd"] == {
        "path": "/etc/motd", "type": "file", "size": 6, "mode": "0640", "uid": 5, "gid": 6, "mtime": "1970-01-02T00:00:00Z",
        "link": None, "device": None, "xattrs": {}, "layer": BASE_ID,
    }  # fmt: skip
    assert found["/null"]["device"] == [1, 3] and found["/bin/sh"]["link"] == "tool"
    assert os.fsencode(next(path for path in found if "odd" in path)) == b"/odd-\xff\n"


def test_names_that_end_with_a_nul(two, cli):
    assert cli("ls-files", APP_ID, "bin/*", "-0").out == "/bin/same\0/bin/sh\0"


def test_cat(two, program, cli):
    done = program("cat", APP_ID, "app/main", "/etc/new", "bin/same")
    assert (done.code, done.out, done.err) == (0, "print\nn#!/bin/sh\n", "")
    assert program("cat", APP_ID, "bin/sh").code == 3          # the link leads to what the layer deleted
    assert program("cat", BASE_ID, "bin/sh").out == "#!/bin/sh\n"
    assert program("cat", "--own", APP_ID, "etc/new").out == "n"
    for path, code in (("etc/motd", 3), ("etc", 1), ("null", 1), ("nothing/at/all", 3)):
        done = cli("cat", APP_ID, path)
        assert done.code == code and path in done.said, path
    assert cli("cat", APP_ID, "app/main", "--json").code == 2


@pytest.mark.only("overlay2", "of the files in a layer's directory")
def test_cat_of_a_changed_file_fails(two, cli):
    upper = cli("show", BASE_ID, "--json").json["directories"]["UpperDir"]
    with open(f"{upper}/etc/motd", "r+b") as changed:
        changed.write(b"J")
    done = cli("cat", BASE_ID, "etc/motd")
    assert done.code == 1 and "motd" in done.err


def test_find_says_which_layers_hold_or_delete_a_path(two, cli):
    found = cli("find", "/bin/tool", "--json").json
    assert [(entry["layer"], entry["type"]) for entry in found] == [(BASE_ID, "file"), (APP_ID, "whiteout")]
    lines = [line.split() for line in two("find", "bin/tool")]
    assert lines[1:] == [[BASE_ID[7:19], "file", "10", "B", "/bin/tool"], [APP_ID[7:19], "whiteout", "/bin/tool"]]


def test_find_in_one_layer_says_where_a_path_comes_from(two, cli):
    found = cli("find", "**/*", APP_ID, "--json").json
    came = {entry["path"]: entry["layer"] for entry in found}
    assert came["/bin/same"] == BASE_ID and came["/etc/new"] == APP_ID and "/etc/motd" not in came
    assert cli("find", "etc/new", APP_ID, "-0").out == f"{APP_ID} file /etc/new\0"


def test_find_of_nothing(two, cli, refused):
    for words in (["find", "no/such"], ["find", "no/such", APP_ID]):
        assert refused(3, *words) == "no layer holds no/such"
    done = cli("find", "no/such", "--json")
    assert done.code == 3 and done.json == []
