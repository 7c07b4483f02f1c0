"""image load, save, ls, rm, tag, inspect, unpack, and images as names of layers."""

import json
import tarfile

import pytest
import tarkit
from dockerd import image_archive
from driven import DRIVER
from tarkit import dir, end, file, whiteout

from layerstore.cli import texts

BASE = dir("etc/") + file("etc/motd", b"hello\n") + dir("bin/") + file("bin/tool", b"#!/bin/sh\n", mode=0o755) + end()
APP = dir("app/") + file("app/main", b"print\n") + dir("bin/") + whiteout("bin/tool") + end()
BASE_ID = tarkit.diff_id(BASE)
APP_ID = tarkit.chain_id(BASE_ID, tarkit.diff_id(APP))


@pytest.fixture
def archives(room):
    (room / "base.tar").write_bytes(image_archive([BASE], "base"))
    (room / "app.tar").write_bytes(image_archive([BASE, APP], "app"))
    return room


@pytest.fixture
def two(made, archives):
    """A store with two images, the one on the layer of the other."""
    made("image", "load", archives / "base.tar")
    made("image", "load", archives / "app.tar")
    return made


def test_load_prints_id_and_names(made, cli, archives):
    line, = made("image", "load", archives / "app.tar")
    image, name = line.split()
    assert name == "app:latest" and len(image) == 71
    found, = cli("image", "load", archives / "app.tar", "--json").json
    assert (found["id"], found["references"], found["layers"], found["top"]) == (image, ["app:latest"], [BASE_ID, APP_ID], APP_ID)


def test_load_from_standard_input_under_a_name_of_ours(made, program, archives, cli):
    done = program("image", "load", "-", "--tag", "mine:1", "--tag", "mine:2", "--durability", "none", input=(archives / "app.tar").read_bytes())
    assert done.code == 0, done.err
    assert sorted(done.out.split()[1:]) == ["mine:1", "mine:2"]
    assert sorted(name for image in cli("image", "ls", "--json").json for name in image["references"]) == ["mine:1", "mine:2"]


def test_load_of_what_is_no_archive(made, cli, refused, room):
    (room / "bad.tar").write_bytes(BASE)
    for words, code in ((["bad.tar"], 1), (["none.tar"], 3)):
        assert refused(code, "image", "load", room / words[0])
    assert cli("ls", "--json").json["layers"] == []


def test_ls(two, cli):
    found = {image["references"][0]: image for image in cli("image", "ls", "--json").json}
    assert found["app:latest"]["size"] == 22 and found["base:latest"]["top"] == BASE_ID
    lines = {line.split()[0]: line.split() for line in two("image", "ls")}
    assert lines["app:latest"][1:5] == [found["app:latest"]["id"][7:19], "2", "22", "B"]
    assert lines["IMAGE"] == ["IMAGE", "ID", "LAYERS", "SIZE", "AGE"]


def test_an_image_names_its_topmost_layer(two, cli):
    assert cli("show", "app:latest", "--json").json["chain_id"] == APP_ID
    assert cli("show", "app", "--json").json["images"] == ["app:latest"]
    assert two("diff", "base", "app") == ["A /app", "A /app/main", "D /bin/tool"]
    assert two("cat", "app", "etc/motd") == ["hello"]
    assert [line.split()[-1] for line in two("ls")[1:]] == ["base:latest", "app:latest"]
    two("rw", "create", "box", "app")
    assert cli("rw", "ls", "--json").json[0]["parent"] == APP_ID


def test_a_layer_of_an_image_is_not_released(two, cli, room):
    for name in (APP_ID, BASE_ID, "app:latest"):
        done = cli("release", name)
        assert done.code == 4 and "belongs to the image" in done.said and "layerstore image rm" in done.said
    (room / "more.tar").write_bytes(file("more", b"") + end())
    more, = two("register", room / "more.tar", "--parent", "app")
    assert two("release", more) == [f"removed {more}  0 B"]
    two("rw", "create", "box", "app")
    two("rw", "rm", "--layers", "box")
    assert len(cli("ls", "--json").json["layers"]) == 2 and cli("verify").code == 0


