"""Damage of a layer's file and of the small ones beside it: verify() names it, repair() mends it to the byte."""

import os
import shutil
import struct
from pathlib import Path

import pytest
import tarkit
from damages import flip, patch, root_inode
from stored import tar_of
from tarkit import T2, dir, end, file, symlink

from layerstore import ActiveMountError, CorruptLayerError

TAR = (
    dir("a/", mode=0o750, uid=3) + file("a/f", b"hello") + tarkit.xattrs({"user.x": b"value"}) + file("marked", b"") + symlink("l", "a/f")
    + dir("implied/by/it") + end() + b"behind the end"
)  # fmt: skip
SUPER = 1024
TAR_AT = 4096


@pytest.fixture
def store(open_store, room):
    return open_store(room / "erofs", driver="erofs")


def field(at: int, form: str, add: int = 1):
    """Another value of a field of the superblock."""

    def damage(image: Path):
        (value,) = struct.unpack_from(form, image.read_bytes(), SUPER + at)
        patch(image, SUPER + at, struct.pack(form, value + add & (1 << 8 * struct.calcsize(form)) - 1))

    return damage


def metadata(image: Path) -> int:
    return int.from_bytes(image.read_bytes()[SUPER + 40 : SUPER + 44], "little") * 512


def in_metadata(what: bytes, by: bytes):
    def damage(image: Path):
        patch(image, image.read_bytes().index(what, metadata(image)), by)

    return damage


def at_root(offset: int):
    return lambda image: flip(image, root_inode(image) + offset)


def cut(size: int):
    """size   below 0: from the end"""
    return lambda image: os.truncate(image, size if size > 0 else image.stat().st_size + size)


def longer(data: bytes):
    return lambda image: patch(image, image.stat().st_size, data)


def beside(name: str, do):
    return lambda image: do(image.parent / name)


def replaced(make):
    """Something else in its place, of the same name."""

    def damage(path: Path):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        make(path)

    return damage


def moved_behind_a_link(path: Path):
    away = path.parent.parent / "l" / "away"
    path.rename(away)
    path.symlink_to(away)


# The tar is whole: the layer is mended from it alone.
OF_METADATA = {
    "magic": field(0, "<I"), "checksum": field(4, "<I"), "compatible features": field(8, "<I"), "block size": field(12, "<B"),
    "extra slots": field(13, "<B"), "root": field(14, "<H"), "inodes": field(16, "<Q"), "epoch": field(24, "<Q"),
    "blocks": field(36, "<I"), "more blocks": field(36, "<I", 1 << 20), "metadata's place": field(40, "<I"),
    "xattrs' place": field(44, "<I"), "uuid": field(48, "<B"), "volume's name": field(64, "<B"), "number in it": field(68, "<B"),
    "incompatible features": field(80, "<I"), "devices": field(86, "<H"), "behind the superblock": field(128, "<B"),
    "before the superblock": lambda image: flip(image, 0), "last byte of the header": lambda image: flip(image, TAR_AT - 1),
    "header gone": lambda image: patch(image, 0, bytes(TAR_AT)), "padding": lambda image: flip(image, metadata(image) - 1),
    "root's format": at_root(0), "root's mode": at_root(4), "root's size": at_root(8), "root's owner": at_root(24),
    "root's time": at_root(32), "root's links": at_root(44), "a name": in_metadata(b"marked", b"market"),
    "a target": in_metadata(b"a/f", b"a/g"), "an attribute": in_metadata(b"value", b"VALUE"), "an odd zero": longer(bytes(1)),
    "a block of zeros": longer(bytes(512)), "more": longer(b"x" * 5000), "last block": cut(-512), "last byte": cut(-1),
    "metadata gone": lambda image: os.truncate(image, metadata(image)),
}  # fmt: skip
OF_SMALL_FILES = {
    "length gone": beside("length", Path.unlink), "length is no number": beside("length", lambda p: p.write_text("12x")),
    "length is empty": beside("length", lambda p: p.write_text("")), "length is too long": beside("length", lambda p: p.write_text("9" * 30)),
    "length is smaller": beside("length", lambda p: p.write_text("512")), "length is larger": beside("length", lambda p: p.write_text("1" + "0" * 9)),
    "length is negative": beside("length", lambda p: p.write_text("-1")), "length is a link": beside("length", moved_behind_a_link),
    "length is a directory": beside("length", replaced(Path.mkdir)), "length is a fifo": beside("length", replaced(os.mkfifo)),
    "link gone": beside("link", Path.unlink), "link is another": beside("link", lambda p: p.write_text("A" * 26)),
    "lower gone": beside("lower", Path.unlink), "lower is another": beside("lower", lambda p: p.write_text("l/" + "B" * 26)),
    "work gone": beside("work", shutil.rmtree), "fs gone": beside("fs", Path.rmdir), "fs is a file": beside("fs", replaced(Path.touch)),
    "short link gone": lambda image: (image.parent.parent / "l" / (image.parent / "link").read_text()).unlink(),
}  # fmt: skip
# A tar is needed.
OF_CONTENT = {
    "a byte of a file": lambda image: patch(image, image.read_bytes().index(b"hello"), b"HELLO"),
    "a header": lambda image: flip(image, TAR_AT + 100), "first header gone": lambda image: patch(image, TAR_AT, bytes(512)),
    "behind the end": lambda image: flip(image, TAR_AT + len(TAR) - 1), "a hole": lambda image: patch(image, TAR_AT, bytes(len(TAR))),
    "cut in the tar": cut(TAR_AT + 700), "cut before the tar": cut(3000), "empty": lambda image: os.truncate(image, 0),
    "all else": lambda image: image.write_bytes(b"\1" * 10000),
}  # fmt: skip
MISSING = {
    "gone": Path.unlink, "a link to it": moved_behind_a_link, "a link to nothing": replaced(lambda p: p.symlink_to("nowhere")),
    "a link to itself": replaced(lambda p: p.symlink_to(p.name)), "a fifo": replaced(os.mkfifo), "a directory": replaced(Path.mkdir),
    "all gone": lambda image: shutil.rmtree(image.parent),
}  # fmt: skip


