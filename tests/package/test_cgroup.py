"""disk/cgroup.py: a group stands still for the length of a block, and never longer, whatever comes into it."""

import errno
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import disk
import pytest

import layerstore
from layerstore.disk import cgroup

SOURCE = str(Path(layerstore.__file__).parents[1])
COUNT = "import os, sys\nfd, n = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY), 0\nwhile True:\n    n += 1\n    os.pwrite(fd, b'%20d' % n, 0)\n"


@pytest.fixture(scope="module")
def groups(tmpfs: Path) -> Iterator[Path]:
    """A cgroup v2 hierarchy, and in it a group of our own."""
    place = Path(tempfile.mkdtemp(prefix="cgroup-", dir=tmpfs))
    disk.mount("cgroup2", place, "cgroup2")
    own = Path(tempfile.mkdtemp(prefix="layerstore-test-", dir=place))
    yield own
    own.rmdir()
    disk.unmount(place)


@pytest.fixture
def group(groups: Path) -> Iterator[Path]:
    path = groups / "box"
    path.mkdir()
    yield path
    if path.exists():
        (path / "cgroup.freeze").write_text("0")
        (path / "cgroup.kill").write_text("1")
        until = time.monotonic() + 20
        for place in sorted(path.rglob("*"), reverse=True):
            if place.is_dir():
                place.rmdir()
        while path.exists():
            try:
                path.rmdir()
            except OSError:
                assert time.monotonic() < until
                time.sleep(0.01)


def begin(group: Path, *command: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(command)
    (group / "cgroup.procs").write_text(str(process.pid))
    return process


@pytest.fixture
def counter(group: Path, room: Path) -> Iterator[Callable[[], int]]:
    """A process in the group that writes; what it has counted to."""
    with begin(group, sys.executable, "-c", COUNT, str(room / "n")) as process:
        until = time.monotonic() + 20
        while not ((room / "n").exists() and (room / "n").stat().st_size) and time.monotonic() < until:
            time.sleep(0.01)
        yield lambda: int((room / "n").read_text())
        (group / "cgroup.freeze").write_text("0")
        process.kill()


def asked(group: Path) -> str:
    return (group / "cgroup.freeze").read_text().strip()


def stands_still(read: Callable[[], int]) -> bool:
    before = read()
    time.sleep(0.1)
    return read() == before


def test_processes_stand_still_for_the_length_of_the_block(group: Path, counter: Callable[[], int]) -> None:
    assert not stands_still(counter)
    began = time.monotonic()
    with cgroup.frozen(str(group)):
        assert time.monotonic() - began < 5
        assert stands_still(counter)
        assert "frozen 1" in (group / "cgroup.events").read_text()
    assert asked(group) == "0"
    assert not stands_still(counter)


def test_processes_of_groups_below_stand_still_too(group: Path, counter: Callable[[], int]) -> None:
    (group / "below").mkdir()
    (group / "below/cgroup.procs").write_text((group / "cgroup.procs").read_text().strip())
    with cgroup.frozen(str(group)):
        assert stands_still(counter)
    assert not stands_still(counter)


def test_an_empty_group_is_frozen_at_once(group: Path) -> None:
    with cgroup.frozen(str(group)):
        assert asked(group) == "1"
    assert asked(group) == "0"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_whatever_ends_the_block_thaws_it(group: Path, counter: Callable[[], int], error: type[BaseException]) -> None:
    with pytest.raises(error):
        with cgroup.frozen(str(group)):
            raise error
    assert asked(group) == "0"
    assert not stands_still(counter)


def test_a_group_that_was_frozen_stays_frozen(group: Path, counter: Callable[[], int]) -> None:
    (group / "cgroup.freeze").write_text("1")
    with cgroup.frozen(str(group)):
        assert stands_still(counter)
    assert asked(group) == "1"
    assert stands_still(counter)


def test_a_group_below_a_frozen_one_stays_frozen(groups: Path, group: Path, counter: Callable[[], int]) -> None:
    (groups / "cgroup.freeze").write_text("1")
    try:
        with cgroup.frozen(str(group)):
            pass
        assert stands_still(counter)
    finally:
        (groups / "cgroup.freeze").write_text("0")
    assert not stands_still(counter)


def test_two_blocks_of_one_group_come_one_after_the_other(group: Path, counter: Callable[[], int]) -> None:
    still: list[bool] = []

    def freeze() -> None:
        with cgroup.frozen(str(group)):
            still.append(stands_still(counter))

    threads = [threading.Thread(target=freeze) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert still == [True] * 3
    assert asked(group) == "0"


def test_a_group_that_is_removed_in_the_block_is_no_error(group: Path) -> None:
    with cgroup.frozen(str(group)):
        group.rmdir()


# ---- interrupts ----
# Files that an interrupt takes from who was opening them close themselves, with a warning.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_at_any_moment_leaves_nothing_frozen(group: Path) -> None:
    """A signal's handler raises somewhere between the first line and the last."""
    main, r, hits = threading.get_ident(), random.Random(3), 0

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, interrupt)
    open_before = disk.open_files()
    try:
        for _ in range(400):
            delay = r.random() * 0.002
            sender = threading.Thread(target=lambda delay=delay: (time.sleep(delay), signal.pthread_kill(main, signal.SIGUSR1)))
            try:
                sender.start()
                try:
                    with cgroup.frozen(str(group)):
                        time.sleep(0.0003)
                finally:
                    assert asked(group) == "0"
                sender.join()
                time.sleep(0.01)
            except KeyboardInterrupt:
                hits += 1
            sender.join()
            assert asked(group) == "0"
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert hits > 300
    assert len(disk.open_files()) <= len(open_before) + 1


@pytest.mark.parametrize("inside", ["time.sleep(30)", "import subprocess; subprocess.run(['sleep', '30'])"])
def test_ctrl_c_thaws(group: Path, counter: Callable[[], int], inside: str) -> None:
    code = f"import sys, time\nfrom layerstore.disk import cgroup\nwith cgroup.frozen(sys.argv[1]):\n    print('in', flush=True)\n    {inside}\n"
    with subprocess.Popen([sys.executable, "-c", code, str(group)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                          env={**os.environ, "PYTHONPATH": SOURCE}) as process:
        assert process.stdout is not None and process.stdout.readline() == b"in\n"
        assert asked(group) == "1"
        process.send_signal(signal.SIGINT)
        assert process.wait(20) != 0
    assert asked(group) == "0"
    assert not stands_still(counter)


# ---- what cannot be frozen ----
@pytest.fixture
def stuck(group: Path, room: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process in the group that waits for a disk, where no signal and no freezer reaches it."""
    with disk.sized_file_system(room, "ext4", size=16 << 20) as place:
        subprocess.run(["fsfreeze", "-f", place], check=True)
        try:
            with begin(group, sys.executable, "-c", f"open({str(place / 'f')!r}, 'w').write('x')") as process:
                until = time.monotonic() + 20
                while " D " not in Path(f"/proc/{process.pid}/stat").read_text() and time.monotonic() < until:
                    time.sleep(0.01)
                yield process
                subprocess.run(["fsfreeze", "-u", place], check=True)
        except BaseException:
            subprocess.run(["fsfreeze", "-u", place], check=False)
            raise


def test_a_process_that_does_not_stop_is_etimedout_and_nothing_stays_frozen(group: Path, stuck: subprocess.Popen[bytes]) -> None:
    began = time.monotonic()
    with pytest.raises(OSError, match="not frozen after") as caught:
        with cgroup.frozen(str(group), timeout=0.3):
            raise AssertionError
    assert 0.25 < time.monotonic() - began < 5
    assert (caught.value.errno, caught.value.filename) == (errno.ETIMEDOUT, str(group))
    assert asked(group) == "0"


def test_ctrl_c_while_it_waits_thaws(group: Path, stuck: subprocess.Popen[bytes]) -> None:
    code = "import sys\nfrom layerstore.disk import cgroup\nprint('in', flush=True)\nwith cgroup.frozen(sys.argv[1]):\n    pass\n"
    with subprocess.Popen([sys.executable, "-c", code, str(group)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                          env={**os.environ, "PYTHONPATH": SOURCE}) as process:
        until = time.monotonic() + 20
        while asked(group) == "0" and time.monotonic() < until:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) != 0
    assert asked(group) == "0"


def pretend(room: Path) -> Path:
    (room / "cgroup.freeze").write_text("0\n")
    (room / "cgroup.events").write_text("frozen 1\n")
    (room / "cgroup.threads").write_text("")
    return room


@pytest.mark.parametrize("call", [cgroup.check, lambda path: cgroup.frozen(path).__enter__()])
@pytest.mark.parametrize(
    "what, number",
    [("pretend", errno.EINVAL), ("missing", errno.ENOENT), ("file", errno.ENOTDIR), ("root", errno.EINVAL)],
)
def test_what_is_no_group_is_an_error_that_names_it(groups: Path, room: Path, call: Callable[[str], None], what: str, number: int) -> None:
    path = {"pretend": pretend(room), "missing": room / "gone", "file": groups / "cgroup.procs", "root": groups.parent}[what]
    with pytest.raises(OSError) as caught:
        call(str(path))
    assert (caught.value.errno, caught.value.filename) == (number, str(path))
    assert (room / "cgroup.freeze").read_text() == "0\n"


@pytest.mark.parametrize("where", ["", "below", "below/deeper"])
@pytest.mark.parametrize("call", ["cgroup.check(path)", "cgroup.frozen(path).__enter__()"])
def test_a_group_with_ourselves_in_it_is_a_value_error(group: Path, where: str, call: str) -> None:
    (group / where).mkdir(parents=True, exist_ok=True)
    code = (
        "import os, sys\nfrom layerstore.disk import cgroup\npath, where = sys.argv[1:]\n"
        "with open(os.path.join(path, where, 'cgroup.procs'), 'w') as f: f.write(str(os.getpid()))\n"
        f"try:\n    {call}\nexcept ValueError as err:\n    print(err)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(group), where], capture_output=True, text=True, timeout=30,
                          env={**os.environ, "PYTHONPATH": SOURCE})
    assert str(group) in done.stdout and "this process itself" in done.stdout, done.stderr
    assert asked(group) == "0"


def test_check_changes_nothing(group: Path, counter: Callable[[], int]) -> None:
    cgroup.check(str(group))
    assert asked(group) == "0"
    assert not stands_still(counter)
