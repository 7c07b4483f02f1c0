"""limits.py and the store: each limit is an option, on by default or not as the page of options says, and tells who broke it."""

import gzip
import io
import lzma
import re
import subprocess
from pathlib import Path

import pytest
import tarkit
from stored import tar_of
from tarkit import dir, end, file, symlink

import layerstore
from layerstore import InvalidOptionError, LimitExceededError, TarFormatError
from layerstore._core import _apply
from layerstore.limits import Limits
from layerstore.sizes import parse_size

FRONT = file("front", b"f" * 100)
BEYOND = {
    "max_entries": ("3", file("a") + file("b") + file("c"), "c"),
    "max_size": ("1000", file("a", b"a" * 900) + file("b", b"b"), "b"),
    "max_file_size": ("1K", file("a", b"a" * 1024) + file("b", b"b" * 1025), "b"),
    "max_names": ("12", file("a" * 7) + file("b"), "b"),
    "max_path": ("6", dir("a/b/c/") + file("a/b/c/d"), "a/b/c/d"),
    "max_depth": ("3", dir("a/b/c/") + file("a/b/c/d"), "a/b/c/d"),
    "max_header": ("20", tarkit.pax({"c": "c" * 12}) + file("a") + tarkit.pax({"c": "c" * 20}, name="b") + file("b"), "b"),
    "max_headers": ("1400", tarkit.gnu_long("a" * 130) + tarkit.gnu_long("b" * 130) + tarkit.gnu_long("c" * 130) + file("a"), "././@LongLink"),
    "max_global_headers": ("600", tarkit.global_pax({"c": "c" * 20}) + tarkit.global_pax({"c": "d" * 99}, name="b"), "b"),
    "max_extents": ("2", tarkit.pax_sparse_1_0("s", [(n * 9, b"x") for n in range(3)], 90), "s"),
    "max_xattrs": ("1", tarkit.xattrs({"user.a": b""}) + file("a") + tarkit.xattrs({"user.a": b"", "user.b": b""}) + file("b"), "b"),
    "max_xattr_size": ("10", tarkit.xattrs({"user.a": b"1234"}) + file("a") + tarkit.xattrs({"user.a": b"12345"}) + file("b"), "b"),
}  # fmt: skip


@pytest.fixture
def limited(open_store):
    """A store with these options that has seen one layer."""

    def opened(**options):
        store = open_store(options=options)
        store.register(end()).release()
        return store

    return opened


@pytest.mark.parametrize("way", ["register", "apply_diff", "apply_diff to a mounted tree"])
@pytest.mark.parametrize("option", BEYOND)
def test_a_tar_beyond_a_limit_is_refused_and_nothing_is_left(limited, unchanged, option, way):
    value, tar, name = BEYOND[option]
    store = limited(**{option: value})
    if way == "register":
        with unchanged(), pytest.raises(LimitExceededError) as caught:
            store.register(FRONT + tar + file("later") + end())
    else:
        store._engine.driver.host.ground._native = not way.endswith("tree")
        rw = store.create_rw_layer("c", store.register(end()).chain_id)
        with pytest.raises(LimitExceededError) as caught:
            rw.apply_diff(FRONT + tar + file("later") + end())
    error = caught.value
    assert (error.option, error.path) == (option, name)
    assert len(FRONT) <= error.offset < len(FRONT + tar)
    number = parse_size(value)
    assert f"more than {number} " in str(error)
    assert f'({option}) (entry "{name}", at byte {error.offset})' in str(error)
    assert isinstance(error, TarFormatError)


@pytest.mark.parametrize("option", BEYOND)
def test_zero_lifts_a_limit(open_store, option):
    tar = FRONT + BEYOND[option][1] + end()
    layer = open_store(options={option: "0"}).register(tar)
    assert tar_of(layer) == tar


def test_the_size_of_the_tar_is_bounded_with_what_follows_its_end(limited, unchanged):
    store = limited(max_tar_size="4K")
    for packed in (lambda tar: tar, gzip.compress, lzma.compress, lambda tar: io.BytesIO(gzip.compress(tar))):
        store.register(packed(file("a") + end() + bytes(4096 - 1536))).release()
        with unchanged(), pytest.raises(LimitExceededError) as caught:
            store.register(packed(file("a") + end() + bytes(4097 - 1536)))
        assert (caught.value.option, caught.value.offset) == ("max_tar_size", 4096)


@pytest.mark.only("overlay2", "of the tar-split record")
def test_the_size_of_the_record_is_bounded(limited, unchanged):
    store = limited(max_record="2K")
    store.register(file("a", bytes(100_000)) + end()).release()
    with unchanged(), pytest.raises(LimitExceededError) as caught:
        store.register(b"".join(tarkit.whiteout(f"{n}", b"%d" % n * 900) for n in range(90)) + end())
    assert caught.value.option == "max_record"


def long_window(log):
    return lambda tar: subprocess.run(["zstd", "-qc", f"--zstd=wlog={log}", "--single-thread"], input=tar, capture_output=True, check=True).stdout


