"""layerstore.aio: the same results as the blocking calls, and a cancellation at any moment leaves nothing behind."""

import asyncio
import contextlib
import contextvars
import functools
import gzip
import inspect
import io
import lzma
import operator
import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
import typing
from pathlib import Path

import imagekit
import pytest
import tarkit
from disk import changed, disk_state, mounts_below
from driven import DRIVER
from soak import budget
from tarkit import dir, end, file

import layerstore
from layerstore import CreateRWLayerOpts, StoreInUseError, aio
from layerstore.aio.calls import in_thread
from layerstore.aio.mirror import public
from layerstore.streams.stopping import STOP

BIG = b"".join(file(f"f{i}", random.Random(i).randbytes(40_000)) for i in range(140)) + end()
MANY = imagekit.docker([([BIG, imagekit.TOP], ["big:1", "big:2"]), ([imagekit.BASE], ["base:latest"])])


def asynchronous(test):
    """Run an async test; give it an open store if it takes one. No thread of ours is left behind it."""
    takes = [*inspect.signature(test).parameters]

    @functools.wraps(test)
    def run(**given):
        async def whole():
            async with contextlib.AsyncExitStack() as stack:
                more = {"store": await stack.enter_async_context(aio.Store(given["root"]))} if "store" in takes else {}
                await test(**{name: given[name] for name in takes if name != "store"}, **more)

        asyncio.run(whole())
        assert [t.name for t in threading.enumerate() if t.name.startswith("layerstore")] == []

    fixtures = [name for name in dict.fromkeys(["root", *takes]) if name != "store"]
    run.__signature__ = inspect.Signature([inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in fixtures])
    return run


def in_pieces(tar, size=100_000, pause=0.0):
    async def pieces():
        for at in range(0, len(tar), size):
            await asyncio.sleep(pause)
            yield tar[at : at + size]

    return pieces()


async def used(store, parent=""):
    """Make what the first use of a store leaves for all that follow: directories, marks."""
    await (await store.register(file("first", b"1") + end(), parent)).release()
    return disk_state(store.root)


# ---- the same as without ------------------------------------------------------------------------
def acts(thing):
    """True if a public thing does something, and is no plain value and no error."""
    values = (BaseException, tuple, str, int, layerstore.Image)
    return callable(thing) and not (inspect.isclass(thing) and issubclass(thing, values))


def test_no_public_name_is_forgotten():
    """What has no counterpart here waits for nothing, is in memory, or is moby's own interface of its metadata."""
    left = {"FileMetadataStore", "MergedTree", "MetadataStore", "MetadataTransaction", "build_info", "create_chain_id", "log_release_metadata"}
    assert {name for name in layerstore.__all__ if acts(getattr(layerstore, name))} - left == {*aio.__all__} - {"File"}
    assert [name for name, thing in vars(layerstore.Image).items() if inspect.isfunction(thing) and not name.startswith("_")] == []


CLASSES = [name for name in aio.__all__ if inspect.isclass(getattr(layerstore, name, None))]
PUBLIC = {f"{kind}.{name}": thing for kind in CLASSES for name, thing in public(getattr(layerstore, kind)).items()}
PUBLIC |= {name: getattr(layerstore, name) for name in aio.__all__ if name not in [*CLASSES, "File"]}
LEFT_OUT = {f"TarStream.{name}" for name in ("about", "copy_some", "left_out", "lying", "pass_over", "pump_into", "pump_once", "read_block", "readable", "readall", "write")}
LEFT_OUT |= {f"Store.{name}" for name in ("check_open", "check_writable", "durability", "images")}
BY_HAND = {"Images.store", *(f"TarStream.{name}" for name in ("close", "read", "readinto", "seek", "seekable", "size", "tell"))}
BY_HAND |= {"Store.close", "Store.driver_name"}


