# One entry for everything: `make help`. Needs only Python (3.11 to 3.13) and make; the rest is set up in .venv on first use.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	if command -v $$p >/dev/null && $$p -c 'import sys; sys.exit(not (3,11) <= sys.version_info[:2] < (3,14))' 2>/dev/null; \
	then echo $$p; break; fi; done)
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
UV_VERSION := 0.13.9

UNIT := tests/unit
PROPERTY := tests/property
RAY := tests/ray
KUBE := tests/kube
# These run beside the others, on an API server of their own: most tests there wait more than they compute. Which rights their
# operators used is looked at in both runs, at the end.
KUBE_BESIDE := $(addprefix $(KUBE)/test_,admission.py cli_apply.py cli_forward.py cli_operate.py cli_operator.py cli_reach.py \
	crashes.py dashboard_ways.py kuberay_contract_changes.py kuberay_contract_invalid.py kuberay_contract_objects.py kuberay_contract_status.py \
	kuberay_standin.py lost_at_once.py merging.py new_version.py values.py values_in_replicas.py)

.PHONY: help setup demo test test-unit test-property test-kube kube-binaries test-ray test-pythons test-ray-versions soak e2e e2e-core check format generate bench bench-quick lock clean

help: ## show this help
	@awk 'BEGIN {FS = ":.*## "} /^[a-z0-9-]+:.*## / {printf "  \033[1m%-17s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## make the virtual environment in .venv (every other target does it by itself)

$(READY): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11, 3.12 or 3.13 found; name one with make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@echo "setup: $(VENV) with $$($(PYTHON) --version), packages of requirements.lock (about 1.5 GB, some minutes the first time)"
	@$(PYTHON) -m venv $(VENV)
	@# --no-deps: the lock is complete, and older pips look for a newer release of what is named with an extra.
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	@$(BIN)/python -m pip check --disable-pip-version-check
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: $(READY) ## run the document-triage pipeline on this machine and upgrade two of its models under load
	@$(BIN)/python examples/document_triage/demo.py

# Two of them at a time, as many of them wait more than they compute. test-kube is two by itself, and beside them a Ray that starts
# dozens of processes would keep the API server from answering for minutes on a machine with two processors. Each shows its output in
# one piece when it is done, and writes it to .cache/logs meanwhile. ALSO=test-pythons: that too, beside what is left of test-ray.
test: $(READY) ## all tests
	@$(MAKE) --no-print-directory --jobs=2 $(if $(filter output-sync,$(.FEATURES)),--output-sync=line) TOGETHER=1 \
		test-ray test-unit test-property $(ALSO)
	@$(MAKE) --no-print-directory TOGETHER=1 test-kube

ifdef TOGETHER
LOGGED = 2>&1 | tee .cache/logs/$@.log
BEGUN = @mkdir -p .cache/logs; echo "$@: begun; look at .cache/logs/$@.log"
endif

test-unit: $(READY) ## unit tests, with the coverage of the pure layers
	$(BEGUN)
	@$(BIN)/python -m pytest $(UNIT) --cov --cov-report=term-missing:skip-covered $(LOGGED)

test-property: $(READY) ## property tests
	$(BEGUN)
	@$(BIN)/python -m pytest $(PROPERTY) $(LOGGED)

test-kube: $(READY) ## tests on a real Kubernetes API server; builds it once (needs Go 1.26 or pip, some minutes)
	$(BEGUN)
	@$(BIN)/python $(KUBE)/bed/build.py
	@mkdir -p .cache/logs
	@$(BIN)/python -m pytest $(KUBE_BESIDE) $(KUBE)/test_rbac.py -k "not every_right" > .cache/logs/$@-beside.log 2>&1 & beside=$$!; \
	trap 'kill $$beside 2>/dev/null || true' EXIT; \
	status=0; { $(BIN)/python -m pytest $(KUBE) $(addprefix --ignore=,$(KUBE_BESIDE)) $(LOGGED); } || status=$$?; \
	echo "$@: waiting for the tests beside these"; \
	wait $$beside || status=$$?; cat .cache/logs/$@-beside.log; exit $$status

