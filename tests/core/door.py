"""The tests' door into the core: builds ext/core by itself and shows every function of its headers.

    import door
    z = door.make("lay_inflate_open", "lay_inflate *", door.lib.LAY_FORMAT_GZIP)
    got = door.out("size_t *")
    door.call("lay_inflate_next", z, buffer, len(buffer), got)     # raises CoreError

It is the core setup.py ships, with the libraries ext/probe.py finds, but as one shared object in
build/door/<hash of sources and flags>, built once under a lock. With LAYERSTORE_SANITIZE=address,undefined
(or thread) it is built with these sanitizers, whose run-time library must be loaded before Python's:

    python3 tests/core/door.py --sanitize address,undefined -m pytest tests/core

sets all that and runs the rest. The headers are read with their own preprocessor; inline functions
are let out as plain ones.
"""

import concurrent.futures
import fcntl
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cffi

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "ext" / "core"
sys.path.insert(0, str(ROOT / "ext"))
import probe  # noqa: E402

# Of one translation unit each: what they declare is no promise to anyone, a test least of all.
PRIVATE = ("_state.h", "unpack_implied.h", "unpack_marks.h", "unpack_names.h")

# As 64-bit Linux has them.
SYSTEM_TYPES = """
typedef uint32_t mode_t; typedef uint32_t uid_t; typedef uint32_t gid_t;
typedef uint64_t dev_t; typedef uint64_t ino_t; typedef int64_t off_t;
struct timespec { int64_t tv_sec; long tv_nsec; };
struct stat;
typedef unsigned long pthread_t;
typedef struct { long room[5]; } pthread_mutex_t; typedef struct { long room[6]; } pthread_cond_t;
"""


class CoreError(Exception):
    """A lay_error: code is its name ("LAY_E_TAR"), path is bytes."""

    def __init__(self, code: str, sys_errno: int, offset: int, path: bytes, text: str) -> None:
        super().__init__(f"{code}: {text} (path {path!r}, offset {offset}, errno {sys_errno})")
        self.code, self.sys_errno, self.offset, self.path, self.text = code, sys_errno, offset, path, text


# ---- building ----
def sanitizers() -> str:
    return os.environ.get("LAYERSTORE_SANITIZE", "")


def build_flags(sanitize: str | None = None) -> tuple[list[str], list[str]]:
    """Flags to compile a core source with, and to link with; for programs beside the door, too."""
    config = probe.discover()
    sanitize = sanitizers() if sanitize is None else sanitize
    flags = [flag for flag in config.flags() if flag != "-fvisibility=hidden"] + [f"-I{CORE}", "-fPIC", "-g", "-pthread"]
    if sanitize:
        flags += ["-O1", "-fno-omit-frame-pointer", f"-fsanitize={sanitize}", "-fno-sanitize-recover=undefined"]
    return flags, [*([f"-fsanitize={sanitize}"] if sanitize else []), "-pthread", *config.link_args]


def headers() -> list[Path]:
    return [ROOT / name for name in probe.core_headers() if not name.endswith(PRIVATE)]


def _run(*command: str | Path) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, check=False, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(str(c) for c in command)}\n{done.stderr}")
    return done.stdout


def _let_out_inline(place: Path) -> Path:
    """A source in which the headers' inline functions are plain ones."""
    system = sorted({line for h in headers() for line in re.findall(r"#include <[^>]+>", h.read_text())})
    own = [f'#include "{h.relative_to(CORE)}"' for h in headers()]
    source = place / "inline.c"
    source.write_text("\n".join([*system, "#define static", "#define inline", *own, ""]))
    return source


def _build(place: Path, flags: list[str], link_args: list[str]) -> None:
    compiler = probe.compiler()
    work = place.with_suffix(".part")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    jobs = [(ROOT / name, work / f"{Path(name).stem}.o", flags) for name in probe.core_sources()]
    loose = [flag for flag in flags if flag != "-Werror"]
    jobs.append((_let_out_inline(work), work / "inline.o", [*loose, "-Wno-missing-prototypes"]))
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda job: _run(*compiler, *job[2], "-c", job[0], "-o", job[1]), jobs))
    objects = sorted(work.glob("*.o"))
    _run(*compiler, "-shared", *objects, "-o", work / "core.so", *link_args)
    shutil.rmtree(place, ignore_errors=True)
    work.rename(place)


@functools.cache
def shared_object() -> Path:
    """Path of the core as a shared object, built now if its sources or flags have changed."""
    flags, link_args = build_flags()
    seen = hashlib.sha256(repr((probe.compiler(), flags, link_args)).encode())
    for name in [*probe.core_sources(), *probe.core_headers(), "tests/core/door.py"]:
        seen.update(name.encode() + b"\0" + (ROOT / name).read_bytes())
    kept = ROOT / "build" / "door"
    kept.mkdir(parents=True, exist_ok=True)
    place = kept / seen.hexdigest()[:16]
    with (kept / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "core.so").exists():
            _build(place, flags, link_args)
    return place / "core.so"


# ---- declaring ----
def _without_bodies(text: str) -> str:
    """Inline functions as their prototypes."""
    parts = []
    while found := re.search(r"static inline ([^{;]*)\{", text):
        depth, end = 1, found.end()
        while depth:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        parts += [text[: found.start()], found.group(1).rstrip() + ";"]
        text = text[end:]
    return "".join([*parts, text])


