"""How a command ends and what it looks like: exit codes, one line for each failure, Ctrl-C, pipes, terminals, rich."""

import errno
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tarkit
from commandline import command, every_command
from driven import DRIVER, LAYERDB
from tarkit import dir, end, file

import layerstore
from layerstore import sizes
from layerstore.cli import exits, main, screen, texts
from layerstore.cli.commands import build
from layerstore.cli.exits import Exit, Failure, code_of, sentence
from layerstore.cli.mistakes import check_words

BASE = dir("etc/") + file("etc/motd", b"hello\n") + end()
ID = tarkit.diff_id(BASE)


@pytest.fixture
def base(register):
    return register(BASE)


# ---- codes and sentences ------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (layerstore.LayerDoesNotExistError(), 3, "layer does not exist"),
        (layerstore.MountDoesNotExistError(), 3, "mount does not exist"),
        (layerstore.ReadOnlyStoreError(), 4, "the store is open for reading only"),
        (layerstore.StoreInUseError(), 4, "the root is in use"),
        (layerstore.NotSupportedError("no"), 5, "no"),
        (layerstore.RegistryError("GET https://host/v2/: 500", status=500), 1, "GET https://host/v2/: 500"),
        (layerstore.NotInRegistryError("GET https://host/v2/: 404", status=404), 3, "GET https://host/v2/: 404"),
        (layerstore.AuthenticationError("GET https://host/v2/: 401", status=401), 6, "GET https://host/v2/: 401"),
        (layerstore.InvalidDigestError("no digest"), 2, "no digest"),
        (layerstore.InvalidOptionError("no option"), 2, "no option"),
        (layerstore.InvalidMetadataError("nonsense"), 1, "nonsense"),
        (layerstore.TarFormatError("bad", offset=3), 1, "bad"),
        (layerstore.CorruptLayerError(), 1, "layer data is corrupt"),
        (layerstore.MountNameConflictError(), 1, "mount already exists with name"),
        (OSError(errno.ENOENT, "No such file", "/x"), 3, "/x: No such file"),
        (OSError(errno.EACCES, "Permission denied", b"/x\xff"), 5, "/x\\xff: Permission denied"),
        (OSError(errno.EBUSY, "busy", "/x"), 4, "/x: busy"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "No space left on device"),
        (OSError("words"), 1, "words"),
        (KeyError("a bug"), 1, "'a bug'"),
        (ValueError(), 1, "ValueError"),
        (Failure("this", Exit.USAGE), 2, "this"),
        (RuntimeError("two\nlines \x1b[31m \udcff"), 1, "two; lines \\x1b[31m \\xff")],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else ""
)
def test_each_error_has_its_code_and_one_line(error, code, text):
    assert (int(code_of(error)), sentence(error)) == (code, text)


def test_notes_are_part_of_the_sentence():
    error = layerstore.LayerDoesNotExistError()
    error.add_note("sha256:abc")
    assert sentence(error) == "layer does not exist: sha256:abc"


def test_every_exit_code_is_in_the_help_and_in_the_docs(cli):
    shown = cli("--help").out
    told = (Path(__file__).parents[2] / "docs/cli.md").read_text()
    for code, meaning in exits.MEANINGS.items():
        assert re.search(rf"^ *{code.value}  {re.escape(meaning)}$", shown, re.M)
        assert f"| {code.value} | {meaning} |" in told
    assert set(exits.MEANINGS) == set(Exit)


