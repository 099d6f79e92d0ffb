#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
# The lab as network namespaces. Each host has one eth0, a veth whose peer,
# named after the host, is a port of the bridge in the namespace `switch`.
#
#   client 10.0.0.4 ---+          +--- http1 10.0.0.2  nginx: "Hostname: http1"
#                      | br0      |
#                      +- switch -+
#                      |          |
#       lb 10.0.0.5 ---+          +--- http2 10.0.0.3  nginx: "Hostname: http2"
#
# Each has an IPv6 address with the same last number too: fd00::4.
#
# nginx serves /, /small (64 bytes), /1m (1 MiB) and, at /upload, reads the
# whole body of a POST or PUT before it answers 200. LAB_ACCESS_LOG=1 writes
# "CLIENT PORT URI STATUS" of each request to STATE/http1/access.log.
#
# Usage: lab/netns.sh up | down | native | address HOST | exec HOST COMMAND...
#                     balance ARGUMENTS | unbalance | log
#                     wrk ARGUMENTS | fetch URL
set -euo pipefail
# shellcheck source=lab/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

declare -A ADDRESS=(
	[http1]=10.0.0.2 [http2]=10.0.0.3 [client]=10.0.0.4 [lb]=10.0.0.5
)
HOSTS=(http1 http2 client lb)

# A namespace is ours when its name and inode are on record: one of the same
# name that somebody else made is never touched.
is_ours() { # NAMESPACE
	grep -qsx "$1 $(stat -Lc %i "/run/netns/$1" 2>/dev/null)" "$STATE/namespaces"
}

refuse_strangers() {
	local name
	for name in switch "${HOSTS[@]}"; do
		if [[ -e /run/netns/$name ]] && ! is_ours "$name"; then
			fail "the network namespace '$name' is there already and not" \
				"the lab's: 'ip netns del $name' if it is not needed"
		fi
	done
}

add_namespace() { # NAMESPACE
	ip netns add "$1"
	echo "$1 $(stat -Lc %i "/run/netns/$1")" >>"$STATE/namespaces"
	ip -n "$1" link set lo up
	# An address is used at once, without a second of asking whose it is.
	if has_ipv6; then ip netns exec "$1" sysctl -qw net.ipv6.conf.default.accept_dad=0; fi
}

has_ipv6() {
	[[ -e /proc/net/if_inet6 ]]
}

add_switch() {
	add_namespace switch
	ip -n switch link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0
	ip -n switch link set br0 up
	# A switch has no netfilter, and this one's takes its time from all that cross it.
	ip netns exec switch sysctl -qew net.bridge.bridge-nf-call-{ip,ip6,arp}tables=0
}

add_host() { # HOST
	add_namespace "$1"
	ip -n switch link add "$1" type veth peer name eth0 netns "$1"
	ip -n switch link set "$1" master br0 up
	ip -n "$1" addr add "${ADDRESS[$1]}/24" dev eth0
	if has_ipv6; then ip -n "$1" addr add "fd00::${ADDRESS[$1]##*.}/64" dev eth0; fi
	ip -n "$1" link set eth0 up
}

forward() { # HOST
	ip netns exec "$1" sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
}

