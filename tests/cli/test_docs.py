"""docs/cli.md and README are true: what stands behind a "$" is run, and prints what stands below it.

"..." stands for anything, on its line; ages are all the same age; how wide a column is does not matter. localhost:5000 is
a docker-registry of our own.
"""

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

import disk
import pytest
import realregistry

from layerstore.cli.commands import build

PROJECT = Path(__file__).resolve().parents[2]
PAGES = ["docs/cli.md", "README.md"]
MARK = "-=- next -=-"
REGISTRY = "localhost:5000"


def commands_of(page: str) -> list[tuple[int, str, list[str]]]:
    """(line, command, what it prints) of each console block."""
    text, found = (PROJECT / page).read_text(encoding="utf-8"), []
    for block in re.finditer(r"^```console\n(.*?)^```$", text, re.M | re.S):
        at = text[: block.start(1)].count("\n")
        for line in block[1].splitlines():
            at += 1
            if line.startswith("$ "):
                found.append((at, line[2:], []))
            else:
                found[-1][2].append(line)
    return found


def plain(line: str) -> str:
    return " ".join(re.sub(r"(?<=\s)(now|\d+ s)(?=\s|$)", "now", line).split())


def outcome(script: str, room: Path, monkeypatch) -> str:
    """What a script prints. Its registry is one of ours, and the credentials of this machine are not there."""
    with contextlib.ExitStack() as stack:
        ours = REGISTRY
        if REGISTRY in script:
            monkeypatch.setenv("HOME", str(room / "home"))
            for name in ("DOCKER_AUTH_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "DOCKER_CONFIG"):
                monkeypatch.delenv(name, raising=False)
            ours = stack.enter_context(realregistry.Registry(room / "registry")).host.replace("127.0.0.1", "localhost")
        done = subprocess.run(["bash", "-c", script.replace(REGISTRY, ours)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return done.stdout.replace(ours, REGISTRY)


@pytest.mark.time_limit(120)
@pytest.mark.parametrize("page", PAGES)
def test_the_examples_print_what_they_say(page, environment, room, monkeypatch):
    monkeypatch.chdir(room)
    monkeypatch.delenv("LAYERSTORE_ROOT")
    commands = commands_of(page)
    program = room / "bin/layerstore"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m layerstore "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    # $? of one command is there for the next.
    script = "umask 022\n" + "".join(f"{command}\nlast=$?; echo '{MARK}'; (exit $last)\n" for _, command, _ in commands)
    text = outcome(script, room, monkeypatch)
    printed = [part.strip("\n").splitlines() for part in text.split(MARK + "\n")]
    assert len(commands) >= 5 and len(printed) == len(commands) + 1, text
    for (at, command, promised), got in zip(commands, printed, strict=False):
        pattern = "\n".join(".*".join(map(re.escape, plain(line).split("..."))) for line in promised)
        assert re.fullmatch(pattern, "\n".join(map(plain, got))), f"{page}:{at}: {command}\n" + "\n".join(got)
    assert disk.mounts_below(room) == []


def test_every_command_is_on_the_page():
    text = (PROJECT / "docs/cli.md").read_text(encoding="utf-8")
    for name, parser in build().commands.items():
        below = [f"{name} {inner}" for inner in parser.commands]
        for command in below or [name]:
            assert re.search(rf"(layerstore|`) ?{command}\b", text), f"docs/cli.md does not mention {command}"
