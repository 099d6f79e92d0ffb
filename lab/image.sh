#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
# The image that `make image` built, between a client and two web servers of the
# lab of containers, on a network of its own: it must serve, answer `status`, be
# called healthy by the engine, and end with 0 when it is stopped.
#
# Usage: lab/image.sh
set -euo pipefail
# shellcheck source=lab/docker.sh
. "$(dirname "${BASH_SOURCE[0]}")/docker.sh"

IMAGE=xdp-proxy
MAX_BYTES=10000000 # as in the Makefile
SUBNET=172.31.250
VIP=$SUBNET.5
# The engine kills after 10 s what does not end by itself.
STOP_SECONDS=5

run_image() { # CAPABILITY...
	local capability capabilities=()
	for capability in "$@"; do capabilities+=(--cap-add "$capability"); done
	docker run -d --name lb --label "$LAB_NAME" --pull never \
		--network "$LAB_NAME" --ip "$VIP" --cap-drop ALL "${capabilities[@]}" \
		"$IMAGE" run --listen "$VIP:80" --backend "$SUBNET.2" --backend "$SUBNET.3"
}

output() { docker logs lb 2>/dev/null; }
log() { docker logs lb; }
balancing() { [[ $(docker inspect -f '{{.State.Running}}' lb) == true ]]; }

healthy() {
	[[ $(docker inspect -f '{{.State.Health.Status}}' lb) == healthy ]]
}

remove() {
	down
	docker network rm "$LAB_NAME" >/dev/null 2>&1 || true
}

main() {
	local size count began end
	size=$(docker image inspect -f '{{.Size}}' "$IMAGE") ||
		fail "the image $IMAGE is not there: type 'make image'"
	((size <= MAX_BYTES)) || fail "the image has $size bytes, more than $MAX_BYTES"
	trap remove EXIT
	up
	docker rm -f lb >/dev/null
	docker network create --subnet "$SUBNET.0/24" "$LAB_NAME" >/dev/null
	docker network connect --ip "$SUBNET.2" "$LAB_NAME" http1
	docker network connect --ip "$SUBNET.3" "$LAB_NAME" http2
	docker network connect --ip "$SUBNET.4" "$LAB_NAME" client

	if ! run_image NET_ADMIN NET_RAW BPF PERFMON >/dev/null 2>&1; then
		docker rm -f lb >/dev/null 2>&1 || true
		run_image NET_ADMIN NET_RAW SYS_ADMIN >/dev/null
	fi
	began=$EPOCHREALTIME
	wait_ready output balancing log
	count=$(for _ in {1..20}; do fetch "http://$VIP/"; done | sort -u | grep -c '^Hostname: http[12]$')
	((count == 2)) || { log; fail "$count of 2 servers answered"; }
	docker exec lb /xdp-proxy status
	until healthy; do
		((${EPOCHREALTIME%.*} - ${began%.*} < 30)) || fail "the engine does not call it healthy"
		sleep 0.5
	done

	began=${EPOCHREALTIME%.*}
	docker stop lb >/dev/null
	end=${EPOCHREALTIME%.*}
	((end - began < STOP_SECONDS)) || { log; fail "it took $((end - began)) s to stop"; }
	count=$(docker inspect -f '{{.State.ExitCode}}' lb)
	((count == 0)) || { log; fail "it ended with $count"; }
	echo "the image: $size bytes, healthy, stopped in $((end - began)) s"
}

main
