"""What the protocols of drivers promise, of each driver alone: no store, no engine."""

import contextlib
import gzip
import hashlib
import os
from pathlib import Path

import damages
import pytest
import tarkit
from disk import shape
from stored import read
from tarkit import T1, T2, dir, end, file, whiteout

from layerstore import CorruptLayerError, FileType, LayerStoreError, TarFormatError
from layerstore.contents.files import open_bytes
from layerstore.drivers import Finding, Received
from layerstore.ids import ChainID, DiffID, random_id
from layerstore.streams.sources import Input

CHAIN = ChainID("sha256:" + "7" * 64)


def receive(opened, tar, stack=(), digest=None, **how):
    """Make a draft of a tar, whole and settled."""
    draft = opened.driver.layers.begin(random_id(), list(stack), **how)
    with contextlib.closing(Input(tar)) as given:
        received = draft.receive(given, opened.new(draft.id), digest)
    draft.settle()
    return draft, received


def stored(opened, tar, stack=()):
    draft, _ = receive(opened, tar, stack)
    draft.publish()
    return draft.id


def diff_id(tar):
    return DiffID(tarkit.diff_id(tar))


def found(opened, id, tar, stack=(), **how):
    return opened.layer(id, stack).check(diff_id(tar), **how)


# ---- a draft ----
def test_begin_writes_nothing(opened, unchanged):
    with unchanged(opened.home):
        opened.driver.layers.begin(random_id(), []).discard()


def test_receive_says_what_the_tar_was(opened):
    draft, received = receive(opened, T1)
    assert received == Received(diff_id(T1), len(T1), 5, source_size=len(T1))
    assert opened.driver.layers.exists(draft.id)


@pytest.mark.parametrize("kind", ["sha256", "sha384", "sha512"])
@pytest.mark.parametrize("packed", [T1, gzip.compress(T1) + b"behind"], ids=["plain", "gzip"])
def test_receive_says_what_the_digest_of_the_source_is(opened, kind, packed):
    _, received = receive(opened, packed, digest=kind)
    assert received.source_digest == f"{kind}:{hashlib.new(kind, packed).hexdigest()}"
    assert (received.source_size, received.diff_id) == (len(packed), diff_id(T1))


def test_a_discarded_draft_leaves_nothing(opened, unchanged):
    with unchanged(opened.home):
        draft, _ = receive(opened, T1)
        draft.discard()
        draft.discard()
        assert not opened.driver.layers.exists(draft.id)


@pytest.mark.parametrize("tar, error", [(T1[:700], TarFormatError), (b"x" * 512, TarFormatError)], ids=["cut", "no tar"])
def test_a_failed_receive_can_be_discarded(opened, unchanged, tar, error):
    with unchanged(opened.home):
        draft = opened.driver.layers.begin(random_id(), [])
        with contextlib.closing(Input(tar)) as given, pytest.raises(error):
            draft.receive(given, opened.new(draft.id))
        draft.discard()


def test_what_the_input_raises_ends_receive(opened):
    class Broken:
        def pump_into(self, apply):
            apply.push(T1[:600])
            raise LookupError("the cable")

    draft = opened.driver.layers.begin(random_id(), [])
    with pytest.raises(LookupError, match="the cable"):
        draft.receive(Broken(), opened.new(draft.id))
    draft.discard()
    assert not opened.driver.layers.exists(draft.id)


def test_a_tar_of_no_bytes_is_received(opened):
    _, received = receive(opened, b"")
    assert received.tar_size == 0


def test_what_is_unpacked_ahead_is_placed_on_a_stack_later(opened):
    base = stored(opened, T1)
    draft, _ = receive(opened, T2)
    draft.place_on([base])
    draft.settle()
    draft.publish()
    assert found(opened, draft.id, T2, [base]) == []
    made = stored(opened, T2, [base])
    assert found(opened, made, T2, [base]) == []


def test_a_draft_is_no_orphan_until_it_was_published_and_nothing_owns_it(opened):
    draft, _ = receive(opened, T1)
    assert draft.id not in opened.driver.host.orphans(list)
    draft.publish()
    assert opened.driver.host.orphans(lambda: [draft.id]) == []
    assert opened.driver.host.orphans(list) == [draft.id]
    assert opened.driver.host.usage(draft.id) >= 5
    opened.driver.host.reclaim(list)
    assert not opened.driver.layers.exists(draft.id)


