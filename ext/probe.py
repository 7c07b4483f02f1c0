"""Find the libraries of the core by compiling and linking with them; say what was taken.

Enters: the compiler (CC, CPPFLAGS, CFLAGS, LDFLAGS) and the environment. Leaves: a Config, which
setup.py and the tests' door build ext/core with, so that both test and ship the same thing.
LAYERSTORE_WITHOUT_ISAL=1 and LAYERSTORE_WITHOUT_ZSTD=1 force what a machine without them gets.
"""

import glob
import os
import shlex
import subprocess
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORE = "ext/core"

CORE_FLAGS = [
    "-std=c11", "-D_GNU_SOURCE", "-O2", "-fvisibility=hidden",
    "-Wall", "-Wextra", "-Wshadow", "-Wconversion",
]  # fmt: skip

SHA256 = """
#define OPENSSL_SUPPRESS_DEPRECATED
#include <openssl/sha.h>
void probe(void);
void probe(void) { SHA256_CTX c; unsigned char d[32]; SHA256_Init(&c); SHA256_Update(&c, d, 1); SHA256_Final(d, &c); }
"""
# Of libcrypto.a alone: what it calls by itself when it is loaded, if the linker lets it.
CPUID_SETUP = """
void OPENSSL_cpuid_setup(void);
void setup(void);
void setup(void) { OPENSSL_cpuid_setup(); }
"""
ISAL = """
#include <isa-l.h>
unsigned long probe(struct inflate_state *s, struct isal_zstream *z);
unsigned long probe(struct inflate_state *s, struct isal_zstream *z)
{
    return (unsigned)isal_inflate(s) + (unsigned)isal_deflate_stateless(z)
        + crc64_iso_refl(0, 0, 0) + crc32_gzip_refl(0, 0, 0);
}
"""
ZLIB = """
#include <zlib.h>
unsigned long probe(z_stream *s);
unsigned long probe(z_stream *s) { return (unsigned)inflate(s, 0) + (unsigned)deflate(s, 0) + crc32_z(0, 0, 0); }
"""
ZSTD = """
#include <zstd.h>
unsigned long probe(ZSTD_DCtx *d, ZSTD_outBuffer *o, ZSTD_inBuffer *i);
unsigned long probe(ZSTD_DCtx *d, ZSTD_outBuffer *o, ZSTD_inBuffer *i) { return ZSTD_decompressStream(d, o, i); }
"""


class MissingLibraryError(Exception):
    """A library without which there is no core; the sentence says what to install."""


@dataclass(frozen=True)
class Config:
    """How to compile ext/core and link it, beyond CORE_FLAGS."""

    macros: tuple[str, ...]
    link_args: tuple[str, ...]  # after the core's own objects
    findings: tuple[str, ...]  # for people to read

    def flags(self) -> list[str]:
        """All flags for the core's sources."""
        strict = ["-Werror"] if switched_on("LAYERSTORE_WERROR") else []
        return [*CORE_FLAGS, *strict, *(f"-D{macro}" for macro in self.macros)]


def switched_on(name: str) -> bool:
    return os.environ.get(name, "0") not in ("", "0")


def core_sources() -> list[str]:
    """Relative to the project, sorted."""
    return sorted(glob.glob(f"{CORE}/*/*.c", root_dir=ROOT))


def core_headers() -> list[str]:
    return sorted([*glob.glob(f"{CORE}/*.h", root_dir=ROOT), *glob.glob(f"{CORE}/*/*.h", root_dir=ROOT)])


def compiler() -> list[str]:
    """What the extensions are compiled with, as setuptools chooses it."""
    return shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")


def enter_flags() -> list[tuple[list[str], list[str]]]:
    """Flags to compile ext/enter with, and to link it with: without a C library; else with a static one."""
    own = [flag for flag in CORE_FLAGS if flag not in ("-O2", "-fvisibility=hidden")]
    own += ["-Os", "-ffreestanding", "-fno-stack-protector", "-fno-asynchronous-unwind-tables", "-fno-pie"]
    own += ["-Werror"] if switched_on("LAYERSTORE_WERROR") else []
    plain = ["-static", "-s", "-no-pie", "-Wl,-z,noexecstack"]
    return [(own, [*plain, "-nostdlib"]), ([*own, "-DENTER_LIBC"], plain)]


