# The verbs of everyday work. On a fresh Debian machine, as root: `make demo` and `make test`.
#
#   make demo     the whole life of a file system, on real data, in half a minute
#   make test     every test: the core plain and under sanitizers, then all of it, then a real dockerd beside it
#   make stub     write the stub of layerstore.aio again, after a public name was added
#   make lint     ruff, mypy, stubtest (do the stubs say what was compiled), and the words of the prose: tests/prose
#   make bench    benchmarks/, the tables of sandboxes, pull and push, then layerstore beside its peers; see benchmarks/README.md;
#                 BENCH='-k register', SANDBOX='--only fork', REGISTRY='--only pull' and COMPARE='--quick --only register' pick some;
#                 make bench-peers installs all peers first
#   make ratios   a short set: fails when we got slower beside tar, openssl, os.walk, cp, a bare overlay and our own register()
#   make fuzz     each fuzzer for FUZZ_SECONDS (60)
#   make soak     what `make test` does briefly, whole: CUTS power cuts (200) on ext4 and XFS, a kill at every system call, a failure
#                 of every one, many processes on one root for STRESS_SECONDS (180); SEED=... draws the same round again
#   make wheel    dist/: an sdist, and a wheel for every CPython from 3.11 on, judged by auditwheel and abi3audit
#   make wheel-test   that wheel passes tests/package, drivers, flows and hostile in an empty venv with no compiler;
#                     and the sdist builds without Cython
#   make docs     the pages of docs/ in build/docs/, every warning an error
#   make clean    what was built; .venv stays
#
# PYTHON=... names the interpreter for .venv. TESTS='tests/flows -k docs' runs some tests only.

SHELL := /bin/bash
PYTHON ?=
TESTS ?=
BENCH ?=
COMPARE ?=
SANDBOX ?=
REGISTRY ?=
FUZZ_SECONDS ?= 60
CUTS ?= 200
STRESS_SECONDS ?= 180
SEED ?=
export PYTHON

python := .venv/bin/python
sources := $(shell find ext src setup.py pyproject.toml \( -name '*.[ch]' -o -name '*.py' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.toml' \) -print 2>/dev/null)
compiled := $(filter-out src/%.py,$(sources))

.PHONY: demo test stub lint bench bench-peers ratios fuzz soak docs wheel wheel-test clean system-demo system-test system-fuzz
.NOTPARALLEL:

demo: system-demo build/.built
	@$(python) examples/demo.py

test: system-test build/.built-strict
	@.ci/tests $(TESTS)

stub: system-demo build/.built
	@$(python) tests/typing/aio_stub.py >build/aio.pyi && mv build/aio.pyi src/layerstore/aio/__init__.pyi

lint: system-demo build/.built
	@$(python) -m ruff check .
	@$(python) -m mypy
	@$(python) -m mypy.stubtest layerstore --mypy-config-file pyproject.toml --allowlist tests/typing/stubtest-allowlist.txt
	@$(python) tests/prose/check.py

bench: system-test build/.built
	@$(python) -c 'import matplotlib' 2>/dev/null || $(python) -m pip install -q 'matplotlib>=3.7'
	@$(python) -m pytest benchmarks -o python_files='bench_*.py' -p no:cacheprovider -q \
	    --benchmark-columns=min,median,max,rounds --benchmark-group-by=func $(BENCH)
	@$(python) -m benchmarks.bench_sandbox $(SANDBOX)
	@$(python) -m benchmarks.bench_registry $(REGISTRY)
	@$(python) -m benchmarks.compare $(COMPARE)

ratios: system-test build/.built
	@$(python) -m benchmarks.check_ratios

bench-peers:
	@benchmarks/install-peers
	@$(MAKE) --no-print-directory bench

fuzz: system-fuzz build/.built
	@FUZZ_SECONDS='$(FUZZ_SECONDS)' .ci/fuzz

soak: system-test build/.built
	@CUTS='$(CUTS)' STRESS_SECONDS='$(STRESS_SECONDS)' SEED='$(SEED)' .ci/soak

docs: system-demo build/.built
	@.ci/prepare docs
	@$(python) -m sphinx -W --keep-going -E -q -b html docs build/docs
	@echo build/docs/index.html

wheel: system-demo .venv/.requirements
	@.ci/wheel

wheel-test: system-test .venv/.requirements
	@.ci/sdist-test
	@.ci/wheel-test $(TESTS)

clean:
	rm -rf build dist *.egg-info src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .benchmarks .hypothesis
	find src tests benchmarks examples -name __pycache__ -prune -exec rm -rf {} +
	find src -name '*.so' -delete

system-demo:
	@.ci/prepare system demo

system-test:
	@.ci/prepare system test

system-fuzz:
	@.ci/prepare system fuzz

# PYTHON=... may ask for another interpreter than the one .venv was made from.
.venv/.requirements: pyproject.toml .ci/prepare $(if $(PYTHON),FORCE)
	@.ci/prepare python
	@cmp -s build/log/requirements.txt $@ || cp build/log/requirements.txt $@
	@$(if $(PYTHON),,touch $@)

# An editable install: a changed Python file needs no build, a changed C or Cython file does.
build/.built: .venv/.requirements $(compiled)
	@.ci/prepare build
	@touch $@

# The same with every compiler warning an error; from nothing, so that no file escapes.
build/.built-strict: .venv/.requirements $(compiled)
	@find build -mindepth 1 -maxdepth 1 ! -name log ! -name corpus -exec rm -rf {} +
	@LAYERSTORE_WERROR=1 .ci/prepare build
	@touch build/.built $@

FORCE:
