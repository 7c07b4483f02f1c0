"""Credential helpers, as real programs in a PATH of their own: how they are started, read, and ended."""

import os
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from layerstore.errors import AuthenticationError
from layerstore.registry import helpers
from layerstore.registry.credentials import Credentials

SERVER = "registry.example.com:5000"
SECRET = "pass-word"
ANSWER = f'{{"ServerURL":"x","Username":"user","Secret":"{SECRET}"}}'

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(script: str, name: str = "tell", mode: int = 0o755) -> Path:
        path = tmp_path / "bin" / f"docker-credential-{name}"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(mode)
        return path

    return written


def nothing() -> None:
    """The check of a caller that is never stopped."""


def ask(tmp_path: Path, helper: str = "tell", server: str = SERVER, timeout: float = 20, check: Callable[[], None] = nothing) -> Credentials | None:
    return helpers.ask(helper, server, timeout, check, {"PATH": f"relative:{tmp_path}/none:{tmp_path}/bin:/usr/bin:/bin", "HERE": str(tmp_path)})


def test_a_helper_reads_the_server_and_answers(tmp_path: Path, write: Write) -> None:
    write(f"cat >$HERE/input; echo \"$0 $*\" >$HERE/arguments; echo '{ANSWER}'")
    assert ask(tmp_path) == Credentials("user", SECRET)
    assert (tmp_path / "input").read_text() == SERVER
    assert (tmp_path / "arguments").read_text() == f"{tmp_path}/bin/docker-credential-tell get\n"


def test_a_server_is_no_part_of_a_command(tmp_path: Path, write: Write) -> None:
    write(f"cat >$HERE/input; echo '{ANSWER}'", name="a.b-c_1")
    ask(tmp_path, "a.b-c_1", "$(touch /tmp/x);`id`\n")
    assert (tmp_path / "input").read_text() == "$(touch /tmp/x);`id`\n"


def test_a_helper_may_end_without_reading(tmp_path: Path, write: Write) -> None:
    write(f"exec <&-; echo '{ANSWER}'")
    assert ask(tmp_path, server="x" * 60_000) == Credentials("user", SECRET)


@pytest.mark.parametrize(("answer", "known"), [
    ('{"Username":"<token>","Secret":"id"}', Credentials(refresh="id")),
    ('{"Username":"<token>","Secret":""}', None),
    ('{"Username":"user","Secret":""}', Credentials("user", "")),
    ('{"Username":"","Secret":""}', None),
    ('{"username":"user","secret":"s"}', Credentials("user", "s")),
])  # fmt: skip
def test_answers(tmp_path: Path, write: Write, answer: str, known: Credentials | None) -> None:
    write(f"echo '{answer}'")
    assert ask(tmp_path) == known


@pytest.mark.parametrize("said", ["credentials not found in native keychain", "no credentials server URL", "no credentials username"])
def test_a_helper_that_knows_nothing(tmp_path: Path, write: Write, said: str) -> None:
    write(f"echo '{said}'; exit 1")
    assert ask(tmp_path) is None
    write(f"echo '{said}'")
    with pytest.raises(AuthenticationError):
        ask(tmp_path)


@pytest.mark.parametrize(("script", "said"), [
    ("echo; echo ' the keychain is locked '; echo more; exit 3", r"docker-credential-tell failed for registry.example.com:5000: exit status 3: the keychain is locked$"),
    ("exit 1", "exit status 1$"),
    ("echo on stderr >&2; exit 1", "exit status 1$"),
    ("printf '\\033[31mred\\007\\n'; exit 1", r"exit status 1: \\x1b\[31mred\\x07$"),
    ("printf '%0300d' 0; exit 1", "exit status 1: 0{200}$"),
    ("kill -9 $$", "killed by signal 9$"),
    ("echo partial; kill -9 $$", "killed by signal 9: partial$"),
])  # fmt: skip
def test_a_helper_that_fails_is_named_with_its_first_line(tmp_path: Path, write: Write, script: str, said: str) -> None:
    write(script)
    with pytest.raises(AuthenticationError, match=said):
        ask(tmp_path)


