# Developer commands. `make` alone lists them.
#
#   AGNO=2.5.6          demo, tour, cluster, clients, conformance: the agno release (3.1.10)
#   FREE_PORTS=1        demo: free ports instead of the ones in config.toml
#   TOLLBRIDGE_BIN=…    demo, tour, cluster, clients, conformance: take this binary instead of building one

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

AGNO ?= 3.1.10
FREE_PORTS ?=
PYTHON ?= python3
DEMO := $(PYTHON) scripts/demo.py
LOG := target/test-logs

.PHONY: help demo tour cluster clients conformance test build release bench load conformance-http clean deps venvs fmt lint unit doc

help: ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | while IFS=$$'\t' read -r name text; do printf '  make %-17s %s\n' "$$name" "$$text"; done

demo: deps ## start two AgentOS replicas and Tollbridge, print lines to paste, stay up until Ctrl-C
	@exec $(DEMO) demo --agno $(AGNO) $(if $(FREE_PORTS),--free-ports)

tour: deps ## play a scripted tour through both doors on free ports; fails when a step fails
	@$(DEMO) tour --agno $(AGNO)

cluster: deps ## prove on free ports what two gateways with one Redis share
	@exec $(PYTHON) examples/cluster/run.py --prove --agno $(AGNO)

clients: deps ## let the official MCP clients (Python, TypeScript, inspector) call the example
	@$(DEMO) clients --agno $(AGNO)

conformance: deps ## run the public MCP conformance suites against the example, and against a fake AgentOS with their fixtures
	@cd tests/conformance && $(PYTHON) -m unittest -q test_verdict
	@$(DEMO) conformance --agno $(AGNO)

test: ## everything that has to hold: format, lints, tests, documentation, clients, tour
	@bash scripts/test.sh

build: deps ## build the release binary without a profile
	@cargo build --release --locked --bin tollbridge

release: deps ## build the release binary, guided by a profile of itself at work
	@$(PYTHON) scripts/release.py

bench: release ## measure the release binary against a bare proxy, interleaved
	@binary="$$($(PYTHON) scripts/release.py --path)" && TOLLBRIDGE_BIN="$$binary" cargo bench --locked

load: deps ## one minute of load over two AgentOS replicas while things change: nothing may fail
	@$(PYTHON) benches/load.py --agno $(AGNO)

conformance-http: deps ## HTTP/2, WebSocket and raw heads, beside HAProxy: no failure that HAProxy does not show
	@cargo build --quiet --locked --bin tollbridge --example websocket_echo
	@$(PYTHON) tests/conformance/run.py
	@cargo test --locked --test it -- http_framing:: http_two_raw:: websocket::

fmt: ## format the code
	@cargo fmt --all

lint: deps ## clippy with warnings denied
	@cargo clippy --locked --all-targets -- -D warnings

unit: deps venvs ## unit and integration tests
	@bash scripts/test.sh unit

doc: deps ## build the documentation with warnings denied
	@RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items

venvs: deps ## create the pinned Python environments
	@$(PYTHON) scripts/venvs.py

deps: ## check for the system packages that are needed; as root on Debian, install them
	@bash scripts/deps.sh

clean: ## remove what was built and downloaded into the repository
	@rm -rf .venv-* .demo tests/clients/node_modules tests/conformance/node_modules
	@cargo clean --quiet