def xz_window(size):
    return lambda tar: lzma.compress(tar, filters=[{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": size}])


@pytest.mark.parametrize("within, beyond", [(long_window(20), long_window(21)), (xz_window(1 << 20), xz_window(4 << 20))], ids=["zstd", "xz"])
def test_what_a_decompressor_remembers_is_bounded(limited, unchanged, within, beyond):
    tar = file("a", bytes(range(256)) * 20_000) + end()
    store = limited(max_window="1M")
    store.register(io.BytesIO(within(tar))).release()
    with unchanged(), pytest.raises(LimitExceededError) as caught:
        store.register(io.BytesIO(beyond(tar)))
    assert (caught.value.option, caught.value.offset) == ("max_window", 0)
    assert "more than 1048576 bytes (max_window)" in str(caught.value)


def test_an_implied_directory_counts_as_an_entry(limited, unchanged):
    store = limited(max_entries="4")
    store.register(dir("a/") + dir("a/b/") + file("a/b/c") + end()).release()
    store.register(file("a/b/c/d") + end()).release()
    with unchanged(), pytest.raises(LimitExceededError) as caught:
        store.register(file("a/b/c/d/e") + end())
    assert (caught.value.option, caught.value.path) == ("max_entries", "a/b/c/d/e")


def test_a_size_is_refused_before_a_byte_of_it_is_read(limited, unchanged):
    """The header claims it: the source has no more to give, and is not asked."""
    tar = tarkit.raw_header("a", size=tarkit.base256(1 << 60, 12))
    hole = tarkit.pax_sparse_1_0("a", [], 1 << 50) + end()
    store = limited(max_size="1G")
    for claim in (tar, hole):
        with unchanged(), pytest.raises(LimitExceededError, match="max_size"):
            store.register(claim)


def test_names_that_lead_through_ever_deeper_links_are_too_deep(limited, unchanged):
    """Each link is two levels deep and itself leads through the one before."""
    tar = dir("a/b/") + symlink("s0", "a/b")
    for number in range(1, 9):
        tar += dir(f"s{number - 1}/a/b/") + symlink(f"s{number}", f"s{number - 1}/a/b")
    store = limited(max_depth="26")
    store.register(tar + end()).release()
    with unchanged(), pytest.raises(LimitExceededError, match="max_depth"):
        store.register(tar + file("s8/f") + end())


# ---- options and defaults ---------------------------------------------------------------------------------
@pytest.mark.parametrize("value", ["", "many", "-1", "10X", "1e9", "0x10", "1 000", "0.0001", "99999P", "NaN", "1_000"])
def test_nonsense_is_no_limit(open_store, root, value):
    for option in Limits._fields:
        with pytest.raises(InvalidOptionError, match=option):
            open_store(options={option: value})
    assert not root.exists()


def test_an_unknown_limit_is_an_unknown_option(open_store):
    with pytest.raises(InvalidOptionError, match="max_sizes"):
        open_store(options={"max_sizes": "1"})


def test_limits_are_read_as_sizes_are():
    options = {"max_size": "1.5G", "max_entries": "1000", "max_path": "4k", "other": "stays"}
    limits = Limits.take(options)
    assert (limits.max_size, limits.max_entries, limits.max_path) == (3 << 29, 1000, 4096)
    assert limits._replace(max_size=0, max_entries=16 << 20, max_path=16 << 10) == Limits()
    assert options == {"other": "stays"}


def test_the_defaults_are_the_cores_own():
    assert Limits()._asdict() == _apply.default_limits()


def test_the_page_of_options_says_what_the_defaults_are():
    page = (Path(__file__).parents[2] / "docs" / "options.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(max_\w+)` \| (\w+) \|", page, re.MULTILINE))
    said = {name: 0 if default == "none" else parse_size(default) for name, default in rows.items()}
    assert said == Limits()._asdict()


BLOCK_OF_HOLES = tarkit._sparse_slots([(0, 0)] * 21, 21) + b"\x01" + bytes(7)
# Not max_entries and max_names, which take gigabytes of tar, nor max_xattr_size, which max_header comes before.
BOMBS = {
    "max_path": lambda: tarkit.with_pax_path("p/" * 8193),
    "max_depth": lambda: tarkit.with_pax_path("p/" * 1025),
    "max_header": lambda: tarkit.pax({"c": "c" * (1 << 20)}) + file("x"),
    "max_headers": lambda: tarkit.pax({"c": "c"}) * 16500 + file("x"),
    "max_global_headers": lambda: tarkit.global_pax({"c": "c" * 990_000}) * 18,
    "max_extents": lambda: tarkit.old_gnu_sparse("s", [(0, b"")] * 4, 90, patch={482: b"\x01"})[:512] + BLOCK_OF_HOLES * 49933,
    "max_xattrs": lambda: tarkit.xattrs({f"user.{n}": b"" for n in range(1025)}) + file("x"),
    "max_window": lambda: b"\x28\xb5\x2f\xfd\x00" + bytes([18 << 3]) + b"\x01\0\0",
}


@pytest.mark.parametrize("name", BOMBS)
def test_what_bounds_memory_holds_without_any_option(limited, unchanged, name):
    store = limited()
    with unchanged(), pytest.raises(LimitExceededError) as caught:
        store.register(BOMBS[name]())
    assert caught.value.option == name


def test_disassemble_has_the_default_limits():
    with pytest.raises(LimitExceededError) as caught:
        layerstore.disassemble(tarkit.with_pax_path("p" * 16385) + end(), io.BytesIO())
    assert caught.value.option == "max_path"
