"""Who a command is in a sandbox: a number, "uid:gid", or a name of the tree's own /etc/passwd."""

from __future__ import annotations

import os
import re
from typing import Final, NamedTuple

from layerstore.running import inside
from layerstore.running.command import as_id

_MOST: Final = 4 << 20          # bytes that are read of /etc/passwd
_PASSWD: Final = "/etc/passwd"


class User(NamedTuple):
    """A user in a tree: its numbers, and its home directory."""

    uid: int
    gid: int
    home: str


def find(root_fd: int, user: int | str | None) -> User:
    """Return who a user is in a tree. Raises LookupError: its /etc/passwd has no such name; ValueError: no such uid."""
    known = _known(root_fd)
    if user is None:
        user = "0:0"
    if isinstance(user, str) and (both := re.fullmatch(r"([0-9]+):([0-9]+)", user)):
        uid, gid = as_id(int(both[1])), as_id(int(both[2]))
        return User(uid, gid, _home(known, uid))
    if isinstance(user, str) and re.fullmatch(r"[0-9]+", user):
        user = as_id(int(user))
    if isinstance(user, int):
        gids = [each.gid for _, each in known if each.uid == user]
        return User(user, gids[0] if gids else user, _home(known, user))
    for name, each in known:
        if name == user:
            return each
    raise LookupError(f"{_PASSWD} of the layer has no user {user!r}: name one of it, or give a number")


def _home(known: list[tuple[str, User]], uid: int) -> str:
    homes = [each.home for _, each in known if each.uid == uid]
    return homes[0] if homes else "/root" if uid == 0 else "/"


def _known(root_fd: int) -> list[tuple[str, User]]:
    """Return the users of a tree, by name; lines that are none are skipped."""
    users = []
    for line in inside.read(root_fd, _PASSWD, _MOST).split(b"\n"):
        fields = line.split(b":")
        if len(fields) >= 6 and fields[0] and fields[2].isdigit() and fields[3].isdigit():
            uid, gid = int(fields[2]), int(fields[3])
            if uid < 0xFFFFFFFF and gid < 0xFFFFFFFF and b"\0" not in line:
                users.append((os.fsdecode(fields[0]), User(uid, gid, os.fsdecode(fields[5]) or "/")))
    return users
