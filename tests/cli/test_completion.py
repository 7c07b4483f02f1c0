"""Completion: the words themselves, and each shell asked for real."""

import os
import subprocess
import sys

import pytest
import tarkit
from commandline import every_command
from dockerd import image_archive
from machine import needs
from tarkit import dir, end, file

from layerstore.cli.commands import build
from layerstore.cli.completion import SHELLS, words_for

BASE = dir("etc/") + file("etc/motd", b"hello\n") + file("etc/my notes", b"") + file("top", b"") + end()
ID = tarkit.diff_id(BASE)


@pytest.fixture
def base(register):
    made = register(BASE)
    made("rw", "create", "box", ID)
    made("rw", "create", "bag:1")
    return made


def words(*line: str) -> list[str]:
    return [word.text for word in words_for(build(), line)]


COMMANDS = {path: parser for path, parser in every_command() if not parser.commands}


# ---- words --------------------------------------------------------------------------------------
def test_commands(base):
    assert words("r") == ["register", "release", "rw", "repair"]
    assert words("rw", "") == ["create", "ls", "mount", "unmount", "run", "holders", "changes", "size", "commit",
                               "snapshot", "rollback", "fork", "squash", "rm"]  # fmt: skip
    assert words("--root", "/x", "--json", "im") == ["image"]
    assert words("nonsense", "") == [] and words("ls", "") == []


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_option_of_every_command(environment, path):
    given = words(*path, "--")
    known = [name for action in COMMANDS[path].arguments() for name in action.option_strings if name.startswith("--")]
    assert given == known and "--root" in given


def test_values_of_options(base, root):
    assert words("register", "x", "--durability", "") == ["full", "ordered", "none"]
    assert words("register", "x", "--durability=o") == ["--durability=ordered"]
    assert words("--color", "a") == ["auto", "always"]
    assert words("register", "x", "--parent", ID[7:9]) == [ID[7:19]]
    assert words("--root", "") == [":dirs"] and words("export", ID, "-o", "x") == [":files"]
    assert words("rw", "create", "x", "--size", "") == []


def test_layers_and_names(base, cli):
    assert words("show", "") == [ID[7:19]]
    assert words("show", "sha256:" + ID[7:9]) == ["sha256:" + ID[7:19]]
    assert words("show", ID[7:30]) == [ID[7:]]
    assert words("show", "zz") == [] and words("show", ID, "") == []
    assert words("release", ID, "") == [ID[7:19]]
    assert words("rw", "mount", "") == ["bag:1", "box"] and words("rw", "rm", "box", "ba") == ["bag:1"]
    assert words("rw", "create", "new", "") == [ID[7:19]] and words("rw", "create", "") == []
    assert words("register", "") == ["-", ":files"] and words("verify", "", "") == [ID[7:19]]


def test_snapshots(base):
    taken = base("rw", "snapshot", "bag:1")[0]
    assert words("snapshot", "rm", taken[:2]) == words("rw", "rollback", "box", taken[:2]) == [taken[:12]]
    assert words("snapshot", "commit", taken[:30]) == [taken] and words("snapshot", "rm", "sha256:") == []
    assert words("rw", "fork", "") == ["bag:1", "box", taken[:12]] and words("rw", "fork", "box", "") == []
    assert words("rw", "run", "b") == ["bag:1", "box"] and words("rw", "run", "box", "--", "") == []
    assert sorted(words("rw", "create", "new", "")) == sorted([taken[:12], ID[7:19]])


def test_paths_in_a_layer(base):
    assert words("cat", ID, "") == ["etc/", "top"]
    assert words("cat", ID, "/e") == ["/etc/"]
    assert words("cat", "--own", ID, "etc/m") == ["etc/motd", "etc/my notes"]


def test_another_root(base, cli, room):
    assert cli("--root", room / "other", "init").code == 0
    assert words("--root", str(room / "other"), "show", "") == []
    assert words("show", f"--root={room}/other", "") == []


def test_whatever_goes_wrong_there_are_no_words(cli, room):
    for line in (["show", ""], ["--root", room / "none", "show", ""], ["cat", "nothing", ""], ["x"] * 5, []):
        assert cli("__words", *line)[0::2] == (0, ""), line
    assert cli("__words", "show", "").out == ""


def test_images(base, cli, room):
    (room / "image.tar").write_bytes(image_archive([BASE], "debian"))
    assert cli("image", "load", room / "image.tar").code == 0
    assert words("image", "rm", "d") == ["debian:latest"] and words("show", "deb") == ["debian:latest"]
    assert words("image", "pull", "d") == words("image", "push", "d") == words("image", "push", "x", "d") == ["debian:latest"]
    assert words("image", "pull", "--c") == ["--color", "--ca", "--connections"] and words("image", "push", "--ca", "") == [":files"]
    assert words("image", "pull", "--user", "") == words("image", "pull", "--mirror", "") == words("image", "pull", "debian", "") == []


