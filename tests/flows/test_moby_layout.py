"""Names, modes and contents of what lies on disk are Docker's, whichever way the kernel is asked to mount.

layerdb and overlay2 file by file stand in tests/package/test_metadata.py and test_overlay.py; here the whole root
is held to the list, roots written by other hands are read, and mounts are tried through both of the kernel's doors.
"""

import base64
import errno
import gzip
import json
import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import tarkit
from disk import changed, disk_state, mount_line, mounts_below, shape
from stored import tar_of
from tarkit import end, file

import layerstore
from layerstore import CreateRWLayerOpts, LayerStoreError, MaxDepthExceededError

SOURCES = [os.path.dirname(os.path.dirname(layerstore.__file__)), os.path.dirname(tarkit.__file__)]
HEX = "[0-9a-f]{64}"
DB, DRIVER = "image/overlay2/layerdb", "overlay2"

# path -> (kind and mode, text); nothing else may lie in a root of ours
WHOLE_LAYOUT = {
    "image": ("dir 700", None),
    "image/overlay2": ("dir 700", None),
    DB: ("dir 700", None),
    f"{DB}/tmp": ("dir 755", None),
    f"{DB}/sha256": ("dir 755", None),
    f"{DB}/sha256/{HEX}": ("dir 700", None),
    f"{DB}/sha256/{HEX}/diff": ("file 644", f"sha256:{HEX}"),
    f"{DB}/sha256/{HEX}/size": ("file 644", "[0-9]+"),
    f"{DB}/sha256/{HEX}/cache-id": ("file 644", HEX),
    f"{DB}/sha256/{HEX}/parent": ("file 644", f"sha256:{HEX}"),
    f"{DB}/sha256/{HEX}/descriptor.json": ("file 644", r"\{.*\}"),
    f"{DB}/sha256/{HEX}/tar-split.json.gz": ("file 644", None),
    f"{DB}/mounts": ("dir 755", None),
    f"{DB}/mounts/[a-z]+": ("dir 755", None),
    f"{DB}/mounts/[a-z]+/mount-id": ("file 644", HEX),
    f"{DB}/mounts/[a-z]+/init-id": ("file 644", f"{HEX}-init"),
    f"{DB}/mounts/[a-z]+/parent": ("file 644", f"sha256:{HEX}"),
    DRIVER: ("dir 710", None),
    f"{DRIVER}/l": ("dir 700", None),
    f"{DRIVER}/l/[A-Z2-7]{{26}}": ("link 777", f"\\.\\./{HEX}(-init)?/diff"),
    f"{DRIVER}/{HEX}(-init)?": ("dir 710", None),
    f"{DRIVER}/{HEX}(-init)?/diff": ("dir 755", None),
    f"{DRIVER}/{HEX}(-init)?/link": ("file 644", "[A-Z2-7]{26}"),
    f"{DRIVER}/{HEX}(-init)?/lower": ("file 644", "l/[A-Z2-7]{26}(:l/[A-Z2-7]{26})*"),
    f"{DRIVER}/{HEX}(-init)?/work": ("dir 700", None),
    f"{DRIVER}/{HEX}(-init)?(/work){{2}}": ("dir 0", None),      # overlayfs makes one of that name in its work directory
    f"{DRIVER}/{HEX}(-init)?/committed": ("file 600", ""),
}
CONTENT = re.compile(f"{DRIVER}/{HEX}(-init)?/diff/.*")


def unlisted(root):
    """Every path below root that the list does not have so, with what it is."""
    wrong = []
    for path, dirs, files in os.walk(root):
        for name in dirs + files:
            place = os.path.join(path, name)
            inner = os.path.relpath(place, root)
            if CONTENT.fullmatch(inner):
                continue
            status = os.lstat(place)
            kind = {stat.S_IFDIR: "dir", stat.S_IFREG: "file", stat.S_IFLNK: "link"}[stat.S_IFMT(status.st_mode)]
            is_ = f"{kind} {stat.S_IMODE(status.st_mode):o}"
            rows = [row for pattern, row in WHOLE_LAYOUT.items() if re.fullmatch(pattern, inner)]
            if not rows or rows[0][0] != is_ or (status.st_uid, status.st_gid) != (0, 0):
                wrong.append(f"{inner}: {is_} {status.st_uid}:{status.st_gid}")
            elif rows[0][1] is not None:
                text = os.readlink(place) if kind == "link" else Path(place).read_text()
                if not re.fullmatch(rows[0][1], text):
                    wrong.append(f"{inner}: {text!r}")
    return wrong


