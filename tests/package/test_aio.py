"""layerstore.aio: the same results as the blocking calls, and a cancellation at any moment leaves nothing behind."""

import asyncio
import contextlib
import gzip
import inspect
import io
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

import pytest
import tarkit
from disk import changed, disk_state, mounts_below
from tarkit import dir, end, file

import layerstore
from layerstore import StoreInUseError, aio
from layerstore.aio.mirror import public
from layerstore.values import CreateRWLayerOpts

BIG = b"".join(file(f"f{i}", random.Random(i).randbytes(40_000)) for i in range(300)) + end()


def alone(work):
    """Run a coroutine; no thread of ours is left behind it."""
    asyncio.run(work)
    assert [t.name for t in threading.enumerate() if t.name.startswith("layerstore")] == []


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
    """Whether a public thing does something, and is no plain value and no error."""
    return callable(thing) and not (inspect.isclass(thing) and issubclass(thing, (BaseException, tuple, str, int, layerstore.Image)))


def test_no_public_name_is_forgotten():
    """Nor one of a class: what is left out here waits for nothing, is for moby's own words, or in memory."""
    left = {"FileMetadataStore", "MergedTree", "MetadataStore", "MetadataTransaction", "build_info", "create_chain_id", "log_release_metadata"}
    assert {name for name in layerstore.__all__ if acts(getattr(layerstore, name))} - left == {*aio.__all__} - {"File"}
    assert [name for name, thing in vars(layerstore.Image).items() if inspect.isfunction(thing) and not name.startswith("_")] == []


LEFT_OUT = {f"TarStream.{name}" for name in ("copy_some", "pump_into", "pump_once", "readable", "readall", "write")} | {
    f"Store.{name}" for name in ("check_open", "check_writable", "durability", "images")
}
PUBLIC = {
    f"{kind}.{name}": thing
    for kind in sorted({*aio.__all__} & {*layerstore.__all__}) if inspect.isclass(getattr(layerstore, kind))
    for name, thing in public(getattr(layerstore, kind)).items()
} | {name: getattr(layerstore, name) for name in aio.__all__ if inspect.isfunction(getattr(layerstore, name, None))}  # fmt: skip


@pytest.mark.parametrize("name", sorted({*PUBLIC} - LEFT_OUT))
def test_each_name_has_its_like_with_the_same_signature(name):
    blocking, like = PUBLIC[name], operator.attrgetter(name)(aio) if name != "Images.store" else property(lambda self: None)
    if not inspect.isroutine(blocking) and isinstance(like, property):
        if name != "Images.store":
            kind = inspect.signature(blocking.fget).return_annotation if isinstance(blocking, property) else blocking
            assert inspect.signature(like.fget).return_annotation == kind
        return
    blocking = getattr(blocking, "fget", getattr(blocking, "__func__", blocking))
    wanted = str(inspect.signature(blocking)).replace(", /", "").replace("-> 'BinaryIO'", "-> 'File'")
    assert str(inspect.signature(like)) == re.sub("-> '(Iterator|Iterable)", "-> 'AsyncIterator", wanted)
    done = inspect.unwrap(like)
    plain = name in ("Store.driver_name", "TarStream.seekable")
    assert (inspect.iscoroutinefunction(done) or inspect.isasyncgenfunction(done)) != plain
    assert typing.get_type_hints(done)["return"] is not None
    assert (like.__name__, like.__qualname__) == (name.rpartition(".")[2], name) or name.startswith("TarStream")
    assert inspect.getdoc(like)[:10] == inspect.getdoc(blocking)[:10] or name.startswith("TarStream")


def test_the_stub_says_what_the_classes_are():
    top = Path(__file__).parents[2]
    made = subprocess.run([sys.executable, top / "tests/typing/aio_stub.py"], capture_output=True, text=True, check=True).stdout
    assert made == Path(aio.__file__).with_suffix(".pyi").read_text(), "run `make stub`"


