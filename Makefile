# make demo   train a small model pair, fit factors, explain its answers      make test   lint, types, tests
# make docs   the site of docs/, at http://127.0.0.1:8000
# Each creates .venv first, with the versions of constraints.txt; a later run uses what is there.

PYTHON ?= python3
JOBS   ?= 2

VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed
TORCH := $(shell sed -n 's/^\(torch==[0-9.]*\).*/\1/p' constraints.txt)

SUPPORTED := import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))
define ONE_TORCH
from importlib.metadata import distributions
found = {(d.metadata["Name"] or "").lower(): d.version for d in distributions()}
wanted = "$(TORCH)".partition("==")[2]
assert found["torch"].partition("+")[0] == wanted, "torch is %s, not %s" % (found["torch"], wanted)
extra = sorted({"torchvision", "torchaudio"} & found.keys())
assert not extra, "%s came in beside torch" % extra
endef
export ONE_TORCH

.PHONY: demo test docs install clean distclean

demo: $(STAMP)
	$(BIN)/python -m experiments.demo.demo

test: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy msif
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

docs: $(STAMP)
	$(BIN)/python -m mkdocs serve

install: $(STAMP)

# torch comes first and alone, so that nothing later can bring a second build of it
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c '$(SUPPORTED)' || { echo "error: $(PYTHON) is not Python 3.10 to 3.13: make PYTHON=python3.12 ..."; exit 2; }
	@$(BIN)/python -c '$(SUPPORTED)' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt $(TORCH)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@$(BIN)/python -c "$$ONE_TORCH"
	@touch $@

# what the two commands left, but not the environment
clean:
	rm -rf results/demo factors/demo-pretrained factors/demo-finetuned
	rm -rf build dist site .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) msif.egg-info