@pytest.mark.parametrize("umask", [0o022, 0])
def test_a_root_of_ours_holds_dockers_files_and_no_others(open_store, root, umask):
    before = os.umask(umask)
    try:
        store = open_store()
        base = store.register(tarkit.T1)
        descriptor = layerstore.Descriptor("application/x", "sha256:" + "d" * 64, 7)
        child = store.register_with_descriptor(tarkit.T2, base.chain_id, None, descriptor)
        init = CreateRWLayerOpts(init_func=lambda path: open(f"{path}/made-by-init", "w").close())
        made = ("plain", child.chain_id, None), ("init", child.chain_id, init), ("alone", "", init)
        for name, parent, opts in made:
            with store.create_rw_layer(name, parent, opts).mounted() as path:
                assert os.path.isdir(path)
            store.get_rw_layer(name)
        store.register(file("gone") + end()).release()
        with pytest.raises(layerstore.TarFormatError):
            store.register(b"A" * 512)
        store.close()
    finally:
        os.umask(before)
    assert unlisted(root) == []


def test_every_short_link_is_the_one_its_directory_names(store, root):
    base = store.register(tarkit.T1)
    store.create_rw_layer("c", base.chain_id, CreateRWLayerOpts(init_func=lambda path: None))
    home = root / DRIVER
    named = {(home / name / "link").read_text(): f"../{name}/diff" for name in os.listdir(home) if name != "l"}
    assert named == {name: os.readlink(home / "l" / name) for name in os.listdir(home / "l")}


def test_a_commit_of_a_writable_layer_lies_on_disk_like_any_layer(store, root):
    base = store.register(tarkit.T1)
    rw = store.create_rw_layer("c", base.chain_id)
    with rw.mounted() as path:
        open(f"{path}/new", "w").close()
    rw.commit()
    store.close()
    assert unlisted(root) == []


# ---- removing, and what was left half removed -----------------------------------------------------------------
@pytest.mark.parametrize("suffix", ["0123", "a" * 64])
def test_a_half_removed_layer_is_finished_beside_the_live_one_of_the_same_id(store, root, suffix):
    """The same tar was registered again after its removal was cut short: two records of one ID."""
    layer = store.register(tarkit.T1)
    db = root / DB / "sha256"
    stale, cache = db / f"{layer.chain_id.encoded}-{suffix}-removing", "c" * 64
    stale.mkdir()
    (stale / "cache-id").write_text(cache)
    (root / DRIVER / cache / "diff").mkdir(parents=True)
    (root / DRIVER / cache / "link").write_text("C" * 26)
    (root / DRIVER / "l" / ("C" * 26)).symlink_to(f"../{cache}/diff")
    store.cleanup()
    assert os.listdir(db) == [layer.chain_id.encoded]
    assert sorted(os.listdir(root / DRIVER)) == sorted([layer.cache_id, "l"])
    assert len(os.listdir(root / DRIVER / "l")) == 1
    assert tar_of(layer) == tarkit.T1


def test_a_removal_whose_driver_directory_is_gone_already_is_finished(store, root):
    stale = root / DB / "sha256" / ("7" * 64 + "-1-removing")
    stale.mkdir(parents=True)
    (stale / "cache-id").write_text("c" * 64 + "\n")
    store.cleanup()
    assert not stale.exists()


# ---- roots written by other hands -------------------------------------------------------------------------------
def lines_of(*entries):
    return b"".join(json.dumps(entry, separators=(",", ":")).encode() + b"\n" for entry in entries)