@pytest.mark.parametrize("name", aio.__all__)
def test_everything_is_documented(name):
    thing = getattr(aio, name)
    assert inspect.getdoc(thing)
    if inspect.isclass(thing):
        for method, value in vars(thing).items():
            if not method.startswith("_") and (callable(value) or isinstance(value, property)):
                assert inspect.getdoc(value), f"{name}.{method}"


def test_a_parent_may_be_a_layer_and_remove_releases_what_nobody_holds(root):
    async def life():
        async with aio.Store(root) as store:
            base = await store.register(tarkit.T1)
            top = await store.register(tarkit.T2, base)
            assert top.parent.chain_id == base.chain_id
            async with await top.tar_stream_from(base) as stream:
                assert await stream.read()
            for parent in (base, base.blocking):
                async with await store.create_rw_layer("box", parent) as box:
                    assert box.parent.chain_id == base.chain_id
            with pytest.raises(StoreInUseError, match="this store has a reference"):
                await store.remove(top)
        async with aio.Store(root) as store:
            assert [gone.chain_id for gone in await store.remove(top)] == [top.chain_id]
            assert [gone.chain_id for gone in await store.remove(base.chain_id)] == [base.chain_id]
            assert await store.map() == {}

    alone(life())


def test_the_life_of_a_layer(root):
    async def life():
        async with aio.Store(root) as store:
            assert store.root == str(root)
            assert not store.read_only
            async with await store.register(tarkit.T1) as one:
                assert (one.chain_id, one.diff_id, one.size, one.os) == (tarkit.T1_DIFF_ID, tarkit.T1_DIFF_ID, 5, "linux")
                two = await store.register(io.BytesIO(tarkit.T2), one.chain_id)
                assert two.parent.chain_id == one.chain_id
                assert one.parent is None
                assert set(await store.map()) == {one.chain_id, two.chain_id}
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
                async with await store.create_rw_layer("rw", two.chain_id) as rw:
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
                assert await store.verify() == []
                assert await store.orphans() == await store.reclaim() == []
                await committed.release()
                await store.release(two)
                with pytest.raises(layerstore.LayerDoesNotExistError):
                    await store.get(two.chain_id)
        with pytest.raises(layerstore.StoreClosedError):
            await store.get(one.chain_id)

    alone(life())


def test_who_is_inside_a_box(root):
    async def inside():
        async with aio.Store(root) as store:
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

    asyncio.run(inside())


def test_a_store_is_opened_by_hand_too(root):
    async def by_hand():
        store = aio.Store(root)
        with pytest.raises(layerstore.StoreClosedError):
            _ = store.root
        assert await store.open() is store
        assert store.driver_name() == "overlay2"
        assert ("Supports d_type", "true") in await store.driver_status()
        await store.cleanup()
        await store.close()
        await store.close()

    alone(by_hand())


@pytest.mark.parametrize("kind", ["iterator", "iterable", "reader", "gzip", "stream", "file", "socket", "bytes", "path"])
def test_a_layer_comes_from_any_source(root, room, kind):
    class Iterable:
        def __aiter__(self):
            return in_pieces(BIG)

    async def fed():
        reader = asyncio.StreamReader()

        async def feed():
            for at in range(0, len(BIG), 65536):
                reader.feed_data(BIG[at : at + 65536])
                await asyncio.sleep(0)
            reader.feed_eof()

        feeding = asyncio.create_task(feed())
        async with aio.Store(root) as store:
            other = await store.register(file("inner.tar", BIG) + end())
            with contextlib.ExitStack() as stack:
                if kind == "socket":
                    ours, theirs = socket.socketpair()
                    stack.enter_context(theirs)

                    def send():
                        with ours:
                            ours.sendall(BIG)

                    sender = threading.Thread(target=send)
                    sender.start()
                    stack.callback(sender.join)
                (room / "tar").write_bytes(BIG)
                source = {
                    "iterator": lambda: in_pieces(BIG), "iterable": Iterable, "reader": lambda: reader,
                    "gzip": lambda: in_pieces(gzip.compress(BIG, 1)), "bytes": lambda: BIG, "path": lambda: room / "tar",
                    "socket": lambda: theirs.fileno(), "stream": lambda: None, "file": lambda: None,
                }[kind]()  # fmt: skip
                if kind == "stream":
                    base = await store.register(BIG)
                    source = await base.tar_stream()
                elif kind == "file":
                    source = await other.open("inner.tar")
                layer = await store.register(source)
                assert layer.diff_id == tarkit.diff_id(BIG)
                if isinstance(source, aio.File):
                    await source.close()
            await feeding

    alone(fed())