def test_a_fault_of_ours_is_one_line_too_unless_asked(base, cli, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(layerstore.Store, "map", broken)
    assert cli("ls").said == "oh"
    monkeypatch.setenv("LAYERSTORE_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        main.main(["ls"])


@pytest.mark.parametrize(
    "words",
    [["frobnicate"], ["rw", "frob"], ["ls", "--frob"], ["ls", "extra"], ["register"], ["--color", "blue", "ls"],
     ["--roo", "x", "ls"], ["completion", "csh"], ["release"], ["repair", "a", "b", "--store", "c"], ["bench", "--mb", "-1"]],
    ids=" ".join,
)  # fmt: skip
def test_a_wrong_command_line(refused, words):
    assert "--help" in refused(2, *words)


@pytest.mark.parametrize("words", [[], ["rw"], ["image"], ["--json"]], ids=" ".join)
def test_what_has_commands_of_its_own_prints_its_help_when_alone(cli, words):
    done = cli(*words)
    assert done == (0, cli(*[word for word in words if word[0] != "-"], "--help").out, "")


COMMANDS_ONLY = [
    (["imge", "ls"], "image", ""), (["LS"], "ls", ""), (["image", "lod", "x"], "load", "image"), (["images"], "image ls", ""),
    (["load", "x"], "image load", ""), (["image", "list"], "ls", "image"), (["rw", "umount", "b"], "unmount", "rw"),
    (["image", "load", "x", "--platfrom", "all"], "--platform", "image load"), (["ls", "--jsn"], "--json", "ls"),
    (["image", "save", "--formt=oci", "x"], "--format", "image save"), (["rmi", "x"], "image rm", ""),
    (["-q", "--roott", "x", "ls"], "--root", ""), (["image", "lss", "--help"], "ls", "image"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "meant", "where"), COMMANDS_ONLY, ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_a_slip_is_answered_with_what_was_meant(cli, words, meant, where):
    done = cli(*words)
    assert done.code == 2 and f"did you mean {meant}" in done.said
    assert f"(see: {' '.join(['layerstore', *where.split()])} --help)" in done.said


@pytest.mark.parametrize(
    ("words", "where"),
    [(["image", "load", "-i", "x.tar"], "image load"), (["image", "ls", "debian"], "image ls"), (["rw", "ls", "-x"], "rw ls"),
     (["register"], "register"), (["ls", "--", "--json"], "ls"), (["image", "save", "-oq"], "image save"), (["ls", "-qx"], "ls")],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_the_hint_is_the_help_of_the_command(refused, words, where):
    assert f"(see: layerstore {where} --help)" in refused(2, *words)


def test_no_command_and_option_that_is_there_is_taken_for_a_slip(environment):
    """Each option of each command, with a value where it has one, and joined with it, is no mistake."""
    parser, seen = build(), 0
    for path, one in every_command(parser):
        for action in one.arguments():
            for option in action.option_strings:
                value = action.nargs != 0
                for words in ([option, "-value"], [f"{option}=-v"] if option[:2] == "--" else [f"{option}-v"]) if value else ([option],):
                    check_words(parser, [*path, *words])
                    seen += 1
    assert seen > 200


# ---- help ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("path", [path for path, _ in every_command()], ids=lambda path: " ".join(path) or "layerstore")
def test_every_command_has_help_with_an_example(cli, path):
    done = cli(*path, "--help")
    assert done.code == 0 and done.err == ""
    assert path == () or "examples:\n  layerstore " in done.out
    if path:
        for example in done.out.split("examples:\n")[1].splitlines():
            assert len(example) < 120 and "layerstore" in example


def test_every_example_is_a_command_line_that_parses(environment):
    """So no example names an option that is gone."""
    parser, seen = build(), 0
    for _, one in every_command(parser):
        for line in (one.epilog or "").partition("examples:\n")[2].splitlines():
            found = re.search(r"layerstore (.*?)( [|<>].*|\)|)$", line)
            parser.parse_args(shlex.split(found[1]))
            seen += 1
    assert seen > 60


# ---- interrupted --------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("numbers", "code", "said"),
    [([signal.SIGINT], 130, "interrupted"), ([signal.SIGTERM], 143, "terminated"), ([signal.SIGHUP], 129, "hung up"),
     ([signal.SIGINT] * 20, 130, "interrupted"), ([signal.SIGHUP, signal.SIGTERM, signal.SIGINT], 129, "hung up")],
    ids=lambda value: "-".join(str(int(n)) for n in value[:3]) if isinstance(value, list) else "",
)  # fmt: skip
def test_ctrl_c_in_a_register_leaves_nothing(made, root, numbers, code, said, open_store):
    process = subprocess.Popen([*command(), "register", "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=False)
    process.stdin.write(file("big", b"x" * 100_000, size=10**6)[:100_000])
    process.stdin.flush()
    until = time.monotonic() + 20
    while time.monotonic() < until and len(os.listdir(root / DRIVER)) < 2:      # it has begun
        time.sleep(0.01)
    for at, number in enumerate(numbers):
        process.send_signal(number)
        time.sleep(0.001 * at)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err.decode()) == (code, b"", f"layerstore: {said}\n")
    assert os.listdir(root / DRIVER) == ["l"] and os.listdir(root / DRIVER / "l") == []
    assert open_store().map() == {}


AT_ONCE = """
import os, signal
from layerstore.cli import main
set_handler = signal.signal
def set_late(number, handler):
    os.kill(os.getpid(), signal.SIGTERM)
    return set_handler(number, handler)
for number in main._ENDS:
    set_handler(number, main._end_by)
signal.signal = set_late
try:
    os.kill(os.getpid(), signal.SIGHUP)
    set_handler(signal.SIGUSR1, signal.SIG_IGN)      # looks for signals
except main._EndedError as error:
    print(error.number)
"""


def test_of_signals_that_come_at_once_the_first_one_handled_ends_the_command():
    """Python calls the handlers of two pending signals one inside the other."""
    done = subprocess.run([sys.executable, "-c", AT_ONCE], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("1\n", "")


def test_a_pipe_that_is_closed_is_no_failure_to_speak_of(base, room):
    many = b"".join(file(f"file-{at:06}", b"") for at in range(20_000)) + end()
    (room / "many.tar").write_bytes(many)
    chain, = base("register", room / "many.tar")
    for words in (["ls-files", chain], ["export", chain]):
        process = subprocess.Popen([*command(), *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        process.stdout.read(10)
        process.stdout.close()
        assert (process.wait(20), process.stderr.read()) == (141, b""), words
        process.stderr.close()


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_behind_standard_output(base, program, monkeypatch, unbuffered):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    with open("/dev/full", "wb") as full:
        done = program("export", ID, stdout=full)
        assert done.code == 1 and done.err == "layerstore: /dev/full: write the tar: No space left on device\n"
        for words in (["ls"], ["show", ID], ["info"], ["--json", "ls"], ["ls-files", ID], ["completion", "bash"], ["cat", ID, "etc/motd"]):
            done = program(*words, stdout=full)
            assert (done.code, done.err) == (1, "layerstore: /dev/full: No space left on device\n"), words


def test_no_standard_output_at_all(base):
    """What is opened next must not become what is printed to."""
    for closed in (">&-", "<&- >&- 2>&-"):
        for words in (["ls"], ["show", ID], ["rw", "create", f"box{len(closed)}", ID]):
            done = subprocess.run(["sh", "-c", f'"$@" {closed}', "sh", *command(), *words], capture_output=True, text=True, check=False)
            assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), words


def test_bytes_for_a_closed_standard_output_are_not_lost_in_silence(base):
    done = subprocess.run(["sh", "-c", '"$@" >&-', "sh", *command(), "export", ID], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "standard output, which is closed: name a file with -o" in done.stderr


# ---- a terminal ---------------------------------------------------------------------------------
def test_colours_on_a_terminal_and_nowhere_else(base, terminal, program, monkeypatch):
    base("rw", "create", "box", ID)
    code, shown = terminal("rw", "ls")
    assert code == 0 and "\x1b[32mbox" in shown and "\x1b[1mNAME" in shown
    plain = program("rw", "ls").out
    assert "\x1b" not in plain and lasting(re.sub(r"\x1b\[[0-9;]*m", "", shown)) == lasting(plain)
    for how in ({"words": ["--color", "never"]}, {"NO_COLOR": "1"}, {"TERM": "dumb"}, {"rich": False}):
        with monkeypatch.context() as patch:
            for name in ("NO_COLOR", "TERM"):
                if name in how:
                    patch.setenv(name, how[name])
            code, shown = terminal("rw", "ls", *how.get("words", ()), rich=how.get("rich", True))
        assert code == 0 and "\x1b[3" not in shown and lasting(re.sub(r"\x1b\[[01]?m", "", shown)) == lasting(plain), how
    assert "\x1b[32mbox" in program("rw", "ls", "--color", "always").out


def lasting(table: str) -> list[str]:
    """The words of a table without ages."""
    return re.sub(r"\bnow\b|\b\d+ s\b", "", table).split()


def test_long_lines_are_not_broken_on_a_terminal(base, terminal, cli):
    code, shown = terminal("show", ID)
    assert code == 0 and cli("show", ID, "--json").json["directories"]["UpperDir"] in shown


def test_a_tar_is_not_printed_on_a_terminal(base, terminal):
    code, shown = terminal("export", ID)
    assert code == 2 and "is not printed on a terminal" in shown and len(shown.splitlines()) == 1
    code, shown = terminal("register", "-")
    assert code == 2 and "standard input, which is a terminal" in shown


def slowly(pipe) -> None:
    tar = file("big", b"x" * 4_000_000) + end()
    for at in range(4):
        pipe.write(tar[at * len(tar) // 4 : (at + 1) * len(tar) // 4])
        pipe.flush()
        time.sleep(0.15)


def test_a_progress_bar_on_a_terminal(made, terminal):
    code, shown = terminal("register", "-", feed=slowly)
    assert code == 0 and "register" in shown and re.search(r"[0-9.]+(/[0-9.?]+)? MB", shown) and "\x1b[" in shown
    assert shown.rstrip().splitlines()[-2:][0].endswith(tarkit.diff_id(file("big", b"x" * 4_000_000) + end()))


def test_no_bar_without_rich_or_when_quiet(made, terminal):
    for words, rich in ((["-q"], True), ([], False)):
        code, shown = terminal("register", "-", *words, feed=slowly, rich=rich)
        assert code == 0 and "\x1b[" not in shown and "━" not in shown


def test_plain_lines_of_progress_where_there_is_no_terminal(base, cli, room, monkeypatch):
    monkeypatch.setattr(screen, "_PLAIN_SECONDS", 0.0)
    with open(room / "big.tar", "wb") as big:
        big.write(file("big", b"", size=400_000_000))
        big.truncate(512 + 400_000_000 + 1024 - 400_000_000 % 512)
    done = cli("register", room / "big.tar", "--durability", "none")
    assert done.code == 0
    assert re.search(r"^register: [0-9.]+ MB of 400.0 MB, \d+ %$", done.err, re.M)
    assert cli("register", room / "big.tar", "-q").err == ""


def test_without_rich_all_works(base, program, cli):
    for words in (["ls"], ["info"], ["doctor"], ["verify"]):
        done = program(*words, rich=False)
        assert done.code == 0, done.err
    assert "pip install 'layerstore[cli]'" in program("doctor", rich=False).out


def test_what_the_library_logs_is_one_line_each(base, cli, root):
    (root / LAYERDB / "sha256" / ID[7:] / "size").write_text("x")
    done = cli("ls")
    assert done.code == 0 and done.err.splitlines()[0].startswith("layerstore: warning: Failed to load layer")
    assert "warning" not in cli("ls", "-q").err


def test_the_program_starts_without_loading_rich(base):
    probe = "import sys; from layerstore.cli.main import main; main(['ls']); print('rich' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


# ---- numbers ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (10240, "10.2 kB"), (10**6, "1.0 MB"), (5 * 10**12, "5.0 TB"), (-2000, "-2.0 kB")]
)
def test_sizes(size, text):
    assert sizes.format_size(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "now"), (0.5, "now"), (1, "1 s"), (59, "59 s"), (60, "1 min"), (7200, "2 h"), (86400, "1 d"), (13 * 86400, "13 d"), (15 * 86400, "2 w"), (800 * 86400, "2 y")],
)
def test_ages(seconds, text):
    assert texts.human_age(seconds) == text


# ---- the host does not let it --------------------------------------------------------------------
def test_on_a_file_system_for_reading_only(cli, room, mounted):
    """What reads works, what writes says why it does not; also where no store was made yet."""
    place = mounted("tmpfs", "size=20m")
    (room / "base.tar").write_bytes(BASE)
    for words in (["init"], ["register", room / "base.tar"], ["rw", "create", "box", ID]):
        assert cli("--root", place / "store", *words).code == 0
    subprocess.run(["mount", "-o", "remount,ro", place], check=True)
    for words in (["ls"], ["show", ID], ["info"], ["ls-files", ID], ["cat", ID, "etc/motd"], ["export", ID, "-o", room / "out"], ["verify"],
                  ["orphans"], ["rw", "ls"], ["rw", "size", "box"], ["rw", "changes", "box"], ["image", "ls"],
                  ["diff", ID, ID], ["find", "**/motd", ID], ["image", "prune", "--dry-run"], ["gc", "--dry-run"]):  # fmt: skip
        done = cli("--root", place / "store", *words)
        assert done.code == 0, (words, done.err)
    for words in (["register", room / "base.tar"], ["release", ID], ["rw", "create", "other"], ["rw", "mount", "box"], ["rw", "rm", "box"],
                  ["rw", "commit", "box"], ["gc"], ["image", "load", room / "base.tar"], ["image", "prune"], ["image", "create", ID]):  # fmt: skip
        done = cli("--root", place / "store", *words)
        assert done.code == 4 and "read-only" in done.said and str(place) in done.said and "not supported" not in done.said, (words, done.err)
    done = cli("--root", place / "new", "init")
    assert done.code in (1, 4) and "read-only" in done.said.lower() and str(place) in done.said


@pytest.mark.only("overlay2", "another driver's store opens there")
def test_a_store_on_the_root_of_a_container(program, mounted, room):
    """An overlay cannot hold another one: the error says what to do."""
    for name in ("lower", "upper", "work"):
        (room / name).mkdir()
    place = mounted("overlay", f"lowerdir={room}/lower,upperdir={room}/upper,workdir={room}/work")
    done = program("--root", place / "store", "init")
    assert done.code == 5 and "driver not supported" in done.said and "put it on a volume" in done.said and "-v " in done.said
    with pytest.raises(layerstore.NotSupportedError, match="put it on a volume"):
        layerstore.Store(place / "store")


WEAK = ("setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-all")


@pytest.mark.parametrize(("mark", "advice"), [({"container": "podman"}, "--privileged"), ({}, "unshare -Urm")], ids=["container", "host"])
def test_without_the_right_to_mount(environment, room, mark, advice, monkeypatch):
    if os.path.exists("/.dockerenv") or os.path.exists("/run/.containerenv"):
        advice = "--privileged"
    done = subprocess.run([*WEAK, *command(), "--root", room / "store", "init"], capture_output=True, text=True, env={**os.environ, **mark}, check=False)
    assert done.returncode == 5 and advice in done.stderr and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("layerstore: error initializing graphdriver: driver not supported: ")
    assert not (room / "store").exists()


def test_in_a_directory_of_another_user(environment, room):
    """No right to write is no missing driver."""
    (room / "theirs").mkdir(mode=0o755)
    nobody = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--inh-caps", "-all")
    code = "import sys; from layerstore import Store\ntry: Store(sys.argv[1])\nexcept PermissionError as err: print(err.filename)"
    room.chmod(0o755)
    done = subprocess.run([*nobody, sys.executable, "-c", code, room / "theirs/store"], capture_output=True, text=True, check=False)
    assert done.stdout.startswith(str(room / "theirs/store")), done.stderr


def test_to_read_takes_no_right_to_mount(base, room, root):
    """As the scan guide says: a store for reading only, of a process that may not mount."""
    code = """if True:
        import sys
        from layerstore import Images, Store
        with Store(sys.argv[1], options={"read_only": "true"}) as store:
            [layer] = store.map().values()
            print([entry.path for entry in layer.merged().files()], layer.merged().open("etc/motd").read(), store.verify(), Images(store).list())
            with layer.tar_stream() as tar:
                print(len(tar.read()))
    """
    done = subprocess.run([*WEAK, sys.executable, "-c", code, root], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"['etc', 'etc/motd'] b'hello\\n' [] []\n{len(BASE)}\n"), done.stderr
