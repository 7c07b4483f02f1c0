"""convert, --driver, and what ls, show and info say of a root with two drivers."""

import json

import disk
import pytest
from stored import UNKNOWN
from tarkit import T1, T2, end, file

OTHER = "erofs"
SAYS = "has several drivers: overlay2, erofs. This is the half of overlay2; --driver names another one"


pytestmark = pytest.mark.only("overlay2", "the other half is another driver's then")


@pytest.fixture
def two(register):
    """A store with two layers, one on the other; their ChainIDs."""
    made = register(T1, T2)
    layers = json.loads("\n".join(made("ls", "--json")))["layers"]
    return [layer["chain_id"] for layer in sorted(layers, key=lambda layer: layer["parent"] or "")]


def test_layers_are_made_in_the_other_half(cli, two, root):
    done = cli("convert", two[1][7:19], "--to", OTHER)
    assert (done.code, done.out.splitlines()) == (0, two)
    assert done.err.splitlines() == ["2 layers made"]
    again = cli("convert", two[1], "--to", OTHER, "--json", "-q")
    assert again.json == {"from": "overlay2", "to": OTHER, "made": [], "damaged": {}}
    assert cli("--driver", OTHER, "verify").code == 0
    back = cli("--driver", OTHER, "convert", "--all", "--to", "overlay2", "--json")
    assert (back.code, back.json["from"], back.json["made"], back.err) == (0, OTHER, [], "")
    assert cli("--driver", OTHER, "cat", two[0], "/a/f").out == "hello"
    assert disk.mounts_below(root) == []


def test_a_root_of_both_is_told_in_the_first_line(cli, two, root):
    assert cli("info").err == "" and cli("ls").err == ""
    assert cli("convert", "--all", "--to", OTHER).code == 0
    for words in (["info"], ["ls"], ["verify"]):
        first = cli(*words).err.splitlines()[0]
        assert first == f"layerstore: warning: {root} {SAYS}"
        assert cli(*words, "-q").err == ""
        assert "several" not in cli("--driver", OTHER, *words).err
    told = cli("info").out.splitlines()
    assert told[0].split(maxsplit=1) == ["root", f"{root} (has several drivers: overlay2, erofs)"]
    facts = cli("info", "--json", "--driver", OTHER).json
    assert (facts["driver"], facts["drivers"], facts["root"]) == (OTHER, ["overlay2", OTHER], str(root))
    assert facts["driver_status"]["Drivers of this root"] == "overlay2, erofs"


def test_ls_and_show_tell_which_drivers_have_a_layer(cli, ok, two, room):
    assert "DRIVERS" not in ok("ls")[0]
    cli("convert", two[0], "--to", OTHER)
    lines = ok("ls", "-q")
    assert lines[0].split() == ["LAYER", "SIZE", "WITH", "BELOW", "AGE", "DRIVERS", "IMAGES"]
    assert [line.rstrip().endswith("overlay2, erofs") for line in lines[1:]] == [True, False]
    found = {layer["chain_id"]: layer["drivers"] for layer in cli("ls", "--json", "-q").json["layers"]}
    assert found == {two[0]: ["overlay2", OTHER], two[1]: ["overlay2"]}
    assert "drivers     overlay2, erofs" in ok("show", two[0], "-q")
    assert cli("show", two[1], "--json", "-q").json["drivers"] == ["overlay2"]
    shown = cli("--driver", OTHER, "show", two[0]).out
    assert f"/{OTHER}/" in shown and "drivers     overlay2, erofs" in shown


def test_what_cannot_be_converted_ends_with_its_code(cli, refused, two, root, room):
    before = disk.disk_state(root)
    assert refused(3, "convert", UNKNOWN, "--to", OTHER).startswith("there is no layer and no image")
    assert "--to" in refused(2, "convert", two[0])
    assert "invalid choice" in refused(2, "convert", two[0], "--to", "btrfs")
    assert refused(2, "convert", "--to", OTHER) == "name layers, or --all"
    assert refused(2, "convert", two[0], "--all", "--to", OTHER) == "name layers, or --all"
    assert "invalid choice" in refused(2, "--driver", "btrfs", "ls")
    make = f"the store below {root} has no {OTHER} half; make one with: layerstore --root {root} --driver {OTHER} init"
    assert refused(3, "--driver", OTHER, "ls") == make
    assert refused(3, "--root", room / "none", "--driver", OTHER, "ls").startswith(f"there is no store below {room}/none")
    assert disk.changed(before, disk.disk_state(root)) == []
    assert cli("--driver", OTHER, "init", "--json").json == {"root": str(root), "driver": OTHER, "new": True}
    assert cli("--driver", OTHER, "ls").code == 0


