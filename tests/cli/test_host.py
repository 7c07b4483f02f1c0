"""init, info, doctor, bench, and where the store is."""

import importlib.metadata
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import disk
import pytest
import tarkit
from driven import DRIVER
from machine import needs

import layerstore
from layerstore.cli import doctor, opening


# ---- the root -----------------------------------------------------------------------------------
def test_init_makes_a_store_and_is_harmless_where_there_is_one(ok, cli, root):
    first, again = cli("init", "--json"), cli("init", "--json")
    assert first.json == {"root": str(root), "driver": DRIVER, "new": True}
    assert again.json == {**first.json, "new": False}
    assert ok("init") == [str(root)]


def test_init_makes_the_directories_above(cli, room):
    assert cli("--root", room / "a/b/c", "init").code == 0
    assert (room / "a/b/c" / DRIVER).is_dir()


def test_the_root_before_and_behind_the_command(ok, cli, room):
    ok("--root", room / "one", "init")
    ok("init", "--root", room / "two")
    assert cli("--root", room / "one", "info", "--json").json["root"] == str(room / "one")
    assert cli("info", "--json", f"--root={room}/two").json["root"] == str(room / "two")
    assert cli("--root", room / "one", "--root", room / "two", "info", "--json").json["root"] == str(room / "two")


def test_a_root_without_a_store(cli, refused, room, root):
    for words in (["ls"], ["info"], ["register", "x.tar"], ["rw", "ls"], ["verify"], ["gc"], ["image", "ls"]):
        assert refused(3, *words) == f"there is no store below {root}; make one with: layerstore --root {root} init"
    assert not root.exists()
    assert cli("--root", "", "ls").code == 2
    (room / "file").write_text("")
    assert cli("--root", room / "file", "ls").code == 3
    assert cli("--root", room / "file", "init").code == 1


def test_where_the_store_is_when_nobody_says(monkeypatch):
    monkeypatch.setenv("LAYERSTORE_ROOT", "/from/the/environment")
    assert opening.default_root() == "/from/the/environment"
    monkeypatch.delenv("LAYERSTORE_ROOT")
    assert opening.default_root() == "/var/lib/layerstore"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    assert opening.default_root() == "/home/somebody/.local/share/layerstore"
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert opening.default_root() == "/data/layerstore"


def test_info(made, cli, root):
    found = cli("info", "--json").json
    assert (found["root"], found["driver"], found["layers"], found["size"], found["images"]) == (str(root), DRIVER, 0, 0, 0)
    assert found["driver_status"]["Backing Filesystem"] == "tmpfs" and found["dockerd"] is None
    assert found["libraries"] == layerstore.build_info() and found["version"] == layerstore.__version__
    shown = {line[:20].strip(): line[21:].strip() for line in made("info")}
    assert (shown["root"], shown["layers"], shown["userxattr"]) == (str(root), "0", "false")


def test_what_reads_writes_nothing(made, cli, root):
    before = disk.disk_state(root, times=True)
    for words in (["ls"], ["info"], ["verify"], ["rw", "ls"], ["orphans"], ["image", "ls"]):
        assert cli(*words).code == 0
    assert disk.changed(before, disk.disk_state(root, times=True)) == []


# ---- doctor -------------------------------------------------------------------------------------
def answers(done) -> dict[str, dict[str, str]]:
    return {check["name"]: check for check in done.json}


def test_doctor_here(made, cli, root):
    done = cli("doctor", "--json")
    found = answers(done)
    assert done.code == 0, done.out
    names = ["kernel", "rights", "store", "dockerd", "space", "file system", "overlay mounts", "EROFS mounts", "d_type", "xattrs", "whiteouts", "changes",
             "mount API", "openat2", "locks", "quota", "snapshots", "reflinks", "libraries", "libarchive", "bubblewrap", "rich", "urllib3", "credentials"]  # fmt: skip
    assert list(found) == names
    assert found["file system"]["found"] == "tmpfs" and found["quota"]["state"] == "note"
    assert found["EROFS mounts"]["found"].startswith("loop:")            # no file of a tmpfs is mounted itself
    for name in ("overlay mounts", "d_type", "xattrs", "whiteouts", "changes", "openat2", "locks", "snapshots"):
        assert found[name]["state"] == "ok", found[name]
    assert cli("doctor").out.count("->") == sum(1 for check in found.values() if check["todo"])
    assert os.listdir(root) == ["image", DRIVER] or sorted(os.listdir(root)) == sorted(["image", DRIVER])


CREDENTIALS = {
    "none": ({}, "ok", "none: "),
    "of docker": ({".docker/config.json": "{}"}, "ok", "{home}/.docker/config.json"),
    "of both": ({".docker/config.json": "{}", "run/containers/auth.json": "{}"}, "ok",
                "{home}/run/containers/auth.json, then {home}/.docker/config.json"),
    "malformed": ({".docker/config.json": "{secret"}, "note", "{home}/.docker/config.json is malformed"),
    "of a helper that is not there": ({".docker/config.json": '{"credsStore": "none-such"}'}, "note", "names a helper that is not in PATH"),
}  # fmt: skip


