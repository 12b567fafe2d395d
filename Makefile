# Every target finds its tools in .venv, which is made first when it is missing or stale.
PYTHON ?= python3
STAMP := .venv/.stamp

.PHONY: help study test test-slow test-browser faults notebooks exercises lint site release-check lab clean

help:  ## list these targets
	@sed -n 's/^\([a-z-]*\):[^#]*## /make \1	/p' Makefile

study: $(STAMP)  ## run all notebooks of the study; the results go to results/
	.venv/bin/toast study

# Notebooks against their committed outputs.
NBVAL = .venv/bin/python -m pytest -n 2 --dist loadscope -p no:cacheprovider \
	--nbval-lax --nbval-current-env --nbval-cell-timeout=900

test test-slow: export TOAST_CACHE = $(CURDIR)/.pytest_cache/toastlib
test: export OMP_NUM_THREADS = 1
test: export TQDM_DISABLE = 1
test: lint  ## lint, then the tests, then notebooks 00, 01, 04 and 05 against their committed outputs
	rm -rf .pytest_cache/toastlib
	.venv/bin/python -m pytest -n 2 -m "not slow" tests
	$(NBVAL) notebooks/0[0145]*.ipynb

faults: export OMP_NUM_THREADS = 1
faults: export TQDM_DISABLE = 1
faults: $(STAMP)  ## break sweeps in every way we know: kills, hangs, full disks, two drivers, lost workers
	.venv/bin/python -m pytest -p no:cacheprovider tests/faults/*.py

test-slow: export OMP_NUM_THREADS = 1
test-slow: export TQDM_DISABLE = 1
test-slow: $(STAMP)  ## what takes long: the other notebooks, every command of every page, the site, the exercises
	rm -rf .pytest_cache/toastlib
	$(NBVAL) notebooks/0[236-9]*.ipynb notebooks/1*.ipynb
	.venv/bin/python -m pytest -n 2 -m slow tests

test-browser: site  ## look at notebooks and site in headless Chromium; pictures go to build/screenshots/
	.venv/bin/python -m pytest -rs -p no:cacheprovider tests/browser

notebooks: export TQDM_DISABLE = 1
notebooks: $(STAMP)  ## execute the committed notebooks anew, in place
	.venv/bin/jupyter nbconvert --to notebook --execute --inplace --ExecutePreprocessor.record_timing=False \
		notebooks/[0-9]*.ipynb

exercises: export TQDM_DISABLE = 1
exercises: $(STAMP)  ## execute the solutions of the exercises, and write the exercises from them
	.venv/bin/python scripts/exercises.py --solutions

lint: $(STAMP)  ## check style and formatting, notebooks included
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

site: $(STAMP)  ## build the site into build/site, check its links, list those that lead elsewhere
	rm -rf build/site
	.venv/bin/python -m sphinx -q -W --keep-going -b html -c docs . build/site
	rm -rf build/site/.doctrees
	.venv/bin/python scripts/check_site.py build/site
	@echo "Open build/site/index.html in a browser."

release-check: $(STAMP)  ## build sdist and wheel, install the wheel alone, and use it in an empty folder
	rm -rf dist build/release
	.venv/bin/python -m build --no-isolation
	.venv/bin/python scripts/release_check.py dist/*.whl build/release

lab: $(STAMP)  ## open the notebooks in JupyterLab
	.venv/bin/jupyter lab notebooks

clean:  ## remove results/, caches and .venv
	rm -rf .venv results build dist *.egg-info .pytest_cache .ruff_cache
	find . -type d \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt
	.venv/bin/python -m pip install -c constraints.txt -e '.[test]'
	@printf %s "$(CURDIR)" > $(STAMP)

# The stamp holds the path that .venv was made at. Moved from there, half made or without its Python, it is made anew;
# after a change of the requirements it is only brought up to date.
MADE_AT := $(shell .venv/bin/python -c 'print(open("$(STAMP)").read())' 2>/dev/null)
ifneq "$(MADE_AT)" "$(CURDIR)"
.PHONY: new-venv
$(STAMP): new-venv
new-venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo >&2 \
		"toastlib needs Python 3.11 or newer, which '$(PYTHON)' is not: name one with make PYTHON=/path/to/python."; exit 1; }
	$(PYTHON) -m venv --clear .venv
endif