@pytest.mark.parametrize("name", sorted({*PUBLIC} - LEFT_OUT - {"Images.store"}))
def test_each_name_has_its_counterpart_with_the_same_signature(name):
    blocking, ours = PUBLIC[name], operator.attrgetter(name)(aio)
    assert inspect.getdoc(ours)
    if isinstance(ours, property):
        kind = inspect.signature(blocking.fget).return_annotation if isinstance(blocking, property) else blocking
        assert inspect.signature(ours.fget).return_annotation == kind
        assert typing.get_type_hints(ours.fget)["return"]
        return
    blocking = getattr(blocking, "fget", getattr(blocking, "__func__", blocking))
    wanted = str(inspect.signature(blocking)).replace(", /", "").replace("-> 'BinaryIO'", "-> 'File'")
    assert str(inspect.signature(ours)) == re.sub("-> '(Iterator|Iterable)", "-> 'AsyncIterator", wanted)
    function = inspect.unwrap(ours)
    waits = inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
    assert waits != (name in ("Store.driver_name", "TarStream.seekable"))
    assert typing.get_type_hints(function).keys() == function.__annotations__.keys()
    if name not in BY_HAND:
        assert (ours.__module__, ours.__qualname__, ours.__name__) == ("layerstore.aio", name, name.rpartition(".")[2])
        assert inspect.getdoc(ours).startswith(re.split(r"\s+from\s+the\s+calling thread|\s+a `with`", inspect.getdoc(blocking))[0])
        assert "calling thread" not in " ".join(inspect.getdoc(ours).split())


def test_the_stub_says_what_the_classes_are():
    command = [sys.executable, Path(__file__).parents[1] / "typing/aio_stub.py"]
    made = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert made == Path(aio.__file__).with_suffix(".pyi").read_text(), "run `make stub`"


def names_of(thing):
    return {f"{type(thing).__name__}.{name}" for name in [*vars(thing), *public(type(thing))] if not name.startswith("_")}


@asynchronous
async def test_the_life_of_a_layer(root):
    async with aio.Store(root) as store:
        assert store.root == str(root)
        assert not store.read_only
        async with await store.register(tarkit.T1) as one:
            assert (one.chain_id, one.diff_id, one.size, one.os) == (tarkit.T1_DIFF_ID, tarkit.T1_DIFF_ID, 5, "linux")
            two = await store.register(io.BytesIO(tarkit.T2), one)
            assert two.parent.chain_id == one.chain_id
            assert one.parent is None
            assert (repr(one), repr(aio.Store(root))) == (f"<aio.Layer {one.chain_id}>", "<aio.Store>")
            async with await two.tar_stream_from(one) as stream:
                assert await stream.read()
            assert set(await store.map()) == {one.chain_id, two.chain_id}
            async with store.using(two.chain_id) as held:
                assert isinstance(held, aio.Layer)
            async with await two.tar_stream() as stream:
                assert await stream.size() == len(tarkit.T2)
                assert await stream.read() == tarkit.T2
                assert (await stream.seek(0), await stream.tell()) == (0, 0)
                assert b"".join([block async for block in stream]) == tarkit.T2
                buffer = bytearray(10)
                await stream.seek(0)
                assert await stream.readinto(buffer) == 10
                assert bytes(buffer) == tarkit.T2[:10]
            assert stream.closed
            assert [e.path async for e in one.files()] == [e.path for e in one.blocking.files()]
            async with await one.open("a/f") as f:
                assert await f.read() == b"hello"
            assert "a" in await two.merged()
            async with await store.create_rw_layer("blocking", two.blocking) as box:
                assert box.parent.chain_id == two.chain_id
            async with await store.create_rw_layer("rw", two) as rw:
                async with rw.mounted() as path:
                    with open(os.path.join(path, "new"), "w") as new:
                        new.write("new")
                assert mounts_below(root) == []
                assert [str(change) for change in await rw.changes()] == ["A /new"]
                assert await rw.size() == 3
                assert await rw.apply_diff(in_pieces(file("more", b"more") + end())) == 7
                committed = await rw.commit()
                assert committed.parent.chain_id == two.chain_id
                again = await store.get_rw_layer("rw")
                assert await store.get_mount_id("rw") == (await rw.metadata())["UpperDir"].split("/")[-2]
                assert await again.release() == []
                assert await store.mounts() == ["rw"]
                async with await rw.tar_stream() as made:
                    assert made.seekable() is False
                    for each in (store, one, rw, made, aio.Images(store)):      # attributes that no class tells of, too
                        assert names_of(each.blocking) - names_of(each) <= LEFT_OUT
            assert await store.verify() == []
            assert await store.orphans() == await store.reclaim() == []
            with pytest.raises(StoreInUseError, match="this store has a reference"):
                await store.remove(committed)
            await aio.release_and_log(store, committed)
            await store.release(two)
            with pytest.raises(layerstore.LayerDoesNotExistError):
                await store.get(two.chain_id)
            left = await store.register(file("left", b"") + end(), one)
    async with aio.Store(root) as store:
        assert [gone.chain_id for gone in await store.remove(left)] == [left.chain_id, one.chain_id]
    with pytest.raises(layerstore.StoreClosedError):
        await store.get(one.chain_id)


