"""A sandbox for an agent, from fork to commit: as root `python examples/sandbox.py [DIRECTORY]`.

In: a directory to start from, else a small made-up project. Out: what was changed, rolled back and kept, told line by
line. The store lies in a temporary directory (below TMPDIR), which is gone afterwards.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from layerstore import Layer, Store


def base(store: Store, tree: str | None, place: str) -> Layer:
    """The directory as a read-only layer, packed by the tar command."""
    if tree is None:
        tree = str(Path(place, "project"))
        Path(tree, "src").mkdir(parents=True)
        Path(tree, "src", "main.py").write_text("print(6 * 7)\n")
        Path(tree, "notes.txt").write_text("to do\n")
    with subprocess.Popen(["tar", "-C", tree, "-cf", "-", "."], stdout=subprocess.PIPE) as tar:
        assert tar.stdout
        layer = store.register(tar.stdout.fileno())
    if tar.returncode:
        raise SystemExit(f"tar could not read {tree}")
    return layer


def work(root: str) -> None:
    """What an agent might do to it."""
    Path(root, "answer.txt").write_text("42\n")
    Path(root, "log").mkdir()
    Path(root, "log", "1").write_text("thought about it\n")


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="layerstore-sandbox-") as place:
        with Store(Path(place, "store"), options={"durability": "none"}) as store:
            layer = base(store, sys.argv[1] if len(sys.argv) > 1 else None, place)
            print(f"base        {layer.diff_size} bytes, {layer.chain_id[:19]}")

            with store.create_rw_layer("agent", layer.chain_id) as box:         # fork: nothing is copied
                with box.mounted() as root:
                    work(root)
                print("changed    ", *box.changes(), sep="  ")
                checkpoint = box.commit()                                       # keep this point
                with box.mounted() as root:
                    for name in Path(root).iterdir():
                        shutil.rmtree(name) if name.is_dir() else name.unlink()
                print(f"spoilt      {len(box.changes())} changes")

            with store.create_rw_layer("agent", checkpoint.chain_id) as box:    # roll back: fork the checkpoint
                with box.mounted() as root:
                    print(f"rolled back answer.txt is {Path(root, 'answer.txt').read_text().strip()}")
                    Path(root, "answer.txt").write_text("42, and here is why\n")
                print("diff       ", *box.changes(), sep="  ")
                final = box.commit()
            print(f"committed   {final.diff_size} bytes, {final.chain_id[:19]}, on {checkpoint.chain_id[:19]}")

            removed = [gone for kept in (final, checkpoint, layer) for gone in kept.release()]
            print(f"released    {len(removed)} layers removed")


if __name__ == "__main__":
    main()
