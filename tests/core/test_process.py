"""process.c and ext/enter: a program that speaks as the first process of a namespace does, and the real one without a namespace."""

import errno
import os
import select
import signal
import socket
import struct
import sys
import time
from pathlib import Path

import door
import probe
import pytest

READY, ENDED, SETUP, USER, DIRECTORY, EXEC = 1, 2, 3, 4, 5, 6
GONE = -1
SPEAK = "import os, socket, struct, sys, time\ns = socket.socket(fileno=3)\ndef say(what, value=0): s.send(struct.pack('ii', what, value))\n"


def start(program, *argv, fds=()):
    words = [door.ffi.new("char[]", os.fsencode(word)) for word in (program, *argv)]
    numbers = [*fds, *[-1] * (3 - len(fds)), door.lib.LAY_PROCESS_CONTROL]
    made = door.out("lay_process **")
    door.call("lay_process_start", made, os.fsencode(program), door.ffi.new("char *[]", [*words, door.ffi.NULL]), door.ffi.new("int[]", numbers), len(numbers))
    return door.ffi.gc(made[0], door.lib.lay_process_free)


def speaking(code, *fds):
    return start(sys.executable, "-Ic", SPEAK + code, fds=fds)


def heard(process, seconds=20):
    """The next message."""
    what, value = door.out("int *"), door.out("int *")
    until = time.monotonic() + seconds
    while True:
        door.call("lay_process_next", process, what, value)
        if what[0] or time.monotonic() > until:
            return what[0], value[0]
        select.select([door.lib.lay_process_control(process)], [], [], 1)


def children():
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


@pytest.fixture(autouse=True)
def nothing_left():
    before = children(), sorted(os.listdir("/proc/self/fd"))
    yield
    assert (children(), sorted(os.listdir("/proc/self/fd"))) == before


def test_messages_come_in_order_and_the_end_is_told():
    process = speaking("say(1); s.recv(1); say(6, 2); say(2, 256); s.close()")
    assert heard(process) == (READY, 0)
    door.lib.lay_process_go(process)
    assert [heard(process) for _ in range(4)] == [(EXEC, 2), (ENDED, 256), (GONE, 0), (GONE, 0)]
    assert select.select([door.lib.lay_process_ended(process)], [], [], 20)[0]
    door.lib.lay_process_end(process)
    door.lib.lay_process_end(process)
    assert heard(process) == (GONE, 0)
    door.lib.lay_process_go(process)
    door.ffi.release(process)


def test_it_waits_for_the_word_and_sees_the_end_of_a_caller():
    read, write = os.pipe()
    process = speaking("say(1); os.write(1, b'%d' % len(s.recv(1)))", -1, write)
    os.close(write)
    assert heard(process) == (READY, 0)
    assert select.select([read], [], [], 0.1)[0] == []
    door.ffi.release(process)            # killed while it waits
    assert os.read(read, 10) == b""
    os.close(read)


@pytest.mark.parametrize("code", ["say(1); time.sleep(600)", "time.sleep(0.2); say(1); time.sleep(600)", "say(1); say(2); time.sleep(600)", "", "s.close()", "say(1); os.kill(os.getpid(), 9)", "sys.exit(1)"])
def test_ending_it_at_any_time_waits_until_it_is_gone(code):
    process = speaking(code)
    door.ffi.release(process)
    assert children() == []


def test_a_program_that_never_says_that_it_is_ready_is_killed_in_the_end():
    began = time.monotonic()
    door.ffi.release(speaking("time.sleep(600)"))
    assert 1 < time.monotonic() - began < 20


def test_the_first_process_is_followed_and_not_the_program():
    """The program forks: its child speaks, and is the one that is killed; the program sees that and ends."""
    read, write = os.pipe()
    code = "pid = os.fork()\nif pid:\n os.write(1, b'%d ' % os.waitpid(pid, 0)[1]); sys.exit()\nsay(1); time.sleep(600)"
    process = speaking(code, -1, write)
    os.close(write)
    assert heard(process) == (READY, 0)
    door.ffi.release(process)
    assert os.read(read, 10) == b"%d " % signal.SIGKILL
    os.close(read)


