"""What a caller's type checker says of the public names. `make lint` checks it with mypy --strict; nothing runs it.

A wrong use carries the error that mypy must give: an ignore that is not needed is an error itself.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, assert_type

import layerstore
from layerstore import (
    EMPTY_LAYER,
    EMPTY_LAYER_DIFF_ID,
    OS,
    ChainID,
    Change,
    ChangeKind,
    CreateRWLayerOpts,
    Descriptor,
    DiffID,
    Digest,
    Done,
    FileMetadataStore,
    Image,
    Images,
    Layer,
    LayerStoreError,
    Metadata,
    MetadataStore,
    NotInRegistryError,
    Orphan,
    Problem,
    Registry,
    RWLayer,
    Store,
    TarFormatError,
    TarStream,
    aio,
)


def layers(store: Store, tar: Path) -> None:
    layer = store.register(tar, progress=lambda done: print(done + 1, done.total))
    assert_type(layer, Layer)
    assert_type(layer.chain_id, ChainID)
    assert_type(layer.diff_id, DiffID)
    assert_type(layer.parent, Layer | None)
    assert_type(layer.size, int)
    assert_type(layer.descriptor, Descriptor | None)
    assert_type(store.get(layer.chain_id), Layer)
    assert_type(store.map(), dict[ChainID, Layer])
    assert_type(layer.release(), list[Metadata])
    assert_type(layer.metadata(), dict[str, str])
    assert_type(EMPTY_LAYER_DIFF_ID, DiffID)
    assert_type(EMPTY_LAYER.tar_stream(), TarStream)
    with store.register(tar.read_bytes(), layer.chain_id, durability="none") as upper:
        assert_type(upper, Layer)
    linux: OS = "linux"
    store.register_with_descriptor(tar, "", linux, Descriptor("a/b", "sha256:", 1))
    assert_type(store.register(tar, parent=layer), Layer)
    assert_type(store.remove(layer), list[Metadata])
    store.register(tar, parent=5)  # type: ignore[arg-type]
    store.register(tar, "", progress=1)  # type: ignore[arg-type]


def writable(store: Store, parent: ChainID) -> None:
    box = store.create_rw_layer("box", parent, CreateRWLayerOpts(storage_opt={"size": "1G"}))
    assert_type(box, RWLayer)
    mount: AbstractContextManager[str] = box.mounted()
    with box, mount as path:
        assert_type(path, str)
    for change in box.changes():
        assert_type(change, Change)
        assert_type(change.kind, ChangeKind)
        assert_type(change.path, str)
    assert_type(box.commit(), Layer)
    assert_type(box.apply_diff(b""), int)
    assert_type(store.mounts(), list[str])
    store.create_rw_layer(1)  # type: ignore[arg-type]
    box.comit()  # type: ignore[attr-defined]


def streams(stream: TarStream, file: BinaryIO) -> None:
    assert_type(stream.size, int)
    assert_type(stream.read(1), bytes)
    assert_type(stream.copy_to(file), int)
    as_file: BinaryIO = stream
    assert_type(layerstore.assemble(as_file, "/diff"), TarStream)
    assert_type(layerstore.disassemble(as_file, 3), DiffID)
    stream.copy_to("a path")  # type: ignore[arg-type]


def health(store: Store, taken: Done) -> None:
    assert_type(store.verify(), list[Problem])
    assert_type(store.repair("sha256:"), list[Problem])
    assert_type(store.orphans(), list[Orphan])
    assert_type(taken.total, int | None)
    assert_type(layerstore.changes_between("a", b"b"), list[Change])
    assert_type(layerstore.overlay_changes(Path("up"), ["low"]), list[Change])
    assert_type(layerstore.build_info(), dict[str, str])
    try:
        store.get("sha256:")
    except TarFormatError as error:
        assert_type(error.offset, int | None)
    except LayerStoreError as error:
        print(error)


def registries(store: Store, ca: Path) -> None:
    with Registry("localhost:5000", auth=("user", "password"), ca=ca, mirrors=["mirror.example.com"], chunk=1 << 20) as registry:
        assert_type(registry.tags("app"), list[str])
        assert_type(registry.manifest("app:1"), tuple[Descriptor, bytes])
        assert_type(registry.referrers("app:1", "text/plain")[0].artifact_type, str)
        assert_type(Images(store).pull("localhost:5000/app", platform="linux/arm64", registry=registry, keep=True), Image)
        digest: str = Images(store).push("app", compression=None, progress=lambda done: print(done.total))
    try:
        Images(store).push("app", "localhost:5000/app", compression="xz")  # type: ignore[arg-type]
    except NotInRegistryError as error:
        assert_type((error.status, error.code, error.host), tuple[int, str, str])
    Registry("localhost:5000", auth=digest, timeout="3")  # type: ignore[arg-type]
    Registry(("localhost", 5000))  # type: ignore[arg-type]


async def awaited(store: aio.Store, tar: Path) -> None:
    layer = await store.register(tar, progress=lambda done: print(done.total))
    assert_type(layer, aio.Layer)
    assert_type(layer.parent, aio.Layer | None)
    assert_type(await store.map(), dict[ChainID, aio.Layer])
    async with layer, await layer.tar_stream() as stream, await layer.open("f") as file:
        assert_type(stream, aio.TarStream)
        assert_type(await stream.size() + await stream.copy_to(1), int)
        assert_type(await file.read(), bytes)
    async for entry in layer.files():
        assert_type(entry.path, str)
    async with await store.create_rw_layer("box", layer) as box, box.mounted() as path:
        assert_type(box.name + path, str)
        assert_type(await box.commit(keep="all"), aio.Layer)
    images = aio.Images(store)
    assert_type((await images.load(tar))[0], Image)
    async with aio.Registry("localhost:5000") as registry:
        assert_type(await registry.tags("app"), list[str])
        assert_type(await images.pull("localhost:5000/app", registry=registry), Image)
        assert_type(await images.push("app", registry=registry), Digest)
        await images.pull("localhost:5000/app", registry=registry.blocking)  # type: ignore[arg-type]
    assert_type(await images.save("a", tar, exclude=[layer]), int)
    assert_type(await aio.assemble(3, "/diff"), aio.TarStream)
    await store.register(tar, layer.files())  # type: ignore[arg-type]
    await store.create_rw_layer(1)  # type: ignore[arg-type]
    layer.size = 1  # type: ignore[misc]
    box.comit()  # type: ignore[attr-defined]


def identities(ids: list[DiffID]) -> None:
    digest: Digest = DiffID("sha256:")
    text: str = digest
    assert_type(layerstore.create_chain_id(ids), ChainID | str)
    needs_chain_id(text)  # type: ignore[arg-type]
    needs_chain_id(ids[0])  # type: ignore[arg-type]


def needs_chain_id(chain_id: ChainID) -> None: ...


def metadata(place: Path, options: Mapping[str, str]) -> None:
    store: MetadataStore = FileMetadataStore(place)
    assert_type(store.list(), tuple[list[ChainID], list[str]])
    with Store(place, options=options) as opened:
        assert_type(opened, Store)
    Store(place, options={"durability": 1})  # type: ignore[dict-item]
    Store()  # type: ignore[call-arg]
