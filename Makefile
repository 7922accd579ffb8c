# `make demo` and `make demo-text` run the main job on digits and on prompts, `make test` passes the tests (`make check` a part of them, `make test-all` also the slow ones); each sets up all it needs in .venv.
# PIP_ARGS passes options on to pip, for example an index of CPU-only builds of torch.
PYTHON ?= python3
PIP_ARGS ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(PIP_ARGS)

.PHONY: demo demo-text check test test-all lint docs weights clean

demo: .venv/.core
	$(BIN)/fewstep distill digits-disback --out runs/demo --resume
	$(BIN)/fewstep evaluate runs/demo
	@echo "the report: runs/demo/report.html   the samples: runs/demo/samples/final.png"

# Every second of the eight prompts is of a combination that neither teacher nor student was trained on.
demo-text: .venv/.text
	$(BIN)/fewstep distill scenes-disback --out runs/demo-text --resume
	$(BIN)/fewstep evaluate runs/demo-text
	$(BIN)/python benchmarks/teacher_moments.py scenes-disback --results runs/demo-text-moments
	test -d runs/demo-text-export || $(BIN)/fewstep export runs/demo-text runs/demo-text-export
	$(BIN)/fewstep sample runs/demo-text --prompts benchmarks/demo-prompts.txt --compare --guidance 3 --out runs/demo-text/samples/prompts.png
	@echo "the report: runs/demo-text/report.html   teacher above student: runs/demo-text/samples/prompts.png   for diffusers: runs/demo-text-export"

TESTS := $(BIN)/python -m pytest -q -n 2 --dist loadfile

# Lint, types, layers and laws: minutes.
check: .venv/.test lint
	$(TESTS) tests/laws

test: .venv/.test lint
	$(TESTS) -m 'not slow'

test-all: .venv/.test lint
	$(TESTS)

# Without caches: where an import belongs depends on other files too, which ruff does not look at again.
lint: .venv/.test
	$(BIN)/ruff check --no-cache .
	$(BIN)/ruff format --no-cache --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The site, in runs/site; a broken link fails. The variable silences a notice about another program's version.
docs: .venv/.test
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "the site: runs/site/index.html"

# Trains the shipped weights anew, by the recipes that made them (an hour and a half of two cores).
weights: .venv/.core
	for name in digits-features digits-teacher mixture2d-teacher scenes-features scenes-codec scenes-words; do $(BIN)/fewstep pretrain $$name --out runs/$$name --resume || exit; done
	cp runs/digits-features/model.safetensors src/fewstep/zoo/weights/digits-features.safetensors
	cp runs/digits-teacher/model.safetensors src/fewstep/zoo/weights/digits.safetensors
	cp runs/scenes-features/model.safetensors src/fewstep/zoo/weights/scenes-features.safetensors
	cp runs/mixture2d-teacher/model.safetensors src/fewstep/zoo/weights/mixture2d.safetensors
	$(BIN)/python -c 'import sys; from pathlib import Path; from fewstep.zoo.scenes_pipeline import write_parts; write_parts(*map(Path, sys.argv[1:]))' runs/scenes-codec/model.safetensors runs/scenes-words/model.safetensors src/fewstep/zoo/weights/scenes
	$(BIN)/fewstep pretrain scenes-teacher --out runs/scenes-teacher --resume
	$(BIN)/python -c 'import sys; from pathlib import Path; from fewstep.zoo.scenes_pipeline import write_denoiser; write_denoiser(*map(Path, sys.argv[1:]))' runs/scenes-teacher/model.safetensors src/fewstep/zoo/weights/scenes

.venv/.python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fewstep needs Python 3.11 or newer; set PYTHON=...")'
	$(PYTHON) -m venv .venv
	touch $@

.venv/.core: .venv/.python pyproject.toml constraints.txt
	$(PIP) -e .
	touch $@

.venv/.text: .venv/.core
	$(PIP) -e '.[diffusers]'
	touch $@

.venv/.test: .venv/.core
	$(PIP) -e '.[test]'
	touch $@

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache
