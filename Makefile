# The targets that `make help` lists are the ones to call.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

GO ?= go
FIXTURES := vmtest/fixtures/fixtures.sh
GOTOOL := GO="$(GO)" vmtest/fixtures/gotool.sh
LINT := github.com/golangci/golangci-lint/v2/cmd/golangci-lint v2.15.0
NFPM := github.com/goreleaser/nfpm/v2/cmd/nfpm v2.45.2
# What the tests read and boot.
TEST_FIXTURES := kernel-6.1 kernel-6.12 dracut-6.1.img dracut-nosystemd-6.1.img dracut-6.12.img \
	initramfs-tools-6.1.img root-bookworm.tar root-bookworm.ext4 bootctl-bookworm \
	generator-bookworm storage-6.1 debian-dracut.tar debian-initramfs-tools.tar debian-kernel-bookworm
SID_FIXTURES := erofs-utils-1.9 kernel-sid dracut-sid.img bootctl-sid
# What only `make vmtest` boots.
MORE_FIXTURES := dracut-6.1-squash.img dracut-sid-squash-erofs.img generator-trixie generator-sid debian-kernel-bookworm-backports debian-sid.tar debian-kernel-sid
# Sets EROFS_UTILS to the newer erofs-utils, which tests use beside the machine's own.
FIND_EROFS_UTILS := export EROFS_UTILS; EROFS_UTILS=$$($(FIXTURES) path erofs-utils-1.9) || [ "$${CI:-}" != true ]
# More flags for go test, for example GOTESTFLAGS=-v.
GOTESTFLAGS ?=
FUZZTIME ?= 20s
BENCH ?= .
BENCH_IMAGE ?= size random memory sweep reads
BENCH_RUNS ?= 3

PREFIX ?= /usr
SYSCONFDIR ?= /etc
DESTDIR ?=
BIN ?= bin
OUT ?= out
# Of the programs and packages that are made, as Go names it.
ARCH ?= $(shell $(GO) env GOARCH)

# A release sets VERSION. What is made of one commit is alike, whenever it is made.
VERSION ?= 0.1.0~git$(shell git log -1 --abbrev=10 --date=format:%Y%m%d --format=%cd.%h)
MAINTAINER ?= initoverlayfs maintainers <maintainers@initoverlayfs.org>
# Where zsh looks is Debian's own choice.
ZSHDIR ?= share/zsh/site-functions
man install deb rpm: export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct)
deb: ZSHDIR = share/zsh/vendor-completions

export CGO_ENABLED := 0

.PHONY: help
help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 15

.PHONY: build
build: ## bin/initoverlayfs, bin/storage-init and the guest's test programs
	GOARCH=$(ARCH) $(GO) build -trimpath -ldflags "-s -w $(LDFLAGS)" -o $(BIN)/ ./cmd/initoverlayfs ./vmtest/guest
	@# Without inlining storage-init is a tenth smaller, and its bytes are boot time.
	GOARCH=$(ARCH) $(GO) build -trimpath -ldflags "-s -w" -gcflags=all=-l -o $(BIN)/ ./cmd/storage-init

.PHONY: check
check: ## go mod tidy, gofmt, go vet, golangci-lint, shellcheck
	$(GO) mod tidy -diff
	@unformatted=$$(git ls-files -co --exclude-standard '*.go' | xargs gofmt -l); \
	if [ -n "$$unformatted" ]; then echo "gofmt -w $$unformatted" >&2; exit 1; fi
	$(GO) vet ./...
	@lint=$$($(GOTOOL) $(LINT)); set -x; "$$lint" run
	@$(FIXTURES) tools
	git grep -lzE '^#!/(usr/)?bin/(env )?(ba)?sh|^# shellcheck shell=' -- ':!*.go' ':!*.txtar' ':!Makefile' | xargs -0 shellcheck

.PHONY: test
test: build ## all tests: units, tiny VMs, a few boots of Debian (installs what it needs)
	$(FIXTURES) tools $(TEST_FIXTURES)
	@# Debian sid is now and then broken; its tests are then skipped, with CI=true they fail.
	-$(FIXTURES) $(SID_FIXTURES)
	$(FIND_EROFS_UTILS); INITOVERLAYFS_VM=1 $(GO) test -count=1 -timeout 60m $(GOTESTFLAGS) ./...