class Layers:
    """A base, the layer that is to be damaged, and one above; what their files were."""

    def __init__(self, store):
        self.store = store
        self.base = store.register(T2)
        self.layer = store.register(TAR, self.base)
        self.top = store.register(file("top") + end(), self.layer)
        self.image = Path(self.layer.metadata()["Layer"])
        self.bytes = self.image.read_bytes()

    def damaged(self, damage, kinds, *, above=False):
        """above   what stands on it does not find it, which is told too, as of overlay2"""
        damage(self.image)
        problems = [problem for problem in self.store.verify() if problem.kind != "orphan"]
        subjects = {problem.subject for problem in problems}
        assert self.layer.chain_id in subjects and subjects <= {self.layer.chain_id, *([self.top.chain_id] if above else [])}
        problems = self.store.verify(self.layer.chain_id)
        assert {problem.kind for problem in problems} <= kinds and all(problem.detail for problem in problems)
        return problems

    def mended(self):
        assert [problem for problem in self.store.verify() if problem.kind != "orphan"] == []
        assert self.image.read_bytes() == self.bytes and not self.image.is_symlink()
        assert (self.image.parent / "length").read_text() == str(len(TAR))
        assert [tar_of(layer) for layer in (self.base, self.layer, self.top)] == [T2, TAR, file("top") + end()]


@pytest.fixture
def layers(store):
    return Layers(store)


@pytest.mark.parametrize("name", OF_METADATA)
@pytest.mark.parametrize("given", [None, TAR])
def test_damaged_metadata_is_mended_from_the_tar_in_the_file(layers, name, given):
    problems = layers.damaged(OF_METADATA[name], {"metadata"})
    assert tar_of(layers.layer) == TAR and [entry.path for entry in layers.layer.files()][:2] == ["a", "a/f"]
    assert layers.store.repair(layers.layer.chain_id, given) == problems
    layers.mended()


@pytest.mark.parametrize("name", OF_SMALL_FILES)
def test_damaged_small_files_are_written_anew(layers, name):
    kinds = {"missing"} if name in ("fs gone", "link gone", "lower gone", "work gone", "short link gone") else {"metadata", "missing"}
    problems = layers.damaged(OF_SMALL_FILES[name], kinds, above=name in ("fs gone", "fs is a file", "short link gone"))
    assert tar_of(layers.layer) == TAR
    before = layers.image.stat().st_ino
    assert layers.store.repair(layers.layer.chain_id) == problems
    layers.mended()
    assert layers.image.stat().st_ino == before