kube-binaries: $(READY) ## build the API server, etcd and kubectl for test-kube now
	@$(BIN)/python $(KUBE)/bed/build.py

test-ray: $(READY) ## tests on this machine's own Ray; one Ray at a time, so in two runs
	$(BEGUN)
	@$(BIN)/python -m pytest $(RAY) $(addprefix --ignore=$(RAY)/,up hosts soak) $(LOGGED)
	@$(BIN)/python -m pytest $(RAY)/up $(RAY)/hosts $(LOGGED)

soak: $(READY) ## half an hour of load on this machine's own Ray: does memory stay flat? SERVEPIPE_SOAK_S=300 for less
	@$(BIN)/python -m pytest $(RAY)/soak -o faulthandler_timeout=3600

test-pythons: $(READY) ## unit and property tests under every other supported Python that is installed
	$(BEGUN)
	@scripts/test-pythons $(UNIT) $(PROPERTY) $(LOGGED)

test-ray-versions: $(READY) ## the channel's tests under the three minor versions of Ray that [runtime] allows; RAY_VERSIONS="2.59.0"
	@scripts/test-ray-versions

# On kind, on the cluster of KUBECONFIG, or on one made on this machine: E2E="--cluster=current". What it ran on, and why, is in the
# first lines. Where nothing is possible pytest ends with 77, which make tells and turns into its own 2.
e2e: $(READY) ## everything in real pods, in a cluster that it makes (root on Linux, or Docker and kind)
	@$(BIN)/python -m pytest e2e -o faulthandler_timeout=1800 $(E2E)

e2e-core: $(READY) ## the most important part of e2e: install, answer, upgrade, lost head, delete
	@$(BIN)/python -m pytest e2e -m core $(E2E)

check: $(READY) ## style, types, layers, generated files
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m servepipe.api.crd --check
	@$(BIN)/python scripts/chart_values.py --check
	@$(BIN)/python scripts/crd_reference.py --check

format: $(READY) ## format the code and fix what can be fixed
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

generate: $(READY) ## write the generated files (the CRD and its reference; the chart's copy of it, schema and table of values)
	@$(BIN)/python -m servepipe.api.crd
	@$(BIN)/python scripts/chart_values.py
	@$(BIN)/python scripts/crd_reference.py

# BENCH="--only diamond/32": that of the graphs, and nothing else; see docs/benchmarks.md. A missed goal does not keep the others from
# being measured.
bench: $(READY) ## all benchmarks, under two hours; writes benchmarks/results/, fails when a goal is missed
	@mkdir -p benchmarks/results
	@status=0; trap 'exit 130' INT; \
	for name in $(if $(BENCH),,interpreter inline_requests operator_load); do \
		$(BIN)/python benchmarks/$$name.py --json benchmarks/results/$$name.json || status=$$?; \
	done; \
	$(BIN)/python benchmarks/graphs.py $(BENCH) || status=$$?; \
	exit $$status

bench-quick: $(READY) ## the most important of them, below five minutes; a missed goal does not fail it
	@$(BIN)/python benchmarks/graphs.py --quick $(BENCH)

lock: ## pin all dependencies again (requirements.lock)
	@$(PYTHON) -m venv .cache/lock && .cache/lock/bin/pip install --quiet uv==$(UV_VERSION)
	@.cache/lock/bin/uv pip compile pyproject.toml --universal --python-version 3.11 \
		--extra runtime --extra local --extra operator \
		--group build --group test --group lint --group bench --group examples \
		--generate-hashes --no-emit-index-url --no-header --quiet -o requirements.lock
	@cd examples/document_triage && ../../.cache/lock/bin/uv pip compile requirements.in --python-platform linux --python-version 3.11 \
		--constraint ../../requirements.lock --override overrides.txt \
		--generate-hashes --no-annotate --no-emit-index-url --no-header --quiet -o requirements.txt

clean: ## remove the virtual environment and all caches
	@rm -rf .venv .venv-* .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .coverage
