# The targets that `make help` lists are the ones to call.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

GO ?= go
FIXTURES := vmtest/fixtures/fixtures.sh
LINT_VERSION := v2.15.0
# What the tests read and boot.
TEST_FIXTURES := kernel-6.1 kernel-6.12 dracut-6.1.img dracut-nosystemd-6.1.img dracut-6.12.img \
	initramfs-tools-6.1.img root-bookworm.tar root-bookworm.ext4
SID_FIXTURES := erofs-utils-1.9 kernel-sid dracut-sid.img
# Sets EROFS_UTILS to the newer erofs-utils, which tests use beside the machine's own.
FIND_EROFS_UTILS := export EROFS_UTILS; EROFS_UTILS=$$($(FIXTURES) path erofs-utils-1.9) || [ "$${CI:-}" != true ]
# More flags for go test, for example GOTESTFLAGS=-v.
GOTESTFLAGS ?=
FUZZTIME ?= 20s
BENCH ?= .
BENCH_IMAGE ?= size random memory sweep reads
BENCH_RUNS ?= 3

PREFIX ?= /usr
DESTDIR ?=

export CGO_ENABLED := 0

.PHONY: help
help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 13

.PHONY: build
build: ## bin/initoverlayfs, bin/storage-init and the guest's test programs
	$(GO) build -trimpath -ldflags "-s -w" -o bin/ ./cmd/initoverlayfs ./vmtest/guest
	@# Without inlining storage-init is a tenth smaller, and its bytes are boot time.
	$(GO) build -trimpath -ldflags "-s -w" -gcflags=all=-l -o bin/ ./cmd/storage-init

.PHONY: check
check: ## go mod tidy, gofmt, go vet, golangci-lint, shellcheck
	$(GO) mod tidy -diff
	@unformatted=$$(git ls-files -co --exclude-standard '*.go' | xargs gofmt -l); \
	if [ -n "$$unformatted" ]; then echo "gofmt -w $$unformatted" >&2; exit 1; fi
	$(GO) vet ./...
	@lint=$$(GO="$(GO)" vmtest/fixtures/lint.sh $(LINT_VERSION)); set -x; "$$lint" run
	@$(FIXTURES) tools
	git grep -lzE '^#!/(usr/)?bin/(env )?(ba)?sh|^# shellcheck shell=' -- ':!*.go' ':!Makefile' | xargs -0 shellcheck

.PHONY: test
test: build ## all tests: units, tiny VMs, a few boots of Debian (installs what it needs)
	$(FIXTURES) tools $(TEST_FIXTURES)
	@# Debian sid is now and then broken; its tests are then skipped, with CI=true they fail.
	-$(FIXTURES) $(SID_FIXTURES)
	$(FIND_EROFS_UTILS); INITOVERLAYFS_VM=1 $(GO) test -count=1 -timeout 60m $(GOTESTFLAGS) ./...

.PHONY: vmtest
vmtest: build ## the tests with every boot of every distribution
	$(FIXTURES) tools $(TEST_FIXTURES) $(SID_FIXTURES)
	$(FIND_EROFS_UTILS); INITOVERLAYFS_VM=full $(GO) test -count=1 -timeout 180m $(GOTESTFLAGS) ./...

.PHONY: bench
bench: ## the Go benchmarks, and storage-init's instructions (BENCH=REGEXP)
	$(FIXTURES) tools kernel-6.1
	INITOVERLAYFS_VM=1 $(GO) test -run '^$$' -bench '$(BENCH)' -benchmem ./...

.PHONY: bench-image
bench-image: build ## images beside mkfs.erofs: size, time, memory, reads (BENCH_IMAGE="size random memory sweep reads")
	$(FIXTURES) tools dracut-6.1.img initramfs-tools-6.1.img erofs-utils-1.9 linux-sources
	mkdir -p out
	$(GO) run ./vmtest/imagebench -runs $(BENCH_RUNS) -json out/bench-image.json \
		-erofs-utils "$$($(FIXTURES) path erofs-utils-1.9)" -dracut "$$($(FIXTURES) path dracut-6.1.img)" \
		-initramfs-tools "$$($(FIXTURES) path initramfs-tools-6.1.img)" -sources "$$($(FIXTURES) path linux-sources)" \
		$(BENCH_IMAGE)

.PHONY: fuzz
fuzz: ## each fuzz test for FUZZTIME (20s)
	@git grep -hoE '^func Fuzz[A-Za-z0-9_]+' -- '*_test.go' >/dev/null || { echo "there are no fuzz tests" >&2; exit 1; }
	@git grep -oE '^func Fuzz[A-Za-z0-9_]+' -- '*_test.go' | while IFS=: read -r file func; do \
		echo "$${file%/*} $${func#func }"; \
		$(GO) test "./$${file%/*}" -run '^$$' -fuzz "^$${func#func }\$$" -fuzztime $(FUZZTIME); \
	done

.PHONY: demo
demo: build ## a real initramfs, plain and through each backend, and a table of times
	$(FIXTURES) tools kernel-6.1 dracut-6.1.img root-bookworm.ext4
	vmtest/fixtures/demo.sh

.PHONY: install
install: build ## into $(DESTDIR)$(PREFIX)
	install -D -m 755 bin/initoverlayfs $(DESTDIR)$(PREFIX)/bin/initoverlayfs
	install -D -m 755 bin/storage-init $(DESTDIR)$(PREFIX)/lib/initoverlayfs/storage-init
