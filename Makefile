# The one entry point. Every target installs what it needs and builds what it uses.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help run test lint fmt doc bench soak guest fuzz screenshots clean setup

# Images, for `run`, `test` and `bench` alike: `make clean` takes them away, and the host keeps nothing.
TARGET := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)
export MAYFLY_DATA_DIR ?= $(TARGET)/mayfly-data
# Tests write here what they could not run.
export MAYFLY_SKIPPED ?= $(TARGET)/skipped-tests
IMAGES := minimal base

help: ## show this list
	@sed -n 's/^\([a-z]*\):.*## /\1	/p' $(MAKEFILE_LIST) | while IFS=$$'\t' read -r name what; do printf '  make %-11s %s\n' "$$name" "$$what"; done

run: setup ## build mayfly and run the example job in a sandbox
	@cargo build --release --bin mayfly
	@scripts/as-root examples/first-agent/run $(TARGET)/release/mayfly

test: setup ## build everything and run every test (as root)
	@scripts/packages test guest
	cargo build --workspace --all-targets --features failpoints
	for image in $(IMAGES); do scripts/as-root $(TARGET)/debug/mayfly image build $$image; done
	@scripts/as-root rm -f $(MAYFLY_SKIPPED)
	CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER=$(CURDIR)/scripts/as-root cargo test --workspace --features failpoints --no-fail-fast
	@scripts/as-root scripts/short $(TARGET)/debug/mayfly
	@scripts/as-root scripts/guest-systemd $(TARGET) $(TARGET)/debug/mayfly
	@if [ -e $(MAYFLY_SKIPPED) ]; then echo 'What could not be run here:'; sort -u $(MAYFLY_SKIPPED) | sed 's/^skipped: /  /'; else echo 'No test was skipped.'; fi

lint: ## check format, lints, docs, scripts and licences
	@scripts/packages build lint
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --quiet
	for script in scripts/* .ci/run examples/*/run; do bash -n $$script; done
	scripts/deny

fmt: ## format the code
	cargo fmt --all

doc: ## build the API documentation
	@scripts/packages build lint
	cargo doc --workspace --no-deps

bench: setup ## measure whole runs, sandboxes of each tier, a batch and the service, beside their peers
	@scripts/packages bench test
	@cargo build --release --bin mayfly
	@scripts/as-root scripts/bench $(TARGET)/release/mayfly
	@scripts/as-root scripts/bench-tiers $(TARGET)/release/mayfly
	@cargo build --release -p libvirt-engine
	@scripts/as-root scripts/with-libvirt scripts/bench-libvirt $(TARGET)/release/mayfly
	@scripts/as-root scripts/bench-batch $(TARGET)/release/mayfly
	@scripts/bench-serve
	@scripts/bench-egress

soak: setup ## runs on each tier that must leave nothing, kills of a batch and of hosts that must lose nothing, the suite under systemd
	@scripts/packages test guest
	@cargo build --release --bin mayfly
	@scripts/as-root scripts/soak $(TARGET)/release/mayfly 1000
	@scripts/as-root scripts/soak $(TARGET)/release/mayfly 500 nspawn
	@scripts/as-root scripts/with-docker scripts/soak $(TARGET)/release/mayfly 500 docker
	@cargo build --release -p libvirt-engine
	@scripts/as-root scripts/with-emulation scripts/soak $(TARGET)/release/mayfly 100 vm
	@scripts/as-root scripts/with-libvirt scripts/soak $(TARGET)/release/mayfly 100 vm
	cargo build -p mayfly -p libvirt-engine --features mayfly/failpoints
	MAYFLY_TIERS_REQUIRED=vm,vm-libvirt CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER=$(CURDIR)/scripts/as-root cargo test --test it --features failpoints -- --ignored --test-threads 2 on_vm_by_libvirt edges::
	@scripts/as-root scripts/bench-batch $(TARGET)/release/mayfly 10000
	@cargo build --release --bin mayfly --features failpoints --target-dir $(TARGET)/failpoints
	@scripts/as-root scripts/soak-batch $(TARGET)/failpoints/release/mayfly 50 10000
	@scripts/soak-serve 200
	@cargo build --bin mayfly --features failpoints
	@suite=$$(cargo test --test it --features failpoints --no-run --message-format=json | sed -n 's|.*"executable":"\([^"]*/it-[^"]*\)".*|\1|p'); \
	scripts/as-root scripts/guest-systemd $(TARGET) $(TARGET)/debug/mayfly "$$suite"

guest: setup ## run jobs in guests with Debian's kernel and cgroup v2, without and with systemd
	@scripts/packages guest
	@cargo build --release --bin mayfly
	@scripts/as-root scripts/guest $(TARGET)/release/mayfly
	@scripts/as-root scripts/guest-systemd $(TARGET) $(TARGET)/release/mayfly

fuzz: ## fuzz the frame decoders of both ends, 5 minutes each
	@scripts/packages build fuzz
	@scripts/fuzz 300

screenshots: setup ## make the pictures of docs/live.md
	@scripts/screenshots

setup: ## install the missing Debian packages, saying why
	@scripts/packages build images

clean: ## remove everything that was built, images included
	@if [ -d $(MAYFLY_DATA_DIR) ]; then scripts/as-root rm -rf --one-file-system $(MAYFLY_DATA_DIR); fi
	@cargo clean