@pytest.mark.parametrize("name", OF_CONTENT)
def test_a_damaged_tar_is_had_from_the_source(layers, name):
    problems = layers.damaged(OF_CONTENT[name], {"content", "metadata"})
    with pytest.raises((CorruptLayerError, OSError)):
        tar_of(layers.layer)
    with pytest.raises(CorruptLayerError):
        layers.store.repair(layers.layer.chain_id)
    before = layers.image.read_bytes()
    with pytest.raises(CorruptLayerError, match="the source is another layer"):
        layers.store.repair(layers.layer.chain_id, T2)
    assert layers.image.read_bytes() == before
    assert layers.store.repair(layers.layer.chain_id, TAR) == problems
    layers.mended()


def test_a_file_that_was_cut_is_told_by_its_size_and_gives_what_it_has(layers):
    (problem,) = layers.damaged(cut(TAR_AT + 700), {"content"})
    assert f"layer.erofs was cut: it has {TAR_AT + 700} bytes, and its tar alone needs {TAR_AT + len(TAR)}" in problem.detail
    with layers.layer.tar_stream() as stream:
        assert stream.size == len(TAR) and stream.read(700) == TAR[:700]
        with pytest.raises(CorruptLayerError):
            stream.read(1)


def test_the_bytes_of_a_damaged_tar_come_before_the_error(layers):
    OF_CONTENT["a byte of a file"](layers.image)
    with layers.layer.tar_stream() as stream:
        assert stream.read(len(TAR)) == TAR.replace(b"hello", b"HELLO")
        with pytest.raises(CorruptLayerError):
            stream.read(1)
    with layers.layer.tar_stream() as stream, open(os.devnull, "wb") as null, pytest.raises(CorruptLayerError):
        stream.copy_to(null)


@pytest.mark.parametrize("name", MISSING)
def test_a_file_that_is_gone_is_had_from_the_source(layers, name):
    problems = layers.damaged(MISSING[name], {"missing"}, above=name == "all gone")
    with pytest.raises((CorruptLayerError, OSError)):
        tar_of(layers.layer)
    assert layers.store.repair(layers.layer.chain_id, TAR) == problems
    layers.mended()
    MISSING[name](layers.image)
    with pytest.raises((CorruptLayerError, OSError)):
        layers.store.repair(layers.layer.chain_id)


@pytest.mark.parametrize("damage", [OF_METADATA["root's mode"], OF_CONTENT["a header"]])
def test_layers_that_share_a_file_are_mended_together(layers, damage):
    twin = layers.store.register(TAR, layers.top)
    other = Path(twin.metadata()["Layer"])
    assert other.stat().st_ino == layers.image.stat().st_ino
    damage(layers.image)
    assert {problem.subject for problem in layers.store.verify()} == {layers.layer.chain_id, twin.chain_id}
    layers.store.repair(layers.layer.chain_id, TAR)
    assert layers.store.verify() == []
    assert other.stat().st_ino == layers.image.stat().st_ino and other.read_bytes() == layers.bytes


@pytest.mark.parametrize("damage", [OF_METADATA["root's mode"], OF_CONTENT["a header"]])
def test_a_layer_below_a_mounted_box_is_mended_once_that_is_unmounted(layers, damage):
    with layers.store.create_rw_layer("box", layers.top) as box:
        with box.mounted():
            damage(layers.image)
            with pytest.raises(ActiveMountError):
                layers.store.repair(layers.layer.chain_id, TAR)
            before = layers.image.read_bytes()
            assert before != layers.bytes
        layers.store.repair(layers.layer.chain_id, TAR)
    layers.mended()


def test_what_a_killed_repair_leaves_is_an_orphan(layers, monkeypatch):
    """It stops before the new file has its place."""
    from layerstore.drivers.erofs.layers import ErofsLayer

    OF_CONTENT["a header"](layers.image)
    damaged = layers.image.read_bytes()

    class KillError(BaseException):
        pass

    def stop(*_):
        raise KillError

    monkeypatch.setattr(ErofsLayer, "_replace", stop)
    with pytest.raises(KillError):
        layers.store.repair(layers.layer.chain_id, TAR)
    monkeypatch.undo()
    assert layers.image.read_bytes() == damaged
    layers.store.repair(layers.layer.chain_id, TAR)
    layers.mended()
