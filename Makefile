# Every target makes what it needs, .venv included: on a fresh clone `make demo` is one command.
PYTHON ?= python3
BIN    := .venv/bin
STAMP  := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help venv demo explore test bench docs readme prepare

help: ## what there is
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "make %-9s %s\n", $$1, $$2}' Makefile

$(STAMP): settings.ini setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3,10))' \
	  || { echo "nfig needs Python 3.10 or newer; '$(PYTHON)' is not. Say which one to use: make PYTHON=python3.11 demo" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv .venv \
	  || { echo "could not make .venv. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@echo "installing into .venv (a minute or two; 6 GB where torch comes with CUDA, 2 GB without)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

venv: $(STAMP) ## .venv with nfig and its tools, at the versions of constraints.txt

demo: $(STAMP) ## samples, growth band by band, reconstructions: pictures in demo/
	@$(BIN)/nfig_demo --out demo

explore: $(STAMP) ## sliders over bands, stages and tokens, as an app in the browser
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/voila nbs/explore.ipynb

test: $(STAMP) ## every notebook and everything in tests/
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -q -n auto --no-loadscope-reorder tests

bench: $(STAMP) ## seconds and GFLOP/s at paper scale on this machine, and how they grow
	@$(BIN)/python -m bench.generate && $(BIN)/python -m bench.scaling

docs: $(STAMP) ## the site, in _docs/, complete: any web server can serve it, without a network
	@$(BIN)/python .ci/docs.py && echo "python -m http.server -d _docs, then open http://localhost:8000"

readme: $(STAMP) ## the sidebar from the notebooks' numbers, README.md from nbs/index.ipynb
	@$(BIN)/python .ci/sidebar.py
	@$(BIN)/python .ci/readme.py

prepare: $(STAMP) ## before a commit: clean and format the notebooks, export the modules, write sidebar and README.md
	@$(BIN)/nbdev_clean  # first: it gives new cells the ids that the modules cite
	@$(BIN)/python .ci/lint.py
	@$(BIN)/nbdev_export
	@$(BIN)/python .ci/sidebar.py
	@$(BIN)/python .ci/readme.py
