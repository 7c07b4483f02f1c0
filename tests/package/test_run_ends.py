"""RWLayer.run(): whatever happens, no process, no mount, no mount point and no descriptor is left when it is over."""

import asyncio
import contextlib
import errno
import gc
import itertools
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
import traceback

import disk
import pytest
import sandboxes

import layerstore
import layerstore.aio
from layerstore.running import bubblewrap, command
from layerstore.running.sandbox import run_in

_marks = itertools.count(int(time.time()) % 100_000 * 1000)


@pytest.fixture
def box(store):
    return store.create_rw_layer("box", store.register(sandboxes.layer_tar()))


@pytest.fixture
def mark():
    """Seconds to sleep that no other process of this machine sleeps."""
    found = f"6{next(_marks)}"
    yield found
    assert gone(found)


def descriptors():
    return sorted(disk.open_files().values())


def gone(mark, seconds=0.0):
    until = time.monotonic() + seconds
    while sandboxes.processes_with(mark):
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


@pytest.fixture
def clean(box, root):
    """`with clean(): ...` leaves no child, no descriptor, no mount, and no change of the box."""

    @contextlib.contextmanager
    def watched():
        before = descriptors(), disk.mounts_below(root), [str(each) for each in box.changes()]
        yield
        assert sandboxes.children() == []
        assert sandboxes.processes_with(str(root)) == []
        assert (descriptors(), disk.mounts_below(root), [str(each) for each in box.changes()]) == before

    return watched


LEFT = {
    "in the background": "sleep {0} &",
    "with closed pipes": "sleep {0} >/dev/null 2>&1 </dev/null &",
    "in a session of its own": "setsid sleep {0} &",
    "forked twice": "(setsid sh -c 'sleep {0} & sleep {0} &' &) &",
    "deaf to signals": "sh -c 'trap \"\" HUP TERM INT; sleep {0}; sleep {0}' &",
    "a crowd": "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do sleep {0} & done",
    "in another user namespace": "unshare -Upf sleep {0} & sleep 0.1",
    "as another user": "su joe -c 'sleep {0} &'",
}


@pytest.mark.parametrize("how", LEFT)
def test_what_the_command_leaves_running_is_killed(box, clean, mark, how):
    with clean():
        began = time.monotonic()
        done = box.run(["sh", "-c", LEFT[how].format(mark) + "\necho done"])
        assert (done.stdout, done.returncode) == (b"done\n", 0)
        assert time.monotonic() - began < 10
        assert gone(mark)


def test_a_fork_bomb_is_over_with_its_command(box, clean, mark):
    script = f"f() {{ sleep {mark} & sleep {mark} & }}; for i in $(seq 100); do f; done; echo done"
    with clean():
        assert box.run(["sh", "-c", script]).stdout == b"done\n"
        assert gone(mark)


@pytest.mark.time_limit(120)
def test_two_hundred_runs_leave_nothing(box, clean):
    box.run(["true"])
    threads = threading.active_count()
    with box.mounted(), clean():
        for _ in range(200):
            box.run(["sh", "-c", "sleep 50 & exec true"], check=True)
    assert threading.active_count() == threads
    with clean():
        for _ in range(20):
            box.run(["true"], check=True)