# One cable, with addresses in 10.NETWORK.0.0/24 and fd0NETWORK::/64.
connect() { # NETWORK MTU  HOST INTERFACE NUMBER  HOST INTERFACE NUMBER
	local network=$1 mtu=$2
	shift 2
	ip -n "$1" link add "$2" mtu "$mtu" type veth peer name "$5" mtu "$mtu" netns "$4"
	while (($#)); do
		ip -n "$1" addr add "10.$network.0.$3/24" dev "$2"
		ip -n "$1" addr add "fd0$network::$3/64" dev "$2"
		ip -n "$1" link set "$2" up
		shift 3
	done
}

# A host behind two routers, and a narrow cable that neither end sees:
#
#   switch --- router ---- 1280 ---- edge --- far 10.8.0.1
#          10.0.0.254   10.7.0.0/24     10.8.0.254
add_far() {
	ADDRESS[router]=10.0.0.254
	add_host router
	add_namespace edge
	add_namespace far
	connect 7 1280 router eth1 1 edge eth0 2
	connect 8 1500 edge eth1 254 far eth0 1
	forward router
	forward edge
	ip -n far route add default via 10.8.0.254
	ip -n far route add default via fd08::254
	ip -n edge route add default via 10.7.0.1
	ip -n edge route add default via fd07::1
	ip -n router route add 10.8.0.0/24 via 10.7.0.2
	ip -n router route add fd08::/64 via fd07::2
	ip -n lb route add 10.8.0.0/24 via 10.0.0.254
	ip -n lb route add fd08::/64 via fd00::254
}

nginx_config() { # HOST
	local dir=$STATE/$1 access_log=off ipv6=
	[[ -n ${LAB_ACCESS_LOG:-} ]] && access_log="$dir/access.log lab"
	if has_ipv6; then ipv6="listen [::]:80 backlog=4096;"; fi
	cat <<-NGINX
		user nobody nogroup;
		worker_processes 1;
		worker_rlimit_nofile 65535;
		pid $dir/nginx.pid;
		error_log $dir/error.log;
		events { worker_connections 32768; multi_accept on; }
		http {
			log_format lab '\$remote_addr \$remote_port \$request_uri \$status';
			access_log $access_log;
			default_type text/plain;
			sendfile on;
			keepalive_requests 1000000000;
			keepalive_timeout 1h;
			client_max_body_size 0;
			client_body_temp_path $dir/body;
			proxy_temp_path $dir/proxy;
			fastcgi_temp_path $dir/fastcgi;
			scgi_temp_path $dir/scgi;
			uwsgi_temp_path $dir/uwsgi;
			server {
				listen 80 backlog=4096;
				$ipv6
				root $dir/files;
				location / { return 200 "Hostname: $1\n"; }
				location = /1m { }
				location = /10m { }
				location = /small { }
				location = /upload { proxy_pass http://unix:$dir/upload.sock; }
			}
			server {
				listen unix:$dir/upload.sock;
				location / { return 200 "Hostname: $1\n"; }
			}
		}
	NGINX
}

serve() { # HOST
	local dir=$STATE/$1
	mkdir -p "$dir/files"
	nginx_config "$1" >"$dir/nginx.conf"
	head -c 64 /dev/zero | tr '\0' x >"$dir/files/small"
	head -c 1048576 /dev/urandom >"$dir/files/1m"
	ip netns exec "$1" nginx -e "$dir/error.log" -c "$dir/nginx.conf" </dev/null
}

up() {
	local host
	has nginx || fail "nginx is not there: type 'make deps'"
	refuse_strangers
	down
	trap down ERR
	mkdir -p "$STATE"
	add_switch
	for host in "${HOSTS[@]}"; do add_host "$host"; done
	serve http1
	serve http2
	trap - ERR
}

# Ends whatever runs in one of our namespaces: politely, then for good.
end_processes() { # NAMESPACE
	local signal try pids
	for signal in TERM KILL; do
		for try in {1..30}; do
			pids=$(ip netns pids "$1")
			[[ -z $pids ]] && return
			# shellcheck disable=SC2086 # one word a process
			((try > 1)) || kill -s "$signal" $pids 2>/dev/null || true
			sleep 0.1
		done
	done
}

down() {
	local name
	for name in "${HOSTS[@]}" switch; do
		is_ours "$name" || continue
		end_processes "$name"
		ip netns del "$name"
	done
	rm -rf "$STATE"
}

# Native XDP_TX on a veth needs an XDP program on its peer as well.
native() {
	# The guests of kernels.sh have no compiler, but the object.
	if has clang; then
		clang -O2 -g -target bpf -c "$LAB_DIR/pass.bpf.c" -o "$STATE/pass.bpf.o"
	else
		cp "$LAB_DIR/pass.bpf.o" "$STATE"
	fi
	ip -n switch link set dev lb xdpdrv off
	ip -n switch link set dev lb xdpdrv obj "$STATE/pass.bpf.o" sec xdp.frags 2>/dev/null ||
		ip -n switch link set dev lb xdpdrv obj "$STATE/pass.bpf.o" sec xdp
}

# Starts the load balancer on `lb`, prints its line "ready: ...".
balance() { # ARGUMENTS of `xdp-proxy run`
	need_binary
	[[ -d $STATE ]] || fail "the lab is not up: type 'make run'"
	unbalance
	setsid ip netns exec lb "$BINARY" run "$@" \
		>"$STATE/lb.out" 2>"$STATE/lb.log" </dev/null &
	echo $! >"$STATE/lb.pid"
	wait_ready output balancing log
}

output() { cat "$STATE/lb.out"; }
log() { cat "$STATE/lb.out" "$STATE/lb.log"; }

# Whether the process on record runs, and is no stranger that got its number.
balancing() {
	[[ -s $STATE/lb.pid ]] || return
	ip netns pids lb | grep -qx "$(<"$STATE/lb.pid")" ||
		{ sleep 0.2 && ip netns pids lb | grep -qx "$(<"$STATE/lb.pid")"; }
}

unbalance() {
	local try
	balancing || return 0
	kill -TERM "$(<"$STATE/lb.pid")"
	for try in {1..50}; do
		balancing || return 0
		sleep 0.1
	done
	log >&2
	fail "the load balancer did not end within 5 s of SIGTERM; its log is above"
}

main() {
	local verb=${1:-}
	case $verb in
	up | down | native | log | unbalance)
		as_root "$@"
		"$verb"
		;;
	balance)
		as_root "$@"
		balance "${@:2}"
		;;
	address) echo "${ADDRESS[${2:?HOST}]}" ;;
	exec)
		as_root "$@"
		is_ours "${2:?HOST}" || fail "the lab is not up: type 'make run'"
		exec ip netns exec "${@:2}"
		;;
	fetch) exec "$0" exec client curl -sS --max-time 5 "${@:2}" ;;
	wrk) exec "$0" exec client wrk "${@:2}" ;;
	*) fail "usage: $(sed -n 's/^# Usage: //p' "$0") (see the top of the file)" ;;
	esac
}

[[ ${BASH_SOURCE[0]} != "$0" ]] || main "$@"
