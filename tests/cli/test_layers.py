"""ls, show, register, export, release, diff, and how layers are named."""

import os
import stat
import subprocess

import erofsreader
import pytest
import tarkit
from driven import LAYERDB
from tarkit import dir, end, file, whiteout

import layerstore

BASE = dir("etc/") + file("etc/motd", b"hello\n") + dir("bin/") + file("bin/tool", b"#!/bin/sh\n", mode=0o755) + end()
APP = dir("app/") + file("app/main", b"print\n") + dir("bin/") + whiteout("bin/tool") + end()
BASE_ID = tarkit.diff_id(BASE)
APP_ID = tarkit.chain_id(BASE_ID, tarkit.diff_id(APP))


@pytest.fixture
def tars(room):
    (room / "base.tar").write_bytes(BASE)
    (room / "app.tar").write_bytes(APP)
    return room


@pytest.fixture
def two(made, tars):
    """A store with a layer and one on it."""
    assert made("register", tars / "base.tar") == [BASE_ID]
    assert made("register", tars / "app.tar", "--parent", BASE_ID) == [APP_ID]
    return made


def chains(root) -> list[str]:
    with layerstore.Store(root, options={"read_only": "true"}) as store:
        return sorted(store.map())


# ---- register -----------------------------------------------------------------------------------
def test_register_leaves_the_layer_there(two, root):
    assert chains(root) == sorted([BASE_ID, APP_ID])


@pytest.mark.parametrize("durability", ["full", "ordered", "none"])
def test_register_from_standard_input(program, made, root, durability):
    done = program("register", "-", "--durability", durability, input=BASE)
    assert (done.code, done.out) == (0, BASE_ID + "\n")
    assert chains(root) == [BASE_ID]


def test_register_from_a_file_as_standard_input(program, made, tars):
    with open(tars / "base.tar", "rb") as file_:
        assert program("register", "-", stdin=file_).out == BASE_ID + "\n"


def test_register_says_whether_the_layer_is_new(made, cli, tars):
    first, again = (cli("register", tars / "base.tar", "--json").json for _ in "12")
    assert first == {"chain_id": BASE_ID, "diff_id": BASE_ID, "size": 16, "diff_size": 16, "parent": None, "new": True}
    assert again == {**first, "new": False}


def test_a_compressed_tar_is_the_same_layer(made, tars):
    subprocess.run(["xz", "-k", tars / "base.tar"], check=True)
    assert made("register", tars / "base.tar.xz") == [BASE_ID]


def test_a_register_that_fails_leaves_the_parent(two, refused, room, root):
    """With its last reference a layer goes: the one that was named must not be the last."""
    (room / "bad.tar").write_bytes(b"x" * 1024)
    assert "at byte 0" in refused(1, "register", room / "bad.tar", "--parent", APP_ID)
    assert chains(root) == sorted([BASE_ID, APP_ID])


def test_a_tar_that_is_known_on_its_parent_leaves_both(two, tars, root):
    assert two("register", tars / "app.tar", "--parent", BASE_ID) == [APP_ID]
    assert chains(root) == sorted([BASE_ID, APP_ID])


def test_a_tar_that_leads_out_is_refused(made, refused, room, root):
    (room / "evil.tar").write_bytes(file("../../etc/evil", b"x") + end())
    assert "../../etc/evil" in refused(1, "register", room / "evil.tar")
    assert chains(root) == []


# ---- names --------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", [BASE_ID, BASE_ID[7:], BASE_ID[:19], BASE_ID[7:19]])
def test_a_layer_by_its_chain_id_or_the_beginning_of_it(two, name):
    assert two("show", name, "--json") == two("show", BASE_ID, "--json")


def test_a_beginning_of_several_layers_is_refused(made, cli, room):
    digits = {}
    for at in range(40):                     # among 17 there are two with the same first digit
        tar = file(f"f{at}", b"") + end()
        (room / "one.tar").write_bytes(tar)
        chain, = made("register", room / "one.tar")
        digits.setdefault(chain[7], []).append(chain)
    digit, several = max(digits.items(), key=lambda item: len(item[1]))
    done = cli("show", digit)
    assert done.code == 2 and f"{digit} is the beginning of several layers" in done.said
    assert sorted(several)[0][7:19] in done.said


@pytest.mark.parametrize("name", ["nothing", "0" * 64, "sha256:xyz", "a/b:c", "sha256:" + "0" * 64])
def test_a_name_of_nothing(two, refused, name):
    for words in (["show", name], ["export", name], ["release", name], ["rw", "create", "x", name], ["verify", name]):
        assert name in refused(3, *words), words