def test_a_record_on_its_own(root, room):
    async def recorded():
        async with aio.Store(root) as store:
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

    alone(recorded())


def test_a_stream_is_written_to_a_writer_as_it_takes_it(root):
    async def written():
        got = bytearray()
        done = asyncio.Event()

        async def receive(reader, writer):
            while block := await reader.read(100_000):
                got.extend(block)
            writer.close()
            done.set()

        async with aio.Store(root) as store, await store.register(BIG) as layer:
            server = await asyncio.start_server(receive, "127.0.0.1", 0)
            _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            async with await layer.tar_stream() as stream:
                assert await stream.copy_to(writer) == len(BIG)
            writer.close()
            await writer.wait_closed()
            await done.wait()
            server.close()
            await server.wait_closed()
        assert bytes(got) == BIG

    alone(written())


def test_a_stream_is_read_no_further_than_it_is_asked_for(root):
    async def read():
        async with aio.Store(root) as store, await store.register(BIG) as layer, await layer.tar_stream() as stream:
            async for block in stream:
                assert len(block) == 1 << 20
                await asyncio.sleep(0.05)
                assert await stream.tell() == 1 << 20
                break

    alone(read())


# ---- the event loop -----------------------------------------------------------------------------


def test_progress_is_told_in_the_loops_thread_and_what_it_raises_ends_the_call(root):
    async def told():
        seen = []
        async with aio.Store(root) as store:
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
        assert changed(before, disk_state(root)) == []

    alone(told())


def test_the_loop_goes_on_while_a_layer_comes_in(root):
    async def watched():
        longest, ticking = 0.0, True

        async def tick():
            nonlocal longest
            while ticking:
                before = time.monotonic()
                await asyncio.sleep(0.005)
                longest = max(longest, time.monotonic() - before)

        watch = asyncio.create_task(tick())
        async with aio.Store(root) as store:
            async with await store.register(BIG) as layer, await layer.tar_stream() as stream:
                await stream.read()
                assert await store.verify() == []
        ticking = False
        await watch
        assert longest < 1

    alone(watched())


def test_no_more_long_calls_run_at_once_than_asked_for(root):
    async def bounded():
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

    alone(bounded())


def test_layers_made_of_layers_do_not_wait_for_one_another(root):
    """As many registers as there are slots, each fed by reads of the same store."""

    async def again(store, stream):
        async for block in stream:
            yield block

    async def fed():
        async with aio.Store(root, workers=1) as store, await store.register(BIG) as layer:
            streams = [await layer.tar_stream() for _ in range(12)]
            made = await asyncio.gather(*(store.register(again(store, stream)) for stream in streams))
            assert {one.chain_id for one in made} == {layer.chain_id}
            for stream in streams:
                await stream.close()

    alone(fed())


def test_context_variables_are_the_callers(root):
    import contextvars

    who = contextvars.ContextVar("who", default="nobody")
    seen = []

    async def called():
        who.set("caller")
        async with aio.Store(root) as store:
            base = await store.register(dir("d") + end())
            opts = CreateRWLayerOpts(init_func=lambda path: seen.append(who.get()))
            await (await store.create_rw_layer("rw", base.chain_id, opts)).release()

    alone(called())
    assert seen == ["caller"]


# ---- failures -----------------------------------------------------------------------------------


@pytest.mark.parametrize("where", [0, 3, 50])
def test_what_a_source_raises_passes_through(root, where):
    async def broken():
        for i in range(where):
            yield BIG[i * 100_000 : (i + 1) * 100_000]
        raise LookupError("the line is dead")

    async def failing():
        async with aio.Store(root) as store:
            before = await used(store)
            with pytest.raises(LookupError, match="the line is dead"):
                await store.register(broken())
            with pytest.raises(TypeError, match="bytes, not str"):
                await store.register(in_pieces("text"))
            with pytest.raises(layerstore.TarFormatError):
                await store.register(in_pieces(b"J" * 4096))
            assert changed(before, disk_state(root)) == []

    alone(failing())


