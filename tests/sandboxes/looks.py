"""All that a root shows and says, held beside the plain side: views, changes, sizes, files, tars, lists."""

import hashlib
import io
import os
import tarfile

import pytest
from hands import ACCESS
from plain import EMPTY, Box, Frozen, Init, PlainLayer, compared_with, nearest, stack, uncommitted, with_init
from trees import Tree, below, difference, lines, read_tree, said

from layerstore import LayerStoreError


def tuple_of(entry) -> tuple:
    return tuple(str(field) for field in (entry.path, entry.type, entry.size, oct(entry.mode), entry.uid, entry.gid, entry.mtime_ns, entry.link))


def apart(found: list[str], wanted: list[str]) -> str:
    """How two lists of changes differ."""
    return f"too many {sorted(set(found) - set(wanted))}, missing {sorted(set(wanted) - set(found))}"


class Looks:
    """Of a World: it has the stores and the plain side."""

    def unmoved(self, box: Box, before: dict[str, object]) -> None:
        after = self.facts(box)
        assert [key for key in before if before[key] != after[key]] == [], f"{box.name}: {before} -> {after}"

    def facts(self, box: Box) -> dict[str, object]:
        """What a box says of itself, which neither a snapshot nor a squash may change."""
        handle = self.handle(box)
        with handle.tar_stream() as stream:
            tar = hashlib.sha256(stream.read()).hexdigest()
        facts: dict[str, object] = {"tar": tar, "size": handle.size(), "changes": said(handle.changes())}
        facts["files"] = sorted(map(tuple_of, handle.files()))
        facts["mount id"] = self.stores[0].get_mount_id(box.name)
        facts["upper"] = handle.metadata()["UpperDir"]
        return facts
    def same(self, what: str, wanted: Tree, found: Tree, **how) -> None:
        told = lines(wanted, found, **how)
        assert not told, f"{what}:\n  " + "\n  ".join(told[:20])

    def look(self, box: Box) -> None:
        """All that a box shows and says."""
        handle = self.handle(box)
        with self.at(box) as path:
            self.same(box.name, box.tree, read_tree(path))
        found, wanted = said(handle.changes()), difference(box.tree, compared_with(box))
        assert found == wanted, f"changes() of {box.name}: {apart(found, wanted)}"
        self.look_at_base(box, handle)
        self.look_at_size(box, handle)
        self.look_at_files(box, handle)
        self.look_at_tar(box, handle)

    def look_at_base(self, box: Box, handle) -> None:
        base = box.base.base if isinstance(box.base, Init) else box.base
        layer = nearest(box)
        assert (handle.parent.chain_id if handle.parent else None) == (layer.chain if layer else None), f"parent of {box.name}"
        if isinstance(base, Frozen) and not base.layer:
            if not base.recorded:
                base.id = handle.base.id        # what is loose may have been merged into another
            found = getattr(handle.base, "id", handle.base)
            assert found == base.id, f"base of {box.name}: {found}, not {base.id}"
            assert handle.base.box == (base.box if base.recorded else ""), f"box of the base of {box.name}"
        else:
            assert getattr(handle.base, "chain_id", None) == (layer.chain if layer else None), f"base of {box.name}"

    def look_at_size(self, box: Box, handle) -> None:
        if any(isinstance(one, Frozen) and one.layer and not one.in_place for one in stack(box)):
            return      # a second directory of a layer that was there lies in the stack
        homes = {box.home, *(one.home for one in uncommitted(box))}
        nodes = {id(node): node for node in box.tree.values() if node.home in homes}
        assert handle.size() == sum(node.size for node in nodes.values()), f"size() of {box.name}"

    def look_at_files(self, box: Box, handle) -> None:
        entries = {os.fsencode(entry.path): entry for entry in handle.files()}
        entries.pop(b".", None)
        assert sorted(entries) == sorted(path for path in box.tree if path), f"files() of {box.name}"
        kinds = {"dir": "directory", "link": "symlink", "char": "character"}
        for path, entry in entries.items():
            node = box.tree[path]
            assert (entry.type, entry.mode, entry.uid, entry.gid, entry.size) == (
                kinds.get(node.kind, node.kind), entry.mode if node.kind == "link" or ACCESS in node.xattrs else node.mode, node.uid, node.gid, node.size if node.kind == "file" else 0), f"files() of {box.name}: {entry}"
        if files := [path for path, node in box.tree.items() if node.kind == "file"]:
            path = self.draw.choice(files)
            with handle.open(os.fsdecode(self.draw.choice([b"", b"/"]) + path)) as content:
                assert content.read() == box.tree[path].data, f"open({path!r}) of {box.name}"

    def look_at_tar(self, box: Box, handle) -> None:
        """Unpacked by hand over what lies below, the tar gives the names and bytes of the box; it deletes only what is there."""
        with handle.tar_stream() as stream:
            data = stream.read()
        under = compared_with(box)
        names = set(under)
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            for member in tar:
                path = os.fsencode(member.name)
                place, _, base = path.rpartition(b"/")
                if base == b".wh..wh..opq":
                    assert box.tree[place].kind == "dir"
                    names -= set(below(under, place))
                    continue
                if base.startswith(b".wh."):
                    hidden = (place + b"/" if place else b"") + base[4:]
                    assert hidden in under and hidden not in box.tree, f"tar_stream() of {box.name} deletes {hidden!r}"
                    names -= {hidden, *below(under, hidden)}
                    continue
                node = box.tree.get(path)
                assert node is not None, f"tar_stream() of {box.name} has {path!r}"
                assert member.isdir() == (node.kind == "dir")
                if member.isreg():
                    assert tar.extractfile(member).read() == node.data, f"tar_stream() of {box.name}: {path!r}"
                if not member.isdir():
                    names -= set(below(under, path))
                names.add(path)
        assert names == set(box.tree), f"tar_stream() of {box.name}: {names ^ set(box.tree)}"

    def look_since(self, box: Box) -> None:
        """changes(since=) every ancestor, and something that is none."""
        handle = self.handle(box)
        has_init = any(isinstance(one, Init) for one in stack(box))
        for one in stack(box):
            if isinstance(one, Init) or (isinstance(one, Frozen) and not one.recorded):
                continue
            since = one.chain if isinstance(one, PlainLayer) else self.stores[0].get_snapshot(one.id)
            under = isinstance(one, Frozen) and any(isinstance(each, Init) for each in stack(one))
            tree = with_init(one.tree, box) if has_init and not under else one.tree
            found, wanted = said(handle.changes(since=since)), difference(box.tree, tree)
            assert found == wanted, f"changes(since={since}) of {box.name}: {apart(found, wanted)}"
        known = [*stack(box), *(one.layer for one in stack(box) if isinstance(one, Frozen)), nearest(box)]
        strangers = [one for one in self.layers.values() if one not in known and one not in ([*stack(nearest(box))] if nearest(box) else [])]
        if stranger := self.some(strangers):
            with pytest.raises(LayerStoreError, match="is not below"):
                handle.changes(since=stranger.chain)

    def look_at_frozen(self, frozen: Frozen) -> None:
        store = self.store()
        snap = store.get_snapshot(frozen.id)
        assert (snap.id, snap.box) == (frozen.id, frozen.box)
        if frozen.layer is None:
            base = frozen.base
            under = base.layer.tree if isinstance(base, Frozen) and base.layer else base.tree if base is not None else EMPTY
            found, wanted = said(snap.changes()), difference(frozen.tree, under)
            assert found == wanted, f"changes() of {frozen.id}: {apart(found, wanted)}"
            nodes = {id(node): node for node in frozen.tree.values() if node.home is frozen.home}
            assert snap.size() == sum(node.size for node in nodes.values()), f"size() of {frozen.id}"
        with store.create_rw_layer("to be seen", snap) as box, box.mounted() as path:
            self.same(f"snapshot {frozen.id}", frozen.tree, read_tree(path), root=False)

    def look_at_pair(self) -> None:
        """Any two states, related or not."""
        plain = [one for one in [*self.frozen, *self.layers.values()] if not any(isinstance(each, Init) for each in stack(one))]
        if len(plain) < 2:
            return
        one, other = self.draw.choice(plain), self.draw.choice(plain)
        words = [each.chain if isinstance(each, PlainLayer) else each.id for each in (one, other)]
        store = self.store()
        for contents in (False, True):
            found, wanted = said(store.diff(*words, contents=contents)), difference(other.tree, one.tree, contents=contents)
            assert found == wanted, f"diff({words}, contents={contents}): {apart(found, wanted)}"

    def look_at_all(self) -> None:
        for box in self.boxes.values():
            self.look(box)
            self.look_since(box)
        for frozen in self.frozen:
            self.look_at_frozen(frozen)
        for _ in range(4):
            self.look_at_pair()

    def look_at_lists(self) -> None:
        for store in self.stores:
            assert [one.id for one in store.snapshots()] == [one.id for one in self.frozen]
            assert sorted(store.mounts()) == sorted(self.boxes)
            assert sorted(map(str, store.map())) == sorted(self.layers), "layers"
