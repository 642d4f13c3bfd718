PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: demo test test-all lint bench

demo: $(INSTALLED)
	rm -rf runs/demo
	$(BIN)/jaxdti train configs/drugban_demo.yaml --output runs/demo

test: $(INSTALLED)
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not slow"

test-all: $(INSTALLED)
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports --no-cache

# A few minutes: every benchmark at a small size, the PyTorch peer included. JAXDTI_DATA must hold human/random.
bench: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --editable '.[bench]' --constraint constraints.txt
	for name in featurise train_throughput step adaptation inference replicas response_sweep scaling; do \
	    $(BIN)/python benchmarks/$$name.py --quick || exit 1; \
	done

# The stamp is written last, so that an interrupted installation is repeated. Half of the time went into byte code, most of it
# of modules that nobody imports.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[test]' --constraint constraints.txt
	touch $@
