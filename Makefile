# make demo   the main job on a real guest          make test   the whole suite, as CI runs it
# Both install what is missing first (Debian packages, .venv, guest images) and say what they do.
# Once all is there, neither needs the network. Other targets: setup, lint, bench, clean.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
SUDO   := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
SHELL  := /bin/bash -o pipefail

# The command that tells that it is there, and the Debian package that has it.
NEEDED := qemu-system-x86_64=qemu-system-x86 qemu-system-aarch64=qemu-system-arm \
          qemu-system-riscv64=qemu-system-misc setpriv=util-linux dpkg-deb=dpkg
# What only the suite needs: real peers for its tests.
PEERS  := qemu-ga=qemu-guest-agent busybox=busybox-static qemu-img=qemu-utils cpio=cpio llvm-mc=llvm

IMAGES := linux-x86_64 linux-aarch64 linux-riscv64

.PHONY: demo test setup lint bench clean packages peers images

demo: setup
	@echo "== what this host can do"
	@$(BIN)/vmtest doctor
	@echo; echo "== a command in a real Linux guest"
	$(BIN)/vmtest run -- uname -a
	@echo; echo "== pytest against it"
	$(BIN)/pytest -p no:cacheprovider --rootdir docs/demo -c docs/demo/pytest.ini -v docs/demo

test: peers setup lint
	@echo "== the suite, on $$(nproc) cores"
	$(BIN)/vmtest image build linux-x86_64-qga
	$(BIN)/pytest -n auto

lint: $(VENV)/.installed
	@echo "== lint, types, layers"
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

setup: packages $(VENV)/.installed
	@echo "== guest images (built once, then taken from the cache)"
	$(BIN)/vmtest image build $(IMAGES)

packages:
	@$(call ensure,$(NEEDED) $(shell $(PYTHON) -c 'import ensurepip' 2>/dev/null || echo ensurepip=python3-venv))

peers:
	@$(call ensure,$(PEERS))

# Every pair COMMAND=PACKAGE whose command is missing is installed by package; nothing is asked of apt otherwise.
define ensure
missing=; \
for pair in $(1); do PATH=$$PATH:/usr/sbin:/sbin command -v $${pair%%=*} >/dev/null || missing="$$missing $${pair#*=}"; done; \
if [ -n "$$missing" ]; then \
  echo "== installing Debian packages:$$missing"; \
  command -v apt-get >/dev/null || { echo "no apt-get here: install QEMU by hand, see docs/install.md" >&2; exit 2; }; \
  $(SUDO) apt-get update -q && \
  $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $$missing; \
fi
endef

# The agent is compiled when the package is installed, so its source is among what an installation depends on.
$(VENV)/.installed: pyproject.toml hatch_build.py $(wildcard images/_*/*.[chS])
	@echo "== Python environment in $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "vmtest needs Python 3.11 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -e '.[test,lint]'
	@touch $@

# labgrid, a peer to compare with, registers a pytest plugin of its own: it gets an environment of its own.
bench: setup
	[ -x $(VENV)/peer/bin/labgrid-client ] || { $(PYTHON) -m venv $(VENV)/peer && $(VENV)/peer/bin/pip install -q 'labgrid>=26'; }
	$(BIN)/python benchmarks/boot.py --peer $(VENV)/peer/bin/python
	$(BIN)/python benchmarks/command.py
	$(BIN)/python benchmarks/console.py
	$(BIN)/python benchmarks/pristine.py
	$(BIN)/python benchmarks/qtest.py
	$(BIN)/python benchmarks/feedback.py
	$(BIN)/python benchmarks/executors.py

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