GIVEN = """
import signal
say(1)
os.write(1, repr([sorted(dict(os.environ).keys() - {"LC_CTYPE"}), os.getsid(0) == os.getpid(), signal.pthread_sigmask(0, []), signal.getsignal(signal.SIGUSR2)]).encode())
"""


def test_its_environment_and_signals_are_empty_and_its_session_is_its_own():
    read, write = os.pipe()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    ignored = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    try:
        process = speaking(GIVEN, -1, write)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        signal.signal(signal.SIGUSR2, ignored)
    os.close(write)
    assert heard(process) == (READY, 0)
    assert os.read(read, 10_000) == b"[[], True, set(), <Handlers.SIG_DFL: 0>]"
    door.ffi.release(process)
    os.close(read)


def test_descriptors_arrive_at_their_numbers_whatever_these_are_here():
    """Given crosswise: the copies must not meet."""
    files = [os.memfd_create(f"file-{i}") for i in range(3)]
    for i, fd in enumerate(files):
        os.write(fd, b"%d" % i)
    code = "say(1)\nfor i in range(3): os.pwrite(i, b'<%s>' % os.pread(i, 1, 0), 1)\nsay(2)"
    process = speaking(code, files[2], files[0], files[1])
    assert [heard(process)[0] for _ in range(2)] == [READY, ENDED]
    door.ffi.release(process)
    assert [os.pread(fd, 10, 0) for fd in files] == [b"0<0>", b"1<1>", b"2<2>"]
    for fd in files:
        os.close(fd)


def test_a_program_that_is_not_there_is_an_error():
    for program, number in {"/none": errno.ENOENT, "/etc/passwd": errno.EACCES}.items():
        with pytest.raises(door.CoreError) as error:
            start(program)
        assert (error.value.sys_errno, error.value.path) == (number, os.fsencode(program))


def test_a_forked_child_ends_nothing():
    process = speaking("say(1); s.recv(1); say(2)")
    assert heard(process) == (READY, 0)
    child = os.fork()
    if child == 0:
        door.lib.lay_process_end(process)
        os._exit(0)
    os.waitpid(child, 0)
    door.lib.lay_process_go(process)
    assert heard(process) == (ENDED, 0)
    door.ffi.release(process)


def test_no_descriptor_left_is_an_error_and_not_a_loss():
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd"))
    try:
        for limit in range(used - 1, used + 4):
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(limit, 3), hard))
            with pytest.raises(door.CoreError) as error:
                speaking("say(1)")
            assert error.value.sys_errno in (errno.EMFILE, errno.EINVAL)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# ---- ext/enter, without a namespace: it is not pid 1 here ----


@pytest.fixture(scope="module", params=range(len(probe.enter_flags())), ids=["without a library", "with a static one"])
def enter(request, tmp_path_factory):
    program = tmp_path_factory.mktemp("enter") / "enter.elf"
    compiling, linking = probe.enter_flags()[request.param]
    assert probe.build_enter(str(program), [*compiling, "-Werror"], linking) == ""
    return program


class Entered:
    """ext/enter with a plan, as bubblewrap would start it."""

    def __init__(self, program, argv, *, env=("PATH=/usr/bin:/bin",), uid=0, gid=0, rights=0, flags=1, cwd="/", plan=None):
        texts = ["/none", "/none", cwd, *argv, *env]
        plan = plan if plan is not None else struct.pack("=QIIIIII", rights, uid, gid, flags, len(argv), len(env), 0) + b"".join(os.fsencode(t) + b"\0" for t in texts)
        self.ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.read, write = os.pipe()
        memory = os.memfd_create("plan")
        os.write(memory, plan)
        given = {3: theirs.fileno(), 4: memory, 6: write, 7: write}
        copies = {fd: os.dup(os.dup2(number, 50 + fd)) for fd, number in given.items()}
        actions = [(os.POSIX_SPAWN_DUP2, copies[fd], fd) for fd in copies]
        self.pid = os.posix_spawn(program, ["enter"], {}, file_actions=actions)
        for fd in [*copies.values(), *(50 + fd for fd in given), memory, write]:
            os.close(fd)
        theirs.close()
        self.ours.settimeout(20)

    def heard(self):
        said = self.ours.recv(8)
        return struct.unpack("ii", said) if said else (GONE, 0)

    def go(self):
        self.ours.send(b"x")

    def end(self):
        """Its exit code, and what the command wrote."""
        self.ours.close()
        with os.fdopen(self.read, "rb") as file:
            out = file.read()
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]), out

    def course(self):
        """All messages, the exit code, and the output."""
        said = [self.heard()]
        if said == [(READY, 0)]:
            self.go()
        while said[-1][0] != GONE:
            said.append(self.heard())
        return said[:-1], *self.end()


