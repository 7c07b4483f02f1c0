"""Names that others chose: in a root that another program wrote they hold whatever a terminal acts on, and none reaches it."""

import json
import os
import re
import warnings

import pytest
import tarkit
from dockerd import image_archive
from driven import DRIVER, LAYERDB

import layerstore
from layerstore import Images

# All that a name of a file may have: C0 but NUL, DEL, C1, marks that turn the direction, a byte that is no UTF-8.
TRICKS = bytes(range(1, 0x20)) + b"\x7f" + "".join(map(chr, range(0x80, 0xA0))).encode() + "\u202e\u2066\u2028\u200f".encode() + b"\xff"
EVIL = os.fsdecode(b"a" + TRICKS + b"z")
TEXT = (b"a" + TRICKS[:-1] + b"z").decode()       # as JSON can have it
TAR = tarkit.dir(b"d" + TRICKS[:32] + b"/") + tarkit.file(b"d" + TRICKS[:32] + b"/f", b"x") + tarkit.file(b"e" + TRICKS[32:], b"x") + tarkit.end()


@pytest.fixture
def evil(root):
    """A store in which every name that can be one is a trick; gives names for the commands."""
    with layerstore.Store(root) as store:
        layer = store.register(TAR)
        damaged = store.register(tarkit.file("lost", b"x") + tarkit.end())
        images = Images(store)
        image = images.create(layer, {"author": TEXT, "architecture": TEXT, "created": "2020-01-01T00:00:00Z", "config": {"Cmd": [TEXT]},
                                      "history": [{"created": "2020-01-01T00:00:00Z", "created_by": TEXT, "comment": TEXT}]}, tags="app:1")
        store.create_rw_layer(EVIL, layer.chain_id)
        cache = damaged.cache_id
    os.unlink(root / DRIVER / cache / ("layer.erofs" if DRIVER == "erofs" else "diff/lost"))
    database = root / LAYERDB
    bad = os.fsencode(database) + b"/mounts/" + b"bad" + TRICKS
    os.mkdir(bad)
    with open(bad + b"/mount-id", "wb") as out:
        out.write(b"no id" + TRICKS)
    os.mkdir(database / "sha256" / ("a" * 64))
    (database / "sha256" / ("a" * 64) / "size").write_bytes(b"1" + TRICKS)
    (database / "sha256" / ("a" * 64) / "diff").write_bytes(b"sha256:" + b"b" * 64)
    os.mkdir(os.fsencode(root) + f"/{DRIVER}/".encode() + b"left" + TRICKS)
    names = root / "image" / DRIVER / "repositories.json"
    found = json.loads(names.read_bytes())
    found["Repositories"][f"x{EVIL}"] = {f"x{EVIL}:1": image.id}
    names.write_text(json.dumps(found))
    return layer.chain_id


def verbs(chain, evil):
    """Command lines that list, look at, or fail at such names."""
    return [
        ["ls"], ["ls", "--no-trunc"], ["show", chain], ["show", evil], ["info"], ["rw", "ls"], ["rw", "size", evil], ["rw", "size", "no" + evil],
        ["rw", "mount", "no" + evil], ["rw", "rm", evil], ["ls-files", chain], ["ls-files", chain, "-0"], ["ls-files", "--long", chain],
        ["find", "**/*", chain], ["find", "**/*"], ["cat", chain, "d" + evil], ["cat", chain, evil], ["diff", chain, chain],
        ["verify"], ["-v", "verify"], ["orphans"], ["gc", "--dry-run"], ["image", "ls"], ["image", "history", "app:1"],
        ["image", "inspect", "app:1"], ["image", "rm", evil], ["image", "tag", "app:1", evil], ["image", "save", evil],
        ["image", "load", evil], ["image", "load", "no", "--tag", evil], ["image", "unpack", "app:1", evil + "/x/y"], ["register", evil],
        ["register", "x", "--parent", evil], ["release", evil], ["repair", evil], ["repair", "a" * 64], [evil], ["image", evil], ["ls", f"--{evil}"],
        ["ls", evil], ["--root", evil, "ls"], ["--color", evil, "ls"], ["bench", "--mb", evil], ["completion", evil], ["doctor", "--root", evil],
        ["image", "prune", "--dry-run", "--all"], ["image", "create", evil], ["image", "create", chain, "--config", evil],
        ["rw", "snapshot", "no" + evil], ["rw", "rollback", evil, "no" + evil], ["rw", "fork", "no" + evil, evil], ["rw", "fork", evil, evil],
        ["snapshot", "ls"], ["snapshot", "rm", evil], ["rw", "run", evil, "--bind", evil, "--", evil], ["rw", "changes", evil, "--since", evil],
        ["__words", "rw", "size", ""], ["__words", "image", "rm", ""], ["__words", "cat", chain, ""],
    ]  # fmt: skip


def tricks_in(text: str) -> set[str]:
    return {char for char in text if not char.isprintable() and char not in "\n\t"}


COUNT = len(verbs("", ""))


@pytest.mark.parametrize("at", range(COUNT), ids=lambda at: " ".join(verbs("LAYER", "EVIL")[at]))
def test_no_name_plays_tricks(evil, cli, terminal, at):
    """On a terminal nothing; into a pipe only what names() prints for programs, and no message."""
    words = verbs(evil, EVIL)[at]
    _, shown = terminal(*words, rich=False)
    assert tricks_in(shown) - ({"\0"} if "-0" in words else set()) == set()
    done = cli(*words)
    assert tricks_in(done.err) == set()
    if words[0] not in ("ls-files", "find", "rw") or words[1:2] == ["ls"]:
        assert tricks_in(done.out) == set()


@pytest.mark.parametrize("words", [["ls"], ["rw", "ls"], ["image", "ls"], ["-q", "verify"]], ids=" ".join)
def test_neither_with_colours(evil, terminal, words):
    _, shown = terminal(*words)
    assert tricks_in(re.sub(r"\x1b\[[0-9;]*m", "", shown)) == set()


def test_warnings_are_readable_notes(made, cli, monkeypatch, room):
    (room / "x.tar").write_bytes(image_archive([TAR], "base"))
    load = Images.load

    def warned(*given, **more):
        warnings.warn(f"about {EVIL}", UserWarning, stacklevel=1)
        return load(*given, **more)

    monkeypatch.setattr(Images, "load", warned)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        done = cli("image", "load", room / "x.tar")
    assert done.code == 0 and done.err.startswith("layerstore: warning: about a\\x01") and tricks_in(done.err) == set()
