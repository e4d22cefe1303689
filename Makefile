# Each target sets itself up: a virtual environment in .venv, brought up to date when pyproject.toml changes.

PYTHON ?= python3
BIN := .venv/bin
# make quickstart QUICKSTART_SET="--set train.epochs=2" is its smallest form.
QUICKSTART_SET ?=

.PHONY: help install quickstart quickstart-detection quickstart-rcnn test lint check-all clean

help:
	@echo "make quickstart   make data, train, evaluate and predict: from nothing to masks in minutes"
	@echo "make quickstart-detection  the same with a detector: boxes"
	@echo "make quickstart-rcnn       the same with Selective Search and R-CNN: what bounding-box regression brings"
	@echo "make lint         style, the layers of the tree, the key tables of docs/configs.md"
	@echo "make test         lint and the fast tests"
	@echo "make check-all    also slow tests, the wheel, the oldest supported dependencies"
	@echo "make clean        remove .venv and build products"

install: .venv/installed

.venv/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 13) else "detseg needs Python 3.11 to 3.13: make PYTHON=/path/to/python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $@

quickstart: .venv/installed
	$(BIN)/python tools/make_shapes.py --root data/shapes
	rm -rf runs/quickstart
	$(BIN)/python tools/train.py --config configs/quickstart.yaml --run runs/quickstart $(QUICKSTART_SET)
	$(BIN)/python tools/evaluate.py --run runs/quickstart --split test
	$(BIN)/python tools/predict.py --run runs/quickstart --output runs/quickstart/predictions 'data/shapes/JPEGImages/shapes_test_000*.jpg'
	@echo "Look at the pictures: runs/quickstart/predictions/*_overlay.png"

quickstart-detection: .venv/installed
	$(BIN)/python tools/make_shapes.py --root data/shapes
	rm -rf runs/quickstart_detection
	$(BIN)/python tools/train.py --config configs/quickstart_detection.yaml --run runs/quickstart_detection $(QUICKSTART_SET)
	$(BIN)/python tools/evaluate.py --run runs/quickstart_detection --split test
	$(BIN)/python tools/predict.py --run runs/quickstart_detection --output runs/quickstart_detection/predictions 'data/shapes/JPEGImages/shapes_test_000*.jpg'
	@echo "Look at the pictures: runs/quickstart_detection/predictions/*_overlay.png"

quickstart-rcnn: .venv/installed
	$(BIN)/python tools/make_shapes.py --root data/shapes
	$(BIN)/python tools/proposals.py --config configs/quickstart_rcnn.yaml
	rm -rf runs/quickstart_rcnn
	$(BIN)/python tools/train.py --config configs/quickstart_rcnn.yaml --run runs/quickstart_rcnn $(QUICKSTART_SET)
	$(BIN)/python tools/evaluate.py --run runs/quickstart_rcnn --split test --drawings 10
	@echo "Look at the pictures: runs/quickstart_rcnn/evaluation/test_drawings/*.png"

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/python tools/config_tables.py --check

test: lint
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist worksteal

check-all: test
	$(BIN)/python -m pytest -m slow
	PYTHON=$(PYTHON) tools/check_packaging.sh wheel
	PYTHON=$(PYTHON) tools/check_packaging.sh oldest

clean:
	rm -rf .venv build dist *.egg-info
