"""Out of memory at every allocation of the core: LAY_E_NOMEM or the right result, nothing leaked, nothing broken.

allocations.c makes the n-th allocation fail, of all that a job asks for in any thread, and then all from the n-th on.
What is given out is counted, so that a leak shows without a leak checker; under AddressSanitizer a second free shows too.
"""

import errno
import gzip
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import disk
import door
import erofsdoor
import erofsshapes
import imagekit
import pytest
import recipes
import sinks
import tarkit
import variant
from soak import budget
from tarkit import dir, end, file
from test_erofs_write import written

# Places of a job that are walked.
MOST = budget(20, 1 << 40)

KINDS = (
    dir("d/", mode=0o750) + file("d/f", b"f" * 5000) + tarkit.hardlink("d/h", "d/f") + tarkit.symlink("d/s", "f")
    + tarkit.fifo("d/p") + tarkit.xattrs({"user.a": b"1" * 300, "user.b": b"2"}) + file("d/x", b"x")
    + tarkit.with_pax_path("long/" * 200 + "f", file, b"long") + tarkit.with_gnu_path("g" * 150, file, b"gnu")
    + tarkit.with_gnu_path("i/" * 300 + "f", file, b"implied") + tarkit.pax_sparse_1_0("s", recipes.MANY, 400_000)
    + tarkit.old_gnu_sparse("o", recipes.MANY, 400_000) + file("again", b"first") + file("again", b"second")
    + file("becomes", b"a file") + dir("becomes/") + file("becomes/full", b"a directory") + tarkit.whiteout("w")
    + tarkit.opaque("d/") + b"".join(file(f"many/{i}", b"m" * i) for i in range(70)) + end()
)
# Threads start with the second block.
THREADED = file("large", recipes.noise(1_200_000)) + KINDS


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return variant.failing_allocations(tmp_path_factory.mktemp("allocations"))


