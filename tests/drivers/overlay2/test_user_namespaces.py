"""One root used by root and in a user namespace: each sees the tree that was registered and written, or is refused.

Opaque marks are attributes trusted.overlay.* of root and user.overlay.* of a user namespace, and a mount sees its own
class alone: what a layer deleted would come back. The other user is a process in a user namespace of its own.
"""

import json
import logging
import os
import stat
import subprocess
import sys

import pytest
import stored
import tarkit
from tarkit import end, file

from layerstore import NotSupportedError, Store

OTHER = ["unshare", "--user", "--map-root-user", "--mount"]
BASE = tarkit.dir("d/") + file("d/old", b"old") + tarkit.dir("e/") + file("e/old", b"old") + end()
OPAQUE = {
    "a mark": tarkit.dir("d/") + file("d/.wh..wh..opq") + file("d/new", b"new") + end(),
    "a mark behind the files": tarkit.dir("d/") + file("d/new", b"new") + file("d/.wh..wh..opq") + end(),
    "a whiteout and its name anew": file(".wh.d") + tarkit.dir("d/") + file("d/new", b"new") + end(),
}
TREE = ["d", "d/new", "e", "e/old"]       # what each shows, on BASE
PLAIN = tarkit.dir("d/") + file("d/.wh.old") + file("d/new", b"new") + end()

# Steps of another user, as JSON: what a call gave, or the name of what it raised.
STEPS = r"""
import json, logging, os, shutil, sys
from layerstore import Store, LayerStoreError
class Heard(logging.Handler):
    def emit(self, record):
        heard.append(record.getMessage())
heard, said = [], []
logging.getLogger("layerstore").addHandler(Heard(logging.WARNING))
def shown(path):
    return sorted(os.path.relpath(os.path.join(at, name), path) for at, dirs, files in os.walk(path) for name in dirs + files)
with Store(sys.argv[1]) as store:
    for what, *given in json.loads(sys.argv[2]):
        try:
            if what == "register":
                with open(given[0], "rb") as source:
                    said.append(store.register(source, given[1]).chain_id)
            elif what == "create":
                store.create_rw_layer(*given)
                said.append(None)
            elif what == "show":
                with store.get_rw_layer(given[0]).mounted() as path:
                    said.append(shown(path))
            elif what == "anew":
                with store.get_rw_layer(given[0]).mounted() as path:
                    shutil.rmtree(path + "/d")
                    os.mkdir(path + "/d")
                    open(path + "/d/new", "w").close()
                said.append(None)
            elif what == "clone":
                box = store.get_rw_layer(given[0])
                with box.mounted() as path:
                    inside = os.open(path, os.O_RDONLY)
                    snapshot = box.snapshot()
                    os.close(inside)
                assert box.base.chain_id, "it was in use, so it was cloned"
                with snapshot.fork(given[1]).mounted() as path:
                    said.append(shown(path))
            elif what == "squash":
                box = store.get_rw_layer(given[0])
                for i in range(3):
                    with box.mounted() as path:
                        open(f"{path}/d/{i}", "w").close()
                    box.snapshot().release()
                box.squash()
                with box.mounted() as path:
                    said.append(shown(path))
            elif what == "changes":
                said.append([str(change) for change in store.get_rw_layer(given[0]).changes()])
            elif what == "tar":
                import io, tarfile
                with store.get_rw_layer(given[0]).tar_stream() as stream:
                    said.append(tarfile.open(fileobj=io.BytesIO(stream.read())).getnames())
            elif what == "merged":
                said.append(sorted(entry.path for entry in store.map()[given[0]].merged()))
            elif what == "verify":
                said.append([[problem.kind, problem.path, problem.detail] for problem in store.verify()])
        except (LayerStoreError, OSError) as error:
            said.append({"raised": type(error).__name__, "text": str(error)})
print(json.dumps([said, heard]))
"""


