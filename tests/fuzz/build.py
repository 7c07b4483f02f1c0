"""Build the fuzz targets and write their seeds: the same way for .ci/fuzz and for the tests that replay the seeds.

python tests/fuzz/build.py PLACE            CC=clang: PLACE/fuzz_..., with libFuzzer, and PLACE/seeds/...
"""

import concurrent.futures
import gzip
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "core"), str(HERE.parent / "hostile")]
import door  # noqa: E402
import erofsshapes  # noqa: E402
import probe  # noqa: E402
import recipes  # noqa: E402
import refused  # noqa: E402
import sinks  # noqa: E402
from test_erofs_write import TOO_LARGE, written  # noqa: E402

TARGETS = sorted(path.stem for path in HERE.glob("fuzz_*.c"))
# What each target is fed with; tars for all others.
SEEDS = {"fuzz_assemble": ("records",), "fuzz_split": ("tars", "records"), "fuzz_listing": ("tars", "records"), "fuzz_inflate": ("packed", "tars"),
         "fuzz_gzip": ("packed",), "fuzz_seek": ("records",), "fuzz_erofs_read": ("images",)}
# Of these the input is no tar, so blocks and checksums mean nothing.
NO_TARS = {"fuzz_inflate", "fuzz_assemble", "fuzz_gzip", "fuzz_seek", "fuzz_erofs_read"}
# Hostile records.
ODD_RECORDS = {
    "no-digits": b'{"type":1,"name":"' + b"\\u" * 300 + b'","size":5,"payload":"AAAAAAAAAAA="}\n',
    "lone-surrogates": b'{"type":1,"name":"\\ud83d\\udc\\ude00","size":5}\n',
    "cut-escape": b'{"type":1,"name":"a\\',
    "brackets": b'{"x":' + b"[" * 3000,
    "spare-members": gzip.compress(b'{"type":2,"payload":"AAAA"}\n', mtime=0) * 3 + b"junk",
}
# Longer ones teach a fuzzer nothing and cost it much.
LONGEST = 200_000


def seeds_of(target: str) -> tuple[str, ...]:
    return SEEDS.get(target, ("tars",))


def build(place: Path, sanitize: str, *, driver: bool) -> None:
    """Every target in place. driver: with a main() of our own, else with libFuzzer's and mutations for tars."""
    flags, link_args = door.build_flags(sanitize)
    flags = [flag for flag in flags if flag != "-Werror"] + [f"-I{HERE}", "-w"]
    core = [probe.ROOT / name for name in probe.core_sources()]
    around = "driver" if driver else "mutate"
    place.mkdir(parents=True, exist_ok=True)

    def compiled(source: Path) -> Path:
        _run(*flags, "-c", source, "-o", place / f"{source.stem}.o")
        return place / f"{source.stem}.o"

    def link(target: str) -> None:
        beside = [] if not driver and target in NO_TARS else [place / f"{around}.o"]
        _run(place / f"{target}.o", *objects, *beside, "-o", place / target, *link_args)

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, core))
        list(pool.map(compiled, [HERE / f"{name}.c" for name in (*TARGETS, around)]))
        list(pool.map(link, TARGETS))


def _run(*arguments: str | Path) -> None:
    command = [*probe.compiler(), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, check=False, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")


def tars() -> dict[str, bytes]:
    """Every recipe, good and refused, that is not too long."""
    made = {name: recipe() for name, recipe in recipes.GOOD.items()}
    made |= {name: recipe()[0] for name, recipe in (refused.BAD | refused.UNSUPPORTED).items()}
    return {name: tar for name, tar in made.items() if len(tar) <= LONGEST}


def write_seeds(place: Path) -> None:
    """place/tars, place/records, place/packed and place/images."""
    kinds: dict[str, dict[str, bytes]] = {"tars": tars(), "records": {}, "packed": {}, "images": {}}
    for name in recipes.GOOD:
        if name in kinds["tars"]:
            kinds["records"][name] = sinks.record(kinds["tars"][name])
            kinds["records"][f"{name}.gz"] = sinks.record(kinds["tars"][name], gzip=True)
            kinds["packed"][f"{name}.gz"] = gzip.compress(kinds["tars"][name], 6, mtime=0)
    kinds["records"] |= ODD_RECORDS
    kinds["images"] |= {name: written(kinds["tars"][name]) for name in recipes.GOOD if name in kinds["tars"] and name != TOO_LARGE}
    kinds["images"] |= {f"shape-{name}": erofsshapes.flattened(name) for name in erofsshapes.SHAPES}
    kinds["images"] = {name: image for name, image in kinds["images"].items() if len(image) <= LONGEST}
    plain = kinds["tars"]["good_t1"]
    kinds["packed"]["members.gz"] = gzip.compress(plain, 0, mtime=0) + gzip.compress(b"") + b"garbage"
    kinds["packed"]["t1.zst"] = subprocess.run(["zstd", "-qc"], input=plain, capture_output=True, check=True).stdout
    skipped = b"\x50\x2a\x4d\x18\x04\0\0\0skip"
    kinds["packed"]["skipped.zst"] = skipped + kinds["packed"]["t1.zst"] + skipped
    for kind, seeds in kinds.items():
        (place / kind).mkdir(parents=True, exist_ok=True)
        for name, data in seeds.items():
            (place / kind / name).write_bytes(data)


def main(place: str) -> None:
    build(Path(place), "fuzzer,address,undefined", driver=False)
    # the door, which writes the records, is the ordinary core
    os.environ.pop("CC", None)
    write_seeds(Path(place, "seeds"))
    print(*(f"{target} {' '.join(seeds_of(target))}" for target in TARGETS), sep="\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
