# The table of contents: `make` lists what there is.

.PHONY: help setup demo price compare compare-check peers results bench test check flaky lint unit \
	loom gate vm-selftest soak sanitize fuzz corpus install deb deb-test clean
.DEFAULT_GOAL := help

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 15

setup: ## installs what building and testing need (Debian packages; asks for sudo if it must)
	@vm/setup

demo: setup ## a game under load on a real kernel, without and with scx_metronome
	cargo build --release --workspace --bins --lib
	vm/demo

bench: setup ## the benchmarks, four minutes (root, for those that need BPF)
	rm -rf $(or $(CARGO_TARGET_DIR),target)/criterion $(or $(CARGO_TARGET_DIR),target)/bench
	cargo bench

# QUICK=1, GAMES=1 (heavier games instead of all else), REAL=1 (programs that people run), KERNEL=7.2,
# CPUS=8, ROUNDS=9, JOBS=1 (guests at a time), ONLY=eevdf,scx_metronome, HOST=1 (this machine's own
# kernel)
compare_options = $(if $(QUICK),--quick) $(if $(GAMES),--games) $(if $(REAL),--real) \
	$(if $(HOST),--host) \
	$(if $(KERNEL),--kernel $(KERNEL)) $(if $(CPUS),--cpus $(CPUS)) \
	$(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(JOBS),--jobs $(JOBS)) $(if $(ONLY),--only $(ONLY))
compare_packages = libseccomp-dev libssl-dev protobuf-compiler

compare: setup ## EEVDF and the best peers beside it: target/compare (QUICK=1: 15 minutes)
	@vm/setup $(compare_packages)
	cargo build --release --workspace --bins --lib
	target/release/compare run $(compare_options)

compare-check: setup ## fails when a ratio to EEVDF is worse than the committed one: 5 minutes
	cargo build --release --workspace --bins
	target/release/compare check $(compare_options)

peers: setup ## builds the peers that `make compare` runs
	@vm/setup $(compare_packages)
	cargo build --release --package compare
	target/release/compare peers

results: ## docs/RESULTS.md anew from the samples of the last `make compare` with the same options
	cargo build --release --package compare
	target/release/compare report $(compare_options) \
		--results docs/$(if $(REAL),REAL,$(if $(GAMES),GAMES,RESULTS)).md

test: setup lint unit loom gate ## before each change lands: lints, unit tests, models, gate set

price: setup ## what Metronome costs, next to the default scheduler, on CPUS=4 (two minutes)
	cargo build --release --workspace --bins
	vm/price

check: setup ## all there is, 70 minutes; goes on where it was stopped; ONLY=faults,life: these
	tests/check

flaky: setup ## the gate set N=10 times: how often each test passed, and how its figures spread
	cargo build --workspace --bins --examples
	vm/flaky $(or $(N),10)

lint: setup ## format, lints and documentation
	cargo fmt --all -- --check
	cargo fmt --manifest-path fuzz/Cargo.toml -- --check
	clang-format-19 --dry-run -Werror bpf/*.[ch] testbed/bpf/*.[ch]
	cargo clippy --workspace --all-targets -- -D warnings
	cargo clippy --package scx_metronome_core --test kernel -- -D warnings
	cargo clippy --package scx_metronome_core --lib --no-default-features -- -D warnings
	RUSTDOCFLAGS=-Dwarnings cargo doc --quiet --no-deps --package scx_metronome_core --lib \
		--features internals

unit: setup ## tests that need no kernel of their own
	cargo test --workspace

loom: setup ## models of the handshakes with the kernel side: each interleaving, within bounds
	RUSTFLAGS="--cfg loom" cargo test --release --package scx_metronome_core --lib \
		--no-default-features --target-dir target/loom models::

gate: setup ## the gate set (tests/kernel/gate.rs) on the newest and the oldest kernel
	cargo build --workspace --bins --examples
	vm/gate

vm-selftest: setup ## that vm/run does what vm/README.md says: six minutes
	vm/selftest

soak: setup ## random faults under random loads, HOURS=1 of guest time; SEED=n replays a run
	cargo build --release --workspace --bins --examples
	vm/soak $(or $(HOURS),1) $(SEED)

sanitize: setup ## the unit tests under the address sanitizer, the ring under the thread sanitizer
	tests/sanitize

fuzz: setup ## any bytes into what reads shared memory, SECONDS=60 for each target
	fuzz/run $(SECONDS)

corpus: setup ## the fuzzers' first inputs anew, from the oldest and the newest kernel
	fuzz/corpus-from-kernels

PREFIX = /usr
DESTDIR =
generated = target/generated

install: ## the command, its manual, completions and systemd unit below DESTDIR and PREFIX (/usr)
	cargo build --release --bin scx_metronome
	target/release/scx_metronome generate $(generated)
	install -Dm755 target/release/scx_metronome $(DESTDIR)$(PREFIX)/bin/scx_metronome
	install -Dm644 $(generated)/scx_metronome.8 $(DESTDIR)$(PREFIX)/share/man/man8/scx_metronome.8
	install -Dm644 $(generated)/scx_metronome.bash $(DESTDIR)$(PREFIX)/share/bash-completion/completions/scx_metronome
	install -Dm644 $(generated)/scx_metronome.fish $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/scx_metronome.fish
	install -Dm644 $(generated)/_scx_metronome $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_scx_metronome
	install -Dm644 command/dist/scx_metronome.service $(DESTDIR)$(PREFIX)/lib/systemd/system/scx_metronome.service
	sed -i 's,/usr/bin/,$(PREFIX)/bin/,' $(DESTDIR)$(PREFIX)/lib/systemd/system/scx_metronome.service
	test -e $(DESTDIR)/etc/default/scx_metronome || install -Dm644 command/dist/scx_metronome.default $(DESTDIR)/etc/default/scx_metronome

deb: ## a Debian package: target/debian
	cargo build --release --bin scx_metronome
	target/release/scx_metronome generate $(generated)
	command -v cargo-deb || test -x target/tools/bin/cargo-deb || \
		cargo install --quiet --locked --root target/tools cargo-deb
	PATH="$$PATH:$$PWD/target/tools/bin" cargo deb --no-build --package scx_metronome

deb-test: deb ## the package in an empty Debian root, its command and its unit in guests
	vm/package
	vm/unit

clean: ## removes what was built; fetched kernels stay
	cargo clean --release
	cargo clean --profile dev
	cargo clean --release --target-dir target/loom
	rm -rf target/asan target/tsan target/fuzz target/fuzz-*
