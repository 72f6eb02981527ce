# make demo | test | test-slow | test-lowest | lint | bench | docs | zoo
# TORCH_INDEX=<url of a package index>   takes torch from there, for example an index of CPU builds
PYTHON ?= python3
TORCH_INDEX ?=
VENV := .venv
RUNS := $(VENV)/.runs
INSTALLED := $(VENV)/.installed
LOWEST := .venv-lowest
TORCH := $(shell sed -n 's/^\(torch==[0-9.]*\).*/\1/p' constraints.txt)

.PHONY: demo test test-slow test-lowest lint bench docs zoo clean

demo: $(RUNS)
	$(VENV)/bin/mirabelle demo --fresh

test: $(INSTALLED)
	$(VENV)/bin/pytest -q -n 2 --dist worksteal

test-slow: $(INSTALLED)
	$(VENV)/bin/pytest -q -m slow

# The fast tests with the lowest version of every package that pyproject.toml allows; that of torch is the version of constraints.txt.
test-lowest: $(LOWEST)/.installed
	$(LOWEST)/bin/pytest -q -n 2 --dist worksteal

$(LOWEST)/.installed: pyproject.toml constraints.txt .ci/lowest.py
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python .ci/lowest.py > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	$(LOWEST)/bin/pip install --quiet --disable-pip-version-check --constraint $(LOWEST)/constraints.txt $(TORCH) --editable '.[dev]'
	touch $(LOWEST)/.installed

lint: $(INSTALLED)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

bench: $(INSTALLED)
	$(VENV)/bin/python benchmarks/mnist.py
	$(VENV)/bin/python benchmarks/training_loop.py
	$(VENV)/bin/python benchmarks/demo.py
	$(VENV)/bin/python benchmarks/startup.py
	$(VENV)/bin/python benchmarks/checkpointing.py
	$(VENV)/bin/python benchmarks/interruption.py
	$(VENV)/bin/python benchmarks/recovery_memory.py

docs: $(INSTALLED)
	$(VENV)/bin/python docs/reference.py

# About ten minutes; goes on where it was stopped.
zoo: $(INSTALLED)
	$(VENV)/bin/python docs/zoo.py

# torch comes first and by its exact version, so that nothing else chooses another build of it.
$(RUNS): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $(RUNS)

# What tests, benchmarks and documents need besides.
$(INSTALLED): $(RUNS)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(INSTALLED)

clean:
	rm -rf $(VENV) $(LOWEST) runs build