@pytest.mark.parametrize("name", ["", "sha256:", "../x", "A", "a\nb"])
def test_what_is_no_name_of_anything(two, cli, refused, name, root):
    for words in (["show", name], ["release", name], ["rw", "create", "x", name], ["verify", name]):
        assert "invalid reference format" in refused(2, *words), words
    assert cli("rw", "ls", "--json").json == [] and len(chains(root)) == 2


# ---- ls, show -----------------------------------------------------------------------------------
def test_ls_is_a_tree(two, cli):
    two("rw", "create", "box", APP_ID)
    lines = two("ls")
    assert lines[0].split() == ["LAYER", "SIZE", "WITH", "BELOW", "AGE", "IMAGES"]
    assert lines[1].split()[:5] == [BASE_ID[7:19], "16", "B", "16", "B"]
    assert lines[2].split()[:6] == ["└─", APP_ID[7:19], "6", "B", "22", "B"]
    assert lines[3].startswith("└─ box (writable)")
    assert len(lines) == 4
    assert [line.split()[0] for line in two("ls", "--no-trunc")[1:2]] == [BASE_ID]
    assert two("ls", "--bytes")[2].split()[2:4] == ["6", "22"]


def test_ls_draws_each_branch(two, room):
    for at in range(2):
        (room / "more.tar").write_bytes(file(f"{at}", b"") + end())
        two("register", room / "more.tar", "--parent", BASE_ID)
    (room / "more.tar").write_bytes(file("above", b"") + end())
    two("register", room / "more.tar", "--parent", APP_ID)
    drawn = [line[:6] for line in two("ls")[2:]]
    marks = [d.strip("0123456789abcdef") for d in drawn]
    assert marks in (["├─ ", "├─ ", "└─ ", "└─ "], ["├─ ", "├─ ", "│  └─ ", "└─ "], ["├─ ", "│  └─ ", "├─ ", "└─ "])


def test_ls_as_json(two, cli):
    two("rw", "create", "box", APP_ID)
    found = cli("ls", "--json").json
    base, app = sorted(found["layers"], key=lambda layer: layer["size"])
    assert (base["chain_id"], base["parent"], base["writable"], base["images"]) == (BASE_ID, None, [], [])
    assert (app["chain_id"], app["parent"], app["diff_size"], app["size"], app["writable"]) == (APP_ID, BASE_ID, 6, 22, ["box"])
    assert app["diff_id"] == tarkit.diff_id(APP) and app["created"].endswith("Z") and len(app["cache_id"]) == 64
    assert found["writable"] == [{"name": "box", "parent": APP_ID}]


def test_ls_shortens_what_dockerd_calls_a_container(two):
    name = "0123456789ab" * 5 + "cdef"
    two("rw", "create", name, APP_ID)
    assert two("ls")[3].strip().startswith("└─ 0123456789ab (writable)")
    assert two("ls", "--no-trunc")[3].strip().startswith(f"└─ {name} (writable)")


def test_ls_of_nothing(made, cli):
    done = cli("ls")
    assert (done.code, done.out) == (0, "") and "no layers" in done.err
    assert cli("ls", "-q") == (0, "", "")
    assert cli("ls", "--json").json == {"layers": [], "writable": []}


def test_ls_does_not_indent_a_line_of_descent(made, open_store):
    chain = ""
    with open_store() as store:
        for at in range(125):
            chain = store.register(file(f"f{at}", b"") + end(), chain, durability="none").chain_id
    lines = made("ls")
    assert len(lines) == 126 and {line[:3] for line in lines[2:]} == {"└─ "}


def test_show(two, cli):
    two("rw", "create", "box", APP_ID)
    base, app = cli("show", BASE_ID, "--json").json, cli("show", APP_ID, "--json").json
    assert (app["tar_size"], app["depth"], app["below"], app["above"], app["writable"]) == (len(APP), 2, [BASE_ID], [], ["box"])
    assert base["above"] == [APP_ID] and base["descriptor"] is None
    assert os.path.isdir(base["directories"]["UpperDir"]) and app["directories"]["LowerDir"] == base["directories"]["UpperDir"]
    lines = two("show", APP_ID)
    assert [APP_ID in lines[0], "DiffID" in lines[1], any(line.split() == ["writable", "box"] for line in lines)] == [True] * 3