@pytest.mark.parametrize("which", CREDENTIALS)
def test_doctor_tells_which_credentials_count(made, cli, room, monkeypatch, which):
    files, state, told = CREDENTIALS[which]
    for name in ("DOCKER_AUTH_CONFIG", "REGISTRY_AUTH_FILE", "DOCKER_CONFIG", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(room / "home"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(room / "home/run"))
    for name, text in files.items():
        (room / "home" / name).parent.mkdir(parents=True)
        (room / "home" / name).write_text(text)
    found = answers(cli("doctor", "--json"))
    assert (found["urllib3"]["state"], found["credentials"]["state"]) == ("ok", state)
    assert told.format(home=room / "home") in found["credentials"]["found"]
    assert "secret" not in json.dumps(found) and bool(found["credentials"]["todo"]) == (state == "note")


def test_doctor_before_there_is_a_store(cli, room, root):
    found = answers(cli("doctor", "--json"))
    assert found["store"]["state"] == "note" and found["store"]["todo"] == f"layerstore --root {root} init"
    assert os.listdir(room) == []


def test_doctor_on_an_overlay(cli, room, mounted):
    for name in ("low", "up", "work"):
        (room / name).mkdir()
    place = mounted("overlay", f"lowerdir={room}/low,upperdir={room}/up,workdir={room}/work")
    done = cli("--root", place / "root", "doctor", "--json")
    found = answers(done)
    assert done.code == 1
    assert found["file system"]["state"] == "bad" and "volume" in found["file system"]["todo"]
    assert found["overlay mounts"]["state"] == "bad"
    assert [name for name in os.listdir(room / "up") if name.startswith("layerstore")] == []


def test_doctor_knows_where_files_are_cloned(cli, room):
    needs("mkfs.xfs")
    assert answers(cli("doctor", "--json"))["reflinks"]["state"] == "note"
    with disk.sized_file_system(room, "xfs", size=400 << 20) as place:
        assert answers(cli("--root", place / "root", "doctor", "--json"))["reflinks"]["state"] == "ok"


def test_doctor_without_bubblewrap(cli, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    found = answers(cli("doctor", "--json"))["bubblewrap"]
    assert found["state"] == "note" and "apt-get install bubblewrap" in found["todo"]


def test_doctor_where_nothing_may_be_written(cli, mounted):
    done = cli("--root", mounted("tmpfs", "ro") / "root", "doctor", "--json")
    assert done.code == 1 and answers(done)["writing"]["state"] == "bad"


def test_doctor_on_a_full_disk(cli, mounted):
    found = answers(cli("--root", mounted("tmpfs", "size=1m") / "root", "doctor", "--json"))
    assert found["space"]["state"] == "note" and "make room" in found["space"]["todo"]


def test_doctor_without_rights_says_how_to_get_them(program, room):
    weak = ("setpriv", "--bounding-set", "-all", "--inh-caps", "-all")
    done = program("doctor", "--json", front=weak, cwd=room)
    found = answers(done)
    assert done.code == 1 and found["overlay mounts"]["state"] == "bad"
    assert "unshare" in found["overlay mounts"]["todo"]
    done = program("init", front=weak, cwd=room)
    assert done.code == 5 and len(done.err.splitlines()) == 1
    assert os.listdir(room) == []


def test_doctor_in_a_user_namespace(program, room):
    found = answers(program("doctor", "--json", front=("unshare", "--user", "--map-root-user", "--mount"), cwd=room))
    assert found["rights"]["state"] == "note" and "user namespace" in found["rights"]["found"]
    assert found["overlay mounts"]["found"] == "with userxattr" and found["xattrs"]["found"] == "user.*"
    assert found["EROFS mounts"]["state"] == "note" and "initial namespace" in found["EROFS mounts"]["found"]


def test_doctor_where_files_are_mounted_as_they_are(cli, room):
    needs("mkfs.ext4")
    with disk.sized_file_system(room, "ext4", size=64 << 20) as place:
        found = answers(cli("--root", place / "root", "doctor", "--json"))["EROFS mounts"]
    assert (found["state"], found["found"][:5]) == ("ok", "file:")


@pytest.mark.parametrize(
    ("free", "inodes", "state"), [(0, 10**6, "bad"), (10**8, 10**6, "note"), (10**12, 10, "note"), (10**12, 10**6, "ok")]
)
def test_space(monkeypatch, free, inodes, state):
    found = os.statvfs_result((1, 1, 10**9, free, free, 10**6, inodes, inodes, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _place: found)
    assert doctor._space("/").state == state


# ---- bench --------------------------------------------------------------------------------------
def test_bench_measures_and_leaves_nothing(made, cli, room, root):
    before = sorted(os.listdir(root))
    done = cli("bench", "--mb", 1, "--files", 20, "--rounds", 1, "--json")
    assert done.code == 0 and done.json["at"] == str(root)
    assert [result["what"] for result in done.json["results"]] == [
        "register", "export", "verify", "rw create", "rw mount", "rw changes", "rw commit",
    ]  # fmt: skip
    assert all(result["per_second"] > 0 for result in done.json["results"])
    assert sorted(os.listdir(root)) == before and disk.mounts_below(room) == []


def test_bench_of_a_tar_of_yours(cli, room):
    (room / "mine.tar").write_bytes(tarkit.T1)
    done = cli("bench", "--at", room, "--tar", room / "mine.tar", "--rounds", 1, "-q", "--durability", "none")
    assert done.code == 0 and done.err == "" and "MB/s" in done.out
    assert cli("bench", "--at", room / "none").code == 3
    assert cli("bench", "--rounds", 0).code == 2 and cli("bench", "--mb", "many").code == 2
    assert os.listdir(room) == ["mine.tar"]


def test_python_m_and_the_console_script_are_the_same(program):
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"layerstore": "layerstore.cli.main:program"}
    entry = importlib.metadata.EntryPoint("layerstore", project["scripts"]["layerstore"], "console_scripts")
    assert entry.load().__name__ == "program"
    done = subprocess.run([sys.executable, "-c", "from layerstore.cli.main import program; program()", "--version"],
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.stdout == program("--version").out == f"layerstore {layerstore.__version__}\n"
