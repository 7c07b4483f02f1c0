"""Peak memory grows by at most 64 MB, whatever the layer's size: each job in a process of its own, which says its growth."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import recipes
import tarkit

import layerstore

MOST_MB = 64
SIZE_MB = 320

JOBS = {
    "register": "store.register(sys.argv[2])",
    "register from read(n)": "store.register(Reads(open(sys.argv[2], 'rb')))",
    "copy_to": "next(iter(store.map().values())).tar_stream().copy_to(open('/dev/null', 'wb'))",
    "read": "stream = next(iter(store.map().values())).tar_stream()\nwhile stream.read(1 << 20): pass",
}

PROGRAM = """
import sys, layerstore

class Reads:
    def __init__(self, file): self.file = file
    def read(self, n): return self.file.read(n)

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) / 1024

store = layerstore.Store(sys.argv[1])
before = peak()
{job}
print(peak() - before)
"""


@pytest.fixture
def tar(room):
    """Large and small files; on the tmpfs, whose pages are no process's."""
    path = room / "layer.tar"
    block = recipes.noise(1 << 20)
    with open(path, "wb") as out:
        out.write(tarkit.raw_header("big", size=(SIZE_MB // 2) << 20))
        for _ in range(SIZE_MB // 2):
            out.write(block)
        for n in range(SIZE_MB * 2):
            out.write(tarkit.file(f"d{n % 7}/f{n}", block[n : n + (1 << 18)]))
        for n in range(SIZE_MB * 20):
            out.write(tarkit.file(f"s{n % 7}/f{n}", block[n : n + 1000]))
        out.write(tarkit.end())
    return path


@pytest.mark.parametrize("job", JOBS)
def test_peak_memory_does_not_grow_with_the_layer(open_store, root, tar, job):
    if not job.startswith("register"):
        with open_store() as store:
            store.register(tar)
    environment = {**os.environ, "PYTHONPATH": str(Path(layerstore.__file__).parents[1])}
    program = PROGRAM.format(job=JOBS[job])
    done = subprocess.run([sys.executable, "-c", program, root, tar], capture_output=True, check=False, text=True,
                          env=environment)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert 0 < float(done.stdout) < MOST_MB
