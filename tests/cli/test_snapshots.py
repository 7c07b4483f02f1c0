"""rw snapshot, rollback, fork, squash, changes --since; snapshot ls, rm, commit; snapshots as a BASE of other commands; usage."""

import subprocess
from pathlib import Path

import disk
import pytest
import tarkit
from tarkit import dir, end, file

BASE = dir("etc/") + file("etc/motd", b"hello\n") + end()
BASE_ID = tarkit.diff_id(BASE)


@pytest.fixture
def box(register):
    """A mounted writable layer called box, with one file of its own; gives the command line and its path."""
    ok = register(BASE)
    ok("rw", "create", "box", BASE_ID)
    path = Path(ok("rw", "mount", "box")[0])
    (path / "one").write_text("1")
    yield ok, path
    left = [line.split()[0] for line in ok("rw", "ls")[1:]]
    if left:
        ok("rw", "rm", "--force", *left)


def snapshot(ok, *more) -> str:
    taken, = ok("rw", "snapshot", "box", *more)
    assert len(taken) == 64 and int(taken, 16)
    return taken


def test_snapshot_write_roll_back(box, cli, root):
    ok, path = box
    taken = snapshot(ok)
    (path / "two").write_text("2")
    assert ok("rw", "changes", "box") == ["A /one", "A /two"]
    assert ok("rw", "changes", "box", "--since", taken[:8]) == ["A /two"]
    assert ok("rw", "rollback", "box", taken[:8]) == []
    assert sorted(p.name for p in path.iterdir()) == ["etc", "one"]
    assert disk.mounts_below(root) == [str(path)]
    assert cli("rw", "rollback", "box", BASE_ID[7:19], "--json").json == {"name": "box", "to": BASE_ID}
    assert [p.name for p in path.iterdir()] == ["etc"]


def test_snapshot_ls_and_json(box, cli):
    ok, path = box
    first = cli("rw", "snapshot", "box", "--json", "--durability", "none").json
    (path / "two").write_text("22")
    second = cli("rw", "snapshot", "box", "--json").json
    assert (first["box"], first["parent"], first["layer"]) == ("box", BASE_ID, BASE_ID)
    assert (second["parent"], second["layer"]) == (first["id"], BASE_ID)
    assert first["created"] < second["created"] and first["created"].endswith("Z")
    assert cli("snapshot", "ls", "--json").json == [{**first, "size": 1}, {**second, "size": 2}]
    lines = ok("snapshot", "ls", "box")
    assert lines[0].split() == ["SNAPSHOT", "OF", "ON", "SIZE", "AGE"]
    assert lines[2].split()[:5] == [second["id"][:12], "box", first["id"][:12], "2", "B"]
    assert ok("snapshot", "ls", "other") == [] and "no snapshots" in cli("snapshot", "ls", "other").err


def test_snapshots_are_in_the_tree_of_ls_and_in_rw_ls(box, cli):
    ok, _ = box
    taken = snapshot(ok)
    lines = ok("ls")
    assert lines[2].startswith(f"└─ {taken[:12]} (snapshot of box)") and lines[3].startswith("└─ box (writable)")
    listed, = cli("rw", "ls", "--json").json
    assert (listed["base"], listed["parent"]) == (taken, BASE_ID)
    title, row = ok("rw", "ls")
    assert title.split()[:4] == ["NAME", "ON", "LAYER", "SNAPSHOT"] and row.split()[:3] == ["box", BASE_ID[7:19], taken[:12]]


def test_fork_of_a_box_and_of_a_snapshot(box, cli):
    ok, path = box
    taken = snapshot(ok)
    (path / "two").write_text("2")
    made = cli("rw", "fork", "box", "other", "--json").json
    assert made["name"] == "other" and len(made["mount_id"]) == 64 and len(made["base"]) == 64
    assert ok("rw", "changes", "other") == ["A /one", "A /two"]
    assert cli("snapshot", "ls", "--json").json == [each for each in cli("snapshot", "ls", "--json").json if each["id"] == taken]
    ok("rw", "rm", "other")
    assert ok("rw", "fork", taken[:10], "other") == ["other"] and ok("rw", "changes", "other") == ["A /one"]
    ok("rw", "rm", "other")
    assert ok("rw", "create", "other", taken) == ["other"] and ok("rw", "changes", "other") == ["A /one"]


def test_snapshot_rm_and_squash(box, cli):
    ok, path = box
    taken = []
    for name in ("two", "three", "four"):
        (path / name).write_text(name)
        taken.append(snapshot(ok))
    assert cli("snapshot", "rm", *taken[:2], "--json").json == {"removed": taken[:2], "layers": []}
    assert [each["id"] for each in cli("snapshot", "ls", "--json").json] == taken[2:]
    assert "no snapshot" in cli("snapshot", "rm", taken[0]).said
    before = ok("rw", "changes", "box")
    assert cli("rw", "squash", "box", "--json").json == {"name": "box"}
    assert ok("rw", "changes", "box") == before == ["A /four", "A /one", "A /three", "A /two"]


