# For GNU make 3.81, as macOS ships it. `make demo` and `make test` do all the set-up they need.

VENV := .venv
STAMP := $(VENV)/.installed
BIN := $(VENV)/bin
BENCHMARK = echo && $(BIN)/python -m benchmarks
PYTHONS := python3.12 python3.13 python3.14 python3.11 python3

# Half of a test's time is the start of processes, so two go on together even on two cores; more
# than four would each have models of their own in memory. The slow tests measure, so one by one.
PARALLEL := --numprocesses auto --maxprocesses 4 --dist worksteal

# Prints why a Python will not do; nothing if it will.
CHECK := import platform, sys; \
  v = sys.version_info[:2]; \
  apple = sys.platform == 'darwin'; \
  print('is Python %d.%d' % v if not (3, 11) <= v <= (3, 14) else \
        'is an x86 build' if apple and platform.machine() != 'arm64' else '')

.PHONY: help demo test test-slow prove bench lint format clean

help:
	@echo "make demo    set up, convert the built-in tiny model, ask it about pictures"
	@echo "make test    set up, run the tests (a few minutes)"
	@echo "make prove   list the long proofs; make prove SUBJECT runs one"
	@echo "make bench   set up, measure beside mlx-lm (under 10 minutes; see docs/performance.md)"
	@echo "make lint    ruff: format and lint; mypy: types"
	@echo "make clean   remove $(VENV)"

demo: $(STAMP)
	@$(BIN)/mlx-llama4 demo
	@echo "Here the command is $(BIN)/mlx-llama4; after . $(BIN)/activate just mlx-llama4."

test: $(STAMP)
	@$(BIN)/python -m pytest -m "not slow" $(PARALLEL)

test-slow: $(STAMP)
	@$(BIN)/python -m pytest -m slow

# `make prove kills` is `make prove SUBJECT=kills`: its second goal names no file to be made.
ifeq ($(firstword $(MAKECMDGOALS)),prove)
SUBJECT ?= $(word 2,$(MAKECMDGOALS))
ifneq ($(word 2,$(MAKECMDGOALS)),)
.PHONY: $(word 2,$(MAKECMDGOALS))
$(word 2,$(MAKECMDGOALS)): prove ; @:
endif
endif

prove: $(STAMP)
ifeq ($(SUBJECT),)
	@$(BIN)/python -m tests.proofs
else
	@$(BIN)/python -m pytest -s --prove "$(SUBJECT)"
endif

# A few rounds of each; BENCH has options for all, as --python mlx-vlm=other/bin/python.
bench: $(STAMP)
	@$(BENCHMARK) startup --rounds 3 $(BENCH)
	@$(BENCHMARK) load --rounds 5 $(BENCH)
	@$(BENCHMARK) prefill --preset tiny --chunks 1 --chunks 4 --rounds 3 $(BENCH)
	@$(BENCHMARK) decode --rounds 15 $(BENCH)
	@$(BENCHMARK) vision --rounds 3 $(BENCH)
	@$(BENCHMARK) batch --rounds 2 $(BENCH)

lint: $(STAMP)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: $(STAMP)
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

clean:
	rm -rf $(VENV)

# A virtual environment holds the path it was made at and needs the Python it was made with; when
# the folder was moved or copied, or that Python is gone, it is made again.
MADE_FOR := $(shell $(BIN)/python -c "print(open('$(STAMP)').read().strip())" 2>/dev/null)
ifneq ($(MADE_FOR),$(CURDIR))
.PHONY: $(STAMP)
endif

$(STAMP): pyproject.toml
	@made=; reasons=; \
	for python in $(PYTHONS); do \
	  reason=`$$python -c "$(CHECK)" 2>/dev/null` || continue; \
	  if [ -z "$$reason" ]; then \
	    echo "Setting up $(VENV) with $$python; this takes a minute."; \
	    rm -rf $(VENV); \
	    if $$python -m venv $(VENV) >/dev/null 2>&1; then made=$$python; break; fi; \
	    reason="cannot make a virtual environment"; \
	  fi; \
	  reasons="$$reasons ($$python $$reason)"; \
	done; \
	if [ -z "$$made" ]; then \
	  echo "No usable Python$$reasons. Install Python 3.11, 3.12, 3.13 or 3.14 with its venv module (an arm64 build on a Mac), then try again." >&2; \
	  exit 1; \
	fi
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	@echo "$(CURDIR)" > $(STAMP)
