"""Fork a process while one of its threads is at the entry of a function, and let the child use the store.

    python tests/trust/ownspace.py forkwalk.py '{"act": "register", "step": 1}'

One plan is one act, done in a thread. At the entry of each function that the thread enters, the main thread forks, and
the thread goes on. The child has the store object, whatever lock the thread had, and none of its threads: all that it
does there ends within seconds.
"""

import faulthandler
import gc
import os
import sys
import threading
from pathlib import Path
from typing import Any

import interruptwalk
import ownspace
import seeded
import tarkit
from acts import BASE, NEW, TOP
from interruptwalk import ACTS, SECONDS, imaged
from seeded import chain

from layerstore import Images, Store


def in_the_child(store: Store, number: int) -> None:
    """Everything that takes a lock, on names of this child's own."""
    top = store.get(chain(BASE, TOP))
    with top.tar_stream() as stream:
        stream.read(2000)
    store.map()
    tar = tarkit.file(f"child-{number}", b"c" * 2000) + tarkit.end()
    layer = store.register(tar, top.chain_id)
    with layer.tar_stream() as stream:
        assert stream.read() == tar
    with store.create_rw_layer(f"child-{number}", layer.chain_id) as box, box.mounted() as path:
        Path(path, "x").write_text("x")
        assert Path(path, f"child-{number}").read_bytes() == b"c" * 2000
    Images(store).tag("keep:1", f"child:{number}")
    Images(store).remove(f"child:{number}")
    assert layer.release()
    top.release()
    store.close()
    gc.collect()


class Walker:
    def __init__(self, plan: dict[str, Any], place: Path) -> None:
        self.plan, self.act, self.root = plan, ACTS[plan["act"]], place / "docker"
        self.problems: list[str] = []
        with Store(self.root) as store:
            imaged(store)

    def child(self, store: Store, number: int) -> int:
        """Fork; return the child."""

        def work() -> None:
            out = os.open(self.root.parent / "said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(out, 2)
            faulthandler.dump_traceback_later(2 * SECONDS)
            in_the_child(store, number)

        return ownspace.forked(work)

    def at(self, number: int) -> list[int]:
        """The act in a thread, with a fork at its n-th function (0: nowhere, and the places where one could be)."""
        store = Store(self.root, options={"lock_timeout": str(SECONDS)})
        ready = self.act.ready(store)
        wanted, go_on, places = threading.Event(), threading.Event(), interruptwalk.Places()
        failed: list[BaseException] = []

        def stop(_number: int, _frame: Any) -> None:
            wanted.set()
            go_on.wait()

        def work() -> None:
            sys.setprofile(interruptwalk.at_entry(number, stop) if number else places.enter)
            try:
                self.act.do(store, ready)
            except BaseException as error:
                failed.append(error)
            finally:
                sys.setprofile(None)
                wanted.set()

        thread = threading.Thread(target=work)
        thread.start()
        wanted.wait()
        pid = self.child(store, number) if number and thread.is_alive() else 0
        go_on.set()                              # the thread goes on, and releases what the child waits for
        thread.join()
        if failed:
            self.problems.append(f"forked at function {number}: the act itself: {failed[0]!r}")
        if pid and (status := ownspace.ended(pid, 3 * SECONDS)):
            said = (self.root.parent / "said").read_text()[-700:]
            self.problems.append(f"forked at function {number}: it ends with {status} {said}")
        store.close()
        return places.numbers()

    def walk(self) -> dict[str, Any]:
        interruptwalk.Walker.quiet()
        seeded.layer(NEW)                        # drawn once
        places = self.at(0)
        walked = 0
        for number in interruptwalk.chosen(self.plan, places):
            self.at(number)
            walked += 1
            if len(self.problems) > 10:
                break
        with Store(self.root) as store:
            store.cleanup()
            self.problems += [f"at the end: {problem}" for problem in store.verify()]
        return {"problems": self.problems[:20], "of": len(places), "walked": walked}


if __name__ == "__main__":
    ownspace.main(lambda plan, place: Walker(plan, place).walk())
