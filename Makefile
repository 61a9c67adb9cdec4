# Two commands do all the set-up: `make demo` and `make test`.
# `make PYTHON=python3.12 demo` chooses the interpreter; else it is the newest one that FILM supports.
PYTHON ?=
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# The CPU build, since pip's own choice on Linux is a CUDA build of several GB. It is not in the lock: the builds of one
# version have different hashes. TORCH_INDEX is the URL of PyTorch's CPU builds (its page "Get started" names it), where
# pip is not configured to find them. `make TORCH=torch==2.13.0 demo` installs the CUDA build.
TORCH ?= $(shell sed -n 's/^torch==.*/&+cpu/p' requirements.txt)
TORCH_INDEX ?=

LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest --generate-hashes \
    --no-emit-index-url --no-emit-find-links --no-header --overrides requirements-overrides.txt $(UPGRADE)

.PHONY: demo test lint slow-test docs bench lock clean

# The main job on the sample that ships: preprocess, train briefly, fuse, measure, draw.
demo: $(VENV)/.installed
	$(BIN)/python -m tools.demo

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest

# Also what takes minutes: whole trainings on the real pairs of ../shared, the real text encoder.
slow-test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The figures of docs/, drawn from the code.
docs: $(VENV)/.installed
	$(BIN)/python -m tools.architecture

$(VENV)/bin/python:
	@sh tools/make_venv.sh $(VENV) $(PYTHON)

# Exactly the lock: --no-deps, since Jittor asks for numpy<2. Jittor comes as source; it is built with the setuptools and
# wheel of the lock, not with the newest.
$(VENV)/.installed: requirements.lock requirements.txt | $(VENV)/bin/python
	@echo "Installing the packages of requirements.lock into $(VENV) (1 GB on disk)"
	sed -n '/^\(setuptools\|wheel\)==/,/[^\\]$$/p' requirements.lock > $(VENV)/build.lock
	$(INSTALL) --no-deps --require-hashes -r $(VENV)/build.lock
	$(INSTALL) --no-deps --require-hashes --no-build-isolation -r requirements.lock
	@$(INSTALL) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) $(TORCH) 2>$(VENV)/torch.log || \
	    echo "note: no $(TORCH) (see $(VENV)/torch.log): text encoders, the PyTorch twin and .pth export are" \
	    "unavailable, all else works; README, 'PyTorch', says how to install it"
	touch $@

$(VENV)/.installed-dev: requirements-dev.lock $(VENV)/.installed
	$(INSTALL) --no-deps --require-hashes -r requirements-dev.lock
	touch $@

$(VENV)/.installed-bench: requirements-bench.lock $(VENV)/.installed
	$(INSTALL) --no-deps --require-hashes -r requirements-bench.lock
	touch $@

# What tools/benchmark.py compares with.
bench: $(VENV)/.installed-bench

# Write the locks. Versions that still fit stay as they are; `make lock UPGRADE=--upgrade` takes the newest.
lock: | $(VENV)/bin/python
	$(INSTALL) uv==0.13.9
	$(LOCK) --excludes requirements-excludes.txt --no-emit-package torch requirements.txt -o requirements.lock
	$(LOCK) -c requirements.lock requirements-dev.txt -o requirements-dev.lock
	$(LOCK) -c requirements.lock requirements-bench.txt -o requirements-bench.lock

clean:
	rm -rf $(VENV) demo_output
