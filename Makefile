# Two commands on a fresh machine with Python 3.11, make and git: `make demo` and `make test`.

VENV   ?= .venv
PYTHON ?= python3
RUN    := $(VENV)/bin/python

# On a machine with an NVIDIA driver pip may choose any torch from 2.11 on. Without one the version
# whose CPU build is most likely at hand is asked for by name, before anything else can ask for
# torch: a CPU build among pip's sources then wins over the CUDA build of the same version.
# Your own choice:  make setup TORCH='torch==2.11.*'  or  make setup TORCH_INDEX=<URL of CPU builds>
ifneq ($(shell command -v nvidia-smi 2>/dev/null),)
TORCH ?= torch>=2.11
else
TORCH ?= torch==2.13.0
endif
TORCH_INDEX ?=

# Several runs of one suite on two cores gain nothing from more threads than cores.
PYTEST_WORKERS ?= 2

.PHONY: setup demo test check test-gpu startup snapshots clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "workbench needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Set PYTHON=…" >&2; exit 2; }
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	@$(RUN) -c 'import torch' 2>/dev/null || { \
		echo "installing $(TORCH)"; \
		$(RUN) -m pip install --quiet $(if $(TORCH_INDEX),--index-url '$(TORCH_INDEX)') '$(TORCH)'; }
	$(RUN) -m pip install --quiet --editable '.[dev]'
	@touch $@

ifndef DEMO_RUN
DEMO_RUN := output/demo-$(shell date +%Y%m%d-%H%M%S)
endif

# The main job without a screen: train, then ask the finished model one thing.
demo: setup
	@echo "training $(DEMO_RUN): one to three minutes on two cores"
	@$(RUN) -m workbench --batch -t demo.yaml --output-dir $(DEMO_RUN) > /dev/null
	@echo
	@echo "you       Hello, what is your name?"
	@printf 'Samantha  '
	@$(RUN) -m workbench chat -m $(DEMO_RUN) --temperature 0 --message "Hello, what is your name?"
	@echo
	@echo "the run lies in $(DEMO_RUN); now open the workbench itself:  $(VENV)/bin/workbench"

test: setup
	$(RUN) -m pytest -n $(PYTEST_WORKERS) --dist loadscope

check: setup
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy
	$(VENV)/bin/lint-imports

# On a machine with a GPU; elsewhere every test says why it was skipped.
test-gpu: setup
	$(RUN) -m pytest tests/gpu -m gpu

# Milliseconds to the first frame of the TUI, and what the imports cost.
startup: setup
	$(RUN) benchmarks/startup.py

# Draw the snapshots anew, and the table of what can be typed; read their difference before you commit it.
snapshots: setup
	$(RUN) -m workbench.cli.verb_table
	$(RUN) -m pytest tests/tui -k snapshot --snapshot-update

clean:
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
