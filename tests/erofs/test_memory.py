"""What a layer of many names takes of memory, while it is worked on and afterwards."""

import subprocess
import sys
from pathlib import Path

import tarkit

TESTS = Path(__file__).parents[1]
COUNT = 250_000
# KiB: 64 MiB for a million names, and 4 MiB that do not grow with them.
MOST = COUNT * 64 * 1024 // 1_000_000 + 4096

# Each step's peak and what stays, in KiB above what there was before; a small layer comes first, for what is needed once.
MEASURE = """
import re, sys
import tarkit
from layerstore import Store

def now(what):
    return int(re.search(rf"^{what}:\\s+(\\d+)", open("/proc/self/status").read(), re.M)[1])

def measured(work):
    open("/proc/self/clear_refs", "w").write("5")
    before = now("VmRSS")
    value = work()
    print(now("VmHWM") - before, now("VmRSS") - before)
    return value

with Store(sys.argv[1], driver="erofs", options={"durability": "none"}) as store:
    store.register(tarkit.T1).release()
    layer = measured(lambda: store.register(sys.argv[2]))
    assert measured(lambda: store.verify(str(layer.chain_id))) == []
    layer.release()
"""


def header(name: str) -> bytes:
    head = bytearray(tarkit.raw_header("x", mtime=1_700_000_000))
    head[: len(name)] = name.encode()
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head)


def test_a_verify_takes_little_and_leaves_nothing(room):
    """Though a register came before it: the C library's heap would keep holes from lists that grew."""
    with open(room / "tar", "wb") as out:
        out.writelines(header(f"d{i % 1000:03}/file-with-a-name-{i:07}") for i in range(COUNT))
        out.write(tarkit.end())
    ran = subprocess.run(
        [sys.executable, "-c", MEASURE, room / "root", room / "tar"],
        env={"PYTHONPATH": str(TESTS)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    registered, verified = (tuple(map(int, line.split())) for line in ran.stdout.splitlines())
    assert verified[0] < MOST
    assert registered[1] < 4096
    assert verified[1] < 4096