@asynchronous
async def test_who_is_inside_a_box(store):
    box = await store.create_rw_layer("box", (await store.register(tarkit.T1)).chain_id)
    fd = os.open(await box.mount(), os.O_RDONLY)
    assert [(one.pid, one.uses) for one in await box.holders()] == [(os.getpid(), ("directory",))]
    with pytest.raises(layerstore.ActiveMountError):
        await box.unmount()
    with pytest.raises(KeyError):
        async with box.mounted():
            raise KeyError
    await box.unmount(lazy=True)
    with pytest.raises(layerstore.ActiveMountError):
        await box.mount()
    os.close(fd)
    async with box.mounted():
        assert await box.holders() == []


@asynchronous
async def test_a_store_is_opened_by_hand_too(root):
    store = aio.Store(root)
    for use in (lambda: store.root, lambda: aio.Images(store)):
        with pytest.raises(layerstore.StoreClosedError):
            use()
    with pytest.raises(layerstore.StoreClosedError):
        await store.mounts()
    assert await store.open() is store
    assert store.driver_name() == DRIVER
    assert ("userxattr", "false") in await store.driver_status()
    await store.cleanup()
    await store.close()
    await store.close()


@contextlib.asynccontextmanager
async def source_of(kind, data, store, room):
    """The same bytes, from a source of each kind."""

    class Iterable:
        def __aiter__(self):
            return in_pieces(data)

    (room / "data").write_bytes(data)
    cat = subprocess.Popen(["cat", room / "data"], stdout=subprocess.PIPE)
    async with await store.register(file("inner", data) + end()) as layer, await layer.open("inner") as stream:
        async with connection() as (reader, writer):
            sending = asyncio.create_task(sent(writer, data if kind == "reader" else b""))
            yield {
                "iterator": in_pieces(data), "iterable": Iterable(), "gzip": in_pieces(gzip.compress(data, 1)), "file": stream,
                "bytes": data, "path": room / "data", "pipe": cat.stdout.fileno(), "reader": reader,
            }[kind]  # fmt: skip
            await sending
    cat.communicate()


async def sent(writer, data):
    writer.write(data)
    await writer.drain()
    writer.close()


@contextlib.asynccontextmanager
async def connection():
    """A reader, and the writer of what it reads."""
    here, there = socket.socketpair()
    reader, back = await asyncio.open_connection(sock=here)
    _, writer = await asyncio.open_connection(sock=there)
    yield reader, writer
    for each in (back, writer):
        each.close()
        await each.wait_closed()


@pytest.mark.parametrize("kind", ["iterator", "iterable", "reader", "gzip", "file", "pipe", "bytes", "path"])
@asynchronous
async def test_layers_and_images_come_from_any_source(store, room, kind):
    async with source_of(kind, BIG, store, room) as source, await store.register(source) as layer:
        assert layer.diff_id == tarkit.diff_id(BIG)
        async with await layer.tar_stream() as stream, await store.register(stream, layer) as above:
            assert above.diff_id == layer.diff_id
    seen = []
    images = aio.Images(store)
    async with source_of(kind, imagekit.tar_of(MANY), store, room) as source:
        loaded = await images.load(source, progress=lambda done: seen.append(threading.current_thread()))
        assert [image.references for image in loaded] == [("big:1", "big:2"), ("base:latest",)]
        assert set(seen) == {threading.main_thread()}
    async with source_of(kind, imagekit.tar_of(MANY), store, room) as source:
        assert [image.id for image in await images.list_archive(source)] == [image.id for image in loaded]
    assert await store.verify() == []


