#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
# Requests per second by wrk from `client`, in the lab of namespaces: straight to
# a backend, through xdp-proxy and through its rivals on `lb`. In each round all
# take their turn, and only one of them runs at a time: a rival must not pay for
# an XDP program that it does not use. Prints the medians over the rounds, and the
# median of the ratios to the direct path of the same round.
#
# Usage: [ROUNDS=5] [ROUND_SECONDS=3] [CONNECTIONS=100] lab/bench.sh
set -euo pipefail
# shellcheck source=lab/netns.sh
. "$(dirname "${BASH_SOURCE[0]}")/netns.sh"

ROUNDS=${ROUNDS:-5}
ROUND_SECONDS=${ROUND_SECONDS:-3}
CONNECTIONS=${CONNECTIONS:-100}

VIP=${ADDRESS[lb]} HTTP1=${ADDRESS[http1]} HTTP2=${ADDRESS[http2]}
BALANCE=(--listen "$VIP:80" --backend "$HTTP1:80" --backend "$HTTP2:80")

on_lb() { ip netns exec lb "$@"; }

# The rivals' URLs, then start_NAME and stop_NAME for each.
declare -A URL=(
	[direct]=http://$HTTP1:80/ [xdp-proxy]=http://$VIP:80/ [nftables]=http://$VIP:8081/
	[haproxy-tcp]=http://$VIP:8082/ [nginx-stream]=http://$VIP:8083/ [nginx-http]=http://$VIP:8083/
)

start_direct() { :; }
stop_direct() { :; }

start_xdp-proxy() { balance "${BALANCE[@]}" >/dev/null; }
stop_xdp-proxy() { unbalance; }

# Its source ports are the kernel's, which xdp-proxy leaves alone.
start_nftables() {
	on_lb sysctl -qw net.ipv4.ip_forward=1
	on_lb nft -f - <<-NFT
		table ip bench {
			chain to_backends {
				type nat hook prerouting priority dstnat;
				ip daddr $VIP tcp dport 8081 dnat to numgen inc mod 2 map { 0 : $HTTP1, 1 : $HTTP2 } : 80
			}
			chain from_us {
				type nat hook postrouting priority srcnat;
				ct status dnat masquerade
			}
		}
	NFT
}
stop_nftables() {
	on_lb nft delete table ip bench
	on_lb sysctl -qw net.ipv4.ip_forward=0
}

start_haproxy-tcp() {
	cat >"$STATE/haproxy.cfg" <<-HAPROXY
		global
			maxconn 4096
		defaults
			mode tcp
			timeout connect 5s
			timeout client 60s
			timeout server 60s
		listen bench
			bind $VIP:8082
			server http1 $HTTP1:80
			server http2 $HTTP2:80
	HAPROXY
	on_lb haproxy -D -p "$STATE/haproxy.pid" -f "$STATE/haproxy.cfg" </dev/null
}
stop_haproxy-tcp() { end_processes lb; }

start_nginx() { # BLOCK of the configuration
	local module=
	[[ ! -e $NGINX_STREAM ]] || module="load_module $NGINX_STREAM;"
	cat >"$STATE/rival.conf" <<-NGINX
		$module
		user nobody nogroup;
		worker_processes auto;
		worker_rlimit_nofile 65535;
		pid $STATE/rival.pid;
		error_log $STATE/rival.log;
		events { worker_connections 16384; multi_accept on; }
		$1
	NGINX
	on_lb nginx -e "$STATE/rival.log" -c "$STATE/rival.conf" </dev/null
}

start_nginx-stream() {
	start_nginx "stream {
		upstream backends { server $HTTP1:80; server $HTTP2:80; }
		server { listen $VIP:8083; proxy_pass backends; }
	}"
}
stop_nginx-stream() { end_processes lb; }

start_nginx-http() {
	start_nginx "http {
		access_log off;
		keepalive_requests 1000000000;
		client_body_temp_path $STATE/rival.body;
		proxy_temp_path $STATE/rival.proxy;
		fastcgi_temp_path $STATE/rival.fastcgi;
		scgi_temp_path $STATE/rival.scgi;
		uwsgi_temp_path $STATE/rival.uwsgi;
		upstream backends { server $HTTP1:80; server $HTTP2:80; keepalive 256; }
		server {
			listen $VIP:8083;
			location / {
				proxy_pass http://backends;
				proxy_http_version 1.1;
				proxy_set_header Connection '';
			}
		}
	}"
}
stop_nginx-http() { end_processes lb; }

contenders() {
	echo direct xdp-proxy
	! has nft || echo nftables
	! has haproxy || echo haproxy-tcp
	! has_nginx_stream || echo nginx-stream
	echo nginx-http
}

measure() { # CONTENDER; prints requests per second
	local report
	report=$(ip netns exec client wrk -t 2 -c "$CONNECTIONS" -d "${ROUND_SECONDS}s" "${URL[$1]}")
	if grep -qE 'Socket errors|Non-2xx' <<<"$report"; then
		fail "$1: wrk counted errors:"$'\n'"$report"
	fi
	awk '/^Requests\/sec/ { print $2 }' <<<"$report"
}

# Reads lines "CONTENDER REQUESTS/S", each round beginning with direct.
print_table() {
	awk '
		function median(list, n, i, j, t) {
			for (i = 2; i <= n; i++)
				for (j = i; j > 1 && list[j - 1] > list[j]; j--) {
					t = list[j]; list[j] = list[j - 1]; list[j - 1] = t
				}
			return n % 2 ? list[(n + 1) / 2] : (list[n / 2] + list[n / 2 + 1]) / 2
		}
		$1 == "direct" { direct = $2 }
		!count[$1]++ { name[++names] = $1 }
		{ rate[$1, count[$1]] = $2; ratio[$1, count[$1]] = $2 / direct }
		END {
			printf "%-14s %12s %10s\n", "", "requests/s", "of direct"
			for (k = 1; k <= names; k++) {
				n = count[name[k]]
				for (i = 1; i <= n; i++) { a[i] = rate[name[k], i]; b[i] = ratio[name[k], i] }
				printf "%-14s %12d %10.2f\n", name[k], median(a, n), median(b, n)
			}
		}'
}

bench() {
	local round name list
	read -ra list <<<"$(contenders | tr '\n' ' ')"
	[[ -d $STATE ]] || up
	unbalance
	for ((round = 1; round <= ROUNDS; round++)); do
		for name in "${list[@]}"; do
			"start_$name"
			echo "$name $(measure "$name")"
			"stop_$name"
		done
		echo "round $round of $ROUNDS" >&2
	done | print_table
	balance "${BALANCE[@]}" >/dev/null
}

[[ ${LAB:-netns} == netns ]] ||
	fail "the benchmark wants nginx and its rivals, which only LAB=netns has"
as_root "$@"
need_binary
echo "wrk, $CONNECTIONS connections, $ROUNDS rounds of $ROUND_SECONDS s each, one contender at a time" >&2
bench