def test_of_all_layers_those_that_are_sound_are_converted(cli, ok, two, diff_of, room):
    (room / "sound.tar").write_bytes(file("sound", b"s") + end())
    (sound,) = ok("register", room / "sound.tar")
    (damaged,) = (layer for layer in cli("ls", "--json").json["layers"] if layer["chain_id"] == two[0])
    (diff_of(damaged["cache_id"]) / "a/f").write_text("HELLO")
    done = cli("convert", "--all", "--to", OTHER, "--json")
    assert (done.code, done.json["made"], [*done.json["damaged"]]) == (1, [sound], [two[1]])
    assert f"layerstore: {two[1][7:19]} is not converted: " in done.err and "a/f" in done.err
    assert cli("convert", two[1], "--to", OTHER, "-q").code == 1
    assert [layer["chain_id"] for layer in cli("--driver", OTHER, "ls", "--json").json["layers"]] == [sound]
    assert cli("repair", two[0], room / "0.tar", "-q").code == 0
    assert sorted(cli("convert", "--all", "--to", OTHER, "--json", "-q").json["made"]) == sorted(two)


def test_one_half_is_mended_by_the_other(cli, two, root, diff_of, room):
    """The other half is another store to repair()."""
    cli("convert", two[1], "--to", OTHER)
    (layer,) = (layer for layer in cli("--driver", OTHER, "ls", "--json").json["layers"] if layer["chain_id"] == two[0])
    image = root / OTHER / layer["cache_id"] / "layer.erofs"
    data = image.read_bytes()
    assert data.count(b"hello") == 1
    image.write_bytes(data.replace(b"hello", b"HELLO"))
    assert cli("--driver", OTHER, "verify").code == 1
    assert cli("--driver", OTHER, "repair", two[0], "--store", root).code == 0
    assert cli("--driver", OTHER, "verify").code == 0
    assert image.read_bytes() == data


def test_diff_of_layers_without_checksums_compares_bytes(cli, room):
    """Of the same size, and (kept) the same bytes once more."""
    (room / "0.tar").write_bytes(file("same", b"1234") + file("kept", b"k") + file("grown", b"1") + file("again", b"x" * 700) + end())
    (room / "1.tar").write_bytes(file("same", b"1239") + file("grown", b"12") + file("again", b"x" * 700, mtime=7) + end())
    told = []
    for driver in ("overlay2", OTHER):
        assert cli("--driver", driver, "init", "-q").code == 0
        base = cli("--driver", driver, "register", room / "0.tar", "-q").out.strip()
        top = cli("--driver", driver, "register", room / "1.tar", "--parent", base, "-q").out.strip()
        told.append(cli("--driver", driver, "diff", base, top, "--json").json)
    assert told[0] == told[1] == [{"kind": "C", "path": path, "what": ["content"]} for path in ("/grown", "/same")]


def test_an_image_comes_after_its_layers(cli, ok, two, room, root):
    ok("image", "create", two[1], "--tag", "app:1")
    cli("convert", "app:1", "--to", OTHER)
    before = {layer["cache_id"] for layer in cli("--driver", OTHER, "ls", "--json").json["layers"]}
    assert cli("-q", "image", "save", "app:1", "-o", room / "app.tar").code == 0
    assert cli("--driver", OTHER, "image", "load", room / "app.tar").code == 0
    assert cli("--driver", OTHER, "ls-files", "--own", "app:1").code == 0
    assert {layer["cache_id"] for layer in cli("--driver", OTHER, "ls", "--json").json["layers"]} == before
