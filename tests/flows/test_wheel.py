"""What is shipped: the metadata say what is so, every compiled module has its stub, and the source distribution is whole.

The wheel itself is made, judged and tried by `make wheel wheel-test`.
"""

import ast
import importlib.util
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from importlib import machinery, metadata
from pathlib import Path

import pytest

import layerstore

PROJECT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text())
SETUP = (PROJECT / "setup.py").read_text()
BINDINGS = ast.literal_eval(re.search(r"^BINDINGS = (\(.*?\))$", SETUP, re.MULTILINE | re.DOTALL).group(1))
COMPILED = {*BINDINGS, "_mount"}
INSTALLED = Path(layerstore.__file__).parent


def test_the_version_is_one():
    assert PYPROJECT["project"]["version"] == layerstore.__version__ == metadata.version("layerstore")


def test_the_oldest_python_is_one():
    """requires-python, the stable ABI's version and the wheel's tag are each written by themselves."""
    oldest = re.fullmatch(r">=3\.(\d+)", PYPROJECT["project"]["requires-python"]).group(1)
    assert int(re.search(r'"Py_LIMITED_API", "0x03(..)0000"', SETUP).group(1), 16) == int(oldest)
    assert f'"py_limited_api": "cp3{oldest}"' in SETUP
    named = [c.rpartition(" ")[2] for c in PYPROJECT["project"]["classifiers"] if re.search(r":: 3\.\d+$", c)]
    assert named[0] == f"3.{oldest}"
    assert PYPROJECT["tool"]["ruff"]["target-version"] == f"py3{oldest}"


def test_the_client_of_registries_is_an_extra():
    """A program that only stores layers needs no HTTP client."""
    extras = PYPROJECT["project"]["optional-dependencies"]
    assert extras["registry"] == ["urllib3>=2.2"] and "layerstore[registry]" in extras["test"]
    assert not any("urllib3" in line for line in PYPROJECT["project"]["dependencies"])
    assert "registry" in metadata.metadata("layerstore").get_all("Provides-Extra")


def test_every_compiled_module_is_there_with_its_stub():
    built = {
        path.name.removesuffix(suffix)
        for suffix in machinery.EXTENSION_SUFFIXES
        for path in (INSTALLED / "_core").glob(f"*{suffix}")
        if "." not in path.name.removesuffix(suffix)
    }
    assert built == COMPILED
    assert {path.stem for path in (INSTALLED / "_core").glob("*.pyi")} == COMPILED
    assert (INSTALLED / "py.typed").exists()


@pytest.mark.skipif(importlib.util.find_spec("Cython") is None, reason="only who has Cython can make one")
def test_a_source_distribution_holds_all_that_a_build_and_the_tests_need(tmp_path):
    """Made in a copy. Whether it builds where there is no Cython: .ci/sdist-test."""
    copy = tmp_path / "project"
    shutil.copytree(
        PROJECT,
        copy,
        ignore=lambda _, names: {n for n in names if n in {".git", ".venv", "dist", "build", "__pycache__"} or n.startswith("layerstore.egg")},
    )
    # What Cython made when this was built is as good as new: copies keep their times.
    if (PROJECT / "build" / "cython").exists():
        shutil.copytree(PROJECT / "build" / "cython", copy / "build" / "cython")
    done = subprocess.run([sys.executable, "setup.py", "-q", "sdist", "--dist-dir", tmp_path], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (made,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(made) as tar:
        held = {name.partition("/")[2] for name in tar.getnames()}
    assert {f"ext/bind/{name}.{kind}" for name in BINDINGS for kind in ("pyx", "c")} <= held
    for room in ("ext", "src", "tests", "benchmarks", "examples", ".ci"):
        files = {str(p.relative_to(copy)) for p in (copy / room).rglob("*") if p.is_file()}
        missing = {f for f in files - held if not f.endswith((".so", ".elf", ".pyc")) and ".egg-info/" not in f}
        assert not missing
    assert not {name for name in held if name.startswith(("build/", "dist/")) or name.endswith((".so", ".elf"))}
