# Everything that a person or a machine does with a checkout of Tiebreak. `make help` lists it.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.ONESHELL:
.SILENT:
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
RUNTIME := $(VENV)/.tiebreak-runtime
DEV := $(VENV)/.tiebreak-dev
PROMTOOL := $(BIN)/promtool
BOOKS := $(VENV)/peers/books/.tiebreak-books
TOXIPROXY := github.com/Shopify/toxiproxy/v2
TOXIPROXY_VERSION := 2.12.0

# Handed on by `make demo ARGS="--orders 50000"` and `make bench ARGS=...`.
ARGS ?=
# Where `make measure` leaves its page.
MEASURED ?= measured
# Narrows the last stage of the gate: `make test TESTS=tests/node`.
TESTS ?= tests

# What tests of chaos and of comparisons use where this machine can have it; without it they skip, and say what is missing.
EXTRAS := $(shell command -v go >/dev/null && echo toxiproxy peers; command -v cc >/dev/null && echo fast; \
  [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && ! command -v nft >/dev/null && echo nftables)

.PHONY: help install demo test bench measure fast toxiproxy nftables peers lock clean

help: ## list the targets
	grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | while IFS=$$'\t' read -r name text; do
	  printf '  make %-10s %s\n' "$$name" "$$text"
	done

install: $(RUNTIME) ## make .venv with what runs need; instant when nothing changed

demo: $(RUNTIME) ## members, gateways, a real order flow, a leader killed midway; ARGS="..." goes to the demo
	exec $(BIN)/python -m bench.demo $(ARGS)

bench: $(RUNTIME) ## all benchmarks with their targets; ARGS="engine --seconds 10" runs some
	exec $(BIN)/tiebreak bench run $(or $(ARGS),all)

# A benchmark that misses its target does not keep the others from the page.
measure: $(DEV) peers ## from nothing to measured/README.md: peers, every benchmark, tables, pictures; about an hour
	$(BIN)/tiebreak bench compare --out $(MEASURED) || true
	$(BIN)/tiebreak bench run all --out $(MEASURED) || true
	$(BIN)/tiebreak bench table $(MEASURED) > $(MEASURED)/README.md
	echo 'read $(MEASURED)/README.md'

fast: $(DEV) ## compile the rules into $(VENV); TIEBREAK_ENGINE=compiled then runs that build, and nothing else changes
	exec $(BIN)/python -m statemachine.compiled_build

# The stages stop at the first that fails. pytest is last, so that its own summary closes the output;
# it prints the slowest tests by itself (pyproject.toml).
test: $(DEV) $(EXTRAS) $(PROMTOOL) ## the whole gate: lint, format, types, import contracts, house rules, all tests
	stage() {
	  local name="$$1" began=$$SECONDS; shift
	  printf -- '--- %s\n' "$$name"
	  if ! "$$@"; then printf 'GATE FAILED at: %s\nrepeat with: %s\n' "$$name" "$$*" >&2; exit 1; fi
	  printf -- '    %s: %d s\n' "$$name" $$((SECONDS - began))
	}
	stage 'lint' $(BIN)/ruff check .
	stage 'format' $(BIN)/ruff format --check .
	stage 'types' $(BIN)/mypy
	stage 'import contracts' $(BIN)/lint-imports --no-cache --no-logo
	stage 'house rules' $(BIN)/python -m pytest tests/house --durations=0 --durations-min=1
	printf -- '--- tests\n'
	exec $(BIN)/python -m pytest $(TESTS)

toxiproxy: $(DEV) ## what `tiebreak chaos` cuts links with; instant when a toxiproxy-server is there
	if [ -n "$${TOXIPROXY_SERVER:-}" ] || [ -x $(BIN)/toxiproxy-server ] || command -v toxiproxy-server >/dev/null; then exit 0; fi
	if ! command -v go >/dev/null; then
	  echo 'toxiproxy-server is built with Go 1.23 or newer; install Go and repeat, or put a toxiproxy-server 2.12' >&2
	  echo 'on PATH, or name one in TOXIPROXY_SERVER' >&2; exit 1
	fi
	echo 'building toxiproxy-server into $(VENV)'
	build=$$(mktemp -d); trap 'rm -rf "$$build"' EXIT
	GOBIN="$$build" go install -ldflags '-X $(TOXIPROXY).Version=$(TOXIPROXY_VERSION)' \
	  $(TOXIPROXY)/cmd/server@v$(TOXIPROXY_VERSION)
	mv "$$build/server" $(BIN)/toxiproxy-server

nftables: ## what namespaces drop packets with: nft, from the system's packages; needs root
	if command -v nft >/dev/null; then exit 0; fi
	if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
	  echo 'install the package nftables; on Debian: sudo apt-get install nftables' >&2; exit 1
	fi
	echo 'installing nftables'
	apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends nftables >/dev/null

peers: $(RUNTIME) $(BOOKS) ## what benchmarks compare with: PostgreSQL from the system's packages, etcd and nats-server built with Go
	if [ -z "$$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null)" ] && ! command -v pgbench >/dev/null; then
	  if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
	    echo 'install the package postgresql; on Debian: sudo apt-get install postgresql' >&2
	  else
	    echo 'installing postgresql'
	    # Its package would start a server of its own, which nobody asked for.
	    mkdir -p /etc/postgresql-common/createcluster.d
	    echo 'create_main_cluster = false' > /etc/postgresql-common/createcluster.d/tiebreak.conf
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends postgresql >/dev/null
	  fi
	fi
	if [ -x $(VENV)/peers/etcd ] && [ -x $(VENV)/peers/etcd-benchmark ] && [ -x $(VENV)/peers/nats-server ]; then exit 0; fi
	if ! command -v go >/dev/null; then
	  echo 'etcd and nats-server are built with Go 1.24 and 1.26 or newer; install Go and repeat' >&2; exit 1
	fi
	mkdir -p $(VENV)/peers
	built() { if [ ! -x "$(VENV)/peers/$$1" ]; then
	  echo "building $$1 into $(VENV)/peers"; go build -C "$$2" -o "$$PWD/$(VENV)/peers/$$1" "$$3"; fi; }
	built etcd bench/peers/etcd_tools go.etcd.io/etcd/server/v3
	built etcd-benchmark bench/peers/etcd_tools go.etcd.io/etcd/v3/tools/benchmark
	built nats-server bench/peers/fanout_tools github.com/nats-io/nats-server/v2

# In an environment of their own: nothing of ours depends on them. Without them the other peers can still be had.
$(BOOKS): bench/books/requirements.txt | $(RUNTIME)
	echo 'installing order books into $(VENV)/peers/books'
	rm -rf $(@D)
	if $(BIN)/python -m venv $(@D) && $(@D)/bin/python -m pip --disable-pip-version-check --quiet install \
	  --require-hashes --only-binary :all: -r $<
	then touch $@; else echo 'the order books could not be installed: their rows are left out' >&2; fi

# setuptools first: PySyncObj is published as source only and is built with this one, hash-checked,
# rather than with whatever an isolated build would fetch.
$(RUNTIME): requirements.txt pyproject.toml | $(BIN)/pip
	echo 'installing what runs need into $(VENV)'
	sed -n '/^setuptools==/,/^ *#/p' requirements.txt | $(PIP) install --require-hashes -r /dev/stdin
	$(PIP) install --require-hashes --no-build-isolation --use-pep517 -r requirements.txt
	$(PIP) install --no-deps --no-build-isolation -e .
	touch $@

$(DEV): requirements-dev.txt $(RUNTIME)
	echo 'installing what tests need into $(VENV)'
	$(PIP) install --require-hashes --no-build-isolation --use-pep517 -r requirements-dev.txt
	touch $@

# It checks the alert rules that ship. Taken out of Debian's package, since installing that starts a server; where it
# can't be had, its test is skipped and says so.
$(PROMTOOL): | $(BIN)/pip
	if command -v promtool >/dev/null; then ln -sf "$$(command -v promtool)" $@; exit; fi
	if ! command -v apt-get >/dev/null || ! command -v dpkg >/dev/null; then exit; fi
	echo 'fetching promtool'
	folder=$$(mktemp -d)
	trap 'rm -rf "$$folder"' EXIT
	if [ "$$(id -u)" = 0 ]; then apt-get update -qq || true; fi
	# apt reads as a user of its own where it runs as root.
	chmod 755 "$$folder"
	if (cd "$$folder" && apt-get download -qq -o APT::Sandbox::User=root prometheus && dpkg -x prometheus_*.deb .) 2>/dev/null
	then cp "$$folder/usr/bin/promtool" $@; else echo 'promtool could not be fetched: its test is skipped'; fi

# Debian splits venv off its Python. A venv without pip is what a failed attempt leaves behind: start again.
$(BIN)/pip:
	python=
	for name in $${PYTHON:-} python3.11 python3 python3.12 python3.13; do
	  if "$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$$name; break; fi
	done
	if [ -z "$$python" ]; then echo 'Tiebreak needs Python 3.11 or newer; set PYTHON=/path/to/it' >&2; exit 1; fi
	if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then
	  package=$$("$$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
	  if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
	    echo "this Python has no venv module; on Debian: sudo apt-get install $$package" >&2; exit 1
	  fi
	  echo "installing $$package"
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$$package" >/dev/null
	fi
	rm -rf $(VENV)
	"$$python" -m venv $(VENV)

lock: ## resolve dependencies anew into requirements.txt and requirements-dev.txt, with hashes
	if [ ! -x $(VENV)-lock/bin/uv ]; then
	  python3 -m venv $(VENV)-lock && $(VENV)-lock/bin/pip install --quiet uv
	fi
	compile() {
	  $(VENV)-lock/bin/uv pip compile --quiet --universal --python-version 3.11 --upgrade --generate-hashes \
	    --no-header --no-emit-index-url --no-emit-find-links "$$@"
	}
	compile pyproject.toml <(echo 'setuptools>=77') -o requirements.txt
	compile pyproject.toml --extra dev -c requirements.txt -o requirements-dev.txt
	compile bench/books/requirements.in -o bench/books/requirements.txt
	sed -i 's|-r /dev/fd/.*|the build|' requirements.txt

clean: ## remove the environment, caches and what runs left in the checkout
	rm -rf $(VENV) $(VENV)-lock .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build *.egg-info demo-run run chaos-runs
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
