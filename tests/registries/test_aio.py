"""layerstore.aio with a real docker-registry: the same as without, and a cancelled task ends within a second, with all undone."""

import asyncio
import contextlib
import os
import random
import threading
import time

import pytest
import tarkit
from disk import disk_state
from gate import Gate
from tarkit import end, file

import layerstore
from layerstore import aio

SMALL = file("small", b"s") + end()
LARGE = [file(f"large{n}", os.urandom(4_000_000)) + end() for n in range(3)]
SECONDS = 1.0


@pytest.fixture
def large(root, room, named):
    """The name of an image of three layers of 4 MB in the registry, from a store beside."""
    name = named("large")
    with layerstore.Store(room / "beside") as store:
        parent = None
        for tar in LARGE:
            parent = store.register(tar, parent or "")
        layerstore.Images(store).create(parent, tags=name)
        layerstore.Images(store).push(name)
    return name


def behind(gate, name):
    return f"{gate.host}/{name.partition('/')[2]}"


def threads():
    return [each.name for each in threading.enumerate() if each is not threading.main_thread() and "_carry" not in each.name and "_accept" not in each.name]


async def cancelled(task, gate, registry=None) -> None:
    """Cancel a task once the gate is shut: it ends in time, and its connections are gone; idle ones with their registry."""
    assert await asyncio.to_thread(gate.shut.wait, 20)
    await asyncio.sleep(0.2)
    began = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - began < SECONDS
    if registry is not None:
        await registry.close()
    assert await asyncio.to_thread(gate.left, SECONDS)


def test_pull_and_push(root, named, large):
    async def main():
        told, loop = [], threading.get_ident()

        def progress(done):
            told.append((done, done.total, threading.get_ident()))

        async with aio.Store(root) as store, aio.Registry(large.partition("/")[0]) as registry:
            images = aio.Images(store)
            image = await images.pull(large, registry=registry, progress=progress)
            assert isinstance(image, layerstore.Image) and image.references == (large,)
            assert {thread for *_, thread in told} == {loop} and told[-1][0] == told[-1][1] > 12_000_000
            name = named("other")
            digest = await images.push(large, name, registry=registry)
            assert digest == await images.push(large, name)
            assert await registry.tags(name.rpartition(":")[0]) == ["1"]
            descriptor, data = await registry.manifest(name)
            assert (descriptor.digest, descriptor.size) == (digest, len(data))
            assert await registry.referrers(name) == []
            with pytest.raises(layerstore.NotInRegistryError):
                await registry.manifest(f"{name}0")
            with pytest.raises(TypeError, match="takes a Registry of layerstore"):
                await images.pull(large, registry=registry.blocking)
            with pytest.raises(ZeroDivisionError):
                await images.push(large, named("third"), compression="zstd", force_compression=True, progress=lambda _: 1 / 0)
        with pytest.raises(layerstore.RegistryError, match="closed"):
            await registry.tags("any")

    asyncio.run(main())


def test_several_at_once(root, large):
    async def main():
        async with aio.Store(root) as store, aio.Registry(large.partition("/")[0], connections=2) as registry:
            pulled = await asyncio.gather(*[aio.Images(store).pull(large, registry=registry) for _ in range(4)])
            assert len({image.id for image in pulled}) == 1

    asyncio.run(main())


@pytest.mark.parametrize("allowed", [0, 100, 3_000_000, 9_000_000])
@pytest.mark.parametrize("own", [False, True], ids=["", "registry="])
def test_a_cancelled_pull(root, large, allowed, own):
    async def main():
        async with aio.Store(root) as store:
            await (await store.register(SMALL)).release()
            before = disk_state(root)
            with Gate(large.partition("/")[0], down=allowed) as gate:
                registry = aio.Registry(gate.host) if own else None
                task = asyncio.create_task(aio.Images(store).pull(behind(gate, large), registry=registry))
                if not allowed:
                    gate.shut.set()
                await cancelled(task, gate, registry)
            assert disk_state(root) == before
            assert (await aio.Images(store).pull(large)).references == (large,)
            assert await store.verify() == []

    asyncio.run(main())
    assert threads() == []


@pytest.mark.parametrize("way", ["up", "down"])
def test_a_cancelled_push(root, registry, named, way):
    async def main():
        async with aio.Store(root) as store:
            parent = await store.register(tarkit.T1)
            for tar in LARGE:
                parent = await store.register(tar, parent)
            images = aio.Images(store)
            await images.create(parent, tags="large:1")
            before = disk_state(root)
            with Gate(registry.host, **{way: 5_000_000 if way == "up" else 100}) as gate:
                name = behind(gate, named("new"))
                await cancelled(asyncio.create_task(images.push("large:1", name)), gate)
            changed = {path for path in {*disk_state(root).items()} ^ {*before.items()} if b"distribution" not in path[0]}
            assert changed == set()
            with pytest.raises(FileNotFoundError):
                registry.tag(*name.partition("/")[2].rsplit(":", 1))

    asyncio.run(main())
    assert threads() == []


@pytest.mark.parametrize("method", ["tags", "manifest", "referrers"])
def test_a_cancelled_look(large, method):
    async def main():
        with Gate(large.partition("/")[0], down=10) as gate:
            async with aio.Registry(gate.host) as registry:
                task = asyncio.create_task(getattr(registry, method)(large.partition("/")[2].rpartition(":")[0]))
                await cancelled(task, gate)
                gate.allowed["down"] = None
                assert await registry.tags(large.partition("/")[2].rpartition(":")[0]) == ["1"]

    asyncio.run(main())
    assert threads() == []


def test_a_pull_that_is_cancelled_at_any_moment(root, large):
    """The image is there whole, or nothing is."""

    async def main():
        drawn = random.Random(13)
        async with aio.Store(root) as store:
            images = aio.Images(store)
            await (await store.register(SMALL)).release()
            began = time.monotonic()
            await images.pull(large)
            whole = time.monotonic() - began
            await images.remove(large)
            before = disk_state(root)
            for _ in range(15):
                task = asyncio.create_task(images.pull(large, keep=False))
                await asyncio.sleep(drawn.random() * whole)
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
                with contextlib.suppress(layerstore.ImageDoesNotExistError):
                    assert await store.verify() == []
                    await images.remove(large)
                assert disk_state(root) == before

    asyncio.run(main())
    assert threads() == []
