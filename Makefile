# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
# `make run` and `make test` do all of their own set-up. Settings:
#   LAB=netns|docker      where the four hosts of the lab live
#   BINARY=PATH           another load balancer than build/xdp-proxy
#   REQUIRE_ROOT_TESTS=1  a test that is skipped for lack of privilege has failed
#   SECONDS=N, SEED=N     how long `make fuzz` and `make soak` go on, from which seed
#   PREFIX=DIR, DESTDIR=DIR  where `make install` puts the files, and the root of that

ARCH := $(shell uname -m)
TARGET := $(ARCH)-unknown-linux-gnu
RELEASE := $(or $(CARGO_TARGET_DIR),target)/$(TARGET)/release/xdp-proxy
MAX_BYTES := 10000000
PREFIX ?= /usr/local
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)
SPDX := SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
export PATH := $(PATH):$(HOME)/.cargo/bin

C_FILES = $(wildcard src/*.c src/bpf/*.[ch] lab/*.c tests/*.[ch] benches/*.[ch])
SCRIPTS = $(wildcard lab/*.sh) .ci/run

# What `make install` makes, as it is called under DESTDIR.
PROGRAM := $(PREFIX)/bin/xdp-proxy
SHARE := $(PREFIX)/share
MANUAL := $(SHARE)/man/man8/xdp-proxy.8
EXAMPLE := $(SHARE)/doc/xdp-proxy/xdp-proxy.toml
BASH := $(SHARE)/bash-completion/completions/xdp-proxy
ZSH := $(SHARE)/zsh/site-functions/_xdp-proxy
FISH := $(SHARE)/fish/vendor_completions.d/xdp-proxy.fish
UNIT := $(PREFIX)/lib/systemd/system/xdp-proxy@.service
INSTALLED := $(PROGRAM) $(MANUAL) $(EXAMPLE) $(BASH) $(ZSH) $(FISH) $(UNIT)

.PHONY: help deps build install uninstall image run curl bench guard down test fuzz soak test-kernels lint vmlinux clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

deps: ## install what is missing to build, run and test
	@lab/deps.sh build run test

build: ## build/xdp-proxy, one static file
	@lab/deps.sh build
	@cargo build --release --target $(TARGET)
	@install -D $(RELEASE) build/xdp-proxy
	@if readelf -ldW build/xdp-proxy | grep -qE 'INTERP|NEEDED'; then \
		echo "build/xdp-proxy is not static: is RUSTFLAGS set?" >&2; exit 1; fi
	@size=$$(stat -c %s build/xdp-proxy); if [ $$size -gt $(MAX_BYTES) ]; then \
		echo "build/xdp-proxy has $$size bytes, more than $(MAX_BYTES)" >&2; exit 1; fi

# The binary is built before, as who builds is rarely who may install.
install: ## the binary, its manual page, completions, a unit of systemd, an example
	@if ! [ -x build/xdp-proxy ]; then \
		echo "build/xdp-proxy is not there: type 'make build' first" >&2; exit 1; fi
	@install -D build/xdp-proxy "$(DESTDIR)$(PROGRAM)"
	@install -D -m 644 dist/xdp-proxy.toml "$(DESTDIR)$(EXAMPLE)"
	@mkdir -p $(foreach file,$(MANUAL) $(BASH) $(ZSH) $(FISH) $(UNIT),"$(DESTDIR)$(dir $(file))")
	@build/xdp-proxy manual >"$(DESTDIR)$(MANUAL)"
	@build/xdp-proxy completions bash >"$(DESTDIR)$(BASH)"
	@build/xdp-proxy completions zsh >"$(DESTDIR)$(ZSH)"
	@build/xdp-proxy completions fish >"$(DESTDIR)$(FISH)"
	@sed 's#@PROGRAM@#$(PROGRAM)#' dist/xdp-proxy@.service >"$(DESTDIR)$(UNIT)"

uninstall: ## remove what `make install` has put there
	@rm -f $(foreach file,$(INSTALLED),"$(DESTDIR)$(file)")
	@rmdir "$(DESTDIR)$(dir $(EXAMPLE))" 2>/dev/null || true

image: build ## an image with the binary alone: xdp-proxy:latest
	@tar -c -C dist Dockerfile -C ../build xdp-proxy | docker build --quiet -t xdp-proxy -t xdp-proxy:$(VERSION) \
		--label org.opencontainers.image.version=$(VERSION) \
		--label org.opencontainers.image.revision=$$(git describe --always --abbrev=40 --dirty) - >/dev/null
	@docker image ls xdp-proxy

# A binary that was named is taken as it is.
ifdef BINARY
export BINARY
run:
else
run: build
endif

run: ## bring the lab up, balance, show who answers and how fast
	@lab/deps.sh run
	@lab/run.sh

curl: ## a few requests through the load balancer
	@lab/run.sh curl

bench: ## speed, beside the rivals; QUICK=1 in a minute (docs/benchmark.md)
	@lab/deps.sh build bench
	@lab/bench.sh

guard: ## fails where the program became much bigger or slower
	@lab/deps.sh build
	@lab/bench.sh guard

down: ## remove every trace of the lab
	@lab/run.sh down

test: build ## all tests; those that want root are skipped aloud without it
	@lab/deps.sh test
	@cargo test --no-fail-fast --release --target $(TARGET)

fuzz: ## random and mutated packets against a model of the datapath, for 5 minutes
	@lab/deps.sh build
	@FUZZ_SECONDS=$(or $(SECONDS),300) FUZZ_SEED=$(or $(SEED),$$(date +%s)) REQUIRE_ROOT_TESTS=1 \
		cargo test --release --target $(TARGET) --test fuzz -- --nocapture

soak: build ## kills, reloads, dead servers under load, for 2 minutes or SECONDS
	@lab/deps.sh test
	@SOAK_SECONDS=$(or $(SECONDS),120) SOAK_SEED=$(SEED) REQUIRE_ROOT_TESTS=1 \
		cargo test --release --target $(TARGET) --test soak

test-kernels: ## packets, VLANs, faults and systemd on Debian's kernels 6.1 and 6.12, emulated
	@lab/deps.sh build kernels
	@lab/kernels.sh

lint: ## formatting, clippy, SPDX lines, shellcheck
	@lab/deps.sh build lint
	cargo fmt --check
	@cargo clippy --release --workspace --all-targets --target $(TARGET) -- -D warnings
	clang-format --dry-run -Werror $(C_FILES)
	@bare=$$(git ls-files '*.rs' '*.c' '*.h' '*.sh' '*.toml' '*.yml' '*.roff' '*.service' Makefile .ci/run | \
		xargs grep -L '$(SPDX)'); if [ -n "$$bare" ]; then \
		echo "without the line '$(SPDX)':" $$bare >&2; exit 1; fi
	@if command -v shellcheck >/dev/null; then shellcheck -x $(SCRIPTS); \
		else echo "shellcheck is not there: scripts not checked"; fi

vmlinux: ## write vmlinux/vmlinux.h anew from this kernel's BTF
	@lab/deps.sh build
	@cargo run -q --release --target $(TARGET) --package vmlinux >vmlinux/vmlinux.h.new
	@mv vmlinux/vmlinux.h.new vmlinux/vmlinux.h

clean: ## remove what was built
	rm -rf build
	cargo clean