def test_handles_of_the_blocking_kind_are_refused(root):
    async def mixed():
        async with aio.Store(root) as store, await store.register(tarkit.T1) as layer:
            with pytest.raises(TypeError):
                await store.release(layer.blocking)
            with pytest.raises(TypeError):
                await store.release_rw_layer(layer)

    alone(mixed())


# ---- cancellation -------------------------------------------------------------------------------


async def cancelled_after(seconds, work):
    """True: it was cancelled; False: it was done before. What it gave is given back."""
    task = asyncio.ensure_future(work)
    await asyncio.sleep(seconds)
    task.cancel()
    try:
        result = await task
    except asyncio.CancelledError:
        return True
    if hasattr(result, "release"):
        await result.release()
    elif hasattr(result, "close"):
        await result.close()
    return False


@pytest.mark.parametrize("kind", ["bytes", "path", "async", "slow", "xz"])
@pytest.mark.time_limit(110)
def test_a_register_cancelled_at_any_moment_leaves_nothing(root, room, kind):
    import lzma

    (room / "tar").write_bytes(BIG)
    packed = lzma.compress(BIG[: 1 << 20], preset=0)
    make = {
        "bytes": lambda: BIG, "path": lambda: room / "tar", "async": lambda: in_pieces(BIG),
        "slow": lambda: in_pieces(BIG, pause=0.001), "xz": lambda: packed[: len(packed) // 2],
    }[kind]  # fmt: skip

    async def stopped():
        dice = random.Random(kind)
        async with aio.Store(root) as store:
            base = await store.register(tarkit.T1)
            before = await used(store, base.chain_id)
            outcomes = []
            for _ in range(25):
                with contextlib.suppress(layerstore.TarFormatError):
                    outcomes.append(await cancelled_after(dice.random() * 0.12, store.register(make(), base.chain_id)))
                assert changed(before, disk_state(root)) == []
                assert threading.active_count() == 1
            assert any(outcomes) or kind == "xz"
            assert set(await store.map()) == {base.chain_id}
            async with await store.register(make() if kind != "xz" else BIG, base.chain_id) as layer:
                assert layer.diff_id == tarkit.diff_id(BIG)

    alone(stopped())


def test_a_source_that_gives_nothing_is_left_at_once(root):
    async def never():
        yield BIG[:1000]
        await asyncio.sleep(1000)

    async def stopped():
        ended = []

        async def noticed():
            try:
                async for block in never():
                    yield block
            finally:
                ended.append(True)

        ours, theirs = socket.socketpair()
        read_end, write_end = os.pipe()
        os.write(write_end, BIG[:2000])
        async with aio.Store(root) as store:
            before = await used(store)
            for source in (noticed(), asyncio.StreamReader(), theirs.fileno(), read_end):
                start = time.monotonic()
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.2):
                        await store.register(source)
                assert time.monotonic() - start < 2
                assert changed(before, disk_state(root)) == []
            assert ended == [True]
        ours.close()
        theirs.close()
        os.close(read_end)
        os.close(write_end)

    alone(stopped())


def test_a_source_without_an_end_is_left(root):
    class Endless:
        head = tarkit.raw_header("endless", size=tarkit.base256(1 << 40, 12))

        def read(self, n):
            head, self.head = self.head, b""
            time.sleep(0.001)
            return head or bytes(n)

    async def stopped():
        async with aio.Store(root) as store:
            before = await used(store)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await store.register(Endless())
            assert changed(before, disk_state(root)) == []

    alone(stopped())