def segment(data, position, **more):
    return {"type": 2, "payload": base64.b64encode(data).decode(), "position": position, **more}


T1_LINES = [
    segment(tarkit.T1[:512], 0),
    {"type": 1, "name": "a/", "payload": None, "position": 1},
    segment(tarkit.T1[512:1024], 2),
    {"type": 1, "name": "a/f", "size": 5, "payload": "PD7u4tgQAAA=", "position": 3},
    segment(tarkit.T1[1029:], 4),
]
RECORDS = {
    "as dockerd 29 writes it": lines_of(*T1_LINES),
    "as dockerd 20.10 writes it": lines_of(*T1_LINES, {"type": 2, "payload": "", "position": 5}),
    "keys turned round, in capitals, with unknown ones": lines_of(
        {"position": 0, "payload": base64.b64encode(tarkit.T1[:1024]).decode(), "TYPE": 2, "x": {"y": [1, None]}},
        {"Position": 1, "Payload": "PD7u4tgQAAA=", "Size": 5, "Name": "a/f", "Type": 1},
        segment(tarkit.T1[1029:], 2, unknown="é\n"),
    ),
    "with blanks between and within": json.dumps(segment(tarkit.T1[:1024], 0), indent=2).encode()
    + b"\t\r\n  "
    + b'{ "type" : 1 , "name_raw" : "YS9m" , "size" : 5 , "payload" : "PD7u4tgQAAA=" , "position" : 1 }'
    + lines_of(segment(tarkit.T1[1029:], 2)),
    "with an object of no known type": lines_of(
        segment(tarkit.T1[:1024], 0),
        {"type": 9, "name": "a/f", "size": 5, "payload": None, "position": 1},
        {"type": 1, "name": "a/f", "size": 5, "payload": "PD7u4tgQAAA=", "position": 2},
        segment(tarkit.T1[1029:], 3),
    ),
    "escaped as nobody must": b'{"type":2,"payload":"%s","position":0}\n' % base64.b64encode(tarkit.T1[:1024])
    + rb'{"type":1,"name":"\u0061\/f","size":5,"payload":"PD7u4tgQAAA=","position":1}'
    + lines_of(segment(tarkit.T1[1029:], 2)),
}


def written_by_docker(root, record, level=6):
    """T1 as a layer, and a container "c" with an init layer on it, made without our store."""
    cache, mount = "c" * 64, "e" * 64
    home, layer = root / DRIVER, root / DB / "sha256" / tarkit.T1_DIFF_ID.removeprefix("sha256:")
    for path in (home / "l", home / cache / "diff/a", layer, root / DB / "mounts/c"):
        path.mkdir(parents=True)
    home.chmod(0o710)
    (home / "l").chmod(0o700)
    (root / DB).chmod(0o700)
    (home / cache / "diff/a/f").write_bytes(b"hello")
    short = dict.fromkeys((cache, f"{mount}-init", mount))
    for index, name in enumerate(short):
        short[name] = "ABC"[index] * 26
        (home / name / "diff").mkdir(parents=True, exist_ok=True)
        (home / name / "link").write_text(short[name])
        (home / "l" / short[name]).symlink_to(f"../{name}/diff")
    for name, below in ((f"{mount}-init", [cache]), (mount, [f"{mount}-init", cache])):
        (home / name / "work").mkdir()
        (home / name / "lower").write_text(":".join(f"l/{short[lower]}" for lower in below))
    for name in (cache, f"{mount}-init"):
        (home / name / "committed").touch(0o600)
    (home / f"{mount}-init" / "diff/.dockerenv").touch()
    for name, text in (("diff", tarkit.T1_DIFF_ID), ("size", "5"), ("cache-id", cache)):
        (layer / name).write_text(text)
    (layer / "tar-split.json.gz").write_bytes(gzip.compress(record, level))
    for name, text in (("mount-id", mount), ("init-id", f"{mount}-init"), ("parent", tarkit.T1_DIFF_ID)):
        (root / DB / "mounts/c" / name).write_text(text)
    return home / mount


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_by_another_writer_gives_the_tar(root, open_store, name):
    written_by_docker(root, RECORDS[name])
    with open_store().get(tarkit.T1_DIFF_ID).tar_stream() as stream:
        assert stream.size == 2560
        assert stream.read() == tarkit.T1


@pytest.mark.parametrize("wrapped", ["level 0", "several members", "with a name and a time"])
def test_a_record_may_be_any_gzip(root, open_store, wrapped):
    record = RECORDS["as dockerd 29 writes it"]
    written_by_docker(root, record)
    packed = {
        "level 0": gzip.compress(record, 0),
        "several members": gzip.compress(record[:100]) + gzip.compress(b"") + gzip.compress(record[100:]),
        "with a name and a time": b"\x1f\x8b\x08\x08\1\2\3\4\2\3name\0" + gzip.compress(record, mtime=0)[10:],
    }[wrapped]
    (root / DB / "sha256" / tarkit.T1_DIFF_ID.removeprefix("sha256:") / "tar-split.json.gz").write_bytes(packed)
    assert tar_of(open_store().get(tarkit.T1_DIFF_ID)) == tarkit.T1


def test_a_root_by_docker_opens_mounts_and_goes_without_a_trace(root, open_store):
    place = written_by_docker(root, RECORDS["as dockerd 20.10 writes it"])
    before = disk_state(root, times=True)
    store = open_store()
    assert set(store.map()) == {tarkit.T1_DIFF_ID}
    assert (store.mounts(), store.get_mount_id("c")) == (["c"], place.name)
    assert changed(before, disk_state(root, times=True)) == []
    rw = store.get_rw_layer("c")
    with rw.mounted() as path:
        assert shape(path) == {".dockerenv": "", "a": "dir", "a/f": "hello"}
        open(f"{path}/mine", "w").close()
    assert [str(change) for change in rw.changes()] == ["A /mine"]
    assert store.release_rw_layer(rw) == []           # the layer that docker made was not released
    assert [gone.chain_id for gone in store.remove(tarkit.T1_DIFF_ID)] == [tarkit.T1_DIFF_ID]
    assert sorted(os.listdir(root / DRIVER)) == ["l"]
    assert os.listdir(root / DRIVER / "l") == []
    assert os.listdir(root / DB / "sha256") == os.listdir(root / DB / "mounts") == []


def test_a_container_from_before_1_10_has_its_name_for_a_mount_id(root, open_store):
    place = written_by_docker(root, RECORDS["as dockerd 29 writes it"])
    (root / DB / "mounts/c").rename(root / DB / "mounts" / place.name)
    store = open_store()
    assert store.get_mount_id(place.name) == place.name
    with store.get_rw_layer(place.name).mounted() as path:
        assert shape(path)["a/f"] == "hello"


def test_a_layer_in_2018s_words_with_an_os_file_loads(root, open_store):
    written_by_docker(root, RECORDS["as dockerd 29 writes it"])
    layer = root / DB / "sha256" / tarkit.T1_DIFF_ID.removeprefix("sha256:")
    (layer / "os").write_text("windows")
    descriptor = {"MEDIATYPE": "m", "Digest": "sha256:" + "1" * 64, "size": 3, "platform": {"os": "x"}}
    (layer / "descriptor.json").write_text(json.dumps(descriptor))
    store = open_store()
    (found,) = store.map().values()
    assert found.os == "linux"
    assert found.descriptor[:3] == ("m", "sha256:" + "1" * 64, 3)


# ---- depth ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("below", "fits"), [(127, True), (128, False)])
def test_128_lower_directories_are_the_most(store, root, unchanged, below, fits):
    """125 layers are the store's own limit; the driver's is seen on a root with more of them."""
    base = store.register(tarkit.T1)
    store.create_rw_layer("warm", base.chain_id)
    home = root / DRIVER
    link = (home / base.cache_id / "link").read_text()
    (home / base.cache_id / "lower").write_text(":".join([f"l/{link}"] * below))
    if fits:
        store.create_rw_layer("c", base.chain_id)
        assert (home / store.get_mount_id("c") / "lower").read_text().count(":") == 127
        return
    with unchanged(), pytest.raises((MaxDepthExceededError, OSError, LayerStoreError), match="max depth exceeded"):
        store.create_rw_layer("c", base.chain_id)


