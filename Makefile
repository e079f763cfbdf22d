# make demo, make test: everything from a fresh machine, set-up included.
# The second time, the set-up is there already and takes no time.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet --quiet
TUNED := runs/demo

.PHONY: demo test test-slow test-native soak chaos fuzz gpu-check gpu-bundle lint docs notebooks \
	install clean

# The study, its best trial trained in full, evaluated on the test split,
# exported, loaded back and compared with the Keras model.
demo: $(VENV)/installed
	$(BIN)/mtl-keras tune tuning/demo.toml --out $(TUNED)/study
	$(BIN)/mtl-keras train --from-study $(TUNED)/study --out $(TUNED)/best --reuse
	$(BIN)/mtl-keras evaluate $(TUNED)/best
	$(BIN)/mtl-keras export $(TUNED)/best --to $(TUNED)/export --check --reuse

# A file's tests share a process: what is traced, trained or exported for several of them
# is so once.
test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile

# What `make test` leaves out: hours, which go on where they stopped. With SHARE=N an Nth
# part of it, each day another one.
test-slow: $(VENV)/installed-dev
	$(BIN)/python $(if $(SHARE),-m pytest -n 2 --dist loadfile -m slow --share $(SHARE),\
		benchmarks/slow_tests.py)

# The kernels' own tests, under AddressSanitizer and UndefinedBehaviorSanitizer, built by
# GCC and by clang where they are installed, with warnings as errors. Without a C++
# compiler there are none to run.
test-native: $(VENV)/installed-dev
	@set -e; for compiler in g++ clang++; do \
		if ! echo "int main() {}" | $$compiler -x c++ -fsanitize=address,undefined \
			-o /dev/null - 2> /dev/null; then \
			echo "No $$compiler with sanitizers: skipped"; \
			continue; \
		fi; \
		build=build/tests-$$compiler; \
		$(BIN)/cmake -S . -B $$build -G Ninja -DCMAKE_CXX_COMPILER=$$compiler \
			-DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -DMTL_KERAS_NATIVE=OFF \
			-DMTL_KERAS_TESTS=ON -DMTL_KERAS_SANITIZE=address,undefined \
			-DCMAKE_COMPILE_WARNING_AS_ERROR=ON; \
		$(BIN)/cmake --build $$build; \
		$(BIN)/ctest --test-dir $$build --output-on-failure; \
	done

# Memory and step time over 100,000 steps, with every callback on.
soak: $(VENV)/installed-dev
	$(BIN)/python benchmarks/soak.py

# Kills, damages and fills up, then looks whether what was promised holds.
chaos: $(VENV)/installed-dev
	$(BIN)/python benchmarks/chaos.py
	$(BIN)/python benchmarks/chaos.py --only further

# 10,000 malformed inputs for every reader and the command line.
fuzz: $(VENV)/installed-dev
	$(BIN)/python benchmarks/fuzz.py

# What holds on this machine's GPU: make gpu-check MINUTES=10 takes the most important
# checks alone. Exit code 2 without a GPU.
gpu-check: $(VENV)/installed-dev
	$(BIN)/python benchmarks/gpu_check.py $(addprefix --minutes ,$(MINUTES))

# For a GPU machine with JAX and without TensorFlow: build/gpu-bundle.tar.gz.
gpu-bundle: $(VENV)/installed-dev
	$(BIN)/python benchmarks/gpu_bundle.py

# What scripts call has to be there and to take what they give; the types of their own
# values, of JSON most of them, are left to them.
UNCHECKED := assignment dict-item index method-assign misc operator return-value \
	union-attr var-annotated
lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check mtl_keras mtl_keras_cli tests benchmarks
	$(BIN)/mypy mtl_keras mtl_keras_cli
	$(BIN)/mypy $(addprefix --disable-error-code=,$(UNCHECKED)) benchmarks

# The site, in build/site; nothing in it is loaded from elsewhere.
docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# Runs every notebook and compares the kinds of its outputs with those committed. With
# SHARE=N an Nth part of them, each day another one.
notebooks: $(VENV)/installed-docs
	$(BIN)/python notebooks/execute.py $(addprefix --share ,$(SHARE))

install: $(VENV)/installed-dev

# The compiled ops are built against the TensorFlow that they will run with, in the
# environment itself: pip's isolated build would install TensorFlow a second time.
SOURCES := pyproject.toml constraints.txt $(wildcard CMakeLists.txt cmake/*) \
	$(shell find csrc -type f 2>/dev/null)
# Further extras to install: make install EXTRAS=gpu
EXTRAS ?=
comma := ,
define install
	@echo "Installing into $(VENV): a minute or two, once"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --constraint constraints.txt tensorflow scikit-build-core cmake ninja
	@$(PIP) install --constraint constraints.txt --no-build-isolation --editable $(1)
endef

$(VENV)/installed: $(SOURCES)
	$(call install,".[all$(addprefix $(comma),$(EXTRAS))]")
	@touch $@

$(VENV)/installed-dev: $(SOURCES)
	$(call install,".[dev$(addprefix $(comma),$(EXTRAS))]")
	@touch $@ $(VENV)/installed

# The extras' packages alone: installing the project once more would compile it again.
PACKAGES := import tomllib; \
	extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]; \
	print(*extras["docs"], *extras["notebooks"])
$(VENV)/installed-docs: $(VENV)/installed-dev
	@$(PIP) install --constraint constraints.txt $$($(BIN)/python -c '$(PACKAGES)')
	@touch $@

clean:
	rm -rf $(VENV) build runs
