"""erofs.c: images as mounts, by the file or by a loop device, and what is said where that cannot be."""

import errno
import os
from pathlib import Path

import disk
import door
import erofsimage
import pytest

DETACH = 2


def request(paths, target, *, loop=False, directio=False, fds=None):
    """Call a function with the mount of these files: call(name, *more)."""
    opened = [os.open(path, os.O_RDONLY) for path in paths] if fds is None else fds
    names = [door.ffi.new("char[]", os.fsencode(path)) for path in paths]
    files = door.ffi.new("lay_erofs_file[]", list(zip(opened, names, strict=True)))
    at = door.ffi.new("char[]", os.fsencode(target))

    def call(name, *more):
        try:
            mount = files, len(names), at, loop, directio      # names live as long as this
            door.call(name, door.ffi.new("lay_erofs_mount *", mount), *more)
        finally:
            if fds is None:
                for fd in opened:
                    os.close(fd)

    return call


@pytest.fixture
def made(room):
    """An image on a file system whose files can be mounted, and a place for the mount."""
    with disk.sized_file_system(room, "ext4", size=64 << 20) as place:
        (place / "image").write_bytes(erofsimage.image({"hello": b"world"}))
        (place / "at").mkdir()
        yield place


@pytest.mark.parametrize("options", [{}, {"loop": True}, {"directio": True}], ids=["file", "loop", "directio"])
def test_an_image_is_mounted(made, options):
    request([made / "image"], made / "at", **options)("lay_mount_erofs")
    assert (made / "at/hello").read_text() == "world"
    source = disk.mount_line(made / "at")[0]
    assert source.startswith("/dev/loop") if "loop" in options else source == str(made / "image")
    door.call("lay_umount", os.fsencode(made / "at"), DETACH)


def test_a_mount_that_is_attached_nowhere(made):
    fd = door.ffi.new("int *", -1)
    request([made / "image"], "nowhere")("lay_make_erofs", fd)
    assert Path(f"/proc/self/fd/{fd[0]}/hello").read_text() == "world" and disk.mount_line(made / "at") is None
    os.close(fd[0])


@pytest.mark.parametrize("loop", [False, True])
def test_many_slots(made, loop):
    slots = [(4096 + 8 * at, 8) for at in range(20)]
    for at in range(20):
        (made / f"data{at}").write_bytes(bytes([at]) * 4096)
    (made / "image").write_bytes(erofsimage.image({"first": b""}, slots=slots))
    files = [made / "image", *(made / f"data{at}" for at in range(20))]
    request(files, made / "at", loop=loop)("lay_mount_erofs")
    assert (made / "at/first").read_bytes() == bytes(4096)
    door.call("lay_umount", os.fsencode(made / "at"), DETACH)


@pytest.mark.parametrize("loop", [False, True])
def test_what_cannot_be_mounted_is_named(made, loop):
    (made / "image").write_bytes(b"none")
    cases = [
        ([made / "image"], made / "at", errno.EINVAL, made / "image"),
        ([made / "at"], made / "at", errno.EISDIR, made / "at"),
        (["/dev/null"], made / "at", errno.ENOTBLK, "/dev/null"),
    ]
    for paths, target, code, name in cases:
        with pytest.raises(door.CoreError) as refused:
            request(paths, target, loop=loop)("lay_mount_erofs")
        assert (refused.value.sys_errno, refused.value.path) == (code, os.fsencode(name))
    with pytest.raises(door.CoreError) as closed:
        request(["gone"], made / "at", loop=loop, fds=[-1])("lay_mount_erofs")
    assert (closed.value.sys_errno, closed.value.path) == (errno.EBADF, b"gone")


def test_a_target_that_is_gone(made):
    with pytest.raises(door.CoreError) as refused:
        request([made / "image"], made / "nowhere")("lay_mount_erofs")
    assert (refused.value.sys_errno, refused.value.path) == (errno.ENOENT, os.fsencode(made / "nowhere"))


def test_a_file_in_memory_is_no_mount_of_its_own(room):
    (room / "image").write_bytes(erofsimage.image({"hello": b"world"}))
    with pytest.raises(door.CoreError) as refused:
        request([room / "image"], room)("lay_mount_erofs")
    assert (refused.value.sys_errno, refused.value.path) == (errno.ENOTBLK, os.fsencode(room / "image"))