def test_a_cancelled_register_takes_no_layer_away(root):
    """The layer was there, and nobody held it: it stays, whenever the call is cancelled."""

    async def stopped():
        with layerstore.Store(root) as first:
            first.register(BIG)
        dice = random.Random(3)
        async with aio.Store(root) as store:
            before = await used(store)
            for _ in range(15):
                task = asyncio.ensure_future(store.register(BIG))
                await asyncio.sleep(dice.random() * 0.1)
                done = task.done()
                task.cancel()
                if done:
                    store.blocking.take_back((await task).blocking)
                else:
                    with pytest.raises(asyncio.CancelledError):
                        await task
                assert changed(before, disk_state(root)) == []

    alone(stopped())


def test_cancelled_again_and_again_it_still_ends_clean(root):
    async def stopped():
        async with aio.Store(root) as store:
            before = await used(store)
            task = asyncio.ensure_future(store.register(in_pieces(BIG, pause=0.001)))
            await asyncio.sleep(0.05)
            for _ in range(5):
                task.cancel()
                await asyncio.sleep(0)
            with pytest.raises(asyncio.CancelledError):
                await task
            assert changed(before, disk_state(root)) == []

    alone(stopped())


def test_what_waits_for_its_turn_is_cancelled_at_once(root):
    async def stopped():
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

    alone(stopped())


@pytest.mark.time_limit(110)
def test_every_other_call_cancelled_at_any_moment(root, room):
    async def stopped():
        dice = random.Random(5)
        async with aio.Store(root) as store:
            base = await store.register(BIG)
            top = await store.register(tarkit.T1, base.chain_id)
            rw = await store.create_rw_layer("rw", top.chain_id)
            other = await store.create_rw_layer("first", top.chain_id, CreateRWLayerOpts(init_func=lambda path: None))
            await other.release()
            await rw.mount()
            await rw.unmount()
            before = await used(store, top.chain_id)
            sink = os.open("/dev/null", os.O_WRONLY)

            async def copied():
                async with await base.tar_stream() as stream:
                    await stream.copy_to(sink)

            async def mounted():
                async with rw.mounted():
                    await asyncio.sleep(0.01)

            async def listed():
                async for _ in base.files():
                    pass

            async def created():
                return await store.create_rw_layer("other", top.chain_id, CreateRWLayerOpts(init_func=lambda path: None))

            calls = [
                lambda: store.get(top.chain_id), lambda: store.get_rw_layer("rw"), base.tar_stream, copied, mounted,
                store.verify, rw.commit, created, listed, base.merged, lambda: base.open("f7"), rw.changes, rw.size,
                lambda: store.repair(base.chain_id), store.map, lambda: rw.tar_stream(),
            ]  # fmt: skip
            for _ in range(8):
                for call in calls:
                    task = asyncio.ensure_future(call())
                    await asyncio.sleep(dice.choice([0, 0.0002, 0.001, 0.005, 0.03]))
                    if task.done() and hasattr(task.result(), "blocking"):
                        result = await task
                        if isinstance(result, aio.File):
                            await result.close()
                        elif isinstance(result, aio.RWLayer) and result.name == "other":
                            await result.release()
                        else:
                            await store.take_back(result)
                    task.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await task
                    assert mounts_below(root) == []
                    assert threading.active_count() == 1
                    assert changed(before, disk_state(root)) == []
            os.close(sink)
            assert len(rw.blocking._reference.mount.references) == 1
            await rw.release()
            await top.release()
            assert len(await base.release()) == 1

    alone(stopped())


def test_a_release_is_carried_through(root):
    async def stopped():
        async with aio.Store(root) as store:
            layer = await store.register(BIG)
            task = asyncio.ensure_future(layer.release())
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await store.map() == {}
            assert disk_state(root / "overlay2" / "l") == disk_state(root / "overlay2" / "l")
            assert [e.name for e in os.scandir(root / "overlay2") if e.name != "l"] == []

    alone(stopped())


def test_ctrl_c_in_the_main_thread_stops_the_work(root, room):
    import subprocess
    import sys

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
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(layerstore.__file__))}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=30, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("stopped\n", "", 0)
    assert [e.name for e in os.scandir(root / "overlay2") if e.name != "l"] == []
    with layerstore.Store(root) as store:
        assert store.map() == {}
        assert store.verify() == []