@pytest.mark.parametrize("format", ["docker", "oci"])
def test_save_and_load_again(two, cli, program, room, format):
    id = cli("image", "inspect", "app").json[0]["Id"]
    done = cli("image", "save", "app", "base", "-o", room / "out.tar", "--format", format, "--json")
    assert done.json["bytes"] == (room / "out.tar").stat().st_size
    piped = program("image", "save", "app", "--format", format)
    (room / "piped.tar").write_bytes(piped.out.encode("utf-8", "surrogateescape"))
    for name, count in (("out.tar", 2), ("piped.tar", 1)):
        assert cli("--root", room / name[:3], "init").code == 0
        loaded = cli("--root", room / name[:3], "image", "load", room / name, "--json")
        assert loaded.code == 0, loaded.err
        assert len(loaded.json) == count and id in [image["id"] for image in loaded.json]
    assert (room / "out.tar").stat().st_mode & 0o400


@pytest.mark.parametrize("how", ["gzip", "zstd"])
def test_save_as_a_directory_and_compressed(two, cli, room, how):
    assert cli("image", "save", "app", "-o", room / "layout", "--format", "oci-dir", f"--{how}").code == 0
    manifest = json.loads((room / "layout/index.json").read_text())["manifests"][0]["digest"]
    layers = json.loads((room / "layout/blobs" / manifest.replace(":", "/")).read_text())["layers"]
    assert {layer["mediaType"] for layer in layers} == {f"application/vnd.oci.image.layer.v1.tar+{how}"}
    index = json.loads((room / "layout/index.json").read_text())
    assert index["schemaVersion"] == 2
    assert cli("--root", room / "other", "init").code == 0
    assert cli("--root", room / "other", "image", "load", room / "layout", "--json").json[0]["layers"] == [BASE_ID, APP_ID]


def test_save_that_cannot_be(two, cli, room):
    assert cli("image", "save", "app", "nothing", "-o", room / "o").code == 3
    assert not (room / "o").exists()
    assert cli("image", "save", "app", "--json").code == 2
    assert cli("image", "save", "app", "--format", "oci-dir").code == 2
    assert cli("image", "save", "app", "-o", room / "no/such").code == 3


def test_tag_and_rm(two, cli):
    two("image", "tag", "app", "mine:1")
    assert two("image", "rm", "app:latest") == ["untagged app:latest"]
    done = cli("image", "rm", "mine:1", "--json")
    assert done.json["untagged"] == ["mine:1"] and len(done.json["deleted"]) == 1 and done.json["layers"] == [APP_ID]
    assert [layer["chain_id"] for layer in cli("ls", "--json").json["layers"]] == [BASE_ID]
    lines = two("image", "rm", "base")
    assert lines[0] == "untagged base:latest" and lines[1].startswith("deleted sha256:") and lines[2] == f"removed {BASE_ID}  16 B"


def test_rm_of_what_a_writable_layer_stands_on(two, cli, refused):
    two("rw", "create", "box", "app")
    assert "box" in refused(4, "image", "rm", "app")
    two("image", "rm", "--force", "app")
    assert cli("rw", "changes", "box").code == 0


def test_inspect(two, cli):
    app, base = cli("image", "inspect", "app", "base").json
    assert app["RepoTags"] == ["app:latest"] and app["RootFS"]["Layers"] == [BASE_ID, tarkit.diff_id(APP)]
    assert base["RootFS"]["Layers"] == [BASE_ID]


def test_unpack(two, cli, refused, room):
    done = cli("image", "unpack", "app", room / "flat", "--json")
    assert done.json == {"image": "app", "directory": str(room / "flat")}
    assert (room / "flat/app/main").read_bytes() == b"print\n" and not (room / "flat/bin/tool").exists()
    assert refused(1, "image", "unpack", "app", room / "flat")


@pytest.mark.parametrize("verb", [("save",), ("rm",), ("inspect",), ("unpack",), ("tag",)])
def test_an_image_that_is_not_there(made, refused, room, verb):
    assert "nothing:1" in refused(3, "image", *verb, "nothing:1", *{"unpack": [room / "d"], "tag": ["y:1"]}.get(verb[0], []))


def test_a_tar_of_docker_opens_with_tar(two, room):
    two("image", "save", "app", "-o", room / "out.tar")
    with tarfile.open(room / "out.tar") as tar:
        assert "manifest.json" in tar.getnames()