.PHONY: vmtest
vmtest: build ## the tests with every boot of every distribution
	$(FIXTURES) tools $(TEST_FIXTURES) $(SID_FIXTURES) $(MORE_FIXTURES)
	$(FIND_EROFS_UTILS); INITOVERLAYFS_VM=full $(GO) test -count=1 -timeout 180m $(GOTESTFLAGS) ./...

# A run of the boot benchmark, and where it and its report go.
BENCH_OUT ?= out/bench
BENCH_FLAGS ?=
BENCH_KERNEL := kernel-6.1
BENCH_INITRAMFS := dracut-6.1.img
BENCH_FIXTURES = $(BENCH_KERNEL) $(BENCH_INITRAMFS) root-bookworm.ext4 root-bookworm.tar busybox-static
BENCH_RUN = kernel=$$($(FIXTURES) path $(BENCH_KERNEL)); \
	$(BIN)/initoverlayfs bench --busybox "$$($(FIXTURES) path busybox-static)" --kver "$$(cat "$$kernel/kver")" \
	--kernel "$$kernel/vmlinuz" --modules-dir "$$(readlink -f "$$kernel/modules")" \
	--initramfs "$$($(FIXTURES) path $(BENCH_INITRAMFS))" --rootdisk "$$($(FIXTURES) path root-bookworm.ext4)" \
	--root "$$($(FIXTURES) path root-bookworm.tar)"

.PHONY: bench
bench: build ## boots, plain and ours side by side; the report in out/bench (half an hour)
	$(FIXTURES) tools $(BENCH_FIXTURES)
	$(BENCH_RUN) --output $(BENCH_OUT) --rounds 2 --budget 28m --storage emmc,sdcard \
		--set instructions,instructions-full,standard,storage,bloat-instructions \
		--scenario nothing,plain-zstd,plain-lz4,erofs-initramfs,block,loop,pmem,pmem-dax $(BENCH_FLAGS)

.PHONY: bench-confirm
bench-confirm: build ## the same until the intervals are narrow, and every sweep (hours; goes on where it was)
	$(FIXTURES) tools $(BENCH_FIXTURES)
	$(BENCH_RUN) --output $(BENCH_OUT)-confirm --rounds 8 --until 0.015 --max-rounds 60 --memory-step 8 \
		--set instructions,instructions-full,standard,storage,bloat,bloat-instructions,pcluster,compress,cpus,memory,probe,least-memory $(BENCH_FLAGS)

.PHONY: bench-sid
bench-sid: BENCH_KERNEL := kernel-sid
bench-sid: BENCH_INITRAMFS := dracut-sid.img
bench-sid: build ## the boots of Debian sid, dracut's own squash-erofs among them; the report in out/bench-sid
	$(FIXTURES) tools $(BENCH_FIXTURES) dracut-sid-squash-erofs.img
	squash=$$($(FIXTURES) path dracut-sid-squash-erofs.img); \
	$(BENCH_RUN) --output $(BENCH_OUT)-sid --rounds 6 --set instructions,instructions-full,standard \
		--squash "squash-erofs=$$kernel/vmlinuz,$$squash" --scenario plain-zstd,plain-lz4,block,file,loop $(BENCH_FLAGS)

.PHONY: bench-go
bench-go: build ## the Go benchmarks, and storage-init's instructions (BENCH=REGEXP)
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