def build_enter(target: str, compiling: list[str], linking: list[str]) -> str:
    """Build ext/enter with a pair of enter_flags(). Return what the compiler said if it failed, else ""."""
    with tempfile.TemporaryDirectory(prefix="layerstore-enter-") as place:
        steps = [
            [*compiling, "-c", str(ROOT / "ext/enter/enter.c"), "-o", f"{place}/enter.o"],
            [*linking, f"{place}/enter.o", "-o", target],       # zig has headers only where a C library may be linked
        ]
        for step in steps:
            done = subprocess.run([*compiler(), *step], capture_output=True, check=False, text=True)
            if done.returncode != 0:
                return done.stderr or f"{compiler()[0]} ended with {done.returncode}"
    return ""


def _from_environment(*names: str) -> list[str]:
    return [flag for name in names for flag in shlex.split(os.environ.get(name, ""))]


def _links(code: str, link_args: list[str]) -> bool:
    """Return True if a shared object made of this code links, with every symbol found."""
    with tempfile.TemporaryDirectory(prefix="layerstore-probe-") as place:
        source, target = f"{place}/probe.c", f"{place}/probe.so"
        Path(source).write_text(code)
        command = [
            *compiler(), *_from_environment("CPPFLAGS", "CFLAGS"), "-shared", "-fPIC", source, "-o", target,
            *_from_environment("LDFLAGS"), "-Wl,--no-undefined", *link_args,
        ]  # fmt: skip
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _static_library(name: str) -> str | None:
    """Where a .a lies: below a -L of LDFLAGS, or by the compiler, which repeats the name when it knows none."""
    for flag in _from_environment("LDFLAGS"):
        if flag.startswith("-L") and os.path.exists(f"{flag[2:]}/{name}"):
            return os.path.realpath(f"{flag[2:]}/{name}")
    command = [*compiler(), *_from_environment("LDFLAGS"), f"-print-file-name={name}"]
    answer = subprocess.run(command, capture_output=True, check=False, text=True).stdout.strip()
    return os.path.realpath(answer) if os.path.isabs(answer) else None


def _find_libcrypto() -> tuple[list[str], list[str], str]:
    """Macros, link arguments, finding."""
    # Static first: three functions of it are 38 KB, and a wheel then carries no OpenSSL.
    archive = _static_library("libcrypto.a")
    if archive:
        # Not every linker knows the flag; the modules' own list of exports hides as much.
        for hidden in (["-Wl,--exclude-libs,ALL"], []):
            for more in ([], ["-ldl", "-pthread"]):
                args = [archive, *hidden, *more]
                if _links(SHA256, args):
                    macros = ["LIBCRYPTO_STATIC"] if _links(SHA256 + CPUID_SETUP, args) else []
                    return macros, args, f"libcrypto: static, {archive}"
    if _links(SHA256, ["-lcrypto"]):
        return [], ["-lcrypto"], "libcrypto: shared"
    raise MissingLibraryError(
        "libcrypto (OpenSSL) cannot be compiled and linked with: install libssl-dev (Debian, Ubuntu)"
        " or openssl-devel (Fedora)"
    )


def discover() -> Config:
    """Probe for everything; MissingLibraryError if the core cannot be built at all."""
    macros, link_args, finding = _find_libcrypto()
    findings = [finding]
    if not switched_on("LAYERSTORE_WITHOUT_ISAL") and _links(ISAL, ["-lisal"]):
        macros.append("HAVE_ISAL")
        link_args.append("-lisal")
        findings.append("gzip, CRC-64: ISA-L")
    elif _links(ZLIB, ["-lz"]):
        link_args.append("-lz")
        findings.append("gzip: zlib; CRC-64: our own (libisal-dev would make both faster)")
    else:
        raise MissingLibraryError(
            "neither ISA-L nor zlib can be compiled and linked with: install libisal-dev or zlib1g-dev (Debian, Ubuntu)"
        )
    if not switched_on("LAYERSTORE_WITHOUT_ZSTD") and _links(ZSTD, ["-lzstd"]):
        macros.append("HAVE_ZSTD")
        link_args.append("-lzstd")
        findings.append("zstd: libzstd")
    else:
        findings.append("zstd: none (libzstd-dev would bring it)")
    return Config(tuple(macros), tuple(link_args), tuple(findings))
