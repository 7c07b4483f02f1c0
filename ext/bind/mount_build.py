"""Build script of layerstore._core._mount: ext/core/mount by cffi, which lets the GIL go around each call."""

import re
import sysconfig
from pathlib import Path

from cffi import FFI

CORE = Path("ext/core")
HEADERS = ("mount/mount.h", "mount/inside.h", "mount/switch.h", "mount/erofs.h")


def declared(name: str) -> str:
    """Return a header as cffi reads it: the preprocessor's lines are left out."""
    return re.sub(r"^#.*", "", (CORE / name).read_text(), flags=re.M)


ffibuilder = FFI()
ffibuilder.cdef(
    "typedef enum { LAY_OK, ... } lay_code;"
    "typedef struct { lay_code code; int sys_errno; int64_t offset; char path[...], text[...]; ...; } lay_error;"
    + "".join(map(declared, HEADERS))
)
ffibuilder.set_source(
    "layerstore._core._mount",
    "".join(f'#include "{name}"\n' for name in HEADERS),
    # A free-threaded interpreter has no stable ABI to build for.
    py_limited_api=not sysconfig.get_config_var("Py_GIL_DISABLED"),
    include_dirs=[str(CORE)],
    # hidden: of what is linked in, the module shows its PyInit_ alone
    extra_compile_args=[
        "-std=gnu11", "-O2", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-missing-field-initializers",
    ],
    extra_link_args=["-pthread"],
)
