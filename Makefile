# The commands that people type. Each creates what it needs in .venv first. It needs only make and Python 3.11 or newer
# with its venv module.

# make run PORT=8001 RELAY_PORT=8081
PORT ?= 8000
RELAY_PORT ?= 8080
# make test ARGS="-k login -x"
ARGS ?=
# make test PYTHON=/opt/python3.13/bin/python3 uses only this interpreter.
PYTHON ?=
VENV ?= .venv

VENV_PYTHON = $(VENV)/bin/python
export PIP_DISABLE_PIP_VERSION_CHECK = 1

# make fuzz WHAT=frames SECONDS=3600 CORPUS=/var/tmp/frames
WHAT ?= wire
SECONDS ?= 600
CORPUS ?= .fuzz/$(WHAT)

# The npm packages that the tests of examples/express need, pinned in tests/express.
EXPRESS = tests/express/node_modules/.installed

.PHONY: help run test coverage trials fuzz bench bench-quick docs linkcheck lint clean
# Two pips that run at once in one environment break it.
.NOTPARALLEL:
# Make deletes the unfinished target of a recipe that failed or was interrupted.
.DELETE_ON_ERROR:

help:
	@echo 'make run      the relay and a demo website with a chat page, on http://127.0.0.1:$(PORT)'
	@echo 'make test     the tests; a list at the end names what was skipped, with the reason'
	@echo 'make coverage the tests, and which lines they reached; takes half as long again'
	@echo 'make trials   the trials in full: attacks, broken parts, power cuts, fuzzing; takes more than an hour'
	@echo 'make fuzz     random bytes, guided by coverage, for the wire; WHAT=frames: for the frame fast path; WHAT=cost: the most expensive bytes'
	@echo 'make bench    what a message costs, compared with other servers; takes an hour. make bench-quick: two minutes'
	@echo 'make docs     the documentation, in docs/_build/html; warnings and broken links are errors'
	@echo 'make linkcheck  check the links of the documentation to other sites'
	@echo 'make lint     ruff, mypy, import-linter, bandit and the news fragments'
	@echo 'make clean    remove what these commands created; a message log stays'

# With exec, Ctrl-C reaches only Python, and no shell reports it a second time.
run: $(VENV)/.has-run
	@exec $(VENV_PYTHON) -m chatrelay.demo --port $(PORT) --relay-port $(RELAY_PORT)

# Without ARGS there are two parts: three processes share most tests, and those that compare times run alone afterwards.
test: $(VENV)/.has-test $(EXPRESS)
ifeq ($(strip $(ARGS)),)
	@shared=0; alone=0; \
	$(VENV_PYTHON) -m pytest -m 'not alone' -n 3 --dist worksteal || shared=$$?; \
	$(VENV_PYTHON) -m pytest -m alone || alone=$$?; \
	if [ $$shared -ne 0 ]; then echo 'The first part of the tests failed: its summary is above.'; fi; \
	exit $$((shared > alone ? shared : alone))
else
	$(VENV_PYTHON) -m pytest $(ARGS)
endif

coverage: $(VENV)/.has-test $(EXPRESS)
	$(VENV_PYTHON) -m pytest $(ARGS) --cov

# make trials ARGS="-k kill". One trial takes an hour, so the timeout that prints tracebacks is longer than that.
trials: $(VENV)/.has-test
	$(VENV_PYTHON) -m pytest tests/trials tests/fuzz tests/end_to_end/test_full_load.py --full -o faulthandler_timeout=7200 $(ARGS)

# A crash is written to a file beside the corpus. To repeat it: .venv/bin/python -m tests.fuzz WHAT FILE
fuzz: $(VENV)/.has-test
ifeq ($(WHAT),cost)
	$(VENV_PYTHON) -m tests.fuzz cost --seconds $(SECONDS)
else
	@mkdir -p $(CORPUS)
	$(VENV_PYTHON) -m tests.fuzz $(WHAT) -max_total_time=$(SECONDS) -print_final_stats=1 -artifact_prefix=$(CORPUS)- $(CORPUS)
endif