def test_rm_tells_what_went_also_when_another_stays(two, cli, archives):
    """Each name that went is on standard output, whatever the error on standard error is about."""
    two("rw", "create", "box", "app")
    two("image", "tag", "base", "more:1")
    done = cli("image", "rm", "more:1", "base", "app")
    assert done.code == 4 and "box uses it" in done.err
    assert [line for line in done.out.splitlines() if line.startswith("untagged")] == ["untagged more:1", "untagged base:latest"]
    assert [image["references"] for image in cli("image", "ls", "--json").json] == [["app:latest"]]
    done = cli("image", "rm", "--json", "app", "app")
    assert done.code == 4 and json.loads(done.out) == {"untagged": [], "deleted": [], "layers": []}
    done = cli("image", "rm", "--force", "app", "app")
    assert done.code == 3 and "No such image: app:latest" in done.err and done.out.splitlines()[0] == "untagged app:latest"


def test_rm_of_what_is_not_there_touches_nothing(two, cli, refused):
    assert refused(3, "image", "rm", "app", "nothing:1") == "No such image: nothing:1"
    assert len(cli("image", "ls", "--json").json) == 2


@pytest.mark.parametrize("how", ["gone", "empty", "another", "no json", "a directory"])
@pytest.mark.parametrize("by", ["name", "id", "short id"])
def test_rm_of_a_damaged_image(two, cli, root, how, by):
    id = next(image["id"] for image in cli("image", "ls", "--json").json if image["references"] == ["app:latest"])
    path = root / "image" / DRIVER / "imagedb/content/sha256" / id[7:]
    path.unlink()
    if how == "a directory":
        path.mkdir()
    elif how != "gone":
        path.write_bytes({"empty": b"", "another": b"{}", "no json": b"{"}[how])
    word = {"name": "app", "id": id, "short id": id[7:19]}[by]
    done = cli("image", "rm", word)
    if how == "gone" and by != "name":
        assert done.code == 3
        return
    assert done.code == 0 and "untagged app:latest" in done.out.splitlines() and f"deleted {id}" in done.out.splitlines()
    assert [image["references"] for image in cli("image", "ls", "--json").json] == [["base:latest"]] and cli("image", "rm", "base").code == 0


def test_a_name_that_moves_is_told_of(two, cli, room):
    (room / "new.tar").write_bytes(image_archive([APP], "base"))
    old = next(image["id"] for image in cli("image", "ls", "--json").json if image["references"] == ["base:latest"])
    done = cli("image", "load", room / "new.tar")
    assert done.code == 0 and f"base:latest was {old[7:19]} before" in done.err and old in done.err
    assert old in [image["id"] for image in cli("image", "ls", "--json").json]
    assert cli("image", "load", room / "new.tar").err == ""
    done = cli("image", "tag", old, "base")
    assert done.code == 0 and "base:latest was" in done.err and cli("image", "tag", old, "base").err == ""
    moved = cli("image", "load", room / "new.tar", "--json").json
    assert [image["moved"] for image in moved] == [{"base:latest": old}]


def test_what_is_no_platform_is_a_wrong_command_line(two, refused, archives):
    for text in ("", "x y", "linux/", "a/b/c/d"):
        assert "is not a platform" in refused(2, "image", "load", archives / "app.tar", "--platform", text), text


@pytest.mark.parametrize("name", ["UPPER", "", "a b", "a:b:c", "x@y", "-", "a/../b", "\x1b[2J", "a" * 300])
def test_a_bad_name_of_an_image_is_a_wrong_command_line(two, cli, refused, archives, name):
    for words in (["tag", "app", name], ["tag", name, "x:1"], ["rm", name], ["save", name, "-o", archives / "o"], ["inspect", name],
                  ["unpack", name, archives / "o"], ["load", archives / "app.tar", "--tag", name], ["history", name],
                  ["create", "app", "--tag", name], ["create", name]):  # fmt: skip
        assert "--help" not in refused(2, "image", *words), words
    assert not (archives / "o").exists() and len(cli("image", "ls", "--json").json) == 2