@pytest.mark.only("overlay2", "of the tar-split record")
@asynchronous
async def test_a_record_on_its_own(store, room):
    layer = await store.register(BIG)
    with open(room / "record", "w+b") as record:
        diff_id = await aio.disassemble(in_pieces(BIG), record)
        record.seek(0)
        upper = (await layer.metadata())["UpperDir"]
        async with await aio.assemble(record, upper, diff_id=diff_id) as stream:
            with open(room / "copy", "wb") as copy:
                assert await stream.copy_to(copy) == len(BIG)
    assert (room / "copy").read_bytes() == BIG
    assert await aio.changes_between(upper, upper) == []
    assert await aio.overlay_changes(upper, []) == layerstore.overlay_changes(upper, [])


class Written:
    """An async file, which takes what it likes of a block."""

    def __init__(self):
        self.data = bytearray()

    async def write(self, block):
        await asyncio.sleep(0)
        self.data += block[:70_000]
        return min(len(block), 70_000)


@asynchronous
async def test_a_stream_is_written_to_a_writer_as_it_takes_it(store):
    async with await store.register(BIG) as layer, connection() as (reader, writer):
        async with await layer.tar_stream() as stream, asyncio.TaskGroup() as group:
            got = group.create_task(reader.read())
            done = []
            assert await stream.copy_to(writer, progress=done.append) == len(BIG) == done[-1]
            writer.close()
        assert got.result() == BIG
        file = Written()
        async with await layer.tar_stream() as stream:
            block = await anext(aiter(stream))
            await asyncio.sleep(0.05)
            assert len(block) == await stream.tell() == 1 << 20         # read no further than it is asked for
            assert await stream.copy_to(file) == len(BIG) - len(block)
        assert block + file.data == BIG


# ---- images -------------------------------------------------------------------------------------
@asynchronous
async def test_the_life_of_an_image(store, room):
    images = aio.Images(store)
    assert images.store is store
    assert images.blocking.store is store.blocking
    async with await store.register(imagekit.BASE) as layer:
        made = await images.create(layer, {"created": "2026-01-01T00:00:00Z"}, tags="a:1")
    assert (await images.tag(made, "a:2")).references == ("a:1", "a:2")
    assert await images.list() == [await images.get("a:2")] == [made]
    assert await images.resolve("a:1") == made.id == (await images.inspect("a:1"))["Id"]
    assert [step["layer"] for step in await images.history("a:1")] == [layer.chain_id]
    await images.unpack("a:1", room / "tree")
    assert sorted(os.listdir(room / "tree")) == ["etc", "tool"]
    with pytest.raises(layerstore.ImageError, match="a:1"):
        await images.remove(made.id)
    assert (await images.remove("a:1")).untagged == ("a:1",)
    assert (await images.prune(dangling=False)).deleted == (made.id,)
    with pytest.raises(layerstore.ImageDoesNotExistError):
        await images.get("a:2")
    with pytest.raises(TypeError, match=r"Store of layerstore\.aio, not Store"):
        aio.Images(store.blocking)


@asynchronous
async def test_an_image_goes_from_store_to_store_without_a_copy(root, room):
    """With one long slot: who writes to the loop feeds who has it."""
    async with aio.Store(root, workers=1) as store, aio.Store(room / "other") as other, connection() as (reader, writer):
        images = aio.Images(store)
        loaded = await images.load(imagekit.tar_of(MANY))
        async with asyncio.TaskGroup() as group:
            again = group.create_task(images.load(reader))
            written = await images.save(loaded, writer, compression="gzip")
            writer.close()
        assert again.result() == loaded
        taken = Written()
        assert written == await images.save(loaded, taken, compression="gzip") == len(taken.data)
        bottom = (await store.map())[loaded[0].layers[0]]
        await (await other.register(BIG)).release()
        short = Written()
        assert await images.save("big:1", short, exclude=[bottom, "base:latest"]) < len(BIG)
        assert [image.id for image in await aio.Images(other).load(bytes(taken.data))] == [image.id for image in loaded]


