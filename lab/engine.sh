#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
# Runs COMMAND with a Docker engine of its own, in a sandbox: its bridge, its
# firewall rules, its images and its containers are seen by nobody outside and
# vanish with COMMAND. For LAB=docker on a machine where no engine runs.
#
# Usage: lab/engine.sh COMMAND...
set -euo pipefail
# shellcheck source=lab/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# All of the engine's files; /run is the sandbox's own.
ENGINE=/run/xdp-proxy-engine
CGROUP=xdp-proxy-engine
ENGINE_SECONDS=30

start() {
	mkdir -p "$ENGINE"
	dockerd --host "unix://$ENGINE/docker.sock" --pidfile "$ENGINE/docker.pid" \
		--data-root "$ENGINE/data" --exec-root "$ENGINE/exec" \
		--cgroup-parent "/$CGROUP" --userland-proxy=false "$@" >"$ENGINE/log" 2>&1 </dev/null &
	engine=$!
}

answers() {
	local deadline=$((SECONDS + ENGINE_SECONDS))
	until docker info >/dev/null 2>&1; do
		if ! kill -0 "$engine" 2>/dev/null || ((SECONDS >= deadline)); then return 1; fi
		sleep 0.2
	done
}

stop() {
	kill -TERM "$engine" 2>/dev/null || true
	wait "$engine" || true
	rmdir /sys/fs/cgroup/{,*/}"$CGROUP" 2>/dev/null || true
}

if [[ ${1:-} != --inside ]]; then
	(($#)) || fail "usage: lab/engine.sh COMMAND..."
	has dockerd || fail "dockerd is not there: type 'lab/deps.sh engine'"
	exec "$LAB_DIR/sandbox.sh" "$0" --inside "$@"
fi
export DOCKER_HOST=unix://$ENGINE/docker.sock
start
if ! answers; then
	cat "$ENGINE/log" >&2
	stop
	# A kernel without the old tables has no NAT for containers; the lab needs none.
	start --iptables=false --ip6tables=false
	answers || { cat "$ENGINE/log" >&2; fail "dockerd does not start; its log is above"; }
fi
trap stop EXIT
"${@:2}"
