# Every target but tables, which needs pictures, works on a fresh clone: .venv is set up, and redone when pyproject.toml or
# constraints.txt change.
PYTHON ?= python3.11
BIN := .venv/bin
STAMP := .venv/.installed
# Large pages for large arrays: a training step on a CPU takes a fifth less (glibc 2.35 or newer; ignored elsewhere).
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: venv quickstart tables notebooks docs results serve bench lint test test-slow test-all parity clean

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		-e '.[train,eval,convert,parity,nano,notebooks,onnx,serve,hub,docs,dev]'
	SAM2_BUILD_CUDA=0 $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation \
		sam2==1.1.0
	touch $@

quickstart: $(STAMP)
	$(BIN)/python -m train.main quickstart

# The paper's tables in miniature: make tables TRAIN="DIR ..." TEST="DIR ..." OPTIONS="--image-size 320"
tables: $(STAMP)
	$(BIN)/python -m experiments.tables --data-dir $(TRAIN) --test-dir $(TEST) $(OPTIONS)

# Executed copies, with all figures; those in notebooks/ have their outputs cleared.
notebooks: $(STAMP)
	mkdir -p runs/notebooks
	for name in quickstart train_on_your_data inside_the_plugin; do \
		(cd notebooks && PATH="$(CURDIR)/$(BIN):$$PATH" jupyter execute $$name.ipynb \
			--output=../runs/notebooks/$$name.ipynb) || exit 1; \
	done

# The site, in site/: index.html opens without a server. Warnings are errors.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --site-dir site

# Tables and values of the pages, from results/measured/; fails if a page was not what the files say.
results: $(STAMP)
	$(BIN)/python results/render.py

# A page to try it, and HTTP for annotation tools: make serve SERVE="--system sam_nano --port 9091" has other options.
serve: $(STAMP)
	$(BIN)/python -m serve $(SERVE)

# Ours against others: the sampler and the plugin, unless BENCH="--rows encoder decode --repeats 3" asks for other rows.
bench: $(STAMP)
	mkdir -p runs
	$(BIN)/python -m bench $(BENCH)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

# Without LLVM's optimisation, see tests/conftest.py.
test: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow" $(PYTEST_OPTIONS)

test-slow: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m slow $(PYTEST_OPTIONS)

test-all: test test-slow

# The whole family at its own size: ViT-H takes minutes and 10 GB. What is found is kept beside the table.
parity: $(STAMP)
	mkdir -p runs/parity
	status=0; \
	for model in sam_vit_b sam_vit_l sam_vit_h mobile_sam sam_nano \
		hq_sam_vit_b hq_sam_vit_l hq_sam_vit_h hq_sam_vit_tiny hq_sam_nano \
		stable_sam_vit_b stable_hq_sam_vit_b; do \
		echo "$$model, random weights"; \
		$(BIN)/python -m eval.parity --random $$model --json runs/parity/$$model.json || status=1; \
	done; \
	echo "sam_nano, its own weights"; \
	$(BIN)/python -m eval.parity --checkpoint sam_nano --json runs/parity/sam_nano_shipped.json || status=1; \
	exit $$status

# What can be made again without a user's pictures and models: runs/ stays, which holds those.
clean:
	rm -rf .venv .cache build dist site