def test_it_starts_a_command_and_tells_its_end(enter):
    argv = ["sh", "-c", "echo $0 $A; ls /proc/self/fd | wc -l; exit 7", "name"]
    assert Entered(enter, argv, env=["A=b", "PATH=/bin"]).course() == ([(READY, 0), (ENDED, 7 << 8)], 0, b"name b\n4\n")
    assert Entered(enter, ["/bin/sh", "-c", "kill -9 $$"]).course()[0] == [(READY, 0), (ENDED, signal.SIGKILL)]


def test_it_starts_nothing_once_its_caller_is_gone(enter):
    entered = Entered(enter, ["sh", "-c", "echo started"])
    assert entered.heard() == (READY, 0)
    assert entered.end() == (127, b"")


def test_it_becomes_the_user(enter):
    script = "id -u; id -g; id -G; grep -E '^(Cap|Groups)' /proc/self/status"
    assert Entered(enter, ["sh", "-c", script], uid=1000, gid=7, rights=0x405FB).course()[2].split() == \
        b"1000 7 7 Groups: CapInh: Z CapPrm: Z CapEff: Z CapBnd: Z CapAmb: Z".replace(b"Z", b"0" * 16).split()
    kept = Entered(enter, ["grep", "^Cap", "/proc/self/status"], rights=0x405FB).course()[2].split()
    assert [int(value, 16) for value in kept[1::2]] == [0, 0x405FB, 0x405FB, 0x405FB, 0]


@pytest.mark.parametrize(("argv", "how", "said"), [
    (["/none"], {}, (EXEC, errno.ENOENT)), (["/etc/passwd"], {}, (EXEC, errno.EACCES)), (["/bin"], {}, (EXEC, errno.EACCES)), (["none"], {}, (EXEC, errno.ENOENT)), ([""], {}, (EXEC, errno.ENOENT)),
    (["sh"], {"env": []}, (EXEC, errno.ENOENT)), (["sh"], {"env": ["PATH="]}, (EXEC, errno.ENOENT)), (["sh"], {"env": ["PATH=:/etc:"]}, (EXEC, errno.ENOENT)), (["passwd"], {"env": ["PATH=/none:/etc:/x"]}, (EXEC, errno.EACCES)),
    (["x" * 5000], {}, (EXEC, errno.ENOENT)), (["sh"], {"env": ["PATH=" + "/x" * 5000]}, (EXEC, errno.ENOENT)), (["true", "x" * (1 << 18)], {}, (EXEC, errno.E2BIG)),
    (["true"], {"cwd": "/none"}, (DIRECTORY, errno.ENOENT)), (["true"], {"cwd": "/etc/passwd"}, (DIRECTORY, errno.ENOTDIR)), (["true"], {"uid": 0xFFFFFFFF, "gid": 0xFFFFFFFF, "rights": 1 << 63}, None),
])  # fmt: skip
def test_what_cannot_be_started_is_told_with_its_reason(enter, argv, how, said):
    told = Entered(enter, argv, **how).course()[0]
    assert said is None or told == [(READY, 0), said, (ENDED, 127 << 8)]


def test_a_plan_that_is_too_short_is_told(enter):
    assert Entered(enter, [], plan=b"").course()[0] == [(SETUP, errno.EINVAL)]
    assert Entered(enter, [], plan=bytes(32)).course()[0] == [(SETUP, errno.EINVAL)]


def test_the_program_needs_no_interpreter_and_is_small(enter, request):
    head = Path(enter).read_bytes()
    assert b"/lib64/ld-linux" not in head and b"ld-musl" not in head
    if "without" in request.node.name:
        assert len(head) < 20_000
