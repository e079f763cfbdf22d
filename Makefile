# make demo, make test: everything from a fresh machine, set-up included.
# The second time, the set-up is there already and takes no time.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet --quiet
TUNED := runs/demo

.PHONY: demo test lint install clean

# The study, its best trial trained in full, evaluated on the test split,
# exported, loaded back and compared with the Keras model.
demo: $(VENV)/installed
	$(BIN)/mtl-keras tune tuning/demo.toml --out $(TUNED)/study
	$(BIN)/mtl-keras train --from-study $(TUNED)/study --out $(TUNED)/best --reuse
	$(BIN)/mtl-keras evaluate $(TUNED)/best
	$(BIN)/mtl-keras export $(TUNED)/best --to $(TUNED)/export --check --reuse

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n 2

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy mtl_keras mtl_keras_cli

install: $(VENV)/installed-dev

$(VENV)/installed: pyproject.toml constraints.txt
	@echo "Installing into $(VENV): about a minute and a half, once"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --constraint constraints.txt --editable .
	@touch $@

$(VENV)/installed-dev: pyproject.toml constraints.txt
	@echo "Installing into $(VENV): about a minute and a half, once"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --constraint constraints.txt --editable ".[dev]"
	@touch $@ $(VENV)/installed

clean:
	rm -rf $(VENV) runs