def test_remove_takes_no_id_that_leads_elsewhere(opened, victim):
    for id in ("", "..", "../victim", "a/../../victim"):
        with pytest.raises((LayerStoreError, ValueError)):
            opened.driver.layers.remove(id)
    opened.driver.layers.remove(random_id())             # fine if it is gone


# ---- a stored layer ----
def test_the_tar_comes_again_byte_for_byte(opened):
    base = stored(opened, T1)
    top = stored(opened, T2, [base])
    for id, tar, stack in ((base, T1, []), (top, T2, [base])):
        with opened.layer(id, stack).tar(diff_id(tar)) as stream:
            assert stream.size == len(tar)
            assert stream.read() == tar
            assert stream.seek(512) == 512 and stream.read(512) == tar[512:1024]


def test_a_tar_with_another_diff_id_is_refused_at_its_end(opened):
    id = stored(opened, T1)
    with opened.layer(id).tar(diff_id(T2)) as stream, pytest.raises(CorruptLayerError):
        stream.read()


def test_the_difference_to_an_ancestor_is_a_fresh_tar(opened):
    base = stored(opened, T1)
    top = stored(opened, T2, [base])
    layer = opened.layer(top, [base])
    alone = stored(opened, read(layer.tar_from(base)))
    assert {entry.name for entry in opened.layer(alone).entries(CHAIN)} >= {"a/.wh.f", "b", "d/"}
    whole = stored(opened, read(layer.tar_from("")))
    assert {entry.path for entry in opened.layer(whole).entries(CHAIN)} == {"a", "b", "d", "gone"}


def test_entries_are_those_of_the_tar_in_its_order(opened):
    id = stored(opened, T2, [stored(opened, T1)])
    entries = list(opened.layer(id).entries(CHAIN))
    assert [(entry.path, entry.type) for entry in entries] == [
        ("b", FileType.FILE), ("gone", FileType.FILE), ("a", FileType.DIRECTORY), ("a/f", FileType.WHITEOUT),
        ("d", FileType.DIRECTORY), ("d", FileType.OPAQUE),
    ]
    assert {entry.chain_id for entry in entries} == {CHAIN}


def test_a_file_is_opened_by_its_entry(opened):
    id = stored(opened, T1)
    entry = next(entry for entry in opened.layer(id).entries(CHAIN) if entry.path == "a/f")
    with open_bytes(lambda: opened.layer(id).open_file(entry), entry) as opened_file:
        assert opened_file.read() == b"hello"
    with pytest.raises(CorruptLayerError):
        opened.layer(id).open_file(entry._replace(size=6))


def damage(opened, id, kind):
    damages.damage(kind, opened.layer(id).paths())


@pytest.mark.parametrize("kind", [kind for kind in damages.KINDS if kind != "all gone"])
def test_check_finds_damage_and_rebuild_mends_it(opened, kind):
    base = stored(opened, T1)
    assert found(opened, base, T1) == []
    damage(opened, base, kind)
    told = found(opened, base, T1)
    assert told and all(isinstance(one, Finding) for one in told)
    draft, _ = receive(opened, T1, like=base)
    layer = opened.layer(base)
    assert layer.is_described_by_its_sidecars(draft)
    layer.rebuild_from(draft, [one.path for one in told if one.path])
    draft.discard()
    assert found(opened, base, T1) == []
    with layer.tar(diff_id(T1)) as stream:
        assert stream.read() == T1


def test_check_without_metadata_looks_at_presence_and_bytes_alone(opened):
    id = stored(opened, T1)
    damage(opened, id, "mode")
    assert found(opened, id, T1, metadata=False) == []
    damage(opened, id, "content")
    assert {one.kind for one in found(opened, id, T1, metadata=False)} == {"content"}


def test_check_reports_what_it_reads_and_ends_with_what_that_raises(opened):
    id = stored(opened, T1)
    seen = []
    found(opened, id, T1, report=seen.append)
    assert sum(seen) >= (len(T1) if "Layer" in opened.layer(id).paths() else 5)

    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        found(opened, id, T1, report=stop)


