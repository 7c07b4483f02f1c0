"""textfile: of remove_directory all goes, whatever it is called by, and nothing a link in it leads to; names in errors."""

import errno
import io
import os
from pathlib import Path
from typing import Any

import pytest

from layerstore.disk.textfile import naming_file, remove_directory


@pytest.fixture
def tree(room, monkeypatch):
    monkeypatch.chdir(room)
    (room / "outside").mkdir()
    (room / "outside/kept").write_text("kept")
    (room / "tree/a/b").mkdir(parents=True)
    (room / "tree/a/b/file").write_text("x")
    (room / "tree/link").symlink_to(room / "outside")
    return room / "tree"


@pytest.mark.parametrize("given", [lambda tree: str(tree), lambda tree: "tree", lambda tree: "./tree", lambda tree: f"{tree}/"])
def test_it_goes_by_any_of_its_names(tree, room, given):
    remove_directory(given(tree))
    assert sorted(os.listdir(room)) == ["outside"]
    assert (room / "outside/kept").read_text() == "kept"


def test_a_link_goes_and_what_it_leads_to_stays(tree, room):
    (room / "other").symlink_to(tree)
    remove_directory(str(room / "other"))
    assert sorted(os.listdir(room)) == ["outside", "tree"]
    assert (tree / "a/b/file").read_text() == "x"


def test_what_is_gone_is_fine(room):
    remove_directory(str(room / "gone"))
    remove_directory(str(room / "gone/with/all/above"))


def test_what_cannot_be_removed_is_said(room):
    with pytest.raises(OSError) as caught:
        remove_directory("/proc/self/fd")
    assert caught.value.errno


def test_an_open_file_is_named_as_the_kernel_names_it_and_memory_and_pipes_are_not(room: Path) -> None:
    def named(file: Any) -> Any:
        with pytest.raises(OSError) as caught, naming_file(file):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return caught.value.filename

    path = room / "a file"
    with open(path, "wb+") as file:
        assert named(file) == named(file.fileno()) == str(path)
        path.unlink()
        assert named(file) == str(room)          # it no longer has a name: where it is
    assert named(file) is None
    assert named(io.BytesIO()) is None
    memory, ends = os.memfd_create("nothing"), os.pipe()
    try:
        assert named(memory) is None and named(ends[0]) is None
        with pytest.raises(OSError) as caught, naming_file(ends[0]):
            raise OSError(errno.EIO, "what another one says", "name")
        assert caught.value.filename == "name"
    finally:
        for fd in (memory, *ends):
            os.close(fd)
