"""Acts that a walk kills, interrupts or forks at one place after the other: what is there first, the call, what can be done after it."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import imagekit
import seeded
import tarkit
import workload
from driven import DRIVER
from seeded import chain

from layerstore import CreateRWLayerOpts, Images, Store
from layerstore.disk.mounts import sync_filesystem
from layerstore.drivers import registry

INIT = CreateRWLayerOpts(init_func=workload.init)

ARCHIVE = imagekit.tar_of(imagekit.docker([([imagekit.BASE, imagekit.TOP], ["app:1"])]))
DIFF = tarkit.file("by-diff", b"d" * 3000) + tarkit.end()
BASE, TOP, NEW = 11, 12, 13     # small layers: TOP stands on BASE, NEW comes onto TOP


def two_layers(store: Store) -> None:
    base = store.register(seeded.layer(BASE).tar)
    store.register(seeded.layer(TOP).tar, base.chain_id)


def with_box(store: Store) -> None:
    two_layers(store)
    box = store.create_rw_layer("box", chain(BASE, TOP), INIT)
    with box.mounted() as path:
        for name in ("one", "two"):
            Path(path, name).write_text(name * 900)
            os.utime(f"{path}/{name}", (1e9, 1e9))


def nothing(store: Store) -> None:
    pass


def other_half(store: Store) -> Store:
    """The store of another driver on the same root; what opening it tried out is gone from the disk."""
    other = Store(store.root, driver=next(name for name in registry.DRIVERS if name != DRIVER), options={"durability": "full"})
    sync_filesystem(store.root)
    return other


def two_layers_there(store: Store) -> None:
    with other_half(store) as other:
        two_layers(other)


def convert_again(store: Store) -> None:
    with other_half(store) as other:
        assert other.verify() == []
        other.convert(chain(BASE, TOP), DRIVER)
        assert other.convert(chain(BASE, TOP), DRIVER) == []
    assert {chain(BASE), chain(BASE, TOP)} <= store.map().keys()


def all_held(store: Store) -> dict[str, Any]:
    return {id: store.get(id) for id in store.map()}


def new_again(*below: int) -> Callable[[Store], None]:
    def again(store: Store) -> None:
        layer = store.register(seeded.layer(NEW).tar, chain(*below))
        with layer.tar_stream() as stream:
            assert stream.read() == seeded.layer(NEW).tar

    return again


def release_again(store: Store) -> None:
    for name in store.mounts():
        store.release_rw_layer(store.get_rw_layer(name))
    for layer in all_held(store).values():
        store.release(layer)
    assert store.map() == {}


def box_again(name: str, parent: str, opts: CreateRWLayerOpts | None) -> Callable[[Store], None]:
    def again(store: Store) -> None:
        held = all_held(store)
        if name in store.mounts():
            box = store.get_rw_layer(name)
            with box.mounted() as path:
                assert opts is None or Path(path, "made-by-init").read_text() == workload.INIT_TEXT
            store.release_rw_layer(box)
        with store.create_rw_layer(name, parent, opts) as box, box.mounted() as path:
            assert opts is None or Path(path, "made-by-init").read_text() == workload.INIT_TEXT
            Path(path, "new").write_text("x")
        assert held.keys() == store.map().keys()

    return again


def commit_again(store: Store) -> None:
    with store.get_rw_layer("box").commit().tar_stream() as stream:
        assert b"one" * 900 in stream.read()


def mount_again(store: Store) -> None:
    with store.get_rw_layer("box").mounted() as path:
        assert Path(path, "one").read_text() == "one" * 900


def unbox_again(store: Store) -> None:
    held = all_held(store)      # noqa: F841   what is below stays
    if "box" in store.mounts():
        store.release_rw_layer(store.get_rw_layer("box"))
    assert store.mounts() == []


def load_again(store: Store) -> None:
    image, = Images(store).load(ARCHIVE)
    assert image.references == ("app:1",)
    assert {each.id for each in Images(store).list()} == {image.id}


def with_image(store: Store) -> None:
    two_layers(store)
    Images(store).create(chain(BASE, TOP), {"created": "2020-01-01T00:00:00Z"}, tags="keep:1")


def tag_again(store: Store) -> None:
    assert Images(store).tag("keep:1", "t:1").references == ("keep:1", "t:1")


def applied(store: Store) -> bytes:
    """What apply_diff() put into the box."""
    with store.get_rw_layer("box").mounted() as path:
        return Path(path, "by-diff").read_bytes()


def images_of(store: Store) -> frozenset[str]:
    """Each image with its names: one that was to have names has them."""
    return frozenset(f"{image.id} {' '.join(image.references)}" for image in Images(store).list())


class Act(NamedTuple):
    before: Callable[[Store], None]             # what is there at the start
    ready: Callable[[Store], Any]               # in the child, before the walk begins
    do: Callable[..., object]                    # what is walked
    again: Callable[[Store], None]              # in whatever is left: the act succeeds now
    kept: Callable[[Store], bool] = lambda store: True     # once the act has returned, whatever comes
    leaves: tuple[str, ...] = ()                # acts that are killed half-way on the start, for cleanup() to find
    shows: bool = False                         # each box and snapshot shows its tree of before or after, at every moment


ACTS = {
    "register": Act(two_layers, nothing, lambda store, _: store.register(seeded.layer(NEW).tar), new_again()),
    "register on": Act(two_layers, nothing, lambda store, _: store.register(seeded.layer(NEW).tar, chain(BASE, TOP)),
                       new_again(BASE, TOP)),
    "register known": Act(two_layers, nothing, lambda store, _: store.register(seeded.layer(BASE).tar), nothing),
    "release": Act(two_layers, lambda store: store.get(chain(BASE, TOP)), lambda store, top: store.release(top), release_again),
    "create": Act(two_layers, nothing, lambda store, _: store.create_rw_layer("new", chain(BASE, TOP), INIT),
                  box_again("new", chain(BASE, TOP), INIT)),
    "create bare": Act(two_layers, nothing, lambda store, _: store.create_rw_layer("new"), box_again("new", "", None)),
    "load": Act(two_layers, nothing, lambda store, _: Images(store).load(ARCHIVE), load_again),
    "commit": Act(with_box, lambda store: store.get_rw_layer("box"), lambda store, box: box.commit(), commit_again),
    "mount": Act(with_box, lambda store: store.get_rw_layer("box"), lambda store, box: (box.mount(), box.unmount()), mount_again),
    "release box": Act(with_box, lambda store: (all_held(store), store.get_rw_layer("box"))[1],
                       lambda store, box: store.release_rw_layer(box), unbox_again),
    "release box and all": Act(with_box, lambda store: store.get_rw_layer("box"),
                               lambda store, box: store.release_rw_layer(box), release_again),
    "apply_diff": Act(with_box, lambda store: store.get_rw_layer("box"), lambda store, box: box.apply_diff(DIFF), mount_again,
                      kept=lambda store: applied(store) == b"d" * 3000),
    "tag": Act(with_image, nothing, lambda store, _: Images(store).tag("keep:1", "t:1"), tag_again),
    "cleanup": Act(with_box, nothing, lambda store, _: store.cleanup(), nothing, leaves=
                   ("mount", "register on", "create", "release box and all")),
    "convert": Act(two_layers_there, other_half, lambda _, other: other.convert(chain(BASE, TOP), DRIVER), convert_again),
    "open": Act(nothing, nothing, lambda root, _: Store(root, options={"durability": "full"}).close(), new_again()),
}
