"""Completion: what may stand next on a command line, by the parser itself, and the scripts that ask for it.

The scripts are small: on Tab they call `layerstore __words WORD...`, the last word being the one to complete, and get
one candidate per line, with a tab and a description; ":files" or ":dirs" leaves names of files to the shell.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from layerstore.cli.exits import Exit
from layerstore.cli.opening import Opened, reading
from layerstore.cli.parser import Commands, Parser
from layerstore.cli.screen import Screen
from layerstore.cli.texts import short_id
from layerstore.errors import readable
from layerstore.sizes import format_size

SHELLS = ("bash", "zsh", "fish")


def add(commands: Commands) -> None:
    completion = commands.command(
        "completion", run_completion, "print the completion script of a shell",
        examples=["completion bash > /etc/bash_completion.d/layerstore",
                  'completion zsh > "${fpath[1]}/_layerstore"',
                  "completion fish > ~/.config/fish/completions/layerstore.fish"],
    )  # fmt: skip
    completion.add_argument("shell", choices=SHELLS, help="bash, zsh or fish")


def run_completion(args: Any, screen: Screen) -> int:
    screen.out.write(_SCRIPTS[args.shell])
    return Exit.OK


class Word(NamedTuple):
    """One candidate."""

    text: str
    what: str = ""


FILES, DIRECTORIES = Word(":files"), Word(":dirs")
_MANY = ("*", "+")


class _Line:
    """A command line up to the word that is completed."""

    def __init__(self, parser: Parser, words: Sequence[str]) -> None:
        self.parser = parser
        self.plain: list[str] = []                      # arguments of the command that are no options
        self.waiting: argparse.Action | None = None     # an option that needs its value
        self.options_over = self.unknown = False
        self.root: str | None = None
        self.driver: str | None = None
        for word in words:
            self._take(word)

    def _take(self, word: str) -> None:
        if self.waiting is not None:
            self._value(self.waiting, word)
            self.waiting = None
        elif word == "--":
            self.options_over = True
        elif word.startswith("-") and word != "-" and not self.options_over:
            name, equals, value = word.partition("=")
            action = self.option(name)
            if action is not None and action.nargs != 0:
                if equals:
                    self._value(action, value)
                else:
                    self.waiting = action
        else:
            below = self.parser.commands
            if not below:
                self.plain.append(word)
            elif word in below:
                self.parser = below[word]
            else:
                self.unknown = True

    def _value(self, action: argparse.Action, value: str) -> None:
        if action.dest == "root":
            self.root = value
        elif action.dest == "driver":
            self.driver = value

    def option(self, name: str) -> argparse.Action | None:
        """Return the option of this name."""
        return next((a for a in self.parser.arguments() if name in a.option_strings), None)

    def argument(self) -> argparse.Action | None:
        """Return the argument that stands next."""
        actions = [action for action in self.parser.arguments() if not action.option_strings]
        if len(self.plain) < len(actions):
            return actions[len(self.plain)]
        return actions[-1] if actions and actions[-1].nargs in _MANY else None


def words_for(parser: Parser, line: Sequence[str]) -> list[Word]:
    """Return the candidates for the last word of a command line (without the program's name)."""
    done, current = list(line[:-1]), line[-1] if line else ""
    at = _Line(parser, done)
    if at.unknown:
        return []
    if at.waiting is not None:
        return _values(at, at.waiting, current)
    if current.startswith("-") and not at.options_over:
        name, equals, value = current.partition("=")
        if equals:
            action = at.option(name)
            found = _values(at, action, value) if action is not None and action.nargs != 0 else []
            return [word if word.text.startswith(":") else word._replace(text=f"{name}={word.text}") for word in found]
        options = [Word(name, one.help or "") for one in at.parser.arguments() for name in one.option_strings]
        return [word for word in options if word.text.startswith("--" if current == "-" else current)]
    below = at.parser.commands
    if below:
        return [Word(name, one.short) for name, one in below.items() if name.startswith(current)]
    action = at.argument()
    return _values(at, action, current) if action is not None else []


def _values(at: _Line, action: argparse.Action, current: str) -> list[Word]:
    """Return what an option or argument may be."""
    if action.choices is not None:
        return [Word(str(choice)) for choice in action.choices if str(choice).startswith(current)]
    kind = str(action.metavar or "")
    if kind == "TAR" and current == "":
        return [Word("-", "standard input"), FILES]
    if kind in ("TAR", "FILE"):
        return [FILES]
    if kind == "DIR":
        return [DIRECTORIES]
    look = {"LAYER": _layers, "NAME": _mounts, "IMAGE": _images, "REFERENCE": _images, "PATH": _paths,
            "SNAPSHOT": _snapshots, "BASE": _bases, "ORIGIN": _origins}.get(kind)  # fmt: skip
    if look is None:
        return []
    with reading(argparse.Namespace(root=at.root, driver=at.driver)) as opened:
        return list(look(opened, at, current))


_Look = Callable[[Opened, _Line, str], Iterator[Word]]


def _layers(opened: Opened, _at: _Line, current: str) -> Iterator[Word]:
    digits = current.removeprefix("sha256:")
    prefix = current[: len(current) - len(digits)]
    for chain in sorted(opened.store.names()[0]):
        if chain.encoded.startswith(digits):
            shown = short_id(chain) if len(digits) <= len(short_id(chain)) else chain.encoded
            layer = opened.store.find(chain)
            yield Word(prefix + shown, format_size(layer.diff_size) if layer else "damaged")
    if not prefix:
        yield from _images(opened, _at, current)


def _mounts(opened: Opened, _at: _Line, current: str) -> Iterator[Word]:
    for name in opened.store.names()[1]:
        if name.startswith(current):
            yield Word(name)


def _snapshots(opened: Opened, _at: _Line, current: str) -> Iterator[Word]:
    for snapshot in opened.store.snapshots():
        if snapshot.id.startswith(current):
            shown = short_id(snapshot.id) if len(current) <= len(short_id(snapshot.id)) else snapshot.id
            yield Word(shown, f"of {snapshot.box}")


def _bases(opened: Opened, at: _Line, current: str) -> Iterator[Word]:
    yield from _snapshots(opened, at, current)
    yield from _layers(opened, at, current)


def _origins(opened: Opened, at: _Line, current: str) -> Iterator[Word]:
    yield from _mounts(opened, at, current)
    yield from _snapshots(opened, at, current)


def _images(opened: Opened, _at: _Line, current: str) -> Iterator[Word]:
    for image in opened.images.list():
        for name in image.references:
            if name.startswith(current):
                yield Word(name, short_id(image.id))


def _paths(opened: Opened, at: _Line, current: str) -> Iterator[Word]:
    """Return paths in the layer named before."""
    if not at.plain:
        return
    tree = opened.layer(at.plain[0]).merged()
    start = "/" if current.startswith("/") else ""
    above, _, name = current.removeprefix("/").rpartition("/")
    for entry in tree.find(f"{above}/*" if above else "*"):
        if entry.path.rpartition("/")[2].startswith(name):
            yield Word(start + entry.path + ("/" if entry.type == "directory" else ""))


def print_words(parser: Parser, argv: Sequence[str]) -> int:
    """Print the candidates; if something fails, print none."""
    said, sys.stderr = sys.stderr, io.StringIO()
    try:
        words = words_for(parser, argv)
    except Exception:
        words = []
    finally:
        sys.stderr = said
    for word in words:
        if not word.text.isprintable():                   # the shell would show it as it is
            continue
        sys.stdout.write(f"{word.text}\t{readable(' '.join(word.what.split()))}".rstrip("\t") + "\n")
    return Exit.OK


# ---- scripts ------------------------------------------------------------------------------------
_BASH = r"""# bash completion of layerstore
_layerstore() {
    local words=() word glue= at line cur value head
    # bash splits words at ":" and "="; they are put together again
    for ((at = 1; at <= COMP_CWORD; at++)); do
        word=${COMP_WORDS[at]}
        if [[ ${#words[@]} -gt 0 && ( -n $glue || $word == [:=] ) ]]; then
            words[${#words[@]}-1]+=$word
        else
            words+=("$word")
        fi
        if [[ $word == [:=] ]]; then glue=1; else glue=; fi
    done
    cur=${words[${#words[@]}-1]} value=$cur
    [[ $cur == -*=* ]] && value=${cur#*=}
    COMPREPLY=()
    while IFS= read -r line; do
        case $line in
            :files | :dirs)
                compopt -o filenames 2>/dev/null
                if [[ $line == :files ]]; then at=-f; else at=-d; fi
                while IFS= read -r word; do COMPREPLY+=("$word"); done < <(compgen "$at" -- "$value")
                ;;
            *)
                word=${line%%$'\t'*}
                [[ $word == */ ]] && compopt -o nospace 2>/dev/null
                COMPREPLY+=("$(printf %q "$word")")
                ;;
        esac
    done < <("${COMP_WORDS[0]}" __words "${words[@]}" 2>/dev/null)
    head=${cur%"${cur##*[:=]}"}
    [[ $cur == *[:=]* ]] && COMPREPLY=("${COMPREPLY[@]#"$head"}")
    return 0
}
complete -F _layerstore layerstore
"""

_ZSH = r"""#compdef layerstore
# zsh completion of layerstore
_layerstore() {
    local line word
    local -a found open
    for line in "${(@f)$("${words[1]}" __words "${(@Q)words[2,CURRENT]}" 2>/dev/null)}"; do
        word=${line%%$'\t'*}
        case $line in
            (:files) compset -P '-*='; _files ;;
            (:dirs) compset -P '-*='; _files -/ ;;
            (*/) open+=("$word") ;;
            (?*$'\t'*) found+=("${word//:/\\:}:${line#*$'\t'}") ;;
            (?*) found+=("${word//:/\\:}") ;;
        esac
    done
    (( $#open )) && compadd -S '' -a open
    (( $#found )) && _describe layerstore found
    return 0
}
if [[ $funcstack[1] == _layerstore ]]; then
    _layerstore "$@"
else
    compdef _layerstore layerstore
fi
"""

_FISH = r"""# fish completion of layerstore
function __layerstore_words
    set -l before (commandline -opc)
    set -l current (commandline -ct)
    test (count $current) -eq 0; and set current ''
    for line in (command $before[1] __words $before[2..-1] $current 2>/dev/null)
        switch $line
            case ':files'
                __fish_complete_path $current
            case ':dirs'
                __fish_complete_directories $current
            case '*'
                echo $line
        end
    end
end
complete -c layerstore -f -a '(__layerstore_words)'
"""

_SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}