.PHONY: man
man: ## manual pages, into out/man
	rm -rf $(OUT)/man
	mkdir -p $(OUT)/man
	$(GO) test ./cmd/initoverlayfs -count=1 -run '^TestManPages$$' -args -man "$(abspath $(OUT))/man"
	cp man/*.[1-8] $(OUT)/man/

INSTALL := install -D -m 644
PROGRAM := install -D -m 755

.PHONY: install
install: build man ## into $(DESTDIR)$(PREFIX), and configuration into $(DESTDIR)$(SYSCONFDIR)
	$(PROGRAM) $(BIN)/initoverlayfs $(DESTDIR)$(PREFIX)/bin/initoverlayfs
	$(PROGRAM) $(BIN)/storage-init $(DESTDIR)$(PREFIX)/lib/initoverlayfs/storage-init
	$(PROGRAM) -t $(DESTDIR)$(PREFIX)/lib/dracut/modules.d/81initoverlayfs dracut/81initoverlayfs/*.sh
	$(INSTALL) -t $(DESTDIR)$(PREFIX)/lib/dracut/modules.d/81initoverlayfs dracut/81initoverlayfs/*.service dracut/81initoverlayfs/*.target
	$(PROGRAM) -t $(DESTDIR)$(PREFIX)/lib/kernel/install.d dracut/hooks/kernel-install/*
	$(INSTALL) -t $(DESTDIR)$(PREFIX)/lib/dracut/modules.d/81initoverlayfs dracut/81initoverlayfs/*.service dracut/81initoverlayfs/*.target
	$(PROGRAM) -t $(DESTDIR)$(PREFIX)/lib/dracut/modules.d/81initoverlayfs dracut/81initoverlayfs/*.sh
	$(PROGRAM) -t $(DESTDIR)$(PREFIX)/lib/initcpio/post dracut/hooks/initcpio-post/*
	$(PROGRAM) -t $(DESTDIR)$(SYSCONFDIR)/kernel/postinst.d dracut/hooks/kernel-postinst.d/*
	$(PROGRAM) -t $(DESTDIR)$(SYSCONFDIR)/kernel/postrm.d dracut/hooks/kernel-postrm.d/*
	$(PROGRAM) -t $(DESTDIR)$(SYSCONFDIR)/initramfs/post-update.d dracut/hooks/initramfs-post-update.d/*
	$(PROGRAM) -t $(DESTDIR)$(SYSCONFDIR)/grub.d dracut/hooks/grub.d/*
	$(INSTALL) packaging/initoverlayfs.conf $(DESTDIR)$(SYSCONFDIR)/initoverlayfs.conf
	for page in $(OUT)/man/*; do \
		$(INSTALL) "$$page" "$(DESTDIR)$(PREFIX)/share/man/man$${page##*.}/$${page##*/}"; \
		gzip -9nf "$(DESTDIR)$(PREFIX)/share/man/man$${page##*.}/$${page##*/}"; \
	done
	$(GO) run ./cmd/initoverlayfs completion bash | $(INSTALL) /dev/stdin $(DESTDIR)$(PREFIX)/share/bash-completion/completions/initoverlayfs
	$(GO) run ./cmd/initoverlayfs completion zsh | $(INSTALL) /dev/stdin $(DESTDIR)$(PREFIX)/$(ZSHDIR)/_initoverlayfs
	$(GO) run ./cmd/initoverlayfs completion fish | $(INSTALL) /dev/stdin $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/initoverlayfs.fish

.PHONY: deb rpm
deb: ## a package for Debian, into out (ARCH=amd64|arm64, VERSION=)
rpm: ## a package for Fedora, into out
deb rpm:
	rm -rf $(OUT)/package
	$(MAKE) install OUT=$(OUT) ARCH=$(ARCH) BIN=$(OUT)/package/bin DESTDIR=$(OUT)/package/root ZSHDIR=$(ZSHDIR) LDFLAGS="-X main.version=$(VERSION)"
	$(GO) run ./packaging/copyright ./cmd/initoverlayfs ./cmd/storage-init >$(OUT)/package/copyright
	printf '%s\n' "initoverlayfs ($(VERSION)) unstable; urgency=medium" "" \
		"  * What changed is in the history of the sources." "" \
		" -- $(MAINTAINER)  $$(date -uRd @$$SOURCE_DATE_EPOCH)" | gzip -9n >$(OUT)/package/changelog.gz
	nfpm=$$($(GOTOOL) $(NFPM)); ARCH=$(ARCH) OUT="$(OUT)" VERSION="$(VERSION)" MAINTAINER="$(MAINTAINER)" \
		"$$nfpm" package --config packaging/nfpm.yaml --packager $@ --target $(OUT)/