# ---- both doors to the kernel ----------------------------------------------------------------------------------------
@pytest.fixture(params=["old", "new"])
def door(request, monkeypatch):
    """mount(2), and the calls that came with 5.2; overlay takes lowers one by one through them from 6.8 on."""
    if request.param == "new" and tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2]) < (6, 8):
        pytest.skip("NOT TESTED: the kernel has to be 6.8 or later, whose overlay takes lower directories one by one")
    monkeypatch.setenv("LAYERSTORE_MOUNT_API", request.param)
    return request.param


LIFE = """
store = layerstore.Store(sys.argv[1])
rw = store.get_rw_layer("c")
print(rw.mount(), flush=True)
sys.stdin.read()
"""


def child(code, root, door):
    preface = f"import sys; sys.path[:0] = {SOURCES!r}\nimport layerstore, tarkit, os\n"
    return subprocess.Popen(
        [sys.executable, "-c", preface + code, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "LAYERSTORE_MOUNT_API": door}
    )


def stacked(store, count):
    top = store.register(file("f1", b"00001") + end())
    for number in range(2, count + 1):
        top, below = store.register(file(f"f{number}", b"%05d" % number) + end(), top.chain_id), top
        below.release()
    return top


def test_a_mount_shows_every_layer_and_writes_into_the_upper(store, root, door):
    rw = store.create_rw_layer("c", stacked(store, 3).chain_id)
    with rw.mounted() as path:
        assert mount_line(path)[:3] == ["overlay", path, "overlay"]
        home, mount_id = root / DRIVER, store.get_mount_id("c")
        if door == "old":
            lower = ":".join(f"{home}/{item}" for item in (home / mount_id / "lower").read_text().split(":"))
            given = f",lowerdir={lower},upperdir={home}/{mount_id}/diff,workdir={home}/{mount_id}/work"
            assert given in mount_line(path)[3]
        assert sorted(os.listdir(path)) == ["f1", "f2", "f3"]
        open(f"{path}/new", "w").close()
        os.unlink(f"{path}/f1")
    upper = root / DRIVER / store.get_mount_id("c") / "diff"
    assert shape(upper) == {"f1": "whiteout", "new": ""}
    assert not (upper.parent / "merged").exists()
    assert mounts_below(root) == []


@pytest.mark.time_limit(120)
def test_125_layers_with_init_mount(store, root, door):
    top = stacked(store, 125)
    rw = store.create_rw_layer("c", top.chain_id, CreateRWLayerOpts(init_func=lambda path: None))
    with rw.mounted() as path:
        assert len(os.listdir(path)) == 125
        with open(f"{path}/f1") as lowest, open(f"{path}/f125") as highest:
            assert (lowest.read(), highest.read()) == ("00001", "00125")
        if door == "old":
            short = (root / DRIVER / store.get_mount_id("c") / "lower").read_text()
            assert f",lowerdir={short}," in mount_line(path)[3], "more than a page: relative, as Docker gives it"
    assert mounts_below(root) == []
    assert len((root / DRIVER / store.get_mount_id("c") / "lower").read_text()) == 126 * 28 + 125


@pytest.mark.time_limit(120)
def test_125_layers_below_a_long_root_mount(open_store, room, door):
    """The absolute option text is many pages long."""
    deep = room / ("x" * 200) / ("y" * 200)
    deep.mkdir(parents=True)
    store = open_store(deep)
    where = os.getcwd()
    with store.create_rw_layer("c", stacked(store, 125).chain_id).mounted() as path:
        assert len(os.listdir(path)) == 125
    assert os.getcwd() == where


