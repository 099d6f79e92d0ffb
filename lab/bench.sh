#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
# Builds and runs the benchmark (benches/bench) as root: ns/packet, packets/s,
# requests/s beside the rivals, memory and start-up time. It makes a lab of
# namespaces of its own, which vanishes with it. docs/benchmark.md explains it.
#
# Usage: [QUICK=1] [CASES=WORDS] [ROUNDS=5] [ROUND_SECONDS=3] [CONNECTIONS=100]
#            lab/bench.sh [packets | live | requests | host]...
#        lab/bench.sh guard | report FILE
set -euo pipefail
given=${BINARY:-}
# shellcheck source=lab/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

build() {
	cargo bench --no-run --manifest-path "$ROOT_DIR/Cargo.toml" --bench bench \
		--target "$(uname -m)-unknown-linux-gnu" \
		--message-format json-render-diagnostics |
		sed -n 's/.*"name":"bench".*"executable":"\([^"]*\)".*/\1/p'
}

bench=$(build)
[[ -x $bench ]] || fail "the benchmark was not built"
if [[ $EUID -eq 0 ]]; then exec "$bench" "$@"; fi
sudo -n true 2>/dev/null || fail "the benchmark needs root: type 'sudo -v' first"
exec sudo -n env "PATH=$PATH" "QUICK=${QUICK:-}" "CASES=${CASES:-}" "ROUNDS=${ROUNDS:-}" \
	"ROUND_SECONDS=${ROUND_SECONDS:-}" "CONNECTIONS=${CONNECTIONS:-}" \
	${given:+"BINARY=$given"} "$bench" "$@"
