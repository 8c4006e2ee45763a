# `make` prints the targets. Settings: FUZZTIME=5s BENCH=. IMAGES=/tmp/images RUNS=5, and those of the Go command.

GO       ?= go
FUZZTIME ?= 5s
BENCH    ?= .
IMAGES   ?= /tmp/images
RUNS     ?= 5

# The systems that must build, besides the one that make runs on.
CROSS = linux/arm64 darwin/arm64 windows/amd64 freebsd/amd64 openbsd/amd64

# Packages whose goroutines meet: they or their tests use sync or errgroup, or run the device suite.
RACE = $(GO) list -f '{{.ImportPath}} {{.Imports}} {{.TestImports}} {{.XTestImports}}' ./... \
	| awk '/[[ ](sync|sync\/atomic|[^ ]*\/errgroup|[^ ]*\/blocktest)[] ]/ { print $$1 }'

.PHONY: help build test lint cross fuzz race peers bench soak demo

help: ## print this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-7s %s\n", $$1, $$2 }' Makefile

build: ## the program ./imgtool: static, without debugging tables, the same bytes from the same commit
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags='-s -w' -o imgtool$(shell $(GO) env GOEXE) ./cmd/imgtool

test: peers ## every test, those of the kernels without assembly as well; as root on Debian and Ubuntu it first installs the programs that imgtool is compared with
	$(GO) test ./...
	$(GO) test -tags purego ./compress/...

lint: ## gofmt, go vet, staticcheck
	@bad=$$(gofmt -l .); if [ -n "$$bad" ]; then echo "not formatted, run gofmt -w:"; echo "$$bad"; exit 1; fi
	$(GO) vet ./...
	$(GO) tool -modfile=internal/tools/go.mod staticcheck ./...

cross: ## build for every supported system, and type-check the tests for each
	@set -e; for target in $(CROSS); do \
		echo "$$target"; \
		GOOS=$${target%/*} GOARCH=$${target#*/} CGO_ENABLED=0 $(GO) build ./...; \
		GOOS=$${target%/*} GOARCH=$${target#*/} CGO_ENABLED=0 $(GO) vet ./...; \
	done

fuzz: ## every fuzz target for FUZZTIME (5s)
	GO="$(GO)" FUZZTIME=$(FUZZTIME) scripts/fuzz.sh

# Programs that tests start would wait a second each before they end, for reports of other threads.
race: ## the tests of packages whose goroutines meet, under the race detector
	@command -v gcc >/dev/null || command -v cc >/dev/null || scripts/install.sh "the race detector" gcc libc6-dev
	CGO_ENABLED=1 GORACE=atexit_sleep_ms=0 $(GO) test -race -short $$($(RACE))

peers: ## install the programs that imgtool is compared with, or say which are missing
	@missing=$$($(GO) run ./internal/peers/list -missing); \
	if [ -n "$$missing" ]; then scripts/install.sh "some tests, which are skipped without," $$missing || [ "$$IMGTOOL_PEERS" != require ]; fi

bench: ## Go benchmarks (BENCH=regexp), then imgtool beside its peers on the images in IMAGES
	$(GO) test -run '^$$' -bench '$(BENCH)' -benchmem ./...
	RUNS=$(RUNS) bench/run.sh $(IMAGES)

soak: ## hours: ten minutes for each fuzz target, all tests under the race detector, disks that boot, comparisons on big images
	@missing=$$($(GO) run ./internal/peers/list -missing -soak); \
	if [ -n "$$missing" ]; then scripts/install.sh "a soak" $$missing; fi
	$(MAKE) fuzz FUZZTIME=10m
	CGO_ENABLED=1 IMGTOOL_SOAK=1 IMGTOOL_IMAGES=$(abspath $(IMAGES)) $(GO) test -race -timeout 2h ./...
	RUNS=1 bench/run.sh -big -check $(IMAGES)

demo: ## a tour on a small image that it makes itself
	$(GO) run ./cmd/imgtool demo