def test_show_tells_the_blob(made, root, cli, open_store):
    with open_store() as store:
        store.register_with_descriptor(BASE, descriptor=layerstore.Descriptor("x/y", BASE_ID, 99))
    assert cli("show", BASE_ID, "--json").json["descriptor"]["media_type"] == "x/y"
    assert any("99 B, x/y" in line for line in made("show", BASE_ID))


# ---- export -------------------------------------------------------------------------------------
def test_export_gives_the_same_bytes(two, program, room):
    done = program("export", APP_ID)
    assert done.code == 0 and done.out.encode("utf-8", "surrogateescape") == APP
    two("export", APP_ID, "-o", room / "out.tar")
    assert (room / "out.tar").read_bytes() == APP


@pytest.mark.only("overlay2", "of the files in a layer's directory")
def test_export_replaces_a_file_when_it_is_whole(two, cli, refused, room, root):
    (room / "out.tar").write_bytes(b"old")
    (room / "link.tar").symlink_to("out.tar")
    upper = cli("show", BASE_ID, "--json").json["directories"]["UpperDir"]
    with open(f"{upper}/etc/motd", "r+b") as changed:
        changed.write(b"J")
    assert "etc/motd" in refused(1, "export", BASE_ID, "-o", room / "link.tar")
    assert (room / "out.tar").read_bytes() == b"old"
    two("export", APP_ID, "-o", room / "link.tar")
    assert (room / "out.tar").read_bytes() == APP and (room / "link.tar").is_symlink()
    assert [name for name in os.listdir(room) if name.startswith(".layerstore")] == []
    assert (room / "out.tar").stat().st_mode & 0o777 == 0o666 & ~umask()


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_export_into_what_is_no_regular_file(two, refused, room):
    two("export", APP_ID, "-o", "/dev/null")
    os.mkfifo(room / "fifo")
    with subprocess.Popen(["cat", room / "fifo"], stdout=subprocess.PIPE) as reader:
        two("export", APP_ID, "-o", room / "fifo")
        assert reader.stdout.read() == APP
    assert refused(1, "export", APP_ID, "-o", room) == f"{room}: Is a directory"
    assert refused(3, "export", APP_ID, "-o", room / "no" / "such") == f"{room}/no/such: No such file or directory"


def test_export_of_what_lies_between(two, cli, room):
    two("export", APP_ID, "--from", BASE_ID, "-o", room / "out.tar")
    listed = subprocess.run(["tar", "tf", room / "out.tar"], capture_output=True, text=True, check=True).stdout.split()
    assert sorted(listed) == ["app/", "app/main", "bin/", "bin/.wh.tool"]
    assert cli("export", BASE_ID, "--from", APP_ID, "-o", room / "x").code == 1
    assert not (room / "x").exists()


def test_export_as_json_wants_a_file(two, cli, room):
    assert cli("export", APP_ID, "--json").code == 2
    assert cli("export", APP_ID, "-o", room / "o", "--json").json == {
        "chain_id": APP_ID, "diff_id": tarkit.diff_id(APP), "output": str(room / "o"), "bytes": len(APP),
    }  # fmt: skip


# ---- release ------------------------------------------------------------------------------------
def test_release_says_what_went(two, root):
    assert two("release", APP_ID) == [f"removed {APP_ID}  6 B"]
    assert chains(root) == [BASE_ID], "nobody released the base"
    assert two("release", BASE_ID) == [f"removed {BASE_ID}  16 B"]
    assert chains(root) == []


def released_under_app(open_store):
    """The base is released while something stands on it."""
    assert open_store().get(BASE_ID).release() == []


def test_what_was_released_before_goes_with_what_stood_on_it(two, root, open_store):
    released_under_app(open_store)
    assert two("release", APP_ID) == [f"removed {APP_ID}  6 B", f"removed {BASE_ID}  16 B"]
    assert chains(root) == []


@pytest.mark.parametrize("words", [["export", APP_ID, "--from", BASE_ID, "-o", "/dev/null"], ["rw", "create", "box", BASE_ID],
                                   ["register", "TAR", "--parent", BASE_ID]])
def test_what_only_looks_at_a_layer_leaves_it_released(two, cli, root, open_store, room, words):
    released_under_app(open_store)
    (room / "TAR").write_bytes(tarkit.T1)
    assert cli(*(room / word if word == "TAR" else word for word in words)).code == 0
    assert (root / LAYERDB / "sha256" / BASE_ID[7:] / "released").exists()


def test_release_of_one_alone(two, root, open_store):
    released_under_app(open_store)
    assert two("release", "--only", APP_ID) == [f"removed {APP_ID}  6 B"]
    assert chains(root) == [BASE_ID]