@pytest.mark.parametrize("script", ["sleep {0}", "sleep {0} & sleep {0}", "trap '' INT TERM; sleep {0}; sleep {0}", "yes | head -c 100000000 | wc -c; yes {0}"])
def test_ctrl_c_ends_it(box, clean, mark, script):
    with clean():
        timer = threading.Timer(0.4, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            box.run(["sh", "-c", script.format(mark)])
        assert gone(mark)
        timer.join()


def interrupted_anywhere(act, check, step=1):
    """Do an act again and again, with a KeyboardInterrupt at the entry of one function after the other that it enters."""

    def at_entry(number):
        entered = itertools.count(1)

        def enter(_frame, event, _arg):
            if event == "call" and next(entered) == number:
                sys.setprofile(None)
                raise KeyboardInterrupt

        return enter

    for number in range(1, 100_000, step):
        try:
            sys.setprofile(at_entry(number))
            act()
            sys.setprofile(None)
            return number
        except KeyboardInterrupt:
            sys.setprofile(None)
        check(number)
    return 0


@pytest.mark.time_limit(120)
def test_an_interrupt_at_any_function_leaves_nothing(box, mark):
    """A signal's handler raises at the entry of a function. Here: at each one that is entered once the box is mounted."""
    told = command.checked(["sleep", "0.00" + mark], binds={"/mnt/x": "/usr"}, network=True, input=b"x")
    program = bubblewrap.find()
    with box.mounted() as path:
        before = descriptors()

        def check(number):
            gc.collect()
            assert (descriptors(), sandboxes.children(), sandboxes.processes_with(path)) == (before, [], []), number
            assert not os.path.exists(f"{path}/mnt") and not os.path.exists(f"{path}/proc"), number

        assert interrupted_anywhere(lambda: run_in(path, told, program), check) > 150


@pytest.mark.time_limit(120)
def test_an_interrupt_before_and_after_leaves_no_mount(box, root, monkeypatch):
    """At each function that mount() and unmount() enter, too. In a process of its own, as reading small files may leave some open."""
    monkeypatch.setattr(layerstore.rwlayer, "run_in", lambda *_: subprocess.CompletedProcess([], 0))

    def check(number):
        if left := disk.mounts_below(root):
            raise AssertionError(f"interrupted at {number}: {left}")

    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if interrupted_anywhere(lambda: box.run(["true"]), check) > 60 else 2
        except BaseException:
            traceback.print_exc()
        os._exit(code)
    assert os.waitpid(child, 0)[1] == 0


def test_a_time_limit_ends_it_at_any_moment(box, clean, mark):
    with clean():
        for i in range(40):
            with pytest.raises(subprocess.TimeoutExpired):
                box.run(["sleep", mark], timeout=i * 0.002)
            assert gone(mark)


@pytest.mark.time_limit(120)
def test_a_caller_that_is_killed_takes_its_processes_along(box, root, mark):
    """At any moment: while bubblewrap begins, before the command is started, while it runs."""
    draw = random.Random(12)
    with box.mounted():
        for i in range(60):
            child = os.fork()
            if child == 0:
                try:
                    while True:
                        box.run(["sh", "-c", f"setsid sleep {mark} & sleep {mark if i % 3 == 0 else 0}"])
                finally:
                    os._exit(1)
            time.sleep(draw.random() * 0.08)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            assert gone(mark, seconds=10), i
            assert gone(str(root), seconds=10), sandboxes.processes_with(str(root))


@pytest.mark.time_limit(90)
def test_a_caller_of_another_program_too(store, box, root, mark):
    code = "import sys, layerstore\nprint('ready', flush=True)\nlayerstore.Store(sys.argv[1]).get_rw_layer('box').run(['sh', '-c', 'setsid sleep %s & sleep %s' % (sys.argv[2], sys.argv[2])])"
    with sandboxes.caller(code, root, mark) as child:
        child.stdout.readline()
        until = time.monotonic() + 20
        while not any(line.endswith(f": sleep {mark} ") for line in sandboxes.processes_with(mark)) and time.monotonic() < until:
            time.sleep(0.01)
        child.kill()
    assert gone(mark, seconds=10)
    store.cleanup()
    assert disk.mounts_below(root) == []


@pytest.mark.parametrize("victim", ["bubblewrap", "pid 1", "the command"])
def test_a_part_of_it_that_is_killed_from_outside_ends_it(box, clean, root, mark, victim):
    def kill():
        until = time.monotonic() + 20
        while time.monotonic() < until:
            time.sleep(0.02)
            # Not before: the shell has written by then.
            if any(line.partition(": ")[2].startswith("sleep") for line in sandboxes.processes_with(mark)):
                parts = {"the command": mark, "pid 1": "/proc/self/fd/8", "bubblewrap": str(root)}
                for line in sandboxes.processes_with(parts[victim]):
                    pid, _, text = line.partition(": ")
                    if victim != "pid 1" or text.startswith("/proc/self/fd/8"):
                        os.kill(int(pid), signal.SIGKILL)
                return

    thread = threading.Thread(target=kill)
    with clean():
        thread.start()
        done = box.run(["sh", "-c", f"echo out; exec sleep {mark}"])
        thread.join()
        assert (done.returncode, done.stdout) == (137, b"out\n")


def test_too_few_descriptors_are_an_error_and_leave_nothing(box, clean):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with box.mounted() as path:
        told, program = command.checked(["true"], binds={"/mnt/x": "/usr"}, input=b"x"), bubblewrap.find()
        done = 0
        for more in range(100):
            with clean():
                resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) - 1 + more, hard))
                try:
                    done += run_in(path, told, program).returncode == 0
                except OSError as error:
                    assert error.errno in (errno.EMFILE, errno.EINVAL, errno.EBADF), more
                finally:
                    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                assert not os.path.exists(f"{path}/mnt") and not os.path.exists(f"{path}/proc"), more
            if done == 3:
                break
        assert done == 3