@pytest.fixture
def core(failing: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The door opens onto the failing core, as long as the test lasts."""
    ffi = door.ffi
    monkeypatch.setattr(door, "_opened", lambda: (ffi, failing))
    yield failing
    failing.allocations_fail(0, 0)


def apply(room: Path, tar: bytes, *, workers: int = 0, tree: bool = True) -> tuple[bytes, bytes]:
    """Tar into room/root and a record: the DiffID and the record."""
    for name in ("root", "scratch"):
        (room / name).mkdir(exist_ok=True)
    with sinks.directory(room / "root") as root, sinks.directory(room / "scratch") as scratch, sinks.memory() as record, sinks.memory() as spool:
        where = {"root": root, "scratch": scratch} if tree else {"again": spool}
        done = sinks.apply(tar, record_fd=record, workers=workers, **where)
        return done.diff_id, sinks.content(record)


def emptied(room: Path) -> None:
    for name in ("root", "scratch"):
        if (room / name).exists():
            disk.remove_tree(room / name)


class Job:
    """Something the core does: made once, run at every place, right or not."""

    def __init__(self, run: Callable[[], Any], reset: Callable[[], None] = lambda: None) -> None:
        self.run, self.reset = run, reset


def applied(tar: bytes, **how: Any) -> Callable[[Path], Job]:
    return lambda room: Job(lambda: apply(room, tar, **how)[0], lambda: emptied(room))


def image(tar: bytes, *, workers: int = 0) -> Callable[[Path], Job]:
    """A tar becomes an image that stands on a directory."""

    def job(room: Path) -> Job:
        apply(room, KINDS)

        def run() -> bytes:
            ffi = door.ffi
            handle, done = ffi.new("lay_apply **"), ffi.new("lay_applied *")
            with sinks.directory(room / "root") as root, sinks.memory() as fd:
                try:
                    door.call("lay_apply_erofs", handle, fd, door.shown([root]), 1, ffi.new("lay_apply_options *", [workers]))
                    for window, n in sinks.windows(tar):
                        door.call("lay_apply_push", handle[0], window, n)
                    door.call("lay_apply_finish", handle[0], done)
                    return hashlib.sha256(sinks.content(fd)).digest()
                finally:
                    door.lib.lay_apply_free(handle[0])

        return Job(run)

    return job


def read(name: str, *arguments: Any) -> bytes:
    ffi = door.ffi
    source = ffi.new("lay_source **")
    door.call(name, source, *arguments)
    try:
        return sinks.read_source(source[0])
    finally:
        door.lib.lay_source_free(source[0])


def lying(room: Path) -> Job:
    """A tar in a file is listed, and goes out."""

    def run() -> tuple[bytes, int]:
        ffi, seen = door.ffi, 0
        listing, count, stop = ffi.new("lay_listing **"), ffi.new("size_t *"), ffi.new("int *")
        with sinks.memory(bytes(512) + KINDS) as fd:
            try:
                door.call("lay_listing_tar_open", listing, fd, 512, len(KINDS))
                while not stop[0]:
                    door.call("lay_listing_next", listing[0], 5, 1000, count, stop)
                    seen += count[0]
            finally:
                door.lib.lay_listing_free(listing[0])
            return read("lay_range_open", fd, 512, len(KINDS), ffi.new("uint8_t[32]", hashlib.sha256(KINDS).digest())), seen

    return Job(run)


def assembled(room: Path) -> Job:
    digest, record = apply(room, KINDS)

    def run() -> tuple[bytes, int]:
        ffi = door.ffi
        with sinks.memory(record) as fd, sinks.directory(room / "root") as root:
            source, size = ffi.new("lay_source **"), ffi.new("int64_t *")
            door.call("lay_assemble_open", source, fd, root, ffi.new("uint8_t[32]", digest))
            try:
                door.call("lay_source_size", source[0], size)
                door.call("lay_source_seek", source[0], 7000)
                door.call("lay_source_seek", source[0], 0)
                return sinks.read_source(source[0]), size[0]
            finally:
                door.lib.lay_source_free(source[0])

    return Job(run)


def copied(room: Path) -> Job:
    digest, record = apply(room, THREADED)

    def run() -> bytes:
        ffi = door.ffi
        with sinks.memory(record) as fd, sinks.directory(room / "root") as root, sinks.memory() as out:
            source, written, stop = ffi.new("lay_source **"), ffi.new("int64_t *"), ffi.new("int *")
            door.call("lay_assemble_open", source, fd, root, ffi.new("uint8_t[32]", digest))
            try:
                while not stop[0]:
                    door.call("lay_source_copy", source[0], out, 1 << 30, 1000, written, stop)
            finally:
                door.lib.lay_source_free(source[0])
            return sinks.content(out)

    return Job(run)


def checked(room: Path) -> Job:
    digest, record = apply(room, KINDS)
    (room / "root/d/x").write_text("y")
    (room / "root/many/7").unlink()

    def run() -> list[int]:
        ffi = door.ffi
        with sinks.memory(record) as fd, sinks.directory(room / "root") as root:
            check, problem, stop, kinds = ffi.new("lay_check **"), ffi.new("lay_problem *"), ffi.new("int *"), []
            door.call("lay_check_open", check, sinks.check_options(fd, root, digest))
            try:
                while not stop[0]:
                    door.call("lay_check_next", check[0], 1000, problem, stop)
                    if problem.kind:
                        kinds.append(problem.kind)
            finally:
                door.lib.lay_check_free(check[0])
            return kinds

    return Job(run)


def two_trees(room: Path) -> None:
    apply(room, KINDS)
    (room / "root").rename(room / "old")
    apply(room, KINDS)
    (room / "root/new").mkdir()
    for i in range(40):
        (room / f"root/new/{i}").write_text("n")
    (room / "root/d/f").unlink()


def changed(name: str, *arguments: Any) -> list[tuple[int, bytes]]:
    ffi = door.ffi
    changes, path, length = ffi.new("lay_changes **"), ffi.new("char const **"), ffi.new("size_t *")
    door.call(name, changes, *arguments)
    try:
        found = []
        for i in range(door.lib.lay_changes_count(changes[0])):
            kind = door.lib.lay_changes_at(changes[0], i, path, length)
            found.append((kind, ffi.buffer(path[0], length[0])[:]))
        return found
    finally:
        door.lib.lay_changes_free(changes[0])


def changes_of_trees(room: Path) -> Job:
    two_trees(room)

    def run() -> Any:
        with sinks.directory(room / "root") as new, sinks.directory(room / "old") as old:
            return changed("lay_changes_trees", new, old, 0)

    return Job(run)


def changes_of_an_overlay(room: Path) -> Job:
    two_trees(room)

    def run() -> Any:
        with sinks.directory(room / "root") as upper, sinks.directory(room / "old") as lower:
            upper_fds, lower_fds = door.shown([upper]), door.shown([lower, lower])
            return changed("lay_changes_overlay", upper_fds, 1, lower_fds, 2, 0)

    return Job(run)


def changes_of_stacks(room: Path) -> Job:
    """By a walk of both, and by the uppers of one."""
    two_trees(room)

    def run() -> Any:
        with sinks.directory(room / "root") as upper, sinks.directory(room / "old") as lower:
            fds = door.shown([upper, lower, lower, upper])
            flags = door.lib.LAY_CHANGES_CONTENTS
            both = changed("lay_changes_stacks", fds, 2, fds + 2, 2, flags)
            return both, changed("lay_changes_overlay", fds, 2, fds + 2, 1, 0)

    return Job(run)


def union_of_two(room: Path) -> Job:
    """Whiteouts judged, too."""
    two_trees(room)

    def run() -> Any:
        ffi, lib = door.ffi, door.lib
        with sinks.directory(room / "root") as upper, sinks.directory(room / "old") as lower:
            fds, handle, found = door.shown([upper, lower, lower]), ffi.new("lay_union **"), ffi.new("lay_union_found *")
            door.call("lay_union_open_at", handle, fds, 2, fds + 2, 1, 4)
            walk = ffi.new("lay_union_walk **")
            try:
                door.call("lay_union_walk_open", walk, handle[0])
                seen = []
                door.call("lay_union_walk_next", walk[0], found)
                while found.path:
                    seen.append((ffi.string(found.path), found.layer))
                    door.call("lay_union_walk_next", walk[0], found)
                return seen
            finally:
                lib.lay_union_walk_free(walk[0])
                lib.lay_union_free(handle[0])

    return Job(run)


def run_to_the_end(name: str, handle: Any) -> None:
    stop = door.ffi.new("int *")
    while not stop[0]:
        door.call(name, handle, 1000, stop)


def new_target(room: Path) -> None:
    if (room / "target").exists():
        disk.remove_tree(room / "target")
    (room / "target").mkdir()


def cloned(workers: int) -> Callable[[Path], Job]:
    def job(room: Path) -> Job:
        apply(room, KINDS)
        for i in range(5):
            os.link(room / "root/d/f", room / f"root/many/twin{i}")

        def run() -> Any:
            clone = door.ffi.new("lay_clone **")
            with sinks.directory(room / "root") as source, sinks.directory(room / "target") as target:
                try:
                    door.call("lay_clone_open", clone, source, target, 0, workers)
                    run_to_the_end("lay_clone_run", clone[0])
                finally:
                    door.lib.lay_clone_free(clone[0])
            return disk.disk_state(room / "target", times=True)

        return Job(run, lambda: new_target(room))

    return job


def merged(room: Path) -> Job:
    """By links, and to another file system, where all is copied."""
    two_trees(room)

    def run() -> Any:
        found = []
        for place in (room / "target", Path("/dev/shm", room.name)):
            place.mkdir(exist_ok=True)
            merge = door.ffi.new("lay_merge **")
            with sinks.directory(room / "root") as upper, sinks.directory(room / "old") as lower, sinks.directory(place) as target:
                fds = door.shown([upper, lower, lower])
                try:
                    door.call("lay_merge_open", merge, fds, 2, fds + 2, 1, target, 0)
                    run_to_the_end("lay_merge_run", merge[0])
                    found.append(sorted(disk.inventory(place)))
                finally:
                    door.lib.lay_merge_free(merge[0])
                    if place.parent != room:
                        disk.remove_tree(place)
        return found

    return Job(run, lambda: new_target(room))


def told_as_a_stack(room: Path) -> Job:
    """Its tar, its list, its size and one of its files."""
    two_trees(room)

    def run() -> Any:
        ffi = door.ffi
        with sinks.directory(room / "root") as upper, sinks.directory(room / "old") as lower:
            fds = door.shown([upper, lower, lower])
            tar = read("lay_export_stack_open", fds, 2, fds + 2, 1, 0)
            listing, count, stop, seen = ffi.new("lay_listing **"), ffi.new("size_t *"), ffi.new("int *"), 0
            try:
                door.call("lay_listing_stack_open", listing, fds, 2, fds + 2, 1, 0)
                while not stop[0]:
                    door.call("lay_listing_next", listing[0], 50, 1000, count, stop)
                    seen += count[0]
            finally:
                door.lib.lay_listing_free(listing[0])
            size, fd = ffi.new("int64_t *"), ffi.new("int *")
            door.call("lay_stack_size", fds, 2, 0, size)
            door.call("lay_stack_open", fds, 2, 0, b"d/x", fd)
            os.close(fd[0])
            return hashlib.sha256(tar).digest(), seen, size[0]

    return Job(run)


def told_as_an_image(room: Path) -> Job:
    """The tar of a layer that is an image, alone and on another one."""
    images = [written(KINDS), written(tarkit.T1)]

    def run() -> Any:
        with erofsdoor.opened(images[0]) as upper, erofsdoor.opened(images[1]) as lower:
            layers = door.ffi.new("lay_shown[]", [(-1, door.lib.lay_erofs_lower(one.e)) for one in (upper, lower)])
            alone = read("lay_export_stack_open", layers, 1, door.ffi.NULL, 0, door.lib.LAY_EXPORT_KEEP)
            return alone, read("lay_export_stack_open", layers, 1, layers + 1, 1, 0)

    return Job(run)


def exported(room: Path) -> Job:
    two_trees(room)

    def run() -> Any:
        with sinks.directory(room / "root") as root:
            return hashlib.sha256(read("lay_export_tree_open", root, door.lib.LAY_EXPORT_OVERLAY)).digest()

    return Job(run)


def exported_directory(room: Path) -> Job:
    two_trees(room)

    def run() -> Any:
        prefix, exclude = (door.ffi.new("char[]", text) for text in (b"a/b", b"new/[12]?\0**/gone\0**/x/**\0"))
        given = {"prefix": prefix, "newest": 5, "uid": -1, "gid": -1, "exclude": exclude, "excludes": 3}
        options = door.ffi.new("lay_directory_options *", given)
        with sinks.directory(room / "root") as root:
            return hashlib.sha256(read("lay_export_directory_open", root, options)).digest()

    return Job(run)


def recorded(room: Path) -> Job:
    """A directory is recorded where it lies."""
    two_trees(room)

    def run() -> Any:
        ffi = door.ffi
        with sinks.directory(room / "root") as root, sinks.memory() as record:
            source, apply_, done, stop = (ffi.new(kind) for kind in ("lay_source **", "lay_apply **", "lay_applied *", "int *"))
            try:
                door.call("lay_export_tree_open", source, root, door.lib.LAY_EXPORT_OVERLAY)
                door.call("lay_apply_record", apply_, record, ffi.new("lay_apply_options *"))
                while not stop[0]:
                    door.call("lay_apply_draw", apply_[0], source[0], 1 << 30, 1000, stop)
                door.call("lay_apply_finish", apply_[0], done)
                return ffi.buffer(done.diff_id)[:], door.lib.lay_export_files_size(source[0])
            finally:
                door.lib.lay_apply_free(apply_[0])
                if source[0] != ffi.NULL:
                    door.lib.lay_source_free(source[0])

    return Job(run)


def exported_changes(room: Path) -> Job:
    two_trees(room)

    def run() -> Any:
        ffi = door.ffi
        with sinks.directory(room / "root") as new, sinks.directory(room / "old") as old:
            changes = ffi.new("lay_changes **")
            door.call("lay_changes_trees", changes, new, old, door.lib.LAY_CHANGES_ATTRIBUTES)
            try:
                # The times of what is removed are those of now.
                return len(read("lay_export_changes_open", new, changes[0], door.lib.LAY_EXPORT_KEEP))
            finally:
                door.lib.lay_changes_free(changes[0])

    return Job(run)


def tree(room: Path) -> Job:
    def run() -> Any:
        size = door.ffi.new("int64_t *")
        with sinks.directory(room / "root") as root, sinks.directory(room) as parent:
            door.call("lay_tree_size", root, size)
            door.call("lay_tree_remove", parent, b"root")
        return size[0]

    def again() -> None:
        # A removal that failed half-way is to be made good by the next.
        emptied(room)
        apply(room, KINDS)

    return Job(run, again)


def weighed(room: Path) -> Job:
    two_trees(room)
    for i in range(70):
        os.link(room / f"root/many/{i}", room / f"old/many/shared{i}")

    def run() -> Any:
        ffi = door.ffi
        blocks, size, found = ffi.new("lay_blocks **"), ffi.new("int64_t *"), []
        try:
            for freed in (0, 1):
                door.call("lay_blocks_open", blocks, freed)
                for name in ("root", "old"):
                    with sinks.directory(room / name) as fd:
                        door.call("lay_blocks_add", blocks[0], fd, size)
                    found.append(size[0])
                door.lib.lay_blocks_free(blocks[0])
                blocks[0] = ffi.NULL
        finally:
            door.lib.lay_blocks_free(blocks[0])
        return found

    return Job(run)


# Names out of their order, through links and in directories without an entry; attributes of every kind; sparse files of two shapes.
IMAGE = (
    tarkit.symlink("z", "d/../d") + file("z/late", b"l") + file("d/early", b"e") + KINDS[:-1024]
    + tarkit.xattrs({"system.posix_acl_access": bytes.fromhex("02000000 01000700ffffffff 02000500e8030000 04000500ffffffff 10000500ffffffff 20000500ffffffff")})
    + file("acl", b"a") + tarkit.xattrs({"user.b": b"3"}) + tarkit.hardlink("acl2", "acl", uid=7) + tarkit.pax_sparse_1_0("odd", [(5, b"x")], 90_000)
    + tarkit.symlink("long", "t" * 90 + "/" + "u" * 9) + tarkit.opaque("") + end()
)  # fmt: skip


def image_read(room: Path) -> Job:
    """Opened with long prefixes, verified, and compared with itself as a layer of another."""
    data = erofsshapes.shape("all attributes")[0].image

    def run() -> Any:
        with erofsdoor.opened(data) as reader, erofsdoor.opened(data) as other:
            reader.verify()
            shown = door.ffi.new("lay_shown[]", [(-1, door.lib.lay_erofs_lower(each.e)) for each in (reader, other)])
            return changed("lay_changes_stacks", shown, 1, shown + 1, 1, door.lib.LAY_CHANGES_CONTENTS), reader.xattrs("d/f")

    return Job(run)



JOBS: dict[str, Callable[[Path], Job]] = {
    "apply in line": applied(KINDS),
    "apply in threads": applied(THREADED, workers=2),
    "image": image(IMAGE), "image in threads": image(THREADED, workers=2),
    "apply gzip": applied(gzip.compress(THREADED), workers=2),
    "apply zstd": applied(imagekit.zstd(KINDS)), "disassemble": applied(KINDS, tree=False), "assemble": assembled, "range": lying,
    "copy": copied, "check": checked, "changes of trees": changes_of_trees,
    "changes of an overlay": changes_of_an_overlay,
    "changes of stacks": changes_of_stacks,
    "union": union_of_two, "clone": cloned(0), "clone in threads": cloned(2), "merge": merged, "stack": told_as_a_stack, "stack of images": told_as_an_image,
    "export": exported, "export changes": exported_changes, "export a directory": exported_directory, "record": recorded, "blocks": weighed, "image read": image_read, "size and remove": tree,
}


@pytest.mark.soak(100, 1800)
@pytest.mark.parametrize("name", JOBS)
def test_out_of_memory_anywhere_is_said_or_overcome_and_leaks_nothing(core: Any, room: Path, name: str) -> None:
    job = JOBS[name](room)
    job.reset()
    core.allocations_fail(0, 0)
    live = core.allocations_live()
    right = job.run()
    asked = core.allocations_asked()
    assert core.allocations_live() == live
    assert asked > 3
    files, said = disk.open_files().keys(), 0
    every = range(1, asked + 1)
    places = every if asked <= MOST else sorted({1 + k * asked // MOST for k in range(MOST)} | {asked})
    for last in (0, 1 << 40):
        for place in places:
            job.reset()
            live = core.allocations_live()
            core.allocations_fail(place, last or place)
            try:
                value = job.run()
            except door.CoreError as error:
                assert error.code == "LAY_E_NOMEM" or error.sys_errno in (errno.ENOMEM, errno.EAGAIN), f"{place} of {asked}: {error}"
                said += 1
            else:
                assert value == right, f"{place} of {asked}"
            finally:
                core.allocations_fail(0, 0)
            assert core.allocations_live() == live, f"{place} of {asked}"
            # Emptying the scratch directory takes memory, too, and is the last thing done: where it fails, it goes with the layer's.
            emptied_last = last or place > asked - 3
            assert emptied_last or not (room / "scratch").exists() or os.listdir(room / "scratch") == [], f"{place} of {asked}"
            assert disk.open_files().keys() == files, f"{place} of {asked}"
    job.reset()
    assert job.run() == right
    assert said > 3
