"""Shared ground of all tests: a fresh place on a tmpfs of our own, a store in it, a time limit.

Enters: the machine. Leaves: nothing; each test must release its mounts and descriptors, and the
session's end checks it again. Where root, overlay or xattrs are missing, tests that need them fail
if CI is set and say loudly that they are skipped otherwise.
"""

import contextlib
import faulthandler
import gc
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
if importlib.util.find_spec("layerstore") is None:
    sys.path.insert(0, str(HERE.parent / "src"))

import disk  # noqa: E402
import driven  # noqa: E402
from driven import DRIVER, FILES, LAYERDB  # noqa: E402
from soak import budget  # noqa: E402

from layerstore.disk import erofs  # noqa: E402

TIME_LIMIT_SECONDS = 60


if "LAYERSTORE_TEST_DRIVER" in os.environ:
    driven.choose()
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE / "began"), os.environ.get("PYTHONPATH", "")]))


def _what_is_missing() -> list[str]:
    """What of root, tmpfs, overlay and xattrs this machine cannot do; tried, not guessed."""
    missing = []
    if os.geteuid() != 0:
        return ["root"]
    with tempfile.TemporaryDirectory(prefix="layerstore-probe-") as place:
        try:
            disk.mount("tmpfs", place, "tmpfs")
        except OSError as error:
            return [f"mounting a tmpfs ({error.strerror})"]
        try:
            low, up, work, merged = (os.path.join(place, name) for name in "luwm")
            for path in (low, up, work, merged):
                os.mkdir(path)
            for name in ("user.layerstore", "trusted.layerstore"):
                try:
                    os.setxattr(up, name, b"y")
                except OSError as error:
                    missing.append(f"{name.split('.')[0]} xattrs on tmpfs ({error.strerror})")
            try:
                os.mknod(os.path.join(low, "null"), 0o600 | 0o020000, os.makedev(1, 3))
            except OSError as error:
                missing.append(f"mknod ({error.strerror})")
            try:
                disk.mount("overlay", merged, "overlay", 0, f"lowerdir={low},upperdir={up},workdir={work}")
            except OSError as error:
                missing.append(f"overlay on tmpfs ({error.strerror})")
        finally:
            disk.unmount_below(place)
            disk.unmount(place)
    return missing


MISSING = _what_is_missing()


def _hear_signals():
    """What a shell without job control begins beside itself ignores Ctrl-C, and so would every program that tests begin and
    interrupt. A handler of Python's is no other program's: there the signal does again what it does."""
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else lambda *_: None)


def pytest_configure(config):
    _hear_signals()
    config.addinivalue_line("markers", "time_limit(seconds): how long this test may take")
    config.addinivalue_line("markers", "only(driver, reason): it is about what this driver alone has")
    config.addinivalue_line("markers", "own_sanitizers: runs a program that is built with them, whatever the door is")
    config.addinivalue_line("markers", "soak(seconds, whole): it may take so long in `make test`, and in `make soak`, where it goes on for longer")


def pytest_collection_modifyitems(items):
    for item in items:
        only = item.get_closest_marker("only")
        if only and only.args[0] != DRIVER:
            item.add_marker(pytest.mark.skip(reason=f"of {only.args[0]} alone: {only.args[1]}"))


def pytest_report_header(config):
    can = "all" if not MISSING else "NOT " + ", ".join(MISSING)
    kernel = os.uname().release
    return f"host: kernel {kernel}, {os.cpu_count()} cpus; root, tmpfs, overlay, xattrs: {can}"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item):
    """How long each test takes, fixtures and all, for .ci/tests: lines of a file."""
    began = time.monotonic()
    yield
    if times := os.environ.get("LAYERSTORE_TEST_TIMES"):
        with open(times, "a") as out:
            out.write(f"{time.monotonic() - began:7.2f}  {item.nodeid} {os.environ.get('LAYERSTORE_SANITIZE', '')}\n")


@pytest.fixture(autouse=True)
def time_limit(request):
    """Stop a test that hangs: an alarm first, the whole run if not even that gets through."""
    seconds = next((mark.args for name in ("time_limit", "soak") if (mark := request.node.get_closest_marker(name))), (TIME_LIMIT_SECONDS,))
    seconds = budget(seconds[0], seconds[-1])

    def too_long(signum, frame):
        raise TimeoutError(f"this test took longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    faulthandler.dump_traceback_later(seconds + 30, exit=True, file=sys.__stderr__)
    yield
    faulthandler.cancel_dump_traceback_later()
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="session")
def tmpfs():
    """A tmpfs of our own, mounted for this session."""
    if MISSING:
        reason = f"NOT TESTED: it takes {', '.join(MISSING)}, which are not here (under CI this fails)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        print(f"\nSKIPPED, NOT TESTED: {reason}", file=sys.__stderr__)
        pytest.skip(reason)
    disk.leave_mount_namespace()
    place = Path(tempfile.mkdtemp(prefix="layerstore-tests-"))
    disk.mount("tmpfs", place, "tmpfs", 0, "mode=755")
    yield place
    left = disk.unmount_below(place)
    held = [f"{fd}: {what}" for fd, what in disk.open_files().items() if str(place) in what]
    disk.unmount(place)
    place.rmdir()
    assert not left, f"mounts left at the end: {left}"
    assert not held, f"descriptors left at the end: {held}"


