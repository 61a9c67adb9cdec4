# `make demo` and `make test` create the virtual environment they need.
# `make PYTHON=python3.12 demo` selects the interpreter; the default is the newest supported one.
PYTHON ?=
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# PyTorch's CPU build: without "+cpu", pip installs a CUDA build of several GB on Linux. It is not in the lock, because
# each build of a version has its own hashes. TORCH_INDEX is the URL of the index of CPU builds (PyTorch's page "Get
# started" shows it), if pip is not configured for it. `make TORCH=torch==2.13.0 demo` installs the CUDA build.
TORCH ?= $(shell sed -n 's/^torch==.*/&+cpu/p' requirements.txt)
TORCH_INDEX ?=

LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest --generate-hashes \
    --no-emit-index-url --no-emit-find-links --no-header --overrides requirements-overrides.txt $(UPGRADE)

.PHONY: demo test golden lint slow-test docs bench lock clean

# The complete job on the pairs that ship: preprocess, fuse, measure, draw, train a few steps.
demo: $(VENV)/.installed
	$(BIN)/python -m tools.demo

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest

# A short check of the installation: one fused image equals the golden one of tests/golden.
golden: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -k "test_output or test_saved_image" tests/test_golden.py

# The tests that take minutes: trainings on the real pairs of ../shared, the real text encoder.
slow-test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Draw the figures of docs/ from the code.
docs: $(VENV)/.installed
	$(BIN)/python -m tools.architecture

$(VENV)/bin/python:
	@sh tools/make_venv.sh $(VENV) $(PYTHON)

# Exactly the versions of the lock. --no-deps: Jittor asks for numpy<2. Jittor is a source package; it is built with the
# setuptools and wheel of the lock, not the newest. --use-pep517: what pip 25.3 does anyway, without the warning of 25.1.
$(VENV)/.installed: requirements.lock requirements.txt | $(VENV)/bin/python
	@echo "Installing the packages of requirements.lock into $(VENV) (about 1 GB on disk)"
	sed -n '/^\(setuptools\|wheel\)==/,/[^\\]$$/p' requirements.lock > $(VENV)/build.lock
	$(INSTALL) --no-deps --require-hashes -r $(VENV)/build.lock
	$(INSTALL) --no-deps --require-hashes --no-build-isolation --use-pep517 -r requirements.lock
	@$(INSTALL) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) $(TORCH) 2>$(VENV)/torch.log || \
	    echo "note: $(TORCH) could not be installed ($(VENV)/torch.log says why). Text encoders, the PyTorch twin and" \
	    ".pth and ONNX export need it, the rest works without; see 'PyTorch' in docs/install.md"
	touch $@

$(VENV)/.installed-dev: requirements-dev.lock $(VENV)/.installed
	$(INSTALL) --no-deps --require-hashes -r requirements-dev.lock
	touch $@

$(VENV)/.installed-bench: requirements-bench.lock $(VENV)/.installed
	$(INSTALL) --no-deps --require-hashes -r requirements-bench.lock
	touch $@

# Install the other frameworks that tools/benchmark.py compares with.
bench: $(VENV)/.installed-bench

# Update the locks after a change of requirements*.txt. `make lock UPGRADE=--upgrade` takes the newest versions.
lock: | $(VENV)/bin/python
	$(INSTALL) uv==0.13.9
	$(LOCK) --excludes requirements-excludes.txt --no-emit-package torch requirements.txt -o requirements.lock
	$(LOCK) -c requirements.lock requirements-dev.txt -o requirements-dev.lock
	$(LOCK) -c requirements.lock requirements-bench.txt -o requirements-bench.lock

clean:
	rm -rf $(VENV) demo_output