# make bench ARGS="--scenario 64x8 --rounds 1"
bench: $(VENV)/.has-bench
	$(VENV_PYTHON) -m bench --json docs/benchmarks/results.json --rst docs/benchmarks $(ARGS)

bench-quick: $(VENV)/.has-bench
	$(VENV_PYTHON) -m bench --quick $(ARGS)

docs: $(VENV)/.has-docs
	$(VENV_PYTHON) docs/check_links.py .
	$(VENV_PYTHON) -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo 'Open docs/_build/html/index.html'

# It needs a network, so CI does not run it.
linkcheck: $(VENV)/.has-docs
	$(VENV_PYTHON) -m sphinx -q -b linkcheck docs docs/_build/linkcheck

lint: $(VENV)/.has-lint
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m ruff format --check .
	$(VENV_PYTHON) -m mypy
	$(VENV)/bin/lint-imports --no-logo
	$(VENV_PYTHON) -m bandit --quiet --recursive --configfile pyproject.toml chatrelay twisted
	@$(VENV_PYTHON) -m towncrier build --draft --version next >$(VENV)/news.txt 2>&1 || { cat $(VENV)/news.txt; exit 1; }

clean:
	rm -rf $(VENV) build dist *.egg-info docs/_build htmlcov .coverage .coverage.* _trial_temp* \
	    .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache twisted/plugins/dropin.cache \
	    bench/node_modules bench/build tests/express/node_modules
	find chatrelay twisted tests docs examples -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

# One environment serves all purposes. Each purpose has a stamp, which is renewed when setup.cfg changes.
PURPOSES = run test bench docs lint dev
EXTRA_test = [test]
EXTRA_bench = [bench]
EXTRA_docs = [docs]
EXTRA_lint = [lint]
EXTRA_dev = [dev]
PINS_bench = --constraint bench/requirements.txt

$(PURPOSES:%=$(VENV)/.has-%): $(VENV)/.has-%: $(VENV)/.made setup.cfg setup.py
	@echo 'Installing chatrelay$(EXTRA_$*) into $(VENV); the first time this takes a minute.'
	@$(VENV_PYTHON) -m pip install --quiet --editable '.$(EXTRA_$*)' $(PINS_$*)
	@touch $@

# Without npm, or when npm fails, the tests that need it are skipped and say so.
$(EXPRESS): tests/express/package-lock.json
	@if ! command -v npm >/dev/null; then exit 0; fi; \
	echo 'Installing Express into tests/express.'; \
	if npm ci --silent --ignore-scripts --no-audit --no-fund --prefix tests/express; then touch $@; \
	else echo 'npm ci failed in tests/express: the tests of examples/express will be skipped' >&2; fi

# Take the first Python that is new enough and can create an environment. If there is none, say what is wrong with those
# that were found.
define make_environment
found=; old=; bare=; \
for candidate in $(if $(PYTHON),'$(PYTHON)',python3 python3.13 python3.12 python3.11); do \
    version=$$("$$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue; \
    if ! "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then \
        old="$$old $$candidate ($$version)"; \
    elif ! "$$candidate" -c 'import ensurepip, venv' 2>/dev/null; then \
        bare="$$bare $$candidate"; package="python$$version-venv"; \
    else \
        found=$$candidate; break; \
    fi; \
done; \
if [ -z "$$found" ]; then \
    echo 'chatrelay needs Python 3.11 or newer with its venv module.' >&2; \
    if [ -n "$$bare" ]; then \
        echo "Without venv:$$bare. On Debian and Ubuntu: apt install $$package" >&2; \
    elif [ -n "$$old" ]; then \
        echo "Too old:$$old. Install a newer one, or name it: make PYTHON=/path/to/python3.11" >&2; \
    else \
        echo 'No $(or $(PYTHON),python3) that runs was found. On Debian and Ubuntu: apt install python3 python3-venv' >&2; \
    fi; \
    exit 1; \
fi; \
"$$found" -m venv --clear $(VENV)
endef

$(VENV)/.made:
	@$(make_environment)
	@touch $@