# ---- the event loop -----------------------------------------------------------------------------
@asynchronous
async def test_progress_is_told_in_the_loops_thread_and_what_it_raises_ends_the_call(store):
    seen = []
    before = await used(store)
    layer = await store.register(BIG, progress=lambda done: seen.append((int(done), threading.current_thread())))
    assert seen[-1][0] == len(BIG)
    assert {thread for _, thread in seen} == {threading.main_thread()}
    await layer.release()

    def enough(done):
        raise ArithmeticError("enough")

    for source in (BIG, in_pieces(BIG, pause=0.01)):
        with pytest.raises(ArithmeticError, match="enough"):
            await store.register(source, progress=enough)
    assert await store.map() == {}
    assert changed(before, disk_state(store.root)) == []


@asynchronous
async def test_the_loop_goes_on_while_a_layer_comes_in(store):
    longest, ticking = 0.0, True

    async def tick():
        nonlocal longest
        while ticking:
            before = time.monotonic()
            await asyncio.sleep(0.005)
            longest = max(longest, time.monotonic() - before)

    watch = asyncio.create_task(tick())
    async with await store.register(BIG) as layer, await layer.tar_stream() as stream:
        await stream.read()
        assert await store.verify() == []
    ticking = False
    await watch
    assert longest < 1


@asynchronous
async def test_no_more_long_calls_run_at_once_than_asked_for(root):
    running = most = 0

    async def counted(tar):
        nonlocal running, most
        running += 1
        most = max(most, running)
        async for block in in_pieces(tar, pause=0.002):
            yield block
        running -= 1

    async with aio.Store(root, workers=2) as store:
        tars = [file("f", b"%d" % i * 200_000) + end() for i in range(6)]
        layers = await asyncio.gather(*(store.register(counted(tar)) for tar in tars))
        assert {layer.diff_id for layer in layers} == {tarkit.diff_id(tar) for tar in tars}
    assert most == 2


@asynchronous
async def test_layers_made_of_layers_do_not_wait_for_one_another(root):
    """As many registers as there are slots, each fed by reads of the same store."""

    async def again(stream):
        async for block in stream:
            yield block

    async with aio.Store(root, workers=1) as store, await store.register(BIG) as layer:
        streams = [await layer.tar_stream() for _ in range(12)]
        made = await asyncio.gather(*(store.register(again(stream)) for stream in streams))
        assert {one.chain_id for one in made} == {layer.chain_id}
        for stream in streams:
            await stream.close()


@asynchronous
async def test_context_variables_are_the_callers(store):
    who = contextvars.ContextVar("who", default="nobody")
    seen = []
    who.set("caller")
    base = await store.register(dir("d") + end())
    opts = CreateRWLayerOpts(init_func=lambda path: seen.append(who.get()))
    await (await store.create_rw_layer("rw", base.chain_id, opts)).release()
    assert seen == ["caller"]


# ---- failures -----------------------------------------------------------------------------------
@pytest.mark.parametrize("where", [0, 3, 50])
@asynchronous
async def test_what_a_source_or_a_target_raises_passes_through(store, where):
    async def broken():
        for i in range(where):
            yield BIG[i * 100_000 : (i + 1) * 100_000]
        raise LookupError("the line is dead")

    images = aio.Images(store)
    before = await used(store)
    with pytest.raises(LookupError, match="the line is dead"):
        await store.register(broken())
    with pytest.raises(TypeError, match="bytes, not str"):
        await store.register(in_pieces("text"))
    with pytest.raises(layerstore.TarFormatError):
        await store.register(in_pieces(b"J" * 4096))
    with pytest.raises(LookupError, match="the line is dead"):
        await images.load(broken())
    with pytest.raises(layerstore.ImageError):
        await images.load(in_pieces(BIG))
    assert changed(before, disk_state(store.root)) == []

    class Broken(Written):
        async def write(self, block):
            if len(self.data) > where * 10_000:
                raise LookupError("the line is dead")
            return await super().write(block)

    image = await images.create(await store.register(BIG))
    with pytest.raises(LookupError, match="the line is dead"):
        await images.save(image, Broken())


@asynchronous
async def test_handles_of_the_blocking_kind_are_refused(store):
    async with await store.register(tarkit.T1) as layer:
        for call in (store.release(layer.blocking), store.release_rw_layer(layer), aio.release_and_log(store.blocking, layer)):
            with pytest.raises(TypeError):
                await call
        with pytest.raises(TypeError):
            await store.register()