def _without_attributes(text: str) -> str:
    while found := re.search(r"__attribute__\s*\(", text):
        depth, end = 1, found.end()
        while depth:
            depth += {"(": 1, ")": -1}.get(text[end], 0)
            end += 1
        text = text[: found.start()] + text[end:]
    return text


def _numbers(macros: str) -> str:
    """The #defines that are numbers, in a form cffi reads."""
    lines = []
    for name, value in re.findall(r"^#define (LAY_\w+) (.+)$", macros, re.M):
        plain = re.sub(r"(?<=[0-9a-fA-F])[uUlL]+", "", value)
        if re.fullmatch(r"[-0-9a-fA-FxX()<|+* ]+", plain) and re.search(r"\d", plain):
            lines.append(f"#define {name} {eval(plain)}")
    return "\n".join(lines)


def declarations() -> str:
    """All headers as cffi reads them."""
    # Every header, without the system's; the order of the others is the preprocessor's to find.
    with tempfile.TemporaryDirectory(prefix="layerstore-door-") as place:
        for name in probe.core_headers():
            text = (ROOT / name).read_text()
            copy = Path(place, Path(name).relative_to(probe.CORE))
            copy.parent.mkdir(exist_ok=True)
            copy.write_text(re.sub(r"#\s*include\s*<[^>]+>", "", text))
        everything = Path(place, "all.c")
        everything.write_text("".join(f'#include "{h.relative_to(CORE)}"\n' for h in headers()))
        command = [*probe.compiler(), "-E", "-P", "-undef", "-nostdinc", f"-I{place}", everything]
        plain, macros = _run(*command), _run(*command, "-dM")
    declared = _without_attributes(_without_bodies(plain))
    return f"{_numbers(macros)}\n{declared}"


@functools.cache
def _opened() -> tuple[cffi.FFI, Any]:
    made = cffi.FFI()
    made.cdef(SYSTEM_TYPES)
    made.cdef(declarations())
    return made, made.dlopen(str(shared_object()), made.RTLD_NOW)


def __getattr__(name: str) -> Any:
    if name == "ffi":
        return _opened()[0]
    if name == "lib":
        return _opened()[1]
    raise AttributeError(name)


# ---- calling ----
def new_error() -> Any:
    err = _opened()[0].new("lay_error *")
    err.offset = -1
    return err


def error_of(err: Any) -> CoreError:
    ffi, _ = _opened()
    code = ffi.string(ffi.cast("lay_code", err.code))
    text = ffi.string(err.text).decode("utf-8", "replace")
    return CoreError(str(code), err.sys_errno, err.offset, ffi.string(err.path), text)


def call(name: str, *args: Any) -> None:
    """Call a function whose last argument is a lay_error; raise CoreError if it says it failed."""
    err = new_error()
    code = getattr(_opened()[1], name)(*args, err)
    if code != 0:
        assert code == err.code, f"{name} returned {code} but the error says {err.code}"
        raise error_of(err)
    assert err.code == 0, f"{name} succeeded and left an error: {error_of(err)}"


def out(kind: str) -> Any:
    """A place for one value: out("size_t *")[0]."""
    return _opened()[0].new(kind)


def shown(fds: Iterable[int]) -> Any:
    """Directories, as the core takes layers. Empty, it still has an address."""
    return _opened()[0].new("lay_shown[]", [*([fd] for fd in fds), [-1]])


def make(name: str, kind: str, *args: Any) -> Any:
    """Call an opening function; the handle goes to <name without its verb>_free with the last reference."""
    ffi, lib = _opened()
    handle = ffi.new(f"{kind} *")
    call(name, handle, *args)
    return ffi.gc(handle[0], getattr(lib, re.sub(r"_(open|new)$", "_free", name)))


@contextmanager
def fails(code: str) -> Iterator[list[CoreError]]:
    """`with fails("LAY_E_TAR") as errors:` the block must raise this CoreError, then errors[0]."""
    seen: list[CoreError] = []
    try:
        yield seen
    except CoreError as error:
        assert error.code == code, error
        seen.append(error)
    else:
        raise AssertionError(f"no {code}")


# ---- running under sanitizers ----
def sanitized_environment(sanitize: str) -> dict[str, str]:
    """What a Python needs to load a sanitized door: the run-time libraries first, no report of its own leaks."""
    runtimes = {"address": "libasan.so", "thread": "libtsan.so", "undefined": "libubsan.so"}
    preload = [_run(*probe.compiler(), f"-print-file-name={runtimes[name]}").strip() for name in sanitize.split(",")]
    return {
        **os.environ,
        "LAYERSTORE_SANITIZE": sanitize,
        "LD_PRELOAD": " ".join(os.path.realpath(p) for p in preload),
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "TSAN_OPTIONS": "halt_on_error=1",
        "PYTHONMALLOC": "malloc",
    }


def main(arguments: list[str]) -> None:
    if len(arguments) < 3 or arguments[0] != "--sanitize":
        sys.exit("usage: door.py --sanitize address,undefined|thread PYTHON-ARGUMENTS...")
    os.execve(sys.executable, [sys.executable, *arguments[2:]], sanitized_environment(arguments[1]))


if __name__ == "__main__":
    main(sys.argv[1:])
