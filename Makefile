# make run: serve the studies. make test: check everything. A fresh machine needs only Python >= 3.11 with venv, and make.
PYTHON ?= python3
BIN := .venv/bin
# Many tests wait for a browser or a server: two more workers than cores keep those busy.
WORKERS = $$($(BIN)/python -c 'import os; print((os.cpu_count() or 1) + 2)')
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt

.PHONY: run test test-quick audit format messages docs clean

run: .venv/web
	@$(BIN)/python -m app serve

# Each server that a test starts would compile the app anew.
test: export PYTHONDONTWRITEBYTECODE =
test: .venv/test
	$(BIN)/python -m tests.browser
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# While working on something else: what reads and shows (pages, statistics) on SQLite alone.
test-quick: export TEST_QUICK = 1
test-quick: test

.venv/web: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing the app into .venv ..."
	@$(PIP) -e .
	@touch $@

.venv/test: .venv/web
	@echo "Installing the laboratory and the test tools into .venv ..."
	@$(PIP) -e '.[ml,test,docs]'
	@touch $@

# Known holes in what is installed. Needs the network; a package that cannot be asked about is a failure, not a pass.
audit:
	@test -x build/audit/bin/pip-audit || ($(PYTHON) -m venv build/audit && build/audit/bin/pip install --quiet pip-audit)
	@build/audit/bin/pip-audit --strict --no-deps --disable-pip --progress-spinner off -r constraints.txt \
		|| (echo "make audit: either a package has a known hole, or the advisories could not be asked; see above" && false)

format:
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The texts of the pages, after a change: lists new ones in the catalogs, without a guess at their translation.
messages: .venv/web
	@mkdir -p build
	@$(BIN)/pybabel -q extract -F pyproject.toml --no-wrap --add-location=file --sort-by-file -o build/messages.pot app templates
	@for po in app/translations/*.po; do \
		$(BIN)/pybabel -q update -i build/messages.pot -o $$po -l $$(basename $$po .po) --no-wrap \
			--no-fuzzy-matching --ignore-obsolete --ignore-pot-creation-date || exit; \
	done

# The documentation as a site, in build/docs.
docs: .venv/test
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs
	@echo "build/docs/index.html"

clean:
	rm -rf .venv build *.egg-info
