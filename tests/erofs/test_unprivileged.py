"""A user namespace without the right to mount images: all that needs no mount works, and a mount says what is missing."""

import json
import os
import subprocess
import sys
import textwrap

import kit
import pytest
import tarkit

import layerstore


def inside(code: str, *arguments: object, root: bool = True) -> dict:
    """Run a program in a user namespace; what it prints last is JSON."""
    namespace = ["unshare", "--user", "--map-root-user", "--mount", "--propagation", "private"] if root else ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--reuid=12345", "--regid=12345", "--clear-groups"]
    done = subprocess.run([*namespace, sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)], capture_output=True, text=True, check=False, timeout=50)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


PROGRAM = """
    import json, os, sys, tarfile
    sys.path.insert(0, sys.argv[2])
    import layerstore, tarkit
    found = {}
    with layerstore.Store(sys.argv[1], driver="erofs") as store:
        tar = tarkit.dir("d/", uid=0) + tarkit.file("d/f", b"hello", mode=0o640) + tarkit.hardlink("h", "d/f") + tarkit.symlink("l", "d/f") + tarkit.xattrs({"user.k": b"v"}) + tarkit.file("x", uid=1000, gid=1000) + tarkit.node("null", "c", 1, 3) + tarkit.end()
        base = store.register(tar)
        top = store.register(tarkit.T2, base.chain_id)
        with base.tar_stream() as stream:
            found["tar"] = stream.read() == tar
        found["files"] = [entry.name for entry in base.files()]
        with base.open("l") as file:
            found["open"] = file.read().decode()
        found["merged"] = sorted(entry.name for entry in top.merged())
        found["diff"] = [str(change) for change in store.diff(base.chain_id, top.chain_id)]
        found["verify"] = [str(problem) for problem in store.verify()]
        found["orphans"] = len(store.orphans())
        found["size"] = base.diff_size
        for name, layer, parent in (("fresh", base, ""), ("fresh top", top, base.chain_id)):
            with layer.tar_stream_from(parent) as stream, tarfile.open(fileobj=stream, mode="r|") as out:
                found[name] = [[one.name, one.linkname, one.mode, one.uid, out.extractfile(one).read().decode() if one.isreg() else ""] for one in out]
        store.cleanup()
        box = store.create_rw_layer("box", top.chain_id)
        found["changes"] = [str(change) for change in box.changes()]
        try:
            box.mount()
        except Exception as error:
            found["mount"] = [type(error).__name__, str(error)]
        found["status"] = dict(store.driver_status())
        box.release()
        again = store.get(top.chain_id)
        found["same"] = again.diff_id == top.diff_id
        again.release(); top.release(); base.release()
        found["map"] = len(store.map())
    print(json.dumps(found))
"""


@pytest.mark.parametrize("root", [True, False], ids=["root of a user namespace", "a user"])
def test_all_but_a_mount_works(room, root):
    place = room / "root"
    if not root:
        place.mkdir()
        os.chown(place, 12345, 12345)
        room.chmod(0o755)
        room.parent.chmod(0o755)
    found = inside(PROGRAM, place, os.path.dirname(tarkit.__file__), root=root)
    assert found["tar"] and found["same"]
    assert found["files"] == ["d/", "d/f", "h", "l", "x", "null"] and found["open"] == "hello"
    assert found["verify"] == [] and found["orphans"] == 0 and found["map"] == 0 and found["changes"] == []
    assert "null" in found["merged"], "a device is no node here, but an entry of an image"
    assert "A /b" in found["diff"]
    assert ["d/f", "", 0o644, 0, "hello"] in found["fresh"] and ["h", "d/f", 0o644, 0, ""] in found["fresh"] and len(found["fresh"]) == 6
    assert [name for name, *_ in found["fresh top"]] == ["a", "a/.wh.f", "b", "d", "d/.wh..wh..opq", "gone"]
    kind, text = found["mount"]
    assert kind == "NotSupportedError" and "mounting EROFS needs CAP_SYS_ADMIN in the initial namespace" in text
    assert found["status"]["EROFS mode"] == "none"


def test_a_root_filled_in_a_namespace_is_mounted_by_root_later(room, open_store):
    inside("""
        import json, sys
        sys.path.insert(0, sys.argv[2])
        import layerstore, tarkit
        with layerstore.Store(sys.argv[1], driver="erofs") as store:
            base = store.register(tarkit.dir("d/") + tarkit.file("d/f", b"1") + tarkit.dir("o/") + tarkit.file("o/x") + tarkit.node("n", "c", 5, 1) + tarkit.end())
            top = store.register(tarkit.dir("d/") + tarkit.whiteout("d/f") + tarkit.dir("o/") + tarkit.opaque("o/") + tarkit.file("o/y", uid=77) + tarkit.end(), base.chain_id)
            print(json.dumps(top.chain_id))
    """, room / "root", os.path.dirname(tarkit.__file__))  # fmt: skip
    store = open_store(room / "root")
    top = store.get(max(store.map().values(), key=lambda layer: layer.parent is not None).chain_id)
    assert store.verify() == []
    with store.create_rw_layer("box", top.chain_id) as box, box.mounted() as place:
        assert sorted(os.listdir(place)) == ["d", "n", "o"] and os.listdir(place + "/o") == ["y"] and os.listdir(place + "/d") == []
        assert os.stat(place + "/o/y").st_uid == 77 and os.stat(place + "/n").st_rdev == os.makedev(5, 1)
        os.remove(place + "/o/y")
        assert os.listdir(place + "/o") == []
    other = open_store(room / "other")
    base = other.register(tarkit.dir("d/") + tarkit.file("d/f", b"1") + tarkit.dir("o/") + tarkit.file("o/x") + tarkit.node("n", "c", 5, 1) + tarkit.end())
    assert kit.file_of(base).read_bytes() == kit.file_of(store.get(base.chain_id)).read_bytes(), "one image for all"


def test_the_words_when_the_status_is_asked_for_by_who_may_mount(store):
    assert dict(store.driver_status())["EROFS mode"] in ("file", "loop")
    assert isinstance(store.driver_name(), str) and store.driver_name() == "erofs"
    with pytest.raises(layerstore.LayerDoesNotExistError):
        store.get("sha256:" + "0" * 64)
