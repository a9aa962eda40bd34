# Every target works on a fresh clone: .venv is set up, and redone when pyproject.toml or constraints.txt change.
PYTHON ?= python3.11
BIN := .venv/bin
STAMP := .venv/.installed
# Large pages for large arrays: a training step on a CPU takes a fifth less (glibc 2.35 or newer; ignored elsewhere).
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: venv quickstart test lint parity clean

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		-e '.[train,eval,convert,parity,nano,dev]'
	touch $@

quickstart: $(STAMP)
	$(BIN)/python -m train.main quickstart

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

parity: $(STAMP)
	$(BIN)/python -m eval.parity --random sam_vit_b
	$(BIN)/python -m eval.parity --random sam_vit_l --image-size 512
	$(BIN)/python -m eval.parity --random sam_vit_h --image-size 512

clean:
	rm -rf .venv .cache runs