@pytest.fixture
def room(tmpfs):
    """A fresh directory on the tmpfs. Fails the test that leaves a mount or a descriptor behind."""
    gc.collect()
    gc.freeze()     # what is there already is not the test's, and there is more of it with each test: no need to look at it again
    before = disk.open_files()
    place = Path(tempfile.mkdtemp(prefix="room-", dir=tmpfs))
    place.chmod(0o755)
    yield place
    gc.collect()
    now = disk.open_files().items()
    held = {fd: what for fd, what in now if before.get(fd) != what and not _harmless(what)}
    mounts = disk.unmount_below(place)
    disk.remove_tree(place)
    assert not mounts, f"mounts left behind: {mounts}"
    assert not held, f"descriptors left behind: {held}"


def _harmless(what: str) -> bool:
    """Descriptors that Python itself opens once and keeps."""
    return what.startswith(("/dev/", "/usr/", "/proc/")) or what == "anon_inode:[eventpoll]"


@pytest.fixture
def mounted(room):
    """Mount a file system for the length of the test; return its directory, which is made here."""
    with contextlib.ExitStack() as stack:

        def mount(kind, options):
            place = Path(tempfile.mkdtemp(prefix="mounted-", dir=room))
            subprocess.run(["mount", "-t", kind, "-o", options, "none", place], check=True)
            stack.callback(disk.unmount, place)
            return place

        yield mount


@pytest.fixture
def root(room):
    """Where a store's data root goes; not made yet."""
    return room / "docker"


@pytest.fixture
def open_store(root):
    """Open a store (here, or on any root); all of them are closed at the end, mounts detached."""
    import layerstore

    with contextlib.ExitStack() as stack:

        def opened(where=None, **options):
            store = layerstore.Store(where or root, **options)
            stack.callback(store.close)
            return store

        yield opened


@pytest.fixture
def store(open_store):
    return open_store()


@pytest.fixture
def images(store):
    import layerstore

    return layerstore.Images(store)


@pytest.fixture
def nothing_left(store, root):
    """`with nothing_left():` the store has afterwards the paths it had before, and no process holds anything new."""
    made_once = {f"{LAYERDB}/tmp", f"{LAYERDB}/sha256"}

    @contextlib.contextmanager
    def watched():
        before, held = disk.inventory(root) - made_once, dict(store._engine.holds._counts)
        yield
        assert disk.inventory(root) - made_once == before
        assert store._engine.holds._counts == held

    return watched


@pytest.fixture
def victim(room):
    """A directory outside the store with a file and a link in it, and the proof that nothing touched it."""
    place = room / "victim"
    place.mkdir()
    (place / "hello").write_text(disk.OUTSIDE)
    (place / "sub").mkdir()
    (place / "link").symlink_to("hello")
    before = disk.disk_state(place, times=True)
    yield place
    assert disk.changed(before, disk.disk_state(place, times=True)) == []


@pytest.fixture
def unchanged(root):
    """`with unchanged():` the store's directories hold afterwards exactly what they held before."""

    @contextlib.contextmanager
    def watched(where=None):
        where = where or root
        before = disk.disk_state(where)
        yield
        assert disk.changed(before, disk.disk_state(where)) == []

    return watched


@pytest.fixture
def diff_of(root, room):
    """The directory of the files of a layer (or of a cache or mount ID); of an image, a mount of it beside the store."""
    with contextlib.ExitStack() as stack:

        def find(layer):
            home = root / DRIVER / getattr(layer, "cache_id", layer)
            if not (home / "layer.erofs").exists():
                return home / FILES
            place = Path(tempfile.mkdtemp(prefix="shown-", dir=room))
            with (home / "layer.erofs").open("rb") as file:
                erofs.mount_file([erofs.File(file.fileno(), file.name)], str(place), "loop")
            stack.callback(disk.unmount, place)
            return place

        yield find


@pytest.fixture
def layerdb(root):
    return root / LAYERDB


@pytest.fixture
def db_of(layerdb):
    """The directory of a layer (or of a ChainID) in the layerdb."""
    return lambda layer: layerdb / "sha256" / getattr(layer, "chain_id", layer).encoded


@pytest.fixture
def stuck(diff_of):
    """Make a layer's directory one that cannot be removed; undone at the end."""
    paths = []

    def stick(layer):
        path = diff_of(layer) / "a"
        disk.immutable(path, True)
        paths.append(path)
        return lambda: (disk.immutable(path, False), paths.remove(path))

    yield stick
    for path in paths:
        disk.immutable(path, False)
