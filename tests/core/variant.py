"""Core sources built another way than the door has them, so that both ways are tested on one machine."""

import hashlib
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import door
import probe


def _compile(*arguments: str | Path) -> None:
    command = [*probe.compiler(), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, check=False, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"


def with_base(sources: Iterable[str]) -> list[Path]:
    """These core sources, and all of base/, which every one of them may use."""
    return [*sorted((door.CORE / "base").glob("*.c")), *(door.CORE / name for name in sources)]


def without_isal(place: Path, *sources: str) -> Any:
    """These core sources as a machine without ISA-L would have them: zlib, and a CRC-64 of our own."""
    flags, link_args = door.build_flags()
    target = place / f"{hashlib.sha256(repr(sources).encode()).hexdigest()[:8]}.so"
    libraries = [arg for arg in link_args if arg != "-lisal"]
    _compile(*flags, "-UHAVE_ISAL", "-shared", *with_base(sources), "-o", target, *libraries, "-lz")
    return door.ffi.dlopen(str(target))


def program(target: Path, sources: list[str], main: Path, *, sanitize: str) -> Path:
    """A program of main and these core sources."""
    flags, link_args = door.build_flags(sanitize)
    _compile(*flags, *with_base(sources), main, "-o", target, *link_args)
    return target


OLD_KERNEL = """
#include <errno.h>
#include <stdarg.h>
#include <sys/syscall.h>
#include <unistd.h>
long old_kernel(long number, ...);
long old_kernel(long number, ...)
{
    va_list list;
    long a[6];
    va_start(list, number);
    for (int i = 0; i < 6; i++)
        a[i] = va_arg(list, long);
    va_end(list);
    if (number == 437 || number == 464 || number == 465) {   /* openat2, getxattrat, listxattrat */
        errno = ENOSYS;
        return -1;
    }
    return syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
"""


def old_kernel(place: Path, *sources: str) -> Any:
    """These core sources on a kernel that has neither openat2 nor getxattrat and listxattrat."""
    flags, link_args = door.build_flags()
    (place / "old_kernel.c").write_text(OLD_KERNEL)
    _compile(*flags, "-c", place / "old_kernel.c", "-o", place / "old_kernel.o")
    target = place / "old_kernel.so"
    _compile(*flags, "-Dsyscall=old_kernel", "-shared", *with_base(sources), place / "old_kernel.o", "-o", target, *link_args)
    return door.ffi.dlopen(str(target))


WRAPPED = ["malloc", "calloc", "realloc", "reallocarray", "strdup", "strndup", "free", "fdopendir", "pthread_create", "ZSTD_createDStream", "ZSTD_createDCtx"]


def failing_allocations(place: Path) -> Any:
    """The door's own objects, linked so that allocations.c decides which of their allocations fail."""
    flags, link_args = door.build_flags()
    objects = sorted(door.shared_object().parent.glob("*.o"))
    target, source = place / "allocations.so", Path(__file__).parent / "allocations.c"
    wraps = [f"-Wl,--wrap={name}" for name in WRAPPED]
    flags = [flag for flag in flags if flag != "-Wmissing-prototypes"]
    _compile(*flags, "-c", source, "-o", place / "allocations.o")
    _compile("-shared", *objects, place / "allocations.o", "-o", target, *wraps, *link_args)
    door.ffi.cdef(
        "void allocations_fail(long from, long to); long allocations_asked(void); long allocations_live(void);", override=True
    )
    return door.ffi.dlopen(str(target))


def memory_lowers(place: Path) -> Any:
    """The door's core with memory_lower.c beside it: layers below that are in memory."""
    flags, link_args = door.build_flags()
    target, source = place / "memory_lower.so", Path(__file__).parent / "memory_lower.c"
    _compile(*flags, "-shared", source, door.shared_object(), f"-Wl,-rpath,{door.shared_object().parent}", "-o", target, *link_args)
    door.ffi.cdef(
        """typedef struct memory memory;
        memory *memory_new(int fd); void memory_free(memory *m); long memory_given(const memory *m); long memory_asked(const memory *m);
        lay_code memory_changes(lay_changes **out, memory *upper, int upper_fd, memory *const *lowers, size_t n, lay_error *err);
        int memory_shows(memory *const *lowers, size_t n, const char *path, size_t len);""",
        override=True,
    )
    return door.ffi.dlopen(str(target))
