"""Build ext/core as one static library, the Cython extensions on it, and the cffi module of the mount calls.

Metadata is in pyproject.toml. Which libraries the core stands on is found by ext/probe.py when
something is compiled, not before: making a source distribution needs no compiler.
"""

import functools
import os
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_clib import build_clib
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

HERE = Path(__file__).resolve().parent
os.chdir(HERE)
sys.path.insert(0, str(HERE / "ext"))
import probe  # noqa: E402

# A free-threaded interpreter has no stable ABI to build for.
ABI3 = not sysconfig.get_config_var("Py_GIL_DISABLED")
BINDINGS = ("_files", "_apply", "_tarstream", "_changes")
CORE_FILES = [*probe.core_sources(), *probe.core_headers()]
# Rewritten when the findings change, so that objects of another configuration are not reused.
CONFIG_FILE = "build/core-config.txt"
MOUNT_BUILD = "ext/bind/mount_build.py"


@functools.cache
def configuration() -> probe.Config:
    try:
        config = probe.discover()
    except probe.MissingLibraryError as error:
        raise CompileError(str(error)) from error
    for line in config.findings:
        print(f"layerstore: {line}")
    text = "\n".join([*probe.compiler(), *config.flags(), *config.link_args]) + "\n"
    path = Path(CONFIG_FILE)
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return config


class BuildCore(build_clib):
    """The static library, with what was found."""

    def build_libraries(self, libraries):
        config = configuration()
        for name, info in libraries:
            info["cflags"] = config.flags()
            info["obj_deps"] = {"": [*probe.core_headers(), CONFIG_FILE]}
            # ar only adds: a member whose source is gone would stay.
            Path(self.build_clib, f"lib{name}.a").unlink(missing_ok=True)
        super().build_libraries(libraries)


class BuildBindings(build_ext):
    """The extensions: from Cython at the moment of building, and never without the library."""

    def finalize_options(self):
        from Cython.Build import cythonize

        config = configuration()
        modules = self.distribution.ext_modules
        ours = [e for e in modules if e.sources[0].endswith(".pyx")]
        for extension in ours:
            # After -llaycore, whose needs these are.
            extension.extra_link_args = ["-llaycore", *config.link_args]
            extension.depends = [*CORE_FILES, "ext/bind/lay.pxd", CONFIG_FILE]
        made = cythonize(
            ours,
            include_path=["ext/bind"],
            build_dir="build/cython",
            compiler_directives={"language_level": 3, "freethreading_compatible": True},
            quiet=True,
        )
        modules[:] = [*made, *(e for e in modules if e not in ours)]
        super().finalize_options()

    def run(self):
        self.run_command("build_clib")
        super().run()


def binding(name: str) -> Extension:
    return Extension(
        f"layerstore.{name}",
        [f"ext/bind/{name}.pyx"],
        include_dirs=[probe.CORE],
        define_macros=[("Py_LIMITED_API", "0x030B0000")] if ABI3 else [],
        py_limited_api=ABI3,
    )


setup(
    libraries=[("laycore", {"sources": probe.core_sources(), "include_dirs": [probe.CORE]})],
    ext_modules=[binding(name) for name in BINDINGS if Path(f"ext/bind/{name}.pyx").exists()],
    cffi_modules=[f"{MOUNT_BUILD}:ffibuilder"] if Path(MOUNT_BUILD).exists() else [],
    cmdclass={"build_clib": BuildCore, "build_ext": BuildBindings},
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if ABI3 else {},
)