def test_a_committed_layer_mounts_for_reading_only(store, root, door):
    base = store.register(tarkit.T1)
    rw = store.create_rw_layer("c", base.chain_id)
    rw.apply_diff(file("mine", b"mine") + end())
    place = root / DRIVER / store.get_mount_id("c")
    (place / "committed").touch(0o600)
    with rw.mounted() as path:
        assert "upperdir" not in mount_line(path)[3]
        assert shape(path) == {"a": "dir", "a/f": "hello", "mine": "mine"}
        with pytest.raises(OSError) as caught:
            os.mknod(f"{path}/x")
    assert caught.value.errno == errno.EROFS


def test_a_root_with_colon_comma_blank_and_backslash_mounts(open_store, room, door):
    store = open_store(room / 'a:b,c d\\e=f"g')
    with store.create_rw_layer("c", store.register(tarkit.T1).chain_id).mounted() as path:
        assert shape(path) == {"a": "dir", "a/f": "hello"}


def test_a_missing_lower_is_an_error_and_leaves_nothing(store, root, door):
    base = store.register(tarkit.T1)
    rw = store.create_rw_layer("c", base.chain_id)
    (root / DRIVER / base.cache_id / "diff").rename(root / "moved")
    for _ in range(2):
        with pytest.raises((OSError, LayerStoreError)):
            rw.mount()
        assert not (root / DRIVER / store.get_mount_id("c") / "merged").exists()
    (root / "moved").rename(root / DRIVER / base.cache_id / "diff")
    with rw.mounted() as path:
        assert shape(path) == {"a": "dir", "a/f": "hello"}


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_killed_while_mounted_leaves_a_mount_that_is_used_again(store, open_store, root, door, how):
    layer = store.register(tarkit.T1)
    store.create_rw_layer("c", layer.chain_id)
    store.release(layer)                              # it goes with what stands on it
    store.close()
    holder = child(LIFE, root, door)
    path = holder.stdout.readline().strip()
    assert mount_line(path)
    holder.send_signal(how)
    holder.wait()
    holder.stdin.close()
    holder.stdout.close()
    assert mount_line(path), "no mount goes with its process"
    rw = open_store().get_rw_layer("c")
    assert rw.mount() == path
    assert mounts_below(root).count(path) == 1
    rw.unmount()
    assert mount_line(path), "the dead process counts as one user"
    rw.unmount()
    assert mount_line(path) is None
    assert not os.path.exists(path)


def test_a_mount_left_by_a_killed_process_goes_with_its_writable_layer(store, open_store, root, door):
    layer = store.register(tarkit.T1)
    store.create_rw_layer("c", layer.chain_id)
    store.release(layer)                              # it goes with what stands on it
    store.close()
    holder = child(LIFE, root, door)
    path = holder.stdout.readline().strip()
    holder.kill()
    holder.communicate()
    again = open_store()
    assert len(again.release_rw_layer(again.get_rw_layer("c"))) == 1
    assert mount_line(path) is None
    assert os.listdir(root / DRIVER) == ["l"]


def test_a_mount_is_seen_by_processes_that_came_before_it(store, root, door):
    """It is made in the caller's own mount namespace, whichever thread made it."""
    rw = store.create_rw_layer("c", store.register(tarkit.T1).chain_id)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as earlier:
        with rw.mounted() as path, open(f"/proc/{earlier.pid}/mounts") as table:
            assert f" {path} overlay " in table.read()
        earlier.stdin.close()


def test_cleanup_unmounts_what_is_mounted_below_the_driver(store, root, door):
    rw = store.create_rw_layer("c", store.register(tarkit.T1).chain_id)
    rw.mount()
    store.cleanup()
    assert mounts_below(root) == []
    assert [problem for problem in store.verify() if problem.kind != "orphan"] == []
    rw.unmount()


def test_neither_door_changes_directory_umask_or_root_of_the_process(store, door):
    before = os.getcwd(), os.stat("/").st_ino, os.readlink("/proc/self/ns/mnt")
    mask = os.umask(0o022)
    os.umask(mask)
    with store.create_rw_layer("c", stacked(store, 60).chain_id).mounted():
        pass
    assert (os.getcwd(), os.stat("/").st_ino, os.readlink("/proc/self/ns/mnt")) == before
    assert os.umask(mask) == mask
