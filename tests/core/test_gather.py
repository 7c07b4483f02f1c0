"""gather.c, and assemble.c that uses it: small files read by two threads are what one thread reads, errors and all."""

import ctypes
import functools
import hashlib
import itertools
import json
import os
import random
import shutil
import socket
import stat
import struct
import subprocess
import threading

import door
import pytest
import recipes
import sinks
from tarkit import dir, end, file
from test_source import assembled, copy, read, read_all

MIB = 1 << 20
NOISE = recipes.noise(MIB)
# One part of a file is 128 KiB: below, at and above it are different ways.
SIZES = {500: 100_000, 900: 1 << 17, 1300: (1 << 17) + 1, 1700: 700_000, 2100: 130_000}
FILES = {
    b"d%02d/%s%04d" % (n // 60, b"\xff\xfe" if n % 97 == 0 else b"f", n): NOISE[n : n + SIZES.get(n, n * 37 % 900)]
    for n in range(3000)
}
TAR = b"".join(dir(f"d{n:02}/") for n in range(50)) + b"".join(map(file, FILES, FILES.values())) + end()
DIGEST = hashlib.sha256(TAR).digest()
NAMES = list(FILES)
WAYS = ["read", "read much", "copy"]


@functools.cache
def record():
    return sinks.record(TAR)


@functools.cache
def starts():
    """Where each file's bytes begin in the tar."""
    return {line.name: line.tar_offset for line in sinks.lines(record()) if line.name}


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A tree that no test changes."""
    top = tmp_path_factory.mktemp("kept")
    for n in range(50):
        (top / f"d{n:02}").mkdir()
    for name, data in FILES.items():
        with open(os.fsencode(top) + b"/" + name, "wb") as out:
            out.write(data)
    return top


@pytest.fixture
def tree(kept, tmp_path):
    """One whose names may be changed, but not what is in a file: these are hard links."""
    subprocess.run(["cp", "-al", kept, tmp_path / "tree"], check=True)
    return tmp_path / "tree"


def give(source, way):
    """The bytes a source gives, and the error it gives then."""
    seen, steps = [], {"alone": 100_003, "read": MIB, "read much": len(TAR) + 1}
    try:
        if way in steps:
            while piece := read(source, steps[way]):
                seen.append(piece)
        else:
            with sinks.memory() as fd:
                try:
                    copy(source, fd)
                finally:
                    seen.append(sinks.content(fd))
    except door.CoreError as error:
        return b"".join(seen), error
    return b"".join(seen), None


def same(one, other):
    return (one.code, one.sys_errno, one.path, one.text) == (other.code, other.sys_errno, other.path, other.text)


def within_a_part(name):
    """It does not lie across the end of what is read at once, where a part of it is given before it is judged."""
    first, last = starts()[name], starts()[name] + len(FILES[name]) - 1
    return len(FILES[name]) > 1 and first >> 18 == last >> 18 and len(FILES[name]) <= 1 << 17


def near(n):
    return next(name for name in NAMES[n:] if within_a_part(name))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("digest", [DIGEST, None], ids=["verified", "not verified"])
def test_all_ways_give_the_tar(kept, way, digest):
    assert give(assembled(record(), kept, digest), way) == (TAR, None)


# ---- damage ------------------------------------------------------------------------------------------
def replaced(make):
    def damage(path):
        os.unlink(path)
        make(path)

    return damage


def bind_socket(path):
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(path)


def written(change):
    def damage(path):
        with open(path, "rb") as f:
            data = f.read()
        os.unlink(path)
        with open(path, "wb") as f:
            f.write(change(data))

    return damage


DAMAGES = {
    "gone": os.unlink,
    "its directory is gone": lambda path: shutil.rmtree(os.path.dirname(path)),
    "its directory is a file": lambda path: (shutil.rmtree(os.path.dirname(path)), open(os.path.dirname(path), "wb").close()),
    "a link to itself, moved": lambda path: (os.rename(path, path + b"-"), os.symlink(os.path.basename(path) + b"-", path)),
    "a link out": replaced(lambda path: os.symlink("/etc/passwd", path)),
    "a fifo": replaced(os.mkfifo),
    "a socket": replaced(bind_socket),
    "a directory": replaced(os.mkdir),
    "a whiteout": replaced(lambda path: os.mknod(path, stat.S_IFCHR, 0)),
    "zeros without end": replaced(lambda path: os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))),
    "a block device": replaced(lambda path: os.mknod(path, stat.S_IFBLK | 0o666, os.makedev(7, 250))),
    "longer": written(lambda data: data + b"!"),
    "shorter": written(lambda data: data[:-1]),
    "empty": written(lambda data: b""),
    "another first byte": written(lambda data: bytes([data[0] ^ 1]) + data[1:]),
    "another last byte": written(lambda data: data[:-1] + bytes([data[-1] ^ 1])),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_the_error_it_is_to_one_thread_after_all_bytes_before_it(tree, damage, way):
    name = near(2110)
    DAMAGES[damage](os.fsencode(tree) + b"/" + name)
    # What removes a directory damages the first file in it.
    first = next(n for n in NAMES if len(FILES[n]) > 0 and (n == name or ("directory is" in damage and n[:4] == name[:4])))
    _, plain = give(assembled(record(), tree, DIGEST), "alone")
    source = assembled(record(), tree, DIGEST)
    seen, error = give(source, way)
    assert error is not None and same(error, plain), (error, plain)
    assert error.path == first
    assert seen == TAR[: starts()[first]]
    again, error = give(source, way)
    assert again == b"" and same(error, plain)


def opens_of(directory):
    """Watches a directory: a function that gives the names opened in it so far."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.inotify_init1(os.O_NONBLOCK)
    assert fd >= 0 and libc.inotify_add_watch(fd, os.fsencode(directory), 0x20) >= 0    # IN_OPEN

    def names():
        found, data = set(), b""
        try:
            while True:
                data += os.read(fd, 1 << 16)
        except BlockingIOError:
            pass
        at = 0
        while at < len(data):
            _, _, _, n = struct.unpack_from("iIII", data, at)
            found.add(data[at + 16 : at + 16 + n].rstrip(b"\0"))
            at += 16 + n
        os.close(fd)
        return found

    return names


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("plant", ["a fifo", "zeros without end", "a block device", "a link out"])
def test_what_was_planted_is_not_even_opened(tree, plant, way):
    name = near(2110)
    DAMAGES[plant](os.fsencode(tree) + b"/" + name)
    opened = opens_of((tree / os.fsdecode(name)).parent)
    assert give(assembled(record(), tree), way)[1].path == name
    names = opened()
    assert os.path.basename(NAMES[NAMES.index(name) - 1]) in names
    assert os.path.basename(name) not in names


@pytest.mark.parametrize("way", WAYS)
def test_of_many_damaged_files_the_first_is_named_however_slow_it_is(tree, way):
    """The first is seen to be wrong when it has been read whole; those behind it right away."""
    slow, place = NAMES[2100], 2100
    DAMAGES["another last byte"](os.fsencode(tree) + b"/" + slow)
    for name in NAMES[place + 1 : place + 60]:
        os.unlink(os.fsencode(tree) + b"/" + name)
    for _ in range(20):
        seen, error = give(assembled(record(), tree, DIGEST), way)
        assert error.path == slow
        assert starts()[slow] <= len(seen) < starts()[slow] + len(FILES[slow])
        assert TAR.startswith(seen[: starts()[slow]])


def cut(name):
    """The record up to name's line, and then no JSON."""
    lines = record().splitlines(keepends=True)
    at = next(i for i, line in enumerate(lines) if json.loads(line).get("name", "").encode() == name)
    return b"".join(lines[:at]) + b"}"


@pytest.mark.parametrize("way", WAYS)
def test_a_bad_record_comes_after_the_files_before_it(tree, way):
    name, later = near(2110), near(2125)
    seen, error = give(assembled(cut(later), tree), way)
    assert error.code == "LAY_E_SPLIT"
    assert seen == TAR[: starts()[later]]
    os.unlink(os.fsencode(tree) + b"/" + name)
    seen, error = give(assembled(cut(later), tree), way)
    assert (error.code, error.path) == ("LAY_E_MISMATCH", name)
    assert seen == TAR[: starts()[name]]


@pytest.mark.parametrize("way", WAYS)
def test_after_an_error_a_seek_goes_anywhere(tree, way):
    name = near(2110)
    os.unlink(os.fsencode(tree) + b"/" + name)
    bad, after = starts()[name], starts()[name] + len(FILES[name])
    source = assembled(record(), tree, DIGEST)
    for offset in (after, after + 1, bad - 700, len(TAR) - 5000, 0, after + 300_000):
        give(source, way)
        door.call("lay_source_seek", source, offset)
        assert door.lib.lay_source_tell(source) == offset
        assert read(source, 900) == TAR[offset : offset + 900][: max(bad - offset, 0) if offset <= bad else 900]
        door.call("lay_source_seek", source, offset)
        expected = TAR[offset : bad if offset <= bad else None]
        seen, error = give(source, way)
        assert (seen, error is not None) == (expected, offset <= bad)
        door.call("lay_source_seek", source, 0)
    (tree / os.fsdecode(name)).write_bytes(FILES[name])
    door.call("lay_source_seek", source, 0)
    assert give(source, way) == (TAR, None)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("length", [5000, 200_000])
def test_a_name_too_long_to_keep_is_read_in_its_turn(kept, way, length):
    """A record may name "d00/f0001" with any number of "./" before it."""
    name = near(2110)
    lines = record().splitlines()
    for i, line in enumerate(map(json.loads, lines)):
        if line.get("name", "").encode() == name:
            lines[i] = json.dumps({**line, "name": "./" * (length // 2) + line["name"]}).encode()
    assert give(assembled(b"\n".join(lines), kept, DIGEST), way) == (TAR, None)


@pytest.mark.parametrize("way", WAYS)
def test_files_that_come_and_go_meanwhile_give_their_bytes_or_an_error(tree, way):
    """Whatever is given is the tar's; only names that were moved about are ever named."""
    over = threading.Event()
    moved = [name for name in NAMES[200:2900:40] if within_a_part(name)]
    others = os.fsencode(tree) + b"-other"

    def move():
        dice = random.Random(7)
        makers = itertools.cycle([os.mkfifo, lambda path: os.symlink("/etc/passwd", path),
                                  lambda path: open(path, "wb").close(), os.mkdir])    # fmt: skip
        while not over.is_set():
            path = os.fsencode(tree) + b"/" + dice.choice(moved)
            next(makers)(others)
            for _ in range(2):
                # RENAME_EXCHANGE: there is something at each moment
                assert ctypes.CDLL(None).renameat2(-100, path, -100, others, 2) == 0
            (os.rmdir if os.path.isdir(others) and not os.path.islink(others) else os.unlink)(others)

    thread = threading.Thread(target=move)
    thread.start()
    try:
        for _ in range(12):
            seen, error = give(assembled(record(), tree, DIGEST), way)
            assert TAR.startswith(seen)
            if error is not None:
                assert error.path in moved
                assert len(seen) == starts()[error.path]
    finally:
        over.set()
        thread.join()
    assert give(assembled(record(), tree, DIGEST), way) == (TAR, None)


# ---- the list itself -----------------------------------------------------------------------------------
class Gather:
    """A lay_gather, a buffer that takes what it reads, and a hand for each of two threads."""

    def __init__(self, root_fd):
        self.gather = door.make("lay_gather_open", "lay_gather *", root_fd)
        self.buffer, self.at = door.ffi.new("uint8_t[]", 4 * MIB), 0
        self.hands = [door.ffi.new("lay_hand *", {"parent": {"fd": -1}}) for _ in range(2)]

    def add(self, name, data, size=None):
        ffi, memory = door.ffi, door.ffi.from_buffer(name)
        crc = door.lib.lay_crc64_plain(0, data, len(data))
        size = len(data) if size is None else size
        file = ffi.new("lay_payload *", {"name": memory, "name_len": len(name), "size": size, "has_crc": True, "crc": crc})
        news = ffi.new("bool *")
        added = door.lib.lay_gather_add(self.gather, file, self.buffer + self.at, self.at, news)
        self.at += len(data) if added else 0
        return added, news[0]

    def help(self):
        return door.lib.lay_gather_help(self.gather, self.hands[1])

    def end(self):
        at = door.ffi.new("size_t *", 77)
        try:
            door.call("lay_gather_end", self.gather, self.hands[0], at)
        finally:
            self.failed_at = at[0]

    def content(self):
        return bytes(door.ffi.buffer(self.buffer, self.at))

    def close(self):
        for hand in self.hands:
            door.lib.lay_hand_free(hand)


@pytest.fixture
def gather(kept):
    with sinks.directory(kept) as root_fd:
        made = Gather(root_fd)
        yield made
        made.close()


SMALL = [(name, data) for name, data in FILES.items() if 0 < len(data) < 1000]


def test_a_helper_reads_what_was_handed_over_and_the_end_reads_the_rest(gather):
    news = [gather.add(*pair)[1] for pair in SMALL[:20]]
    assert [i for i, said in enumerate(news) if said] == [7, 15]
    expected = b"".join(data for _, data in SMALL[:20])
    ready = sum(len(data) for _, data in SMALL[:16])
    while gather.help():
        pass
    assert gather.content()[:ready] == expected[:ready]
    assert not any(gather.content()[ready:])
    gather.end()
    assert gather.content() == expected
    assert not gather.help()


def test_it_is_full_until_an_end_and_a_name_may_be_too_long_for_it(gather):
    added = sum(1 for _ in itertools.takewhile(lambda pair: gather.add(*pair)[0], SMALL))
    assert 100 < added < len(SMALL)
    assert not gather.add(*SMALL[0])[0]
    gather.end()
    assert gather.content() == b"".join(data for _, data in SMALL[:added])
    assert gather.add(*SMALL[0])[0]
    assert not gather.add(b"./" * 100_000 + SMALL[0][0], SMALL[0][1])[0]
    gather.end()


def test_names_fill_it_too(gather):
    long = b"./" * 10_000
    added = sum(1 for _ in itertools.takewhile(lambda pair: gather.add(long + pair[0], pair[1])[0], SMALL))
    assert 1 < added < 100
    gather.end()
    assert gather.content() == b"".join(data for _, data in SMALL[:added])


def test_the_first_that_was_added_is_the_one_that_failed(gather):
    for n, (name, data) in enumerate(SMALL[:60]):
        gather.add(name if n not in (33, 20, 50) else name + b"-gone", data)
    with door.fails("LAY_E_MISMATCH") as errors:
        gather.end()
    assert errors[0].path == SMALL[20][0] + b"-gone"
    assert gather.failed_at == sum(len(data) for _, data in SMALL[:20])
    gather.at = 0
    gather.add(*SMALL[0])
    gather.end()
    assert gather.content() == SMALL[0][1]


def test_a_name_that_leaves_the_tree_is_refused(gather):
    gather.add(b"d00/../../x", b"abc")
    with door.fails("LAY_E_MISMATCH") as errors:
        gather.end()
    assert "outside" in errors[0].text


def test_two_threads_read_what_one_would(gather):
    """Round after round; a file is gone in some, and then it is the one that is named."""
    over, dice = threading.Event(), random.Random(3)

    def help_on():
        while not over.is_set():
            gather.help()

    helper = threading.Thread(target=help_on)
    helper.start()
    try:
        for turn in range(60):
            files = SMALL[turn * 20 : turn * 20 + 500]
            gone = set(dice.sample(range(len(files)), 3)) if turn % 3 == 0 else set()
            gather.at = 0
            for n, (name, data) in enumerate(files):
                gather.add(name + b"-" if n in gone else name, data)
            expected = b"".join(data for _, data in files)
            if gone:
                with door.fails("LAY_E_MISMATCH") as errors:
                    gather.end()
                assert errors[0].path == files[min(gone)][0] + b"-"
                assert gather.failed_at == sum(len(data) for _, data in files[: min(gone)])
                expected = expected[: gather.failed_at]
            else:
                gather.end()
            assert gather.content()[: len(expected)] == expected
    finally:
        over.set()
        helper.join()


def test_no_descriptor_is_left_open(kept):
    before = sorted(os.listdir("/proc/self/fd"))
    for way in WAYS:
        source = assembled(record(), kept, DIGEST)
        give(source, way)
        read_all(source)
        del source
    assert sorted(os.listdir("/proc/self/fd")) == before