def test_others_that_wait_for_children_do_not_disturb_it(box, clean):
    """A program may ignore SIGCHLD, or have a thread that takes in every child."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with clean():
            for code in (0, 3, 9):
                assert box.run(["sh", "-c", f"sleep 0.02; exit {code}"]).returncode == code
    finally:
        signal.signal(signal.SIGCHLD, before)
    stop = threading.Event()

    def thief():
        while not stop.is_set():
            with contextlib.suppress(ChildProcessError):
                os.waitpid(-1, os.WNOHANG)
            time.sleep(0.0005)

    thread = threading.Thread(target=thief)
    thread.start()
    try:
        with clean():
            for code in (0, 3, 9):
                assert box.run(["sh", "-c", f"exit {code}"]).returncode == code
    finally:
        stop.set()
        thread.join()


def test_it_runs_in_any_thread_and_beside_forks(box, clean, mark):
    results = []
    thread = threading.Thread(target=lambda: results.append(box.run(["sh", "-c", "sleep 0.3; echo done"])))
    with clean():
        thread.start()
        time.sleep(0.1)
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        thread.join()                     # the child holds nothing of the box
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert results[0].stdout == b"done\n"


def test_a_process_that_has_the_pipe_outside_does_not_delay_it(box, mark):
    """Opened below /proc while the command runs, as another process of the machine may."""
    kept = []

    def keep():
        until = time.monotonic() + 20
        while not kept and time.monotonic() < until:
            for line in sandboxes.processes_with(f"sleep 0.7{mark}"):
                pid = line.split(":")[0]
                with contextlib.suppress(OSError):
                    if os.readlink(f"/proc/{pid}/root") == "/" and "pipe:" in os.readlink(f"/proc/{pid}/fd/1"):
                        kept.append(os.open(f"/proc/{pid}/fd/1", os.O_WRONLY))
            time.sleep(0.01)

    thread = threading.Thread(target=keep)
    thread.start()
    done = box.run(["sh", "-c", f"echo quick; exec sleep 0.7{mark}"], timeout=20)
    thread.join()
    os.close(kept[0])
    assert done.stdout == b"quick\n"


def test_holders_are_the_commands_and_not_this_process(box, mark):
    def run_for_a_while():
        with contextlib.suppress(subprocess.TimeoutExpired):
            box.run(["sh", "-c", f"cd /tmp; sleep {mark}; :"], binds={"/mnt/x": "/usr"}, timeout=2)

    with box.mounted():
        thread = threading.Thread(target=run_for_a_while)
        thread.start()
        until = time.monotonic() + 20
        while not [each for each in box.holders() if each.command == "sleep"] and time.monotonic() < until:
            time.sleep(0.01)
        holders = box.holders()
        assert {each.command for each in holders} == {"enter", "sh", "sleep"}
        assert os.getpid() not in [each.pid for each in holders]
        assert next(each for each in holders if each.command == "sleep").uses == ("root", "cwd", "map")
        thread.join()
        assert box.holders() == []


def test_a_box_that_others_entered_stays_mounted_and_says_so(box, root):
    with contextlib.ExitStack() as stack:
        def enter():
            time.sleep(0.3)
            (point,) = (point for point in disk.mounts_below(root) if point.endswith("/merged"))
            stack.enter_context(open(f"{point}/etc/passwd", "rb"))

        thread = threading.Thread(target=enter)
        thread.start()
        with pytest.raises(layerstore.ActiveMountError) as error:
            box.run(["sleep", "0.6"])
        thread.join()
        assert [holder.pid for holder in error.value.holders] == [os.getpid()]
        assert len([point for point in disk.mounts_below(root) if point.endswith("/merged")]) == 1
    box.unmount()
    assert disk.mounts_below(root) == []


def test_a_cancelled_task_ends_it(root, mark):
    async def main():
        async with layerstore.aio.Store(root) as store:
            box = await store.create_rw_layer("awaited", await store.register(sandboxes.layer_tar()))
            assert (await box.run(["echo", "hi"])).stdout == b"hi\n"
            running = [asyncio.ensure_future(box.run(["sleep", mark])) for _ in range(12)]
            assert (await asyncio.wait_for(box.run(["echo", "beside"]), 30)).stdout == b"beside\n"
            began = time.monotonic()
            for task in running:
                task.cancel()
            await asyncio.wait(running)
            assert all(task.cancelled() for task in running)
            assert time.monotonic() - began < 15
            assert gone(mark)
            assert disk.mounts_below(root) == []

    asyncio.run(main())
