# `make demo` and `make test` work on a fresh machine with Python 3.11 or later (with venv) and make.
# A second run finds everything installed: stamps in .venv stand for "this extra is installed as pyproject.toml asks".

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One more than there are processors: many tests wait for processes that they started.
JOBS ?= $(shell expr $$(nproc) + 1)
# Tests start hundreds of processes: without its cached bytecode each would compile the packages anew.
unexport PYTHONDONTWRITEBYTECODE
PYTEST := $(BIN)/python -m pytest --numprocesses $(JOBS) --maxprocesses 8 --dist loadfile
SOURCES := npuctl.py sdk driver_shim emulator firmware_tools benchmarks tests examples
PATHS ?=
DESTDIR ?=

.PHONY: demo test test-slow test-bringup test-vm test-vm-iommufd test-fresh lint format bench clean install-udev

demo: $(VENV)/demo.stamp
	$(BIN)/npuctl demo $(PATHS)

test: $(VENV)/dev.stamp
	$(PYTEST)

test-slow: $(VENV)/dev.stamp
	$(PYTEST) -m slow

# Runs docs/bring-up.md. Needs C compilers: apt-get install gcc-riscv64-unknown-elf gcc libc6-dev
test-bringup: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -m bringup tests/bringup

# Needs root, and Debian's mmdebstrap, e2fsprogs, xz-utils and kmod. QEMU and the guest are made of Debian's packages and
# kept in ~/.cache/npu-sdk/vm, 3 GB.
test-vm: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -m vm tests/vm

# The same on a kernel that has iommufd; it is built once, which takes some ten minutes.
test-vm-iommufd: $(VENV)/dev.stamp
	NPU_VM_KERNEL=iommufd $(BIN)/python -m pytest -m vm tests/vm

# The README's commands in a bare Debian, from a clone of HEAD. Needs root, and Debian's mmdebstrap and git.
test-fresh: | $(BIN)/python
	$(BIN)/python -m tests.fresh

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy

format: $(VENV)/dev.stamp
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

bench: $(VENV)/bench.stamp
	$(BIN)/python -m benchmarks.run --output benchmarks/results.json

# As root. With DESTDIR, for packages, files are only put in place.
install-udev:
	DESTDIR='$(DESTDIR)' sh udev/install.sh

clean:
	rm -rf $(VENV) build dist *.egg-info

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/%.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	touch $@
