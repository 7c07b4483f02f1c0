"""An agent repairs a failing program by trying: as root `python examples/repair.py`. Needs bubblewrap.

Out: what was tried, how far each try came, and what was kept, line by line. The agent has no model: its ideas are a
list of patches. From the best state so far each patch is tried in a fork of its own; the tests run in the fork; the
best fork becomes the next state, and the others are dropped. The store lies in a temporary directory (below TMPDIR),
which is gone afterwards.
"""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

from layerstore import Snapshot, Store

LEAP = """\
# leap YEAR: end with 0 if it is a leap year
[ $(($1 % 4)) = 0 ] && [ $(($1 % 100)) != 1 ]
"""
CASES = """\
passed=0
for case in 1700:1 1800:1 1900:1 1996:0 1999:1 2000:0 2024:0 2100:1; do
    sh leap ${case%:*} >/dev/null
    [ $? = ${case#*:} ] && passed=$((passed + 1))
done
echo $passed
"""
ALL = 8


class Patch(NamedTuple):
    """One idea: in the program, replace one text by another."""

    name: str
    old: str
    new: str


PATCHES = [
    Patch("every year is one", "$(($1 % 4)) = 0", "1 = 1"),
    Patch("not the centuries", "!= 1 ]", "!= 0 ]"),
    Patch("wait for one", "[ $(($1 % 4)) = 0 ]", "while :; do :; done"),
    Patch("but every 400 years", "!= 0 ]", "!= 0 ] || [ $(($1 % 400)) = 0 ]"),
    Patch("start over", "# leap", "rm -rf /project/*  # leap"),
]


def host_programs() -> tuple[dict[str, str], dict[str, str]]:
    """Return the links of a root whose programs are the host's, and what to bind for them."""
    links: dict[str, str] = {}
    binds = {"/usr": "ro:/usr"}
    for name in ("bin", "lib", "lib64"):
        path = Path("/", name)
        if path.is_symlink():
            links[name] = os.readlink(path)
        elif path.exists():
            binds[str(path)] = f"ro:{path}"
    return links, binds


def packed(files: dict[str, str], links: dict[str, str]) -> bytes:
    """Return a layer tar of {name: text} and {name: target}."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))
        for name, target in links.items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            tar.addfile(entry)
    return out.getvalue()


def attempt(state: Snapshot, patch: Patch, binds: dict[str, str]) -> tuple[int, Snapshot]:
    """Apply a patch in a fork, run the tests there, and return how many passed, and the fork's state."""
    with state.fork("attempt") as box:
        with box.mounted() as root:
            program = Path(root, "project/leap")
            program.write_text(program.read_text().replace(patch.old, patch.new))
        try:
            done = box.run(["sh", "cases"], cwd="/project", binds=binds, timeout=1)
            passed = int(done.stdout or 0) if done.returncode == 0 else 0
        except subprocess.TimeoutExpired:
            passed = 0
        return passed, box.snapshot()


def main() -> None:
    links, binds = host_programs()
    with tempfile.TemporaryDirectory(prefix="layerstore-repair-") as place:
        with Store(Path(place, "store"), options={"durability": "none"}) as store:
            base = store.register(packed({"project/leap": LEAP, "project/cases": CASES}, links))
            box = store.create_rw_layer("project", base)
            best = int(box.run(["sh", "cases"], cwd="/project", binds=binds).stdout)
            state = start = box.snapshot()
            print(f"before      {best} of {ALL} pass")

            while best < ALL:
                tries = [(*attempt(state, patch, binds), patch) for patch in PATCHES]
                for passed, _, patch in tries:
                    print(f"  tried     {patch.name}: {passed}")
                tries.sort(key=lambda one: one[0])
                passed, winner, patch = tries.pop()
                for _, loser, _ in tries:
                    loser.release()
                if passed <= best:
                    raise SystemExit("no patch helps")
                best, state = passed, winner
                print(f"kept        {patch.name}: {best} of {ALL} pass")

            print("changed    ", *state.changes(start), sep="  ")
            box.rollback(state)                         # the project itself goes on from the winner
            with box.mounted() as root:
                print("program    ", *Path(root, "project/leap").read_text().splitlines()[1:], sep="  ")
            layer = state.commit()                      # hashed in place: nothing is copied
            print(f"committed   {layer.chain_id[:19]}, {len(store.map())} layers")

            box.release()
            for snapshot in store.snapshots():
                snapshot.release()
            for chain in (layer, base):
                chain.release()
            counts = (len(store.map()), len(store.mounts()), len(store.snapshots()))
            print("left        {} layers, {} boxes, {} snapshots".format(*counts))


if __name__ == "__main__":
    main()
