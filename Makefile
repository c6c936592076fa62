# make setup   .venv with the package in it
# make demo    MDTB on a simulated edge GPU: the table here, the report in report/index.html
# make test    the tests; 'make test TORCH=' does without PyTorch (the tests that need it are skipped)
# make lint types docs clean

# What the lowering tests compile with. On PyPI this is the CUDA build of PyTorch, a large download;
# where pip finds a CPU build of the same version, that one is taken.
TORCH ?= torch==2.13.0 triton==3.7.1

BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile

# A stamp file stands for a finished installation, so that nothing is asked of a registry twice.
BASE := .venv/stamps/base
DEV := .venv/stamps/dev
empty :=
space := $(empty) $(empty)
LOWERING := $(if $(strip $(TORCH)),.venv/stamps/with-$(subst $(space),-,$(subst ==,-,$(strip $(TORCH)))))

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint types docs clean

help:
	@sed -n '/^#/!q; s/^# //p' Makefile

setup: $(BASE)

demo: $(BASE)
	@$(BIN)/miriam bench mdtb --workload A,B,C,D --policy sequential,multistream,priority,barrier,miriam \
	    --device sim:xavier --out report

test: $(DEV) $(LOWERING)
	@$(BIN)/python -m pytest -n auto

lint: $(DEV)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(DEV) $(LOWERING)
	@$(BIN)/mypy

docs: $(DEV)
	@$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

clean:
	rm -rf .venv report dist docs/_build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests examples benchmarks docs -name __pycache__ -prune -exec rm -rf {} +

$(BASE): pyproject.toml | .venv/bin/pip
	@echo "installing miriam into .venv" >&2
	@$(PIP) -e .
	@mkdir -p $(@D) && touch $@

$(DEV): pyproject.toml | $(BASE)
	@echo "installing the tools for tests into .venv" >&2
	@$(PIP) -e '.[dev]'
	@mkdir -p $(@D) && touch $@

$(LOWERING): | $(DEV)
	@echo "installing $(TORCH) into .venv" >&2
	@$(PIP) $(TORCH)
	@touch $@

# python3 first; where it is too old or cannot make environments, the versions by name.
.venv/bin/pip:
	@lacking=; for python in $(PYTHON) python3 python3.13 python3.12 python3.11; do \
	    if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	        if "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
	            echo "making .venv with $$("$$python" --version)" >&2; \
	            "$$python" -m venv --clear .venv && exit 0; \
	        fi; \
	        lacking=$$("$$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])'); \
	    fi; \
	done; \
	if [ -n "$$lacking" ]; then \
	    echo "miriam: this Python cannot make environments; on Debian and Ubuntu: sudo apt-get install $$lacking" >&2; \
	else \
	    echo "miriam: Python 3.11 or newer is needed, and python3 here is $$(python3 --version 2>/dev/null || echo missing)." >&2; \
	    echo "  Debian 12, Ubuntu 24.04 or newer: sudo apt-get install python3 python3-venv" >&2; \
	    echo "  Ubuntu 22.04: sudo apt-get install python3.11 python3.11-venv; or name one: make PYTHON=/path/to/python3.11 ..." >&2; \
	fi; \
	exit 1
