"""Build script of layerstore._core._mount: ext/core/mount by cffi, which lets the GIL go around each call."""

import re
import sysconfig
from pathlib import Path

from cffi import FFI

CORE = Path("ext/core")
HEADERS = ("mount/mount.h", "mount/inside.h")

ffibuilder = FFI()
ffibuilder.cdef("".join(re.sub(r"^#.*", "", (CORE / name).read_text(), flags=re.M) for name in HEADERS))
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
