"""What erofs-utils say of our images: a reader that shares no code with ours."""

import os
import subprocess

import disk
import kit
import pytest
import recipes
import tarkit

# What fsck.erofs cannot extract: a path longer than any call takes, and files of more bytes than the disk has.
LEFT_OUT = ("good_sparse_of_eight_tebibytes", "good_pax_path_over_4096")
NAMES = [name for name in recipes.GOOD if name not in LEFT_OUT]


@pytest.fixture(scope="module")
def fsck():
    path, why = kit.fsck()
    if not path:
        pytest.skip(f"NOT TESTED: {why}")
    return path


def test_every_recipe_is_accepted_and_extracted(fsck, store, room):
    for name in NAMES:
        layer = store.register(recipes.GOOD[name]())
        target = room / f"out-{name}"
        said = subprocess.run([fsck, f"--extract={target}", "--preserve-perms", "--preserve-owner", kit.file_of(layer)], capture_output=True, text=True, check=False)
        assert said.returncode == 0, f"{name}: {said.stdout}{said.stderr}"
        state = kit.seen(kit.file_of(layer), room / "at")
        for path, facts in state.items():
            # A file of one hole is extracted as an empty one.
            if facts[0] == "file" and name != "good_sparse_old_gnu_hole_only":
                assert os.path.getsize(target / path) == facts[4], f"{name}: {path}"
            elif facts[0] == "link":
                assert os.fsencode(os.readlink(target / path)) == facts[4], f"{name}: {path}"
        disk.remove_tree(target)
        layer.release()


def test_links_and_names_are_accepted(fsck, store):
    tar = b"".join(tarkit.pax({"linkpath": "t" * n}) + tarkit.symlink(f"l{n}", "t") for n in range(1, 520)) + tarkit.end()
    for data in (tar, b"".join(tarkit.file(f"d/{n:05}") for n in range(3000)) + tarkit.end()):
        said = subprocess.run([fsck, kit.file_of(store.register(data))], capture_output=True, text=True, check=False)
        assert said.returncode == 0, said.stdout + said.stderr