def test_the_small_files_of_a_layer_whose_directory_is_gone_are_made_for_a_rebuild(opened):
    id = stored(opened, T1)
    opened.driver.layers.remove(id)
    assert found(opened, id, T1)
    layer = opened.layer(id)
    layer.mend(emptied=True)
    draft, _ = receive(opened, T1, like=id)
    layer.rebuild_from(draft, [one.path for one in found(opened, id, T1) if one.path])
    draft.discard()
    assert found(opened, id, T1) == []


# ---- writable layers ----
@pytest.fixture
def box(opened):
    """Make a writable layer on a stack; all are removed at the end."""
    made = []

    def make(*stack):
        id = random_id()
        opened.driver.writables.create(id, list(stack), None)
        made.append(id)
        opened.driver.writables.settle(id, list(stack))
        opened.driver.writables.publish(id)
        return id

    yield make
    for id in reversed(made):
        opened.driver.writables.remove(id)
        assert not opened.driver.writables.exists(id)


@contextlib.contextmanager
def mounted(opened, id):
    path = opened.driver.writables.mount(id)
    yield path
    opened.driver.writables.unmount(id)


def test_a_writable_layer_shows_its_stack(opened, box):
    base = stored(opened, T1)
    top = stored(opened, T2, [base])
    id = box(top, base)
    with mounted(opened, id) as path:
        assert set(shape(path)) == {"a", "b", "d", "gone"}
    assert opened.driver.trees.changes([id, top, base], [top, base]) == []
    assert opened.driver.writables.holders(id) == []


def test_what_was_written_is_the_difference(opened, box):
    base = stored(opened, T1)
    id = box(base)
    with mounted(opened, id) as path:
        os.unlink(f"{path}/a/f")
        Path(path, "new").write_bytes(b"12345678")
    changes = opened.driver.trees.changes([id, base], [base])
    assert [str(change) for change in changes] == ["C /a", "D /a/f", "A /new"]
    assert opened.driver.trees.size([id]) == 8
    tar = read(opened.driver.trees.diff([id], [base]))
    layer = stored(opened, tar, [base])
    assert {entry.path: entry.type for entry in opened.layer(layer, [base]).entries(CHAIN)} == {
        "a": FileType.DIRECTORY, "a/f": FileType.WHITEOUT, "new": FileType.FILE,
    }


def test_a_tar_is_applied_over_what_is_shown(opened, box):
    base = stored(opened, T1)
    id = box(base)
    tar = file("more", b"123") + dir("a/") + whiteout("a/f") + end()
    with contextlib.closing(Input(tar)) as given:
        assert opened.driver.writables.apply(id, [base], given) == 3
    with mounted(opened, id) as path:
        assert set(shape(path)) == {"a", "more"}
    with contextlib.closing(Input(b"")) as given, pytest.raises(TarFormatError):
        opened.driver.writables.apply(id, [base], given)


def test_an_init_layer_is_the_first_of_the_stack(opened, box):
    base = stored(opened, T1)
    init = box(base)
    with mounted(opened, init) as path:
        Path(path, "hosts").touch()
    id = box(init, base)
    with mounted(opened, id) as path:
        assert set(shape(path)) == {"a", "a/f", "hosts"}
    assert opened.driver.trees.changes([id, init, base], [init, base]) == []


def test_a_sound_writable_layer_has_no_findings(opened, box):
    base = stored(opened, T1)
    id = box(base)
    for look in (opened.driver.writables.standing, opened.driver.writables.check):
        assert look(id, [base]) == []
    opened.driver.writables.mend(id, [base])
    assert opened.driver.writables.check(id, [base]) == []


# ---- the home ----
def test_the_host_tells_itself_and_syncs(opened, driver_name):
    host = opened.driver.host
    assert host.name == driver_name and all(len(pair) == 2 for pair in host.status())
    id = stored(opened, T1)
    for durability in ("full", "ordered", "none"):
        assert host.sync([id], durability) in (True, False)
    assert host.sync([id], "full", everything=True) is True
    host.cleanup()