def test_snapshot_commit(box, cli):
    ok, path = box
    first = snapshot(ok)
    (path / "two").write_text("2")
    second = snapshot(ok)
    made = cli("snapshot", "commit", second[:9], "--json", "--durability", "none").json
    assert made["new"] is True and cli("show", made["chain_id"], "--json").json["below"][-1] == BASE_ID
    assert len(cli("show", made["chain_id"], "--json").json["below"]) == 2
    assert ok("snapshot", "commit", second) == [made["chain_id"]]
    assert ok("cat", made["chain_id"], "two") == ["2"]
    squashed, = ok("snapshot", "commit", first, "--squash")
    assert cli("show", squashed, "--json").json["below"] == [BASE_ID]


def test_a_process_inside(box, cli, refused):
    ok, path = box
    taken = snapshot(ok)
    with subprocess.Popen(["sleep", "60"], cwd=path) as inside:
        assert f"({inside.pid})" in refused(4, "rw", "snapshot", "box", "--error-if-busy")
        assert f"({inside.pid})" in refused(4, "rw", "rollback", "box", taken)
        (path / "two").write_text("2")
        cloned = snapshot(ok)
        assert ok("diff", taken, cloned) == ["A /two"]
        ok("rw", "rollback", "--force", "box", taken)
        assert sorted(p.name for p in path.iterdir()) == ["etc", "one"]
        inside.kill()


def test_freeze_of_what_is_no_cgroup(box, cli, room):
    done = cli("rw", "snapshot", "box", "--freeze", room)
    assert done.code != 0 and str(room) in done.said


def test_rm_with_the_snapshots(box, cli):
    ok, _ = box
    snapshot(ok)
    ok("rw", "rm", "--force", "box")
    assert len(cli("snapshot", "ls", "--json").json) == 1
    ok("rw", "create", "box", BASE_ID)
    snapshot(ok)
    ok("rw", "rm", "box", "--snapshots")
    assert cli("snapshot", "ls", "--json").json == []
    assert cli("show", BASE_ID).code == 0


def test_diff_of_snapshots_counts_times_only_when_asked(box, cli, refused):
    ok, path = box
    first = snapshot(ok)
    (path / "one").write_text("1")
    (path / "two").write_text("2")
    second = snapshot(ok)
    for more in ([], ["--contents"]):
        assert ok("diff", first, second, *more) == ["A /two"]
    assert ok("diff", first, second, "--times") == ["C /one", "A /two"]
    assert cli("diff", BASE_ID, first, "--json").json == [{"kind": "A", "path": "/one"}]
    assert ok("diff", BASE_ID, BASE_ID, "--contents") == []
    assert "not allowed with" in refused(2, "diff", first, second, "--times", "--contents")


@pytest.mark.parametrize("words", [["rw", "rollback", "box"], ["rw", "create", "other"], ["rw", "changes", "box", "--since"], ["diff", BASE_ID]], ids=" ".join)
def test_a_base_that_is_not_there(box, refused, words):
    assert "there is no layer, no snapshot and no image 0000000000" in refused(3, *words, "0000000000")


def test_a_snapshot_that_is_not_there(box, refused):
    for words in (["snapshot", "rm"], ["snapshot", "commit"]):
        assert "there is no snapshot 0000000000" in refused(3, *words, "0000000000")
    assert "no writable layer and no snapshot 0000000000" in refused(3, "rw", "fork", "0000000000", "other")
    assert "there is no writable layer other" in refused(3, "rw", "snapshot", "other")


def test_changes_since_what_is_not_below(box, cli, room):
    ok, _ = box
    (room / "more.tar").write_bytes(file("more", b"") + end())
    apart, = ok("register", room / "more.tar")
    done = cli("rw", "changes", "box", "--since", apart)
    assert done.code == 1 and "is not below" in done.said


def test_a_beginning_of_several_snapshots_is_refused(box, cli):
    ok, _ = box
    first = {}
    for _ in range(17):                      # two of them have the same first digit
        one = snapshot(ok)
        first.setdefault(one[0], []).append(one)
    digit, several = max(first.items(), key=lambda item: len(item[1]))
    assert f"{digit} is the beginning of several snapshots" in cli("snapshot", "rm", digit).said
    assert len(several) > 1 and cli("snapshot", "rm", digit).code == 2


def test_usage(box, cli):
    ok, path = box
    (path / "large").write_bytes(bytes(range(256)) * 4096)
    snapshot(ok)
    used = cli("usage", "--json").json
    assert list(used) == ["layers", "writable", "snapshots", "orphans", "reclaimable"]
    assert used["snapshots"] >= 1 << 20 and used["orphans"] == 0
    assert [line.split("  ")[0] for line in ok("usage")] == ["layers", "writable layers", "snapshots", "unowned", "reclaimable"]
    assert ok("usage", "--bytes")[0].split() == ["layers", str(used["layers"])]
