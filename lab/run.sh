#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
# Brings the lab up, balances, and shows it: who answered twenty requests, and
# what wrk measures through the load balancer and straight to a backend. Leaves
# the lab up. Fails when a request failed or when only one backend answered.
#
# Usage: [LAB=netns|docker] lab/run.sh [run | curl | down]
set -euo pipefail
# shellcheck source=lab/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

REQUESTS=20
WRK_SECONDS=5

# Prints each answer on a line; names the request that failed.
ask() { # URL COUNT
	local i
	for ((i = 1; i <= $2; i++)); do
		"$lab" fetch "$1" || fail "request $i of $2 to $1 failed"
	done
}

# Prints requests per second; fails when wrk counted an error.
measure() { # URL
	local report
	report=$("$lab" wrk -t 2 -c "$connections" -d "${WRK_SECONDS}s" "$1") ||
		fail "wrk to $1 failed: $report"
	if grep -qE 'Socket errors|Non-2xx' <<<"$report"; then
		fail "wrk to $1 counted errors:"$'\n'"$report"
	fi
	awk '/^Requests\/sec/ { print int($2) }' <<<"$report"
}

show_answers() { # ANSWERS
	echo "$REQUESTS requests through $vip, answered by:"
	sort <<<"$1" | uniq -c | sed 's/Hostname: //'
	(($(sort -u <<<"$1" | grep -c '^Hostname: http[12]$') == 2)) ||
		fail "both backends should have answered; '$lab log' shows the load balancer's log"
}

show_speed() {
	local through direct
	echo "wrk, $connections connections, $WRK_SECONDS s each:"
	through=$(measure "http://$vip/")
	printf '%9d requests/s through the load balancer\n' "$through"
	direct=$(measure "http://$http1/")
	printf '%9d requests/s straight to http1\n' "$direct"
	awk "BEGIN { printf \"%9.2f of the direct path\n\", $through / $direct }"
}

show_next() {
	local name=${lab##*/} status="sudo ip netns exec lb build/xdp-proxy status"
	[[ $name == netns.sh ]] || status="docker exec lb /xdp-proxy status"
	cat <<-NEXT
		The lab is up. Try:
		    make curl           a few requests through the load balancer
		    make bench          beside its rivals, interleaved
		    $status
		    make down           removes every trace
	NEXT
}

run() {
	local answers vip http1 http2 connections=100
	# busybox httpd takes a process a request and nine waiting connections.
	[[ ${lab##*/} == netns.sh ]] || connections=4
	need_binary
	"$lab" up
	vip=$("$lab" address lb) http1=$("$lab" address http1) http2=$("$lab" address http2)
	"$lab" balance --listen "$vip:80" --backend "$http1:80" --backend "$http2:80"
	answers=$(ask "http://$vip/" "$REQUESTS")
	show_answers "$answers"
	show_speed
	show_next
}

curl() {
	local vip
	vip=$("$lab" address lb)
	ask "http://$vip/" 6
}

verb=${1:-run}
case $verb in
down)
	if [[ -d $STATE ]]; then "$LAB_DIR/netns.sh" down; fi
	"$LAB_DIR/docker.sh" down
	;;
run | curl)
	lab=$(pick_lab "$([[ $verb == run ]] || echo up)")
	[[ $lab == */docker.sh ]] || as_root "$@"
	"$verb"
	;;
*) fail "usage: lab/run.sh [run | curl | down]" ;;
esac
