"""Peak memory grows by at most 64 MB, whatever the layer's size: each job in a process of its own, which says its growth."""


import pytest
import recipes
import tarkit
from another import growth

MOST_MB = 64
SIZE_MB = 320

STORE = """
store = layerstore.Store(sys.argv[1])
class Only:
    def __init__(self, file): self.read = file.read
"""
JOBS = {
    "register": "store.register(sys.argv[2])",
    "register from read(n)": "store.register(Only(open(sys.argv[2], 'rb')))",
    "copy_to": "next(iter(store.map().values())).tar_stream().copy_to(open('/dev/null', 'wb'))",
    "read": "stream = next(iter(store.map().values())).tar_stream()\nwhile stream.read(1 << 20): pass",
}

@pytest.fixture(scope="module")
def tar(tmpfs):
    """Large and small files; on the tmpfs, whose pages are no process's."""
    path = tmpfs / "layer.tar"
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
    yield path
    path.unlink()


@pytest.mark.parametrize("job", JOBS)
def test_peak_memory_does_not_grow_with_the_layer(open_store, root, tar, job):
    if not job.startswith("register"):
        with open_store() as store:
            store.register(tar)
    assert 0 < growth(JOBS[job], root, tar, before=STORE) < MOST_MB


def long_ways(entries):
    """Names of 16 letters that lead through six links: each lies 84 directories of 250 letters deep."""
    deep, parts = "/".join(["p" * 250] * 14), [tarkit.dir("d/")]
    for hop in range(6):
        start = "s" + "/x" * (hop - 1) + "/" if hop else ""
        parts.append(tarkit.pax({"path": f"{start}{deep}/"}) + tarkit.dir("long/"))
        parts.append(tarkit.pax({"linkpath": deep}) + tarkit.symlink(f"{start}x" if hop else "s", "long"))
    way = "s/x/x/x/x/x"
    kinds = (lambda n: tarkit.file(f"{way}/f{n}", b"x"), lambda n: tarkit.dir(f"{way}/d{n}/"),
             lambda n: tarkit.file(f"{way}/i{n}/f"), lambda n: tarkit.file(f"{way}/again", b"%d" % n),
             lambda n: tarkit.hardlink(f"{way}/h{n}", f"{way}/again"), lambda n: tarkit.file(f"{way}/.wh.w{n}"))  # fmt: skip
    return b"".join([*parts, tarkit.file(f"{way}/again"), *(kinds[n % 6](n) for n in range(entries)), tarkit.end()])


LONG_JOBS = {
    "register": "store.register(sys.argv[2])",
    "apply_diff": "store.create_rw_layer('box').apply_diff(sys.argv[2])",
    "verify": "assert store.verify() == []",
    "files": "for _ in next(iter(store.map().values())).files(): pass",
    "merged": "for _ in next(iter(store.map().values())).merged(): pass",
    "tar_stream": "next(iter(store.map().values())).tar_stream().copy_to(open('/dev/null', 'wb'))",
    "disassemble": "layerstore.disassemble(sys.argv[2], open('/dev/null', 'r+b'))",
}


@pytest.mark.parametrize("job", LONG_JOBS)
def test_memory_does_not_follow_the_links_that_names_lead_through(open_store, root, room, job):
    """3,000 entries, whose paths on the disk have 21 kB each."""
    tar = room / "long.tar"
    tar.write_bytes(long_ways(3000))
    if job not in ("register", "apply_diff", "disassemble"):
        with open_store() as store:
            store.register(tar)
    assert growth(LONG_JOBS[job], root, tar, before=STORE) < 20
