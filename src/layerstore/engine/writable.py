"""Writable layers: made, found, mounted by their users, committed and released.

Enters: names. Leaves: references, RWLayers. Each name has a lock of its own, held for the length of a call; the record
of a writable layer becomes visible, and goes, by one rename.
Source: moby, layer/layer_store.go (CreateRWLayer, ReleaseRWLayer)
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

from layerstore.disk.holds import read_key
from layerstore.disk.locks import NamedLocks, Scope
from layerstore.disk.textfile import remove_directory
from layerstore.engine.contents import Contents
from layerstore.engine.durability import Syncing
from layerstore.engine.ground import Ground, said
from layerstore.engine.loose import Loose
from layerstore.engine.record import Mount, MountReference, Record
from layerstore.engine.references import References
from layerstore.engine.stacks import Place, Stacks, Target
from layerstore.errors import (
    ActiveMountError,
    CorruptLayerError,
    LayerDoesNotExistError,
    LayerNotRetainedError,
    LayerStoreError,
    MountDoesNotExistError,
    MountNameConflictError,
)
from layerstore.ids import random_id
from layerstore.layerdb.snapshots import Rollback
from layerstore.layerdb.transaction import FileMetadataTransaction, check_mount_name
from layerstore.streams.sources import SourceInput
from layerstore.values import CreateRWLayerOpts, Durability, Metadata, Progress

log = logging.getLogger("layerstore")


class WritableLayers:
    """The writable layers of one store."""

    def __init__(
        self, ground: Ground, references: References, contents: Contents, syncing: Syncing, stacks: Stacks, loose: Loose
    ) -> None:
        self._ground, self._metadata, self._writables = ground, ground.metadata, ground.driver.writables
        self._records, self._holds, self._lock = ground.records, ground.holds, ground.records.lock
        self._references, self._contents, self._syncing = references, contents, syncing
        self.stacks, self._loose, self._snapshots = stacks, loose, stacks.snapshots
        self._names = NamedLocks()

    # ---- making ----

    def create(self, name: str, parent: str, opts: CreateRWLayerOpts, level: Durability) -> MountReference:
        """Make one. Raises as Store.create_rw_layer() does."""
        self.check_free(name)
        return self.stacks.again(parent, lambda target: self.create_on(name, target, opts, level))

    def check_free(self, name: str) -> None:
        """Raise MountNameConflictError if there is one of this name; ValueError, TypeError: it can be none's."""
        if self.find(name):
            raise MountNameConflictError(name=name)

    def create_on(self, name: str, target: Target, opts: CreateRWLayerOpts, level: Durability) -> MountReference:
        """Make one on what the caller keeps."""
        with self._names.hold(name):
            self.check_free(name)
            made = self._reference(self._create(name, target, opts, level))
            made.is_new = True
            return made

    def _reference(self, mount: Mount) -> MountReference:
        self._ground.boxes.know(mount.mount_id, mount.name)
        reference = MountReference(mount)
        mount.references.add(reference)
        return reference

    def _create(self, name: str, target: Target, opts: CreateRWLayerOpts, level: Durability) -> Mount:
        made: list[str] = []

        def end(transaction: FileMetadataTransaction) -> None:
            """Release what is held, and remove what did not become a writable layer. Can be begun again."""
            if not transaction.is_ours():
                return
            for id in reversed(made):
                if transaction.kept:
                    self._writables.publish(id)
                else:
                    with contextlib.suppress(OSError):
                        self._writables.remove(id)
            if transaction.kept:
                transaction.release()
            else:
                with contextlib.suppress(OSError):
                    transaction.cancel()

        with Scope(self._metadata.start_deferred, end) as transaction:
            mount, aside = self._make(name, target, opts, level, transaction, made)
        self._metadata.remove_aside(aside)
        return mount

    def _make(
        self, name: str, target: Target, opts: CreateRWLayerOpts, level: Durability,
        transaction: FileMetadataTransaction, made: list[str],
    ) -> tuple[Mount, str | None]:  # fmt: skip
        """Make the directories, whose ids are added to made, and let transaction name them, which is kept then."""
        mount_id, init_id = random_id(), ""
        above, below = target.place.layer, target.place.stack
        mount: Mount | None = None
        try:
            if opts.init_func:
                init_id = f"{mount_id}-init"
                made.append(init_id)
                self._writables.create(init_id, below, opts.storage_opt, most=target.most, like=target.root)
                path = self._writables.mount(init_id)
                try:
                    opts.init_func(path)
                except BaseException:
                    self._writables.unmount(init_id, lazy=True)
                    raise
                self._end_init(init_id)
            stack = [init_id, *below] if init_id else below
            if target.place.init and not init_id:         # it is in the stack already: only dockerd looks at this one
                init_id = f"{mount_id}-init"
                made.append(init_id)
                self._writables.copy(target.place.init, init_id, above.directories if above else [])
            made.append(mount_id)
            like = init_id if opts.init_func and target.root else target.root
            self._writables.create(mount_id, stack, opts.storage_opt, most=target.most, like=like)
            if opts.init_func:
                self._writables.settle(init_id, below)
            self._writables.settle(mount_id, stack)
            transaction.set_mount(mount_id, init_id, above.chain_id if above else "")
            if target.place.at and level == "full":       # snapshots may have been taken with less
                self._ground.driver.host.sync([], level, everything=True)
            self._syncing.before(made, transaction, above, level)
            mount = Mount(self._holds, name, mount_id, init_id, above)
            with self._syncing.name("mounts", level):
                aside = self._commit_record(transaction, mount, target)
        except BaseException:
            try:
                if transaction.published:
                    self._withdraw(mount)
            except (OSError, LayerStoreError):
                transaction.kept = True       # still visible, perhaps: then it is whole, else cleanup()'s
                self._holds.drop(Mount.key_of(name))
                raise
            raise
        transaction.kept = True
        return mount, aside

    def _end_init(self, init_id: str) -> None:
        """Unmount an init layer. Raises ActiveMountError: a process is inside, and would write to it later."""
        try:
            self._writables.unmount(init_id)
        except ActiveMountError as err:
            self._writables.unmount(init_id, lazy=True)          # what init_func mounted there goes with it
            if any(holder.pid for holder in err.holders):
                raise

    def _commit_record(self, transaction: FileMetadataTransaction, mount: Mount, target: Target) -> str | None:
        """Make a writable layer visible. Gives where the record of a broken one of its name is now."""
        name, place = mount.name, target.place
        with self._lock, self._metadata.exclusive():
            self._ground.check_writable()
            self.stacks.require(target)
            on_layer = mount.parent if not place.at and not target.snapshot else None
            if on_layer and not self._records.names_layer(on_layer.chain_id, place.stack[0]):
                gone = f"{LayerDoesNotExistError.text}: {on_layer.chain_id} was removed meanwhile"
                raise LayerDoesNotExistError(gone, chain_id=on_layer.chain_id)
            aside = None
            if self._metadata.has_mount(name):
                if self._records.is_loadable(name):      # another process was quicker
                    raise MountNameConflictError(name=name)
                aside = self._metadata.set_mount_aside(name)
            with self._loose.changing(mount.key):
                transaction.publish_mount(name)
            # Under the same lock, so that no thread loads it from disk as a second record beside this one.
            self._records.add_mount(mount)
            self._holds.retain(mount.key)
            return aside

    def _withdraw(self, mount: Mount | None) -> None:
        """Undo a writable layer after a failure, or an interrupt, behind the rename that made it visible."""
        if mount is None:
            return
        with self._lock, self._metadata.exclusive():
            if self._records.mounts.get(mount.name) is mount:
                self._records.forget_mount(mount.name)
                self._holds.drop(mount.key)
            if self._records.names_mount(mount):      # or cannot be read: then it may be ours, and visible
                self._metadata.remove_aside(self._metadata.set_mount_aside(mount.name))

    # ---- finding ----

    def names(self, on: str | None = None) -> list[str]:
        """Name the writable layers; on: those that stand right on this layer, or this snapshot."""
        self._ground.check_open()
        with self._lock:
            self._records.load_mounts()
            if on is not None and self._snapshots.any():
                mounts = list(self._records.mounts.values())
                bases = {mount.name: self.place(mount) for mount in mounts}
                return sorted(name for name, place in bases.items() if on == (place.base or _chain_of(place.layer)))
            return sorted(
                mount.name for mount in self._records.mounts.values()
                if on is None or (mount.parent.chain_id if mount.parent else "") == on
            )  # fmt: skip

    def find(self, name: str) -> Mount | None:
        """Return the record of one, or None. Raises ValueError (name)."""
        with self._lock:
            return self._records.find_mount(name)

    def mount_id(self, name: str) -> str:
        """Return the driver's id of one. Raises MountDoesNotExistError."""
        mount = self.find(name)
        if mount is None:
            raise MountDoesNotExistError(name=name)
        return mount.mount_id

    def get(self, name: str) -> MountReference:
        """Return a new reference. Raises MountDoesNotExistError."""
        check_mount_name(name)
        with self._names.hold(name):
            with self._lock, self._metadata.exclusive():
                mount = self._records.find_mount(name)
                if mount is None:
                    raise MountDoesNotExistError(name=name)
                self._holds.retain(mount.key)
            return self._reference(mount)

    def held(self, reference: MountReference) -> Mount:
        """Return the record of a reference that is used here; a forked child holds it for itself from now on.

        Raises  LayerNotRetainedError   it was released
        """
        mount = reference.mount
        if reference not in mount.references:
            raise LayerNotRetainedError(name=mount.name)
        self._holds.take_over(mount.key)
        return mount

    def let_go(self, reference: MountReference) -> None:
        """Release a reference and delete nothing."""
        mount = reference.mount
        with self._names.hold(mount.name):
            if reference in mount.references:
                mount.references.remove(reference)
                self._holds.release(mount.key)

    # ---- ending ----

    def release(self, reference: MountReference) -> list[Metadata]:
        """Release a reference; the last release unmounts and deletes it. Raises LayerNotRetainedError."""
        name = reference.mount.name
        with self._names.hold(name):
            mount = self.find(name)
            if mount is None:
                return []
            if reference not in mount.references:
                if not mount.references and reference.mount.holds is self._holds:
                    return []             # released before: another store has it
                raise LayerNotRetainedError(name=name)
            mount.references.remove(reference)
            self._holds.release(mount.key)
            if mount.references:
                return []
            # First the record goes, by one rename: from then on its files are unowned, however this ends.
            begun = False
            try:
                with self._writables.hold(mount.mount_id):
                    self._finish_rollback(mount)
                    candidates = self._loosenable(mount)
                    if not self._set_aside(mount):
                        return []
                    begun = True
                    self._remove(mount.mount_id)
                    if mount.init_id:
                        self._writables.remove(mount.init_id)
            except BaseException as err:
                about = {"mount": name, "mount_id": mount.mount_id, "error": err}
                log.error("Error removing mounted layer %s: %s", name, err, extra=about)
                self._holds.retain(mount.key)
                mount.references.add(reference)       # so that it can be tried again
                if mount.aside and not begun:
                    self._metadata.put_mount_back(name, mount.aside)
                    mount.aside = None
                raise
            if mount.aside:
                remove_directory(mount.aside)
            with self._lock:
                self._records.forget_mount(name)
            self._loose.drop(candidates)
            return self._references.sweep(mount.parent.chain_id) if mount.parent else []

    def _remove(self, mount_id: str) -> None:
        """Remove the directory of a box, or let it go when it is read no longer: a reader has its error, or all."""
        if self._holds.held_anywhere(read_key(mount_id)):
            self._writables.unmount(mount_id, lazy=True)
            self._writables.discard(mount_id)
        else:
            self._writables.remove(mount_id)

    def _loosenable(self, mount: Mount) -> list[str]:
        """Name the directories, nearest first, that a box may be the last to stand on."""
        if not self._snapshots.any():
            return []
        try:
            own = (mount.mount_id, mount.init_id)
            return [id for id in self.stacks.of_box(mount).loosenable if id not in own]
        except (OSError, LayerStoreError) as err:
            text = "Cannot read what %s stands on; cleanup() will remove what is unowned: %s"
            log.warning(text, mount.name, err, extra={"mount": mount.name, "error": err})
            return []

    def _set_aside(self, mount: Mount) -> bool:
        """Make an unheld writable layer invisible. Return False if it stays."""
        about = {"mount": mount.name, "mount_id": mount.mount_id}
        if self._references.may_not_delete("writable layer", mount.name, about):
            return False
        with self._metadata.exclusive():
            if self._holds.held_elsewhere(mount.key):
                return False
            if not mount.aside and self._records.names_mount(mount):
                with self._loose.changing(mount.key):
                    mount.aside = self._metadata.set_mount_aside(mount.name)
            return True

    # ---- what it stands on ----

    @contextlib.contextmanager
    def entered(self, mount: Mount) -> Iterator[Place]:
        """Keep other threads and stores from a box for the length of a `with` block, which gets where it stands.

        Raises  LayerNotRetainedError   it is gone
                CorruptLayerError       as stand_right() does
        """
        with self._names.hold(mount.name), self._writables.hold(mount.mount_id):
            if not self._records.names_mount(mount):
                raise LayerNotRetainedError(name=mount.name)
            self._finish_rollback(mount)
            yield self._known_place(mount) or self.stand_right(mount)

    def _known_place(self, mount: Mount) -> Place | None:
        """Return where a box stands if all that says so is what stand_right() saw; None: it is to look again."""
        with self._lock:
            self._records.refresh_mount(mount)
        known = mount.sound
        if known is None or known != (said(self._writables.stack_of, mount.mount_id, None), mount.parent_state):
            return None
        return self.stacks.place(known[0], mount.parent) if self._writables.is_mounted(mount.mount_id) else None

    def stand_right(self, mount: Mount, *, mends: bool = True) -> Place:
        """Make sure that a writable layer stands on what its record says, or it would show another tree.

        mends    what follows from what it stands on is put right, if the store may write
        Returns  where it stands
        Raises   CorruptLayerError   it does not, and cannot be mended so
        """
        with self._lock:
            self._records.refresh_mount(mount)
        for id, below in self.stacks_of(mount):
            problems = self._writables.standing(id, below)
            # One that says what it stands on, while its record says that there is nothing, has lost its record.
            mendable = mends and not self._ground.read_only
            if problems and mendable and (below or not said(self._writables.stack_of, id, [id])):
                with contextlib.suppress(OSError, LayerStoreError):
                    self._writables.mend(id, below)
                    about = {"mount": mount.name, "problem": problems[0].text}
                    log.warning("The writable layer %s was mended: %s", mount.name, problems[0].text, extra=about)
                problems = self._writables.standing(id, below)
            if problems:
                why = f"{problems[0].text}; repair {mount.name} before it is used"
                raise CorruptLayerError(why, name=mount.name)
        mount.sound = (below, mount.parent_state)
        return self.stacks.place(below, mount.parent)

    def place(self, mount: Mount) -> Place:
        """Return where a writable layer stands, as far as the disk tells; of one that is gone, its last parent."""
        with self._lock:
            self._records.refresh_mount(mount)
        if self._snapshots.any():
            with contextlib.suppress(OSError, LayerStoreError):
                return self.stacks.of_box(mount)
        return Place([], mount.parent, 0)

    def stacks_of(self, mount: Mount) -> list[tuple[str, list[str]]]:
        """Name a writable layer's driver ids, the init layer's first, each with the stack it must stand on.

        Without snapshots that follows from the records; else the driver's `lower` says it, and is held against them.
        Raises  CorruptLayerError, OSError
        """
        plain = self._contents.stacks_of(mount)
        if not self._snapshots.any():
            return plain
        stack = said(self._writables.stack_of, mount.mount_id, None)
        if stack is None or (not stack and mount.parent):
            if self._may_stand_on_snapshots(mount.name):
                why = f"{mount.mount_id} no longer says which directories {mount.name} stands on; they may be snapshots"
                raise CorruptLayerError(f"{why}: take them from the tree below its own snapshots", name=mount.name)
            return plain
        if stack == plain[-1][1]:
            return plain
        place = self.stacks.place(stack, mount.parent)
        self.stacks.check(place, mount.name)
        init = [(mount.init_id, said(self._writables.stack_of, mount.init_id, list[str]()))] if mount.init_id else []
        return [*init, (mount.mount_id, stack)]

    def _may_stand_on_snapshots(self, name: str) -> bool:
        """Return True if a box that lost its `lower` may have stood on more than its layer."""
        taken = (said(self._snapshots.read, id, None) for id in self._snapshots.names())
        return any(saved is None or saved.box == name for saved in taken) or bool(
            self._ground.driver.host.orphans(self._records.owned)
        )

    def mend(self, name: str) -> None:
        """Write anew what a writable layer's record and small files lost, as far as they say it of each other.

        Raises  MountDoesNotExistError
                CorruptLayerError        its metadata no longer says it; the text says what to do
        """
        check_mount_name(name)
        with self._names.hold(name):
            if not self._metadata.has_mount(name):
                raise MountDoesNotExistError(name=name)
            with self._lock, self._metadata.exclusive():
                self._ground.check_writable()
                mount_id = self._mend_record(name)
                self._records.forget_mount(name)
                mount = self._records.find_mount(name)
            if mount is None:
                raise CorruptLayerError(f"what {name} stands on cannot be read: repair that layer first", name=name)
            if not self._writables.exists(mount_id):
                raise CorruptLayerError(f"what was written in {name} is gone, with {mount_id}: release it", name=name)
            self.stand_right(mount)

    def _mend_record(self, name: str) -> str:
        """Write what the driver's files say to the metadata, under the layerdb's lock, and return the mount's id."""
        m = self._metadata
        try:
            mount_id = m.get_mount_id(name)
        except (OSError, LayerStoreError) as err:
            why = f"the metadata no longer says which directory {name} has ({err}): look for it among the orphans"
            raise CorruptLayerError(why, name=name) from err
        below = said(self._writables.stack_of, mount_id, list[str]())
        init, init_id = f"{mount_id}-init", said(m.get_init_id, name, None)
        if init_id is None or (not init_id and below[:1] == [init]):
            m.set_init_id(name, init) if self._writables.exists(init) else m.forget_init_id(name)
        parent = said(m.get_mount_parent, name, None)
        if parent is None or (not parent and [id for id in below if id != init]):
            m.set_mount_parent(name, self._layer_of([id for id in below if id != init], name))
        return mount_id

    def _layer_of(self, below: list[str], name: str) -> str:
        """Name the layer that lies in these directories, with all it stands on."""
        self._records.load_all()
        for chain_id, record in self._records.layers.items():
            if record.directories == below:
                return chain_id
        raise CorruptLayerError(f"the metadata no longer says what {name} stands on", name=name)

    # ---- mounting ----

    def mount(self, mount: Mount, label: str) -> str:
        """Mount one, or count one user more. Returns the path."""
        self.ready(mount)
        return self._writables.mount(mount.mount_id, label)

    def ready(self, mount: Mount) -> Place:
        """Do what stand_right() does, after a rollback that was interrupted was finished."""
        if not self._snapshots.any():
            return self.stand_right(mount)
        with contextlib.suppress(OSError, CorruptLayerError):
            if not self._snapshots.rollback(mount.name):
                return self.stand_right(mount, mends=False)
        with self.entered(mount) as place:                # another store was at work on it, perhaps
            return place

    def apply_diff(self, mount: Mount, source: Any, progress: Progress | None) -> int:
        """Unpack a tar over one; return its size as moby counts it."""
        self._ground.check_writable()
        stack = self.ready(mount).stack
        size = self._writables.apply(mount.mount_id, stack, SourceInput(source, progress))
        self._syncing.contents(mount.mount_id)
        return size

    def _finish_rollback(self, mount: Mount) -> None:
        """Go on with a rollback that was interrupted. Called while the box is held."""
        if self._snapshots.any() and not self._ground.read_only:
            to = self._snapshots.rollback(mount.name)
            if to:
                self.go_on(mount, to)
                self._writables.switch(mount.mount_id, force=False)
                self.end_rollback(mount)
                self._writables.discard(to.fresh)

    def finish_all(self) -> None:
        """Finish rollbacks that were interrupted. What cannot be finished is logged, and left."""
        for name in self._metadata.list_mounts() if self._snapshots.any() else ():
            try:
                mount = self.find(name) if self._snapshots.rollback(name) else None
                if mount:
                    with self.entered(mount):
                        pass              # finished on the way in
            except (OSError, LayerStoreError, ValueError) as err:
                about = {"mount": name, "error": err}
                log.error("The rollback of %s could not be finished: %s", name, err, extra=about)

    def go_on(self, mount: Mount, to: Rollback, *, durable: bool | None = None) -> None:
        """Let a box go on as a note of its rollback says, from where the disk is. Called while the box is held."""
        stack = self._writables.named_in(to.lower)
        self._writables.turn(mount.mount_id, to.fresh, to.upper, stack, durable=durable)
        if mount.init_id:
            layer = self.stacks.layer(to.parent)          # beside the stack only dockerd looks at it, as at a fork's
            beside = layer.directories if layer else []
            below = stack[stack.index(mount.init_id) + 1 :] if mount.init_id in stack else beside
            self._writables.restand(mount.init_id, below, durable=durable)
        self._metadata.replace_mount_parent(mount.name, to.parent)
        with self._lock:
            self._records.refresh_mount(mount)
        mount.sound = (stack, mount.parent_state)

    def end_rollback(self, mount: Mount) -> None:
        """Forget the note: what it said is done."""
        with self._lock, self._metadata.exclusive(), self._loose.changing(mount.key):
            self._snapshots.forget_rollback(mount.name)


def _chain_of(layer: Record | None) -> str:
    return layer.chain_id if layer else ""