def test_create_and_history(two, cli, room):
    (room / "config.json").write_text(json.dumps({
        "created": "2020-01-01T00:00:00Z", "config": {"Cmd": ["/app/main"]},
        "history": [{"created_by": "the base"}, {"created_by": "ENV A=b", "empty_layer": True}, {"created_by": "x " * 40, "comment": "app"}],
    }))  # fmt: skip
    id, name = two("image", "create", APP_ID[7:19], "--config", room / "config.json", "--tag", "made:1")[0].split()
    assert name == "made:1" and cli("image", "inspect", id).json[0]["Config"] == {"Cmd": ["/app/main"]}
    assert cli("image", "inspect", "made:1").json[0]["RootFS"]["Layers"] == [tarkit.diff_id(BASE), tarkit.diff_id(APP)]
    steps = cli("image", "history", "made:1", "--json").json
    assert [(step["layer"], step["size"]) for step in steps] == [(APP_ID, 6), (None, 0), (BASE_ID, 16)]
    lines = two("image", "history", "made:1")
    assert lines[1].split()[0] == APP_ID[7:19] and "..." in lines[1] and lines[1].endswith("app") and lines[2].split()[0] == "-"
    assert APP_ID in two("image", "history", "made:1", "--no-trunc")[1] and "x " * 39 in two("image", "history", "made:1", "--no-trunc")[1]


@pytest.mark.parametrize("text", ["[]", "{", "", "1", '{"config": 5}', '{"history": 5}'])
def test_create_with_what_is_no_config(two, cli, refused, room, text):
    (room / "config.json").write_text(text)
    assert refused(1, "image", "create", "app", "--config", room / "config.json", "--tag", "made:1")
    assert cli("image", "create", "app", "--config", room / "none.json").code == 3
    assert len(cli("image", "ls", "--json").json) == 2


def test_create_from_standard_input_moves_a_name(two, cli, program):
    old = cli("image", "inspect", "app").json[0]["Id"]
    done = program("image", "create", "base", "--config", "-", "--tag", "app", input=b'{"author": "me"}')
    assert done.code == 0 and done.out.split()[1] == "app:latest" and old in done.err
    assert cli("image", "inspect", "app").json[0]["Author"] == "me"


def test_prune(two, cli, archives):
    (archives / "new.tar").write_bytes(image_archive([APP], "base"))
    old = cli("image", "inspect", "base").json[0]["Id"]
    two("image", "load", archives / "new.tar")
    done = cli("image", "prune", "--dry-run")
    assert (done.code, done.out) == (0, f"deleted {old}\n") and "would go: 1 image" in done.err
    assert cli("image", "prune", "--unused-for", "1h").out == ""
    assert two("image", "prune") == [f"deleted {old}"]                  # app stands on its layer
    two("rw", "create", "box", "base")
    assert cli("image", "prune", "--json").json == {"untagged": [], "deleted": [], "layers": []}
    assert two("image", "prune", "--all", "--unused-for", "0s")[0] == "untagged app:latest"
    assert [image["references"] for image in cli("image", "ls", "--json").json] == [["base:latest"]] and cli("verify").code == 0
    assert cli("image", "prune", "--unused-for", "soon").code == 2


@pytest.mark.parametrize(
    ("text", "seconds"), [("0", 0), ("90", 90), ("1.5", 1.5), ("90s", 90), ("24h", 86400), ("1h30m", 5400), ("7d", 7 * 86400), ("1w", 7 * 86400)]
)
def test_lengths_of_time(text, seconds):
    assert texts.parse_age(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "-1", "1h ", "1 h", "1y", "1e3", "1h30", "nan", "inf", "٣"])
def test_what_is_no_length_of_time(text):
    with pytest.raises(ValueError, match="length of time"):
        texts.parse_age(text)


def test_ls_of_an_archive_loads_nothing(cli, program, archives, root):
    line = cli("image", "ls", "--archive", archives / "app.tar")
    assert line.code == 0
    assert line.out.splitlines()[1].split()[0] == "app:latest"
    found, = cli("image", "ls", "--archive", archives / "app.tar", "--json").json
    assert (found["references"], found["layers"], found["diff_ids"][0]) == (["app:latest"], 2, BASE_ID)
    piped = program("image", "ls", "--archive", "-", "--json", input=(archives / "base.tar").read_bytes())
    assert json.loads(piped.out)[0]["references"] == ["base:latest"]
    assert not root.exists() or not list(root.iterdir())
    bad = cli("image", "ls", "--archive", archives / "none.tar")
    assert bad.code == 3 and "none.tar" in bad.err
