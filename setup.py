"""Build ext/core as one static library, the Cython extensions on it, the cffi module of the mount calls, and ext/enter.

Metadata is in pyproject.toml. Which libraries the core stands on is found by ext/probe.py when
something is compiled, not before: making a source distribution needs no compiler.
"""

import functools
import importlib.util
import os
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_clib import build_clib
from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist
from setuptools.errors import CompileError

HERE = Path(__file__).resolve().parent
os.chdir(HERE)
sys.path.insert(0, str(HERE / "ext"))
import probe  # noqa: E402

# A free-threaded interpreter has no stable ABI to build for.
ABI3 = not sysconfig.get_config_var("Py_GIL_DISABLED")
BINDINGS = (
    "_files", "_locks", "_apply", "_tarstream", "_changes", "_listing", "_pack", "_walk", "_clone", "_process",
    "_erofs",
)
CORE_FILES = [*probe.core_sources(), *probe.core_headers()]
# Rewritten when the findings change, so that objects of another configuration are not reused.
CONFIG_FILE = "build/core-config.txt"
BIND = "ext/bind"
NAMES = [f"layerstore._core.{name}" for name in BINDINGS]
MOUNT_BUILD = f"{BIND}/mount_build.py"
# Of all that is linked in, libcrypto too, a module shows its PyInit_ alone.
EXPORTS = f"{BIND}/exports.map"
# The first process of a sandbox: a program of its own, without a C library, or with a static one.
ENTER_BUILT = "layerstore/running/enter.elf"


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


def generate(modules, out):
    """The C of each extension, below out. Cython is needed; a compiler is not."""
    from Cython.Build import cythonize

    made = cythonize(
        [Extension(e.name, e.sources, depends=e.depends) for e in modules],
        include_path=[BIND],
        build_dir=out,
        compiler_directives={"language_level": 3, "freethreading_compatible": True},
        quiet=True,
    )
    return [extension.sources[0] for extension in made]


def made_c(extension):
    """Where a source distribution keeps the C of an extension."""
    return f"{BIND}/{extension.name.rpartition('.')[2]}.c"


class BuildBindings(build_ext):
    """The extensions: from Cython at the moment of building, else from C that came along; never without the library."""

    def run(self):
        config = configuration()
        for extension in self.extensions:
            extension.depends = [*CORE_FILES, f"{BIND}/lay.pxd", EXPORTS, CONFIG_FILE]
        ours = [e for e in self.extensions if e.name in NAMES]
        for extension in ours:
            # After -llaycore, whose needs these are.
            extension.extra_link_args = [f"-Wl,--version-script={EXPORTS}", "-llaycore", *config.link_args]
        if importlib.util.find_spec("Cython"):
            sources = generate(ours, "build/cython")
        else:
            sources = [made_c(extension) for extension in ours]
        for extension, source in zip(ours, sources, strict=True):
            if not Path(source).exists():
                raise CompileError(f"{source} is in a source distribution only: install Cython 3.1 or later")
            extension.sources = [source]
        self.run_command("build_clib")
        super().run()
        self.build_enter(f"src/{ENTER_BUILT}" if self.inplace else f"{self.build_lib}/{ENTER_BUILT}")

    def build_enter(self, target):
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        said = []
        for compiling, linking in probe.enter_flags():
            said.append(probe.build_enter(target, compiling, linking))
            if not said[-1]:
                return
        raise CompileError("ext/enter cannot be compiled:\n" + "\n".join(said))

    def get_outputs(self):
        return [*super().get_outputs(), f"{self.build_lib}/{ENTER_BUILT}"]


class SourceDistribution(sdist):
    """What is in MANIFEST.in, and the C that Cython makes, so that it can be built without Cython."""

    def make_release_tree(self, base_dir, files):
        super().make_release_tree(base_dir, files)
        ours = [e for e in self.distribution.ext_modules if e.name in NAMES]
        for extension, source in zip(ours, generate(ours, "build/cython"), strict=True):
            self.copy_file(source, f"{base_dir}/{made_c(extension)}")


def binding(name: str) -> Extension:
    return Extension(
        f"layerstore._core.{name}",
        [f"{BIND}/{name}.pyx"],
        include_dirs=[probe.CORE],
        define_macros=[("Py_LIMITED_API", "0x030B0000")] if ABI3 else [],
        py_limited_api=ABI3,
    )


setup(
    libraries=[("laycore", {"sources": probe.core_sources(), "include_dirs": [probe.CORE]})],
    ext_modules=[binding(name) for name in BINDINGS],
    cffi_modules=[f"{MOUNT_BUILD}:ffibuilder"],
    cmdclass={"build_clib": BuildCore, "build_ext": BuildBindings, "sdist": SourceDistribution},
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if ABI3 else {},
)
