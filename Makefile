# The course's commands; `make help` lists them. Plain GNU make 3.81 and a POSIX shell are enough.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run data lab test test-load further exercises solutions test-browser navigation site check clean distclean lock \
  sample pretrain bench related related-elephas related-tensorflowonspark related-bigdl test-related lock-related runtimes force

VENV := .venv
comma := ,
PY := $(VENV)/bin/python
NOTEBOOKS := $(sort $(wildcard notebooks/0[0-4]*.ipynb))
FURTHER := $(sort $(wildcard notebooks/0[5-9]*.ipynb))
SOLUTIONS := $(sort $(wildcard notebooks/solutions/*.ipynb))

# TensorFlow's C++ side logs to stderr, where no Python setting reaches it.
export TF_CPP_MIN_LOG_LEVEL := 3
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Another installation's packages must not shadow the locked ones.
unexport PYTHONPATH PYTHONHOME
# Jupyter keeps its runtime files under HOME; where there is none to write to, build/ takes its place.
ifneq ($(shell test -n "$$HOME" && test -d "$$HOME" && test -w "$$HOME" && echo yes),yes)
export HOME := $(CURDIR)/build/home
$(shell mkdir -p build/home)
endif

help: ## list these commands
	@echo "Usage: make COMMAND"
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-14s %s\n", $$1, $$2 }'
	@echo "make run takes DATA=<folder> WEIGHTS=glyphs|imagenet|random|<file> NETWORK=<name> LAYER=<name>[,<name>]"
	@echo "         PER_CLASS=<n> IMAGE_SIZE=<px>; without them it runs on the sample and weights that ship with the course."

run: $(VENV)/.ready ## execute notebooks 01-04, write build/notebooks, build/html and build/results.json
	@$(PY) notebooks/run.py $(if $(DATA),--data "$$DATA") $(if $(WEIGHTS),--weights "$$WEIGHTS") \
	  $(if $(NETWORK),--network "$$NETWORK") $(if $(LAYER),--layer "$$LAYER") \
	  $(if $(PER_CLASS),--per-class "$$PER_CLASS") $(if $(IMAGE_SIZE),--image-size "$$IMAGE_SIZE")

data: $(VENV)/.ready ## download NumtaDB from Kaggle (about 2 GB)
	@$(PY) -m helpers.numtadb

lab: $(VENV)/.ready ## open JupyterLab on the landing notebook
	@$(PY) -m jupyterlab $$(test "$$(id -u)" != 0 || echo --allow-root) --ServerApp.root_dir="$(CURDIR)" $(LAB_OPTIONS) notebooks/00_start_here.ipynb

# One process a core, with 6 GiB each: what is in one file stays in one process, as it shares a Spark session.
BESIDE = -n $$($(PY) -c 'import helpers.spark as s; print(max(1, min(s.available_cores(), s.available_memory() // 6144, 4)))') \
  --dist loadfile

# Stored outputs were made on Linux: elsewhere rounding may differ, and only cells marked for comparison are compared.
NBVAL := $(if $(filter Linux,$(shell uname -s)),--nbval,--nbval-lax) --nbval-current-env --nbval-sanitize-with tests/nbval.cfg
COMPARE = $(PY) -m pytest $(BESIDE) $(PYTEST_OPTIONS) $(NBVAL)

test: $(VENV)/.ready ## lint, then all tests and the notebooks' stored outputs
	$(PY) -m ruff check .
	$(COMPARE) tests $(NOTEBOOKS)

test-load: $(VENV)/.ready ## the tests that take minutes each: 20,000 images, photographs, a killed kernel
	$(PY) -m pytest $(PYTEST_OPTIONS) -m load tests

further: $(VENV)/.ready ## the same comparison for the notebooks from 05 on
	$(COMPARE) $(FURTHER)

exercises: $(VENV)/.ready ## make notebooks/exercises from notebooks/solutions
	@$(PY) notebooks/make_exercises.py

solutions: $(VENV)/.ready ## the same comparison for the exercises' solutions
	$(COMPARE) $(SOLUTIONS)

navigation: $(VENV)/.ready ## write previous, next, glossary words and contents into the notebooks
	@$(PY) notebooks/site/navigation.py

# Executes nothing: the pages show the outputs that the notebooks hold.
site: build/site-venv/.ready ## build build/site, pages to read the course without Jupyter, and check their links
	@rm -rf build/site build/site-doctrees
	@build/site-venv/bin/python -m sphinx -W --keep-going -q -c notebooks/site -d build/site-doctrees notebooks build/site
	@build/site-venv/bin/python notebooks/site/check_pages.py build/site

test-browser: $(VENV)/.ready build/browser-venv/.ready ## run every notebook in JupyterLab in Chromium; pictures in build/browser
	build/browser-venv/bin/python -m pytest --noconftest $(BROWSER_OPTIONS) tests/browser/in_chromium.py

check: $(VENV)/.ready ## is this machine ready? each thing OK or the line to type; NETWORK= IMAGE_SIZE= too
	@$(PY) -m helpers.check $(if $(NETWORK),--network "$$NETWORK") $(if $(IMAGE_SIZE),--image-size "$$IMAGE_SIZE")

bench: $(VENV)/.ready ## measure speed and memory, eight minutes; BENCH_OPTIONS=--record writes them into README.md
	@$(PY) tests/benchmarks/bench.py $(BENCH_OPTIONS)

runtimes: build/runtimes-venv/.ready ## measure what could run networks in the workers beside OpenVINO; RUNTIMES_OPTIONS=--record
	@PYTHONPATH="$$(build/runtimes-venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" \
	  $(PY) tests/benchmarks/runtimes.py $(RUNTIMES_OPTIONS)

# Each in an environment of its own under build/related, with the Python that it needs.
related: $(VENV)/.ready ## run the related technologies of notebook 09, a quarter of an hour; RELATED_OPTIONS=--record
	@$(PY) tests/benchmarks/related.py $(RELATED_OPTIONS)

related-elephas related-tensorflowonspark related-bigdl: $(VENV)/.ready
	@$(PY) tests/benchmarks/related.py $(subst related-,,$@) $(RELATED_OPTIONS)

test-related: $(VENV)/.ready ## run those that are built again: do they still give what notebook 09 shows?
	$(PY) -m pytest $(PYTEST_OPTIONS) tests/benchmarks/related_again.py

sample: $(VENV)/.ready ## remake data/sample (the drawn digits)
	@$(PY) data/make_sample.py

# PyTorch and OpenCV have no place in the course's environment, so this one has its own.
pretrain: $(VENV)/.ready ## remake data/weights (hours; Debian's fonts and PyTorch)
	@test -x build/pretrain-venv/bin/python || $(PY) -m venv build/pretrain-venv
	@build/pretrain-venv/bin/python -m pip install -qq --editable '.[pretrain]'
	@build/pretrain-venv/bin/python data/make_weights.py $(PRETRAIN_OPTIONS)

# Pins stay where they are as long as they fit; LOCK_OPTIONS=--upgrade moves them.
lock: $(VENV)/.ready ## remake the locks and environment.yml from pyproject.toml
	$(PY) -m uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --extra course --extra dev \
	  --custom-compile-command "make lock" $(LOCK_OPTIONS) --output-file requirements.lock pyproject.toml
	$(PY) binder/write_environment.py
	@for lock in notebooks/site tests/browser tests/benchmarks/runtimes; do \
	  $(PY) -m uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --group $${lock##*/} \
	    --constraints requirements.lock --custom-compile-command "make lock" $(LOCK_OPTIONS) \
	    --output-file $$lock/requirements.lock || exit 1; done

# For the first Python of each in tests/benchmarks/related.py.
lock-related: $(VENV)/.ready ## remake the locks of the related technologies
	@cd notebooks/related && for pair in elephas:3.11 tensorflowonspark:3.11 bigdl:3.9; do \
	  $(CURDIR)/$(PY) -m uv pip compile --quiet --universal --generate-hashes --python-version $${pair#*:} \
	    --custom-compile-command "make lock-related" $(LOCK_OPTIONS) --output-file $${pair%:*}.lock $${pair%:*}.in || exit 1; done

clean: ## remove build/ and caches
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis spark-warehouse notebooks/spark-warehouse metastore_db derby.log
	find helpers tests notebooks data -name __pycache__ -prune -exec rm -rf {} +
	find notebooks -name .ipynb_checkpoints -prune -exec rm -rf {} +

distclean: clean ## also remove the virtual environment
	rm -rf $(VENV)

# --- the virtual environment ------------------------------------------------------------------------------------------
# .venv/requirements.lock: everything in the lock is installed. It is written last, and an interrupted or failed build is
# removed, so no half-made environment passes for a ready one. .venv/.ready: this project is installed into it as well,
# the networks that the notebooks start with are in the cache, and Spark's classes in an archive, so that sessions start
# sooner.
# An environment that was copied or moved along with the folder, or whose Python is gone, is built anew.
VENV_FITS := $(shell test "$$(cat $(VENV)/.root 2>/dev/null)" = "$(CURDIR)" && $(PY) -c '' 2>/dev/null && echo yes)

$(VENV)/requirements.lock: requirements.lock $(if $(VENV_FITS),,force)
	@if [ "$(VENV_FITS)" ] && cmp -s requirements.lock $@; then touch $@; exit 0; fi; \
	set -f; found=; bare=; IFS=:; \
	for name in $(if $(PYTHON),"$(PYTHON)",python3.11 python3.12 python3.13 python3 python); do \
	  for folder in $$PATH /usr/local/bin /usr/bin /opt/homebrew/bin; do \
	    case $$name in */*) candidate=$$name ;; *) candidate=$$folder/$$name ;; esac; \
	    [ -x "$$candidate" ] || continue; \
	    "$$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' >/dev/null 2>&1 || continue; \
	    "$$candidate" -c 'import ensurepip, venv' >/dev/null 2>&1 || { bare=$$candidate; continue; }; \
	    found=$$candidate; break 2; \
	  done; \
	done; unset IFS; set +f; \
	if [ ! "$$found" ] && [ "$$bare" ]; then \
	  echo "$$bare has no venv module: install it (Debian, Ubuntu: sudo apt install python3-venv) and try again." >&2; exit 1; fi; \
	if [ ! "$$found" ]; then \
	  echo "$(if $(PYTHON),PYTHON=$(PYTHON) is no Python 3.11$(comma) 3.12 or 3.13 that runs: name another.,No Python 3.11$(comma) 3.12 or 3.13 runs on this machine: install one$(comma) or name one with PYTHON=<path>.)" >&2; exit 1; fi; \
	echo "Building $(VENV) with $$found: once, a few minutes."; \
	trap 'rm -rf $(VENV); exit 130' HUP INT TERM; \
	{ rm -rf $(VENV) && "$$found" -m venv $(VENV) && \
	  $(PY) -m pip install -qq --require-hashes --requirement requirements.lock && \
	  printf '%s\n' "$(CURDIR)" > $(VENV)/.root && cp requirements.lock $@; } || \
	{ rm -rf $(VENV); echo "The environment could not be built; the lines above say why." >&2; exit 1; }

$(VENV)/.ready: $(VENV)/requirements.lock pyproject.toml
	@$(PY) -m pip install -qq --no-deps --no-build-isolation --editable .
	@$(PY) -m helpers.networks
	@$(PY) -m helpers.spark archive
	@touch $@

# --- environments of tools --------------------------------------------------------------------------------------------
build/site-venv/.ready: notebooks/site/requirements.lock
build/browser-venv/.ready: tests/browser/requirements.lock
build/runtimes-venv/.ready: tests/benchmarks/runtimes/requirements.lock
build/site-venv/.ready build/browser-venv/.ready build/runtimes-venv/.ready: | $(VENV)/.ready
	@rm -rf $(@D)
	@$(PY) -m venv $(@D)
	@$(@D)/bin/python -m pip install -qq --require-hashes --requirement $<
	@touch $@
