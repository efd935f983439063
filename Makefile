# Two commands: `make reproduce` and `make test`. Everything else is for working on the project.
PROFILE ?= quick
ARGS ?=
PYTHON ?= python3
BIN := .venv/bin
# The notebooks' kernel is the one of this environment, whatever else is installed.
export JUPYTER_PREFER_ENV_PATH = 1
unexport JUPYTER_PATH

# Notebooks that train run two at a time and share what both need; then those that only read.
NBVAL := $(BIN)/python -m pytest --nbval --nbval-current-env --nbval-sanitize-with tests/sanitize.cfg -W default
COMPUTING := $(patsubst %,notebooks/%.ipynb,01_distill 02_pool_ablation 03_kd_eval 06_methods 00_explore)
READING := $(patsubst %,notebooks/%.ipynb,04_tables 05_audit)

.PHONY: reproduce test test-cluster attack tables report bench gpu-smoke paper paper-status lint notebooks colab constraints clean

reproduce: $(BIN)/.installed  ## all notebooks with PROFILE=quick, cifar10-small, methods-small, paper-fast or paper; goes on where it was stopped
	$(BIN)/python -m ddlib --profile $(PROFILE) --resume $(ARGS)

test: $(BIN)/.installed  ## all tests: linter, types, pytest, and nbval over the notebooks in a folder of their own
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n auto tests
	out=$$(mktemp -d); export TQDM_DISABLE=1 DDLIB_OUT=$$out; \
	OMP_NUM_THREADS=$$((($$(nproc) + 1) / 2)) $(NBVAL) -n 2 --dist loadfile $(COMPUTING) && $(NBVAL) $(READING); \
	status=$$?; rm -rf $$out; exit $$status

test-cluster: $(BIN)/.installed  ## workers and schedulers that are killed, real processes: minutes
	$(BIN)/python -m pytest -m cluster tests/test_cluster.py

notebooks: $(BIN)/.installed  ## execute the notebooks in place with `quick`: their outputs are the baseline of nbval
	out=$$(mktemp -d) && for notebook in notebooks/0*.ipynb; do \
		TQDM_DISABLE=1 DDLIB_OUT=$$out $(BIN)/papermill $$notebook $$notebook -k python3 --no-progress-bar || exit 1; done; \
		rm -rf $$out
	$(BIN)/nbstripout --keep-output --keep-count --extra-keys "metadata.papermill cell.metadata.papermill \
		metadata.language_info.version cell.metadata.execution" notebooks/*.ipynb

tables: $(BIN)/.installed  ## tables and figures of the committed results (no GPU, no data), and what README shows of them
	mkdir -p runs
	for profile in cifar10-small paper-fast paper; do for notebook in 04_tables 05_audit; do \
		$(BIN)/papermill notebooks/$$notebook.ipynb runs/$$notebook.ipynb -p profile $$profile -k python3 \
		--no-progress-bar || exit 1; done; done
	$(BIN)/python -c 'from ddlib.report.publish import *; publish_rates(); publish_methods(); publish_headline(); publish_losses(); update_docs()'

report: $(BIN)/.installed  ## paper/report.pdf from the committed results
	$(BIN)/python -m ddlib.report

bench: $(BIN)/.installed  ## how fast this machine runs it; ARGS="--reference DIR" beside the public DC code
	$(BIN)/python benchmarks/bench.py $(ARGS)

gpu-smoke: $(BIN)/.installed  ## the first minutes on a GPU: is it right, how fast? ARGS="--reference DIR --data-root DIR"
	$(BIN)/python benchmarks/gpu_smoke.py $(ARGS)

attack: $(BIN)/.installed  ## faults by the hundred: what was lost, silently other, raw; writes docs/robustness.md
	$(BIN)/python tests/attack/attack.py

BUDGET ?= 8m
STORE ?= runs/paper-study
WORK = $(BIN)/python -m ddlib $(1) --profile paper --store $(STORE)
paper: $(BIN)/.installed  ## tasks of the paper-scale study for BUDGET=8m, in STORE=DIR; the next call goes on, here or on a copy
	$(call WORK,work) --budget $(BUDGET) $(ARGS)

paper-status: $(BIN)/.installed  ## what of the paper-scale study is done and left
	$(call WORK,status) $(ARGS)

lint: $(BIN)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

colab: $(BIN)/.installed  ## URL=https://github.com/OWNER/NAME: badges on the notebooks that read CSV files only
	$(BIN)/python -m ddlib.report.colab "$(URL)"

constraints:  ## renew the exact versions (needs uv)
	uv pip compile --universal --python-version 3.11 --all-extras --upgrade --no-header --no-annotate --no-emit-index-url \
		pyproject.toml -o constraints.txt

clean:  ## remove what runs made (not the committed results)
	rm -rf runs figures/quick* paper/results/quick* paper/tables/quick*

$(BIN)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; try make PYTHON=python3.12")'
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[notebooks,test,cluster]'
	touch $@
