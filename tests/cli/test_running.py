"""rw run: the command's exit code and standard files, its options, and what is said when it cannot be run."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import disk
import pytest
from commandline import command
from machine import needs

from layerstore.cli.commands import parse


@pytest.fixture(scope="module")
def shell(tmp_path_factory):
    """A directory with /bin/sh and what it needs, as a static program where there is one: the files of the C library too."""
    needs("bwrap")
    place = tmp_path_factory.mktemp("shell")
    for name in ("sh", "cat", "id", "sleep", "ls", "env"):
        program = os.path.realpath(shutil.which(name))
        target = place / "bin" / name
        target.parent.mkdir(exist_ok=True)
        shutil.copy2(program, target)
        for line in subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout.splitlines():
            for word in line.split():
                if word.startswith("/") and not (place / word[1:]).exists():
                    (place / word[1:]).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(os.path.realpath(word), place / word[1:])
    (place / "tmp").mkdir()
    return place


@pytest.fixture
def box(made, shell, room):
    """A writable layer called box that a shell runs in."""
    subprocess.run(["tar", "-C", shell, "-cf", room / "shell.tar", "."], check=True)
    made("rw", "create", "box", *made("register", room / "shell.tar"))
    return made


def test_the_exit_code_and_the_output_are_the_commands(box, program, root):
    done = program("rw", "run", "box", "--", "sh", "-c", "echo out; echo err >&2; echo new > /tmp/new; exit 7")
    assert (done.code, done.out, done.err) == (7, "out\n", "err\n")
    assert disk.mounts_below(root) == []
    assert box("rw", "changes", "box") == ["C /tmp", "A /tmp/new"]
    assert program("rw", "run", "box", "--", "sh", "-c", "kill -9 $$").code == 137


def test_standard_input_is_the_commands(box, program):
    done = program("rw", "run", "box", "cat", input=b"a line\n")
    assert (done.code, done.out) == (0, "a line\n")
    assert program("rw", "run", "box", "cat", stdin=subprocess.DEVNULL).out == ""


def test_the_commands_own_options_need_no_mark(box, program):
    assert program("rw", "run", "box", "ls", "-d", "/").out == "/\n"
    assert program("rw", "run", "--cwd", "/tmp", "box", "sh", "-c", "pwd").out == "/tmp\n"
    assert program("rw", "run", "box", "--cwd", "/tmp", "--", "sh", "-c", "pwd").out == "/tmp\n"


@pytest.mark.parametrize(
    ("words", "argv"),
    [(["box", "ls", "--help"], ["ls", "--help"]), (["box", "--", "ls", "--json"], ["ls", "--json"]), (["--", "box", "ls", "-l"], ["ls", "-l"]),
     (["--cwd", "/x", "box", "ls", "--", "-x"], ["ls", "--", "-x"]), (["box", "--", "ls", "--", "-x"], ["ls", "--", "-x"]), (["box", "--network", "ls", "-q"], ["ls", "-q"])],
    ids=lambda value: " ".join(value),
)  # fmt: skip
def test_where_the_command_begins(environment, words, argv):
    args = parse(["rw", "run", *words])
    assert (args.name, args.argv, args.json, args.quiet) == ("box", argv, False, False)


def test_user_environment_and_binds(box, program, room, monkeypatch):
    monkeypatch.setenv("GIVEN", "from outside")
    (room / "data").mkdir()
    (room / "data/f").write_text("bound\n")
    line = "id -u; id -g; echo $GIVEN $SET $PATHLESS; cat /data/f; echo x 2>/dev/null > /data/g || echo read-only"
    done = program("rw", "run", "box", "--user", "1234:567", "--env", "GIVEN", "--env", "SET=a=b", "--env", "PATHLESS",
                   "--bind", f"/data=ro:{room}/data", "--", "sh", "-c", line)  # fmt: skip
    assert (done.code, done.out) == (0, "1234\n567\nfrom outside a=b\nbound\nread-only\n"), done.err


def test_as_json_it_is_one_document(box, cli):
    done = cli("rw", "run", "box", "--json", "--", "sh", "-c", "echo out; echo err >&2; exit 3")
    assert done.code == 3 and done.err == ""
    assert done.json == {"name": "box", "returncode": 3, "stdout": "out\n", "stderr": "err\n"}


def test_a_timeout(box, refused, root):
    began = time.monotonic()
    assert refused(124, "rw", "run", "box", "--timeout", "0.3s", "--", "sleep", "60") == "sleep was ended after 0.3s"
    assert time.monotonic() - began < 20 and disk.mounts_below(root) == []


def test_ctrl_c_ends_the_command(box, root):
    process = subprocess.Popen([*command(), "rw", "run", "box", "--", "sh", "-c", "echo ready; sleep 60"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (130, b"layerstore: interrupted\n")
    assert disk.mounts_below(root) == []


def test_what_cannot_be_run(box, refused, room):
    assert "no-such-program" in refused(3, "rw", "run", "box", "--", "no-such-program")
    assert "/nowhere" in refused(3, "rw", "run", "box", "--cwd", "/nowhere", "--", "ls")
    assert "somebody" in refused(3, "rw", "run", "box", "--user", "somebody", "--", "ls")
    assert str(room / "gone") in refused(3, "rw", "run", "box", "--bind", f"/data={room}/gone", "--", "ls")
    assert "there is no writable layer other" in refused(3, "rw", "run", "other", "--", "ls")


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--timeout", "soon"], "length of time"), (["--env", "=x"], "NAME=VALUE"), (["--bind", "data=/x"], "INSIDE=PATH"), (["--bind", "/data"], "INSIDE=PATH"),
     (["--bind", "/data=ro:"], "INSIDE=PATH"), (["--netwrk"], "did you mean --network")],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_a_wrong_option(box, refused, words, said):
    assert said in refused(2, "rw", "run", "box", *words, "--", "ls")


def test_no_command(box, refused):
    assert "ARGV" in refused(2, "rw", "run", "box")


def test_without_bubblewrap(box, program, monkeypatch, room):
    (room / "empty").mkdir()
    monkeypatch.setenv("PATH", str(room / "empty"))
    done = program("rw", "run", "box", "--", "ls")
    assert done.code == 5 and "bubblewrap" in done.err and len(done.err.splitlines()) == 1


def test_the_shell_has_what_it_needs(shell):
    """Else the tests above would fail for another reason than they say."""
    assert Path(shell, "bin/sh").is_file() and subprocess.run(["chroot", shell, "/bin/sh", "-c", "exit 5"], check=False).returncode == 5