def other(root, *steps):
    done = subprocess.run([*OTHER, sys.executable, "-c", STEPS, root, json.dumps(steps)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def shown(path):
    return sorted(os.path.relpath(os.path.join(at, name), path) for at, dirs, files in os.walk(path) for name in dirs + files)


@pytest.fixture
def place(room):
    """A directory of tars and a root that both users can work in."""
    for name, data in (("base", BASE), ("plain", PLAIN), *((key.replace(" ", "-"), tar) for key, tar in OPAQUE.items())):
        (room / f"{name}.tar").write_bytes(data)
    return room


def tar(place, name):
    return str(place / f"{name.replace(' ', '-')}.tar")


@pytest.mark.parametrize("how", OPAQUE)
def test_what_a_user_namespace_registered_root_sees(place, how):
    (base, _), _ = other(place / "s", ["register", tar(place, "base"), ""], ["register", tar(place, how), ""])
    with Store(place / "s") as store:
        upon = store.register(OPAQUE[how], base)          # a child of root's on a layer of the other's
        box = store.create_rw_layer("box", upon.chain_id)
        with box.mounted() as path:
            assert shown(path) == TREE
        assert [entry.path for entry in store.map()[upon.chain_id].merged()] == TREE
    said, _ = other(place / "s", ["show", "box"], ["changes", "box"])
    assert said == [TREE, []]


@pytest.mark.parametrize("how", OPAQUE)
def test_a_chain_of_a_user_namespace_is_mounted_by_root_as_it_is(place, how):
    (base,), _ = other(place / "s", ["register", tar(place, "base"), ""])
    (top, _, _), _ = other(place / "s", ["register", tar(place, how), base], ["create", "mine", base], ["anew", "mine"])
    with Store(place / "s") as store:
        assert stored.shown(store, top, shown) == TREE
        mine = store.get_rw_layer("mine")
        with mine.mounted() as path:
            assert shown(path) == TREE
        expected = {"D /d/old", "A /d/new"}
        assert expected <= {str(change) for change in mine.changes()} <= expected | {"C /d"}
        committed = mine.commit()
        assert stored.shown(store, committed, shown) == TREE
        problems = store.verify()
        assert problems
        assert {problem.kind for problem in problems} == {"metadata"}
        assert all("user.overlay." in problem.detail for problem in problems)


@pytest.mark.parametrize("how", OPAQUE)
def test_what_root_registered_a_user_namespace_refuses_to_show_wrongly(place, how):
    with Store(place / "s") as store:
        base = store.register(BASE).chain_id
        top = store.register(OPAQUE[how], base).chain_id
        store.create_rw_layer("mine", base)
        with store.get_rw_layer("mine").mounted() as path:
            for name in os.listdir(f"{path}/d"):
                os.unlink(f"{path}/d/{name}")
            os.rmdir(f"{path}/d")
            os.mkdir(f"{path}/d")
    said, _ = other(place / "s", ["create", "box", top], ["show", "box"], ["show", "mine"], ["changes", "mine"],
                    ["tar", "mine"], ["merged", top], ["verify"])  # fmt: skip
    assert said[0] is None
    assert [one.get("raised") for one in said[1:5]] == ["NotSupportedError"] * 4
    assert top in said[1]["text"]
    assert "trusted.overlay" in said[1]["text"]
    assert said[5] == TREE
    told = [detail for kind, _, detail in said[6] if kind == "metadata" and "trusted.overlay." in detail]
    assert len(told) >= 2, said[6]
    with Store(place / "s") as store:                     # and root goes on as before
        assert store.verify() == []
        with store.get_rw_layer("mine").mounted() as path:
            assert os.listdir(f"{path}/d") == []


def test_layers_without_opaque_marks_are_both_users(place):
    with Store(place / "s") as store:
        base = store.register(BASE).chain_id
        top = store.register(PLAIN, base).chain_id
    (made, one, _, again, changes, verified), _ = other(
        place / "s", ["create", "box", top], ["show", "box"], ["anew", "box"], ["show", "box"], ["changes", "box"], ["verify"]
    )
    assert (made, one, again, verified) == (None, TREE, TREE, [])
    with Store(place / "s") as store:
        box = store.get_rw_layer("box")
        with box.mounted() as path:
            assert shown(path) == TREE
        assert [str(change) for change in box.changes()] == changes
        layer = box.commit()
        assert stored.shown(store, layer, shown) == TREE


def test_no_class_shows_both(place):
    """Below, a layer of root's with an opaque mark; on it, one of the user namespace's."""
    with Store(place / "s") as store:
        base = store.register(BASE).chain_id
        below = store.register(OPAQUE["a mark"], base).chain_id
    (top,), _ = other(place / "s", ["register", tar(place, "a mark behind the files"), below])
    with Store(place / "s") as store:
        box = store.create_rw_layer("box", top)
        with pytest.raises(NotSupportedError, match="opaque marks of layer") as error:
            box.mount()
        assert below in str(error.value)
        assert [entry.path for entry in store.map()[top].merged()] == TREE


def test_a_root_of_an_earlier_version_is_looked_at(place):
    """Nothing is remembered there: the record says what must be marked, and the marks are seen or not."""
    def forget():
        for name in os.listdir(place / "s/overlay2"):
            if len(name) > 1 and "user.layerstore.marks" in os.listxattr(place / "s/overlay2" / name):
                os.removexattr(place / "s/overlay2" / name, "user.layerstore.marks")

    with Store(place / "s") as store:
        base = store.register(BASE).chain_id
        top = store.register(OPAQUE["a mark"], base).chain_id
    forget()
    (_, said), _ = other(place / "s", ["create", "box", top], ["show", "box"])
    assert said["raised"] == "NotSupportedError"
    (base, ), _ = other(place / "t", ["register", tar(place, "base"), ""])
    (top, ), _ = other(place / "t", ["register", tar(place, "a mark"), base])
    for name in os.listdir(place / "t/overlay2"):
        if len(name) > 1:
            os.removexattr(place / "t/overlay2" / name, "user.layerstore.marks")
    (_, said), _ = other(place / "t", ["create", "box", top], ["show", "box"])
    assert said == TREE


def test_devices_that_cannot_be_made_are_told(place):
    devices = tarkit.dir("dev/") + tarkit.node("dev/null", "c", 1, 3) + tarkit.node("dev/sda", "b", 8, 0) + file("x", b"x") + end()
    (place / "devices.tar").write_bytes(devices)
    (chain, told), heard = other(place / "s", ["register", str(place / "devices.tar"), ""], ["verify"])
    assert chain.startswith("sha256:")
    assert len(heard) == 1
    assert "2 devices" in heard[0]
    assert "dev/null" in heard[0]
    assert {(kind, path) for kind, path, _ in told} == {("missing", "dev/null"), ("missing", "dev/sda")}


def test_a_device_that_is_a_whiteout_hides_in_a_user_namespace_too(place):
    (place / "hide.tar").write_bytes(tarkit.dir("d/") + tarkit.node("d/old", "c", 0, 0) + end())
    (base,), _ = other(place / "s", ["register", tar(place, "base"), ""])
    (top, _, said), heard = other(place / "s", ["register", str(place / "hide.tar"), base], ["create", "box", ""], ["show", "box"])
    (_, said), _ = other(place / "s", ["create", "other", top], ["show", "other"])
    assert said == ["d", "e", "e/old"]
    assert heard == []


def test_root_makes_devices_and_hears_nothing(place, caplog):
    devices = tarkit.node("null", "c", 1, 3) + end()
    with Store(place / "s") as store, caplog.at_level(logging.WARNING, "layerstore"):
        layer = store.register(devices)
        assert stat.S_ISCHR(os.lstat(f"{layer.metadata()['UpperDir']}/null").st_mode)
        assert caplog.records == []


INSIDE = r"""
import os, subprocess, sys, time
from layerstore import ActiveMountError, Store

def refused(call):
    try:
        call()
    except ActiveMountError as error:
        return [one.pid for one in error.holders]
    return None

with Store(sys.argv[1]) as store:
    box = store.create_rw_layer("box", store.register(sys.argv[2]).chain_id)
    path = box.mount()
    for front in ([], ["unshare", "--mount"]):
        with subprocess.Popen([*front, "sh", "-c", 'cd "$0"; echo ready; exec sleep 60', path], stdout=subprocess.PIPE) as child:
            child.stdout.readline()
            assert refused(box.unmount) == [child.pid], front
            box.unmount(lazy=True)
            assert refused(box.mount) == [child.pid], front
            assert [one.pid for one in box.holders()] == [child.pid], front
            child.kill()
        assert box.holders() == [], front
        assert box.mount() == path
    box.unmount()
    other = store.create_rw_layer("other", box.parent.chain_id)
    with open(f"{sys.argv[1]}/image/overlay2/layerdb/mounts/box/detached", "w") as mark, other.mounted() as used:
        device = os.stat(used).st_dev
        mark.write(f"{os.major(device)}:{os.minor(device)}")
        mark.flush()
        os.chdir(used)
        with box.mounted():
            pass                                          # the number is another one's by now
        os.chdir("/")
"""


def test_a_box_in_use_is_known_in_a_user_namespace_too(place):
    """There the kernel does not say whether an upper is in use: the processes are looked at."""
    done = subprocess.run([*OTHER, sys.executable, "-c", INSIDE, place / "s", tar(place, "base")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_box_of_a_user_namespace_is_cloned_and_squashed_with_its_marks(place):
    root = str(place / "root")
    base = other(root, ["register", str(place / "base.tar"), ""])[0][0]
    after = [[*TREE], *[[*TREE[:1], *(f"d/{i}" for i in range(3)), *TREE[1:]]]]
    said, _ = other(root, ["create", "box", base], ["anew", "box"], ["clone", "box", "fork"], ["squash", "fork"], ["squash", "box"], ["show", "box"])
    assert said[2:] == [after[0], after[1], after[1], after[1]]