# ---- shells -------------------------------------------------------------------------------------
@pytest.fixture
def path(environment, room, monkeypatch, cli):
    """A directory with `layerstore` in it, first in PATH; and the scripts, beside."""
    program = room / "bin/layerstore"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m layerstore "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    for shell in SHELLS:
        (room / f"script.{shell}").write_text(cli("completion", shell).out)
    (room / "dir").mkdir()
    (room / "dir/a file").write_text("")
    monkeypatch.chdir(room)
    return room


def ask(*words: str) -> list[str]:
    """What a shell prints."""
    needs(words[0])
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    print(done.stderr)
    return done.stdout.splitlines()


_ASK_BASH = r"""
source ./script.bash
COMP_LINE=$1
COMP_POINT=${#COMP_LINE}
COMP_WORDS=("${@:2}")
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_layerstore layerstore "${COMP_WORDS[COMP_CWORD]}" 2>/dev/null
printf '%s\n' "${COMPREPLY[@]}"
"""


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        (["rw", "un"], ["unmount"]), (["show", ""], [ID[7:19]]), (["show", "sha256", ":", ID[7:9]], [ID[7:19]]),
        (["rw", "rm", "bag", ":"], ["1"]), (["rw", "rm", "bag", ":", ""], ["1"]), (["register", "x", "--durability", "=", "fu"], ["full"]),
        (["register", "di"], ["dir"]), (["register", "dir/"], ["dir/a file"]), (["--root", "di"], ["dir"]), (["--root", "=", "di"], ["dir"]),
        (["cat", ID[7:], "etc/my"], ["etc/my\\ notes"]), (["nonsense", ""], [""]),
    ],
)  # fmt: skip
def test_bash(base, path, typed, completed):
    line = " ".join(["layerstore", *typed])
    assert ask("bash", "--norc", "-c", _ASK_BASH, "ask", line, "layerstore", *typed) == completed


_ASK_FISH = "source ./script.fish; complete -C $argv[1]"


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("layerstore rw un", ["unmount"]), ("layerstore show ", [ID[7:19]]), ("layerstore show sha256:", ["sha256:" + ID[7:19]]),
        ("layerstore rw rm b", ["bag:1", "box"]), ("layerstore register dir/", ["dir/a file"]), ("layerstore --root di", ["dir/"]),
        ("layerstore register x --durability ", ["full", "none", "ordered"]), (f"layerstore cat {ID[7:]} etc/mo", ["etc/motd"]),
    ],
)  # fmt: skip
def test_fish(base, path, line, completed, monkeypatch):
    monkeypatch.setenv("HOME", str(path))
    assert sorted(text.split("\t")[0] for text in ask("fish", "--no-config", "-c", _ASK_FISH, line)) == completed


_ASK_ZSH = r"""
autoload -Uz compinit && compinit -u -d ./zcompdump
source ./script.zsh
_describe() { print -rl -- "${(@P)2}" }
compadd() { while [[ $1 == -* ]]; do [[ $1 == -[SPa] ]] && [[ $1 == -S || $1 == -P ]] && shift; shift; done; print -rl -- "${(@P)1}" }
_files() { print -- ":files $*" }
compset() { }
words=("$@")
CURRENT=$#words
_layerstore
"""


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        (["rw", "un"], ["unmount:unmount one; what was written stays"]), (["rw", "rm", "bag"], ["bag\\:1"]),
        (["show", "sha256:"], ["sha256\\:" + ID[7:19] + ":6 B"]), (["register", "x"], [":files "]), (["--root", ""], [":files -/"]),
        (["cat", ID, "e"], ["etc/"]), (["cat", ID, "etc/my"], ["etc/my notes"]),
    ],
)  # fmt: skip
def test_zsh(base, path, typed, completed):
    assert ask("zsh", "-f", "-c", _ASK_ZSH, "ask", "layerstore", *typed) == completed


def test_the_zsh_script_works_from_fpath_too(base, path):
    (path / "_layerstore").write_text((path / "script.zsh").read_text())
    asked = _ASK_ZSH.replace("autoload -Uz", "fpath=($PWD $fpath); autoload -Uz").replace("source ./script.zsh", "").replace(
        "\n_layerstore\n", "\n${_comps[layerstore]}\n${_comps[layerstore]}\n")  # fmt: skip
    assert ask("zsh", "-f", "-c", asked, "ask", "layerstore", "rw", "un") == ["unmount:unmount one; what was written stays"] * 2