@pytest.mark.parametrize("answer", ["", "not json", f'["{SECRET}"]', f'{{"Secret":"{SECRET}"', f'{{"Username":7,"Secret":"{SECRET}"}}', f'"{SECRET}"', f'{{"Secret":"{SECRET}","Secret":"b"}}', f'{{"Secret":"{SECRET}"}}', '{"Username":"u"}', "{}", f'{{"Username":null,"Secret":"{SECRET}"}}'])
def test_a_malformed_answer_is_not_quoted(tmp_path: Path, write: Write, answer: str) -> None:
    write(f"echo '{answer}'")
    with pytest.raises(AuthenticationError, match="docker-credential-tell") as raised:
        ask(tmp_path)
    assert SECRET not in "".join(traceback.format_exception(raised.value)) and raised.value.__context__ is None


def test_a_helper_that_is_not_there(tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write("exit 1", name="plain", mode=0o644)
    (tmp_path / "bin" / "docker-credential-dir").mkdir()
    for name in ("none", "plain", "dir"):
        with pytest.raises(AuthenticationError, match=f"docker-credential-{name} .*no such program is in PATH"):
            ask(tmp_path, name)


def test_a_helper_beside_the_caller_is_not_run(tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write(f"echo '{ANSWER}'").parent)
    for path in ("", ".", "relative", ":", "./"):
        with pytest.raises(AuthenticationError, match="PATH"):
            helpers.ask("tell", SERVER, 5, nothing, {"PATH": path})


def test_a_program_that_cannot_start(tmp_path: Path, write: Write) -> None:
    write("").write_text("#!/nonexistent/interpreter\n")
    with pytest.raises(AuthenticationError, match=r"docker-credential-tell.*No such file"):
        ask(tmp_path)


def test_an_answer_has_64_kib_at_most(tmp_path: Path, write: Write) -> None:
    spaces = 65536 - len(ANSWER) - 1
    write(f"printf '%{spaces}s' ''; echo '{ANSWER}'")
    assert ask(tmp_path) == Credentials("user", SECRET)
    write(f"printf '%{spaces + 1}s' ''; echo '{ANSWER}'")
    with pytest.raises(AuthenticationError, match="more than 65536 bytes"):
        ask(tmp_path)


def test_an_answer_without_end_is_cut(tmp_path: Path, write: Write) -> None:
    write("exec cat /dev/zero")
    with pytest.raises(AuthenticationError, match="more than 65536 bytes"):
        ask(tmp_path)


def is_running(pid_file: Path) -> bool:
    stat = Path(f"/proc/{pid_file.read_text().strip()}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(pid_file: Path) -> None:
    until = time.monotonic() + 5
    while is_running(pid_file):
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.parametrize("script", [
    "sleep 1000 & echo $! >$HERE/child; wait",
    "echo $$ >$HERE/child; exec sleep 1000",
    "echo $$ >$HERE/child; exec >&-; exec sleep 1000",
    "trap '' TERM INT HUP; echo $$ >$HERE/child; while :; do echo x; sleep 0.1; done",
])  # fmt: skip
def test_a_helper_is_killed_at_the_deadline_with_what_it_started(tmp_path: Path, write: Write, script: str) -> None:
    write(script)
    began = time.monotonic()
    with pytest.raises(AuthenticationError, match="did not answer in time and was killed"):
        ask(tmp_path, timeout=0.7)
    assert 0.6 < time.monotonic() - began < 5
    wait_until_gone(tmp_path / "child")


def test_a_caller_that_gives_up_ends_the_helper(tmp_path: Path, write: Write) -> None:
    write("echo $$ >$HERE/child; exec sleep 1000")
    stopped = threading.Event()
    threading.Timer(0.5, stopped.set).start()

    def check() -> None:
        if stopped.is_set():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask(tmp_path, check=check)
    wait_until_gone(tmp_path / "child")


def test_what_a_helper_left_running_is_not_waited_for(tmp_path: Path, write: Write) -> None:
    write(f"sleep 1000 & echo $! >$HERE/child; echo '{ANSWER}'")
    began = time.monotonic()
    assert ask(tmp_path) == Credentials("user", SECRET) and time.monotonic() - began < 5
    wait_until_gone(tmp_path / "child")


def test_nothing_is_left_of_a_helper(tmp_path: Path, write: Write) -> None:
    write(f"echo '{ANSWER}'")
    ask(tmp_path)
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(3):
        ask(tmp_path)
    assert sorted(os.listdir("/proc/self/fd")) == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