def test_release_of_several_in_any_order(two, cli, root):
    done = cli("release", BASE_ID, APP_ID[7:20], "--json")
    assert done.code == 0
    assert [item["chain_id"] for item in done.json["removed"]] == [APP_ID, BASE_ID]


def test_what_something_stands_on_stays(two, cli, refused, root):
    assert refused(4, "release", BASE_ID) == f"{BASE_ID[7:19]} stays: on it stands the layer {APP_ID[7:19]}"
    two("rw", "create", "box", APP_ID)
    done = cli("release", APP_ID, "--json")
    assert done.code == 4 and done.json == {
        "removed": [], "kept": [{"chain_id": APP_ID, "why": "on it stands the writable layer box"}],
    }  # fmt: skip
    assert chains(root) == sorted([BASE_ID, APP_ID])


def test_what_another_process_holds_stays(two, refused, open_store, root):
    held = open_store().get(APP_ID)
    assert refused(4, "release", APP_ID) == f"{APP_ID[7:19]} stays: another process uses it"
    assert held.tar_stream().read() == APP


def test_a_wrong_name_among_several_releases_nothing(two, cli, root):
    assert cli("release", APP_ID, "nothing").code == 3
    assert chains(root) == sorted([BASE_ID, APP_ID])


# ---- diff ---------------------------------------------------------------------------------------
def test_diff(two, cli):
    assert two("diff", BASE_ID, APP_ID) == ["A /app", "A /app/main", "D /bin/tool"]
    assert two("diff", APP_ID, BASE_ID) == ["D /app", "D /app/main", "A /bin/tool"]
    assert two("diff", APP_ID, APP_ID) == []
    assert cli("diff", BASE_ID, APP_ID, "-0").out == "A /app\0A /app/main\0D /bin/tool\0"


def test_diff_says_what_changed(two, cli, room):
    (room / "other.tar").write_bytes(
        file("etc/motd", b"HELLO\n") + file("bin/tool", b"#!/bin/sh\n", mode=0o4755, uid=7) + dir("etc/motd2/")
        + tarkit.symlink("app", "bin") + file("etc/same", b"") + end()
    )  # fmt: skip
    other, = two("register", room / "other.tar", "--parent", BASE_ID)
    (room / "third.tar").write_bytes(file("etc/same", b"", mtime=77) + tarkit.symlink("app", "etc") + end())
    third, = two("register", room / "third.tar", "--parent", other)
    found = {change["path"]: (change["kind"], change["what"]) for change in cli("diff", BASE_ID, other, "--json").json}
    assert found == {
        "/app": ("A", []), "/bin/tool": ("C", ["mode", "owner"]), "/etc/motd": ("C", ["content"]),
        "/etc/motd2": ("A", []), "/etc/same": ("A", []),
    }  # fmt: skip
    assert cli("diff", other, third, "--json").json == [{"kind": "C", "path": "/app", "what": ["link"]}]
    timed = {change["path"]: change["what"] for change in cli("diff", other, third, "--times", "--json").json}
    assert timed["/etc/same"] == ["time"]


# ---- an image of it -----------------------------------------------------------------------------
def test_a_layer_goes_out_as_one_image(two, cli, refused, room):
    path = room / "whole.erofs"
    done = cli("export", APP_ID, "--erofs", path)
    assert (done.code, done.out) == (0, "") and done.err.startswith(f"{path}: ")
    files = {name: node.size for name, node in erofsreader.read(path, own=False).tree.items() if stat.S_ISREG(node.mode)}
    assert files == {"app/main": 6, "etc/motd": 6}
    facts = cli("export", APP_ID, "--erofs", path, "--json").json
    assert facts == {"chain_id": APP_ID, "diff_id": tarkit.diff_id(APP), "output": str(path), "bytes": path.stat().st_size}
    two("image", "create", APP_ID, "--tag", "app:1")
    assert cli("export", "app:1", "--erofs", room / "app.erofs").code == 0
    assert (room / "app.erofs").read_bytes() == path.read_bytes()
    assert "without -o and --from" in refused(2, "export", "app:1", "--erofs", path, "-o", "x.tar")
    assert "without -o and --from" in refused(2, "export", "app:1", "--erofs", path, "--from", BASE_ID)
    assert "No such file or directory" in refused(3, "export", "app:1", "--erofs", room / "no/such/file")
    assert sorted(os.listdir(room)) == ["app.erofs", "app.tar", "base.tar", "docker", "whole.erofs"]
