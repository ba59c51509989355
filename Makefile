# peervisor: a user-space hypervisor whose guests are not tied to one machine.
# `make help` lists the targets. All of them install what they need first (make deps).

GO      ?= go
GOFLAGS ?=
export CGO_ENABLED = 0
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION)

BIN      := bin/peervisor
INIT     := kernel/assets/init
GOFILES   = $(shell find . -name '*.go' -not -path './.git/*') go.mod go.sum
# Packages that need no KVM, no lab and no privilege stay within seconds.
RACE_PKGS = $(shell $(GO) list ./... | grep -v -e /tests -e /lab -e /cmd/)

.DEFAULT_GOAL := help
.PHONY: help deps build run test test-unit test-race test-kvm test-lab lint fuzz bench chaos man install clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

deps: ## install the Debian packages and Go modules that are missing
	@scripts/deps.sh

build: $(BIN) ## make the static binary bin/peervisor

$(INIT): $(shell find kernel/init kernel/agent/control -name '*.go' 2>/dev/null) go.mod go.sum
	@$(GO) build -trimpath -ldflags "-s -w" -o $@ ./kernel/init

$(BIN): deps $(INIT) $(GOFILES)
	@$(GO) build -trimpath -ldflags "$(LDFLAGS)" -o $@ ./cmd/peervisor

run: build ## boot a Linux guest to a shell (in the lab where this machine's KVM cannot)
	@scripts/run.sh

test: build ## the whole test suite: lint, unit, race, bare guest on /dev/kvm, lab
	@scripts/test.sh all

test-unit: build ## unit tests only
	@scripts/test.sh unit

test-race: build ## unit tests under the race detector
	@scripts/test.sh race

test-kvm: build ## tests on /dev/kvm
	@scripts/test.sh kvm

test-lab: build ## tests with unmodified kernels, in the lab where needed
	@scripts/test.sh lab

lint: build ## vet, staticcheck, errcheck, gofmt, the house rules
	@scripts/test.sh lint

fuzz: build ## every fuzz target for FUZZTIME (default 30s)
	@scripts/fuzz.sh $(or $(FUZZTIME),30s)

bench: build ## side-by-side measurements, written to docs/bench.md
	@scripts/bench.sh

chaos: build ## long runs: kills, resets, random faults (CHAOS_SECONDS, default 600)
	@scripts/test.sh chaos

man: build ## the manual page, bin/peervisor.1
	@$(BIN) man > bin/peervisor.1

install: build man ## copy binary, manual page and shell completions below PREFIX (default /usr/local)
	install -D -m 755 $(BIN) $(DESTDIR)$(or $(PREFIX),/usr/local)/bin/peervisor
	install -D -m 644 bin/peervisor.1 $(DESTDIR)$(or $(PREFIX),/usr/local)/share/man/man1/peervisor.1
	$(BIN) completion bash | install -D -m 644 /dev/stdin $(DESTDIR)$(or $(PREFIX),/usr/local)/share/bash-completion/completions/peervisor

clean: ## remove what was built here (not the cache)
	rm -rf bin $(INIT)