# ---- cancellation -------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["register", "layers", "archives"])
@pytest.mark.soak(110)
@asynchronous
async def test_a_call_cancelled_at_any_moment_leaves_nothing(root, store, room, kind):
    """What was there stays, too: an unheld layer, a file. What a finished call returned is released."""
    dice, images, tar = random.Random(kind), aio.Images(store), imagekit.tar_of(MANY)
    base = await store.register(BIG)
    top = await store.register(tarkit.T1, base)
    rw = await store.create_rw_layer("rw", top)
    other = await store.create_rw_layer("first", top, CreateRWLayerOpts(init_func=lambda path: None))
    await other.release()
    await rw.mount()
    await rw.unmount()
    with layerstore.Store(root) as other:
        other.register(BIG, top.chain_id)
    kept = await images.create(top, tags="kept")
    (room / "file").write_bytes(BIG)
    await images.save("kept", room / "saved")
    saved, packed = (room / "saved").read_bytes(), lzma.compress(BIG[: 1 << 20], preset=0)
    for image in await images.load(tar):
        await images.remove(image, force=True)
    before, sink = await used(store, top), os.open("/dev/null", os.O_WRONLY)

    async def copied():
        async with await base.tar_stream() as stream:
            await stream.copy_to(sink)

    async def mounted():
        async with rw.mounted():
            await asyncio.sleep(0.01)

    async def listed():
        async for _ in base.files():
            pass

    calls = {
        "register": [
            lambda: store.register(BIG), lambda: store.register(BIG, top), lambda: store.register(room / "file", base),
            lambda: store.register(in_pieces(BIG), base), lambda: store.register(in_pieces(BIG, pause=0.001), base),
            lambda: store.register(packed[: len(packed) // 2], base), lambda: store.register(tarkit.T2, base),
        ],
        "layers": [
            lambda: store.get(top.chain_id), lambda: store.get_rw_layer("rw"), base.tar_stream, copied, mounted, store.verify,
            rw.commit, lambda: store.create_rw_layer("other", top, CreateRWLayerOpts(init_func=lambda path: None)), listed,
            base.merged, lambda: base.open("f7"), rw.changes, rw.size, lambda: store.repair(base.chain_id), store.map,
            rw.tar_stream,
        ],
        "archives": [
            lambda: images.load(tar), lambda: images.load(in_pieces(tar)), lambda: images.load(in_pieces(tar, pause=0.001)),
            images.list, images.prune, lambda: images.inspect("kept"), lambda: images.save("kept", sink),
            lambda: images.save("kept", room / "saved"), lambda: images.unpack("kept", room / "tree"),
        ],
    }[kind]  # fmt: skip
    outcomes = []
    for call in calls * budget(3, 20):
        task = asyncio.ensure_future(call())
        await asyncio.sleep(dice.choice([0, 0.0002, 0.001, 0.005, 0.03, 0.12 * dice.random()]))
        for _ in range(dice.choice([1, 1, 5])):
            task.cancel()
            await asyncio.sleep(0)
        outcomes.append(await asyncio.gather(task, return_exceptions=True))
        (result,) = outcomes[-1]
        if isinstance(result, aio.File):
            await result.close()
        elif hasattr(result, "blocking"):
            await store.take_back(result)
        elif isinstance(result, Exception):
            assert isinstance(result, layerstore.TarFormatError)
        found = [image for image in await images.list() if image != kept]
        assert [image.references for image in found] in ([], [("big:1", "big:2"), ("base:latest",)])    # whole, or not there
        for image in found:
            await images.remove(image, force=True)
        assert not (room / "tree").exists() or len(os.listdir(room / "tree")) == 141
        subprocess.run(["rm", "-rf", room / "tree"], check=True)
        assert (room / "saved").read_bytes() == saved
        assert {*os.listdir(room)} == {root.name, "file", "saved"}
        assert mounts_below(root) == []
        assert threading.active_count() == 1
        assert changed(before, disk_state(root)) == []
    assert any(isinstance(result, asyncio.CancelledError) for (result,) in outcomes)
    os.close(sink)
    assert len(rw.blocking._reference.mount.references) == 1
    await rw.release()


@asynchronous
async def test_a_source_or_a_target_that_waits_is_left_at_once(store):
    ended = []

    async def never():
        try:
            yield BIG[:1000]
            await asyncio.sleep(1000)
        finally:
            ended.append(True)

    class Full:
        async def write(self, block):
            await asyncio.sleep(1000)

    class Endless:
        head = tarkit.raw_header("endless", size=tarkit.base256(1 << 40, 12))

        def read(self, n):
            head, self.head = self.head, b""
            time.sleep(0.001)
            return head or bytes(n)

    images = aio.Images(store)
    image = await images.create(await store.register(BIG))
    ours, theirs = socket.socketpair()
    read_end, write_end = os.pipe()
    os.write(write_end, BIG[:2000])
    quiet = (asyncio.StreamReader(), theirs.fileno(), read_end)
    before = await used(store)
    takes = [functools.partial(call, source) for call in (store.register, images.load) for source in (never(), *quiet)]
    for call in (*takes, functools.partial(store.register, Endless()), functools.partial(images.save, image, Full())):
        start = time.monotonic()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await call()
        assert time.monotonic() - start < 2
        assert changed(before, disk_state(store.root)) == []
    assert ended == [True, True]
    ours.close()
    theirs.close()
    os.close(read_end)
    os.close(write_end)


@asynchronous
async def test_what_waits_for_its_turn_is_cancelled_at_once(root):
    async with aio.Store(root, workers=1) as store:
        gate = asyncio.Event()

        async def gated():
            await gate.wait()
            yield tarkit.T1

        first = asyncio.ensure_future(store.register(gated()))
        second = asyncio.ensure_future(store.register(tarkit.T2))
        await asyncio.sleep(0.05)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        gate.set()
        assert (await first).diff_id == tarkit.T1_DIFF_ID


@asynchronous
async def test_a_release_is_carried_through(store, root):
    layer = await store.register(BIG)
    task = asyncio.ensure_future(layer.release())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await store.map() == {}
    assert [e.name for e in os.scandir(root / DRIVER) if e.name != "l"] == []


def test_ctrl_c_in_the_main_thread_stops_the_work(root, room):
    program = f"""
import asyncio, signal, threading, os
from layerstore import aio
async def endless():
    yield open({str(room / "tar")!r}, "rb").read()[:5_000_000]
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
    await asyncio.sleep(1000)
async def main():
    async with aio.Store({str(root)!r}) as store:
        await store.register(endless())
try:
    asyncio.run(main())
except KeyboardInterrupt:
    print("stopped")
"""
    (room / "tar").write_bytes(BIG)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("stopped\n", "", 0)
    assert [e.name for e in os.scandir(root / DRIVER) if e.name != "l"] == []
    with layerstore.Store(root) as store:
        assert store.map() == {}
        assert store.verify() == []


# ---- what waits where it cannot ask ---------------------------------------------------------------
@asynchronous
async def test_what_is_blocked_in_a_read_is_woken_by_a_cancellation():
    """As a client of a server does: the wake shuts the socket, so that recv() returns."""
    ours, theirs = socket.socketpair()
    woken = []

    def blocked(_):
        stop = STOP.get()

        def wake(why):
            woken.append(why)
            ours.shutdown(socket.SHUT_RDWR)
            raise OSError("the next one is woken, too")

        with stop.when_stopped(lambda _: 1 / 0), stop.when_stopped(wake):
            got = ours.recv(1)
        with stop.when_stopped(woken.append):        # stopped before: at once
            pass
        stop.check()
        return got

    task = asyncio.create_task(in_thread(blocked, None))
    await asyncio.sleep(0.05)
    began = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - began < 1
    assert len(woken) == 2 and woken[0] is woken[1]
    ours.close()
    theirs.close()


@asynchronous
async def test_a_wake_is_for_its_block_alone():
    woken = []

    def works(_):
        with STOP.get().when_stopped(woken.append):
            pass
        time.sleep(0.1)

    task = asyncio.create_task(in_thread(works, None))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert woken == []
    assert STOP.get() is None
