#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
# The lab as containers on Docker's default bridge, with the addresses that the
# engine gives them. One image serves for all, made here: busybox and wrk.
#
#   client  wget, wrk ---+           +--- http1  httpd: "Hostname: http1"
#                        +- docker0 -+
#   lb  /xdp-proxy ------+           +--- http2  httpd: "Hostname: http2"
#
# `lb` gets NET_ADMIN, BPF and PERFMON and no more; from an engine that does not
# know these (20.10 and before) NET_ADMIN and SYS_ADMIN.
#
# Usage: lab/docker.sh up | down | address HOST | exec HOST COMMAND...
#                      balance ARGUMENTS | unbalance | log
#                      wrk ARGUMENTS | fetch URL
set -euo pipefail
# shellcheck source=lab/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# The image's name, and the label by which all that is ours is found again.
LAB_NAME=xdp-proxy-lab
HOSTS=(http1 http2 client lb)

is_ours() { # CONTAINER
	[[ -n $(docker ps -aq --filter "label=$LAB_NAME" --filter "name=^/$1\$") ]]
}

refuse_strangers() {
	local name
	for name in "${HOSTS[@]}"; do
		if docker container inspect "$name" >/dev/null 2>&1 && ! is_ours "$name"; then
			fail "the container '$name' is there already and not the lab's:" \
				"'docker rm -f $name' if it is not needed"
		fi
	done
}

# Copies a program, and the libraries it needs if it is not static.
install_program() { # PROGRAM ROOT
	local path
	path=$(command -v "$1") || fail "$1 is not there: type 'make deps'"
	cp -L "$path" "$2/bin/"
	{ ldd "$path" 2>/dev/null || true; } | grep -o '/[^ ]*' |
		while read -r path; do cp -L --parents "$path" "$2"; done || true
}

make_image() (
	root=$(mktemp -d)
	trap 'rm -rf "$root"' EXIT
	mkdir -p "$root"/{bin,etc,tmp,www}
	install_program busybox "$root"
	install_program wrk "$root"
	echo 'http 80/tcp' >"$root/etc/services" # wrk asks for the scheme's port
	for applet in sh cat grep httpd ip kill pidof ps sleep timeout wget; do
		ln -s busybox "$root/bin/$applet"
	done
	tar -C "$root" -c . | docker import --change "LABEL $LAB_NAME=1" \
		--change 'ENV PATH=/bin' - "$LAB_NAME" >/dev/null
)

add_host() { # HOST COMMAND..., after the options in CAPABILITIES
	docker run -d --pull never --label "$LAB_NAME" --hostname "$1" \
		--name "$1" ${CAPABILITIES[@]+"${CAPABILITIES[@]}"} \
		"$LAB_NAME" "${@:2}" >/dev/null
}

# Process 1 of a container ignores the signals it does not expect, so that a
# shell waits there for SIGTERM.
IDLE=(sh -c 'trap exit TERM; while :; do sleep 3600 & wait $!; done')

add_web_server() { # HOST
	add_host "$1" sh -c "echo 'Hostname: $1' >/www/index.html; exec httpd -f -h /www"
}

add_balancer() {
	local CAPABILITIES=(--cap-add NET_ADMIN --cap-add BPF --cap-add PERFMON) error
	if ! error=$(add_host lb "${IDLE[@]}" 2>&1); then
		is_ours lb && docker rm -f lb >/dev/null
		[[ $error == *[Uu]nknown\ cap* || $error == *CAP_BPF* || $error == *CAP_PERFMON* ]] ||
			fail "docker run: $error"
		CAPABILITIES=(--cap-add NET_ADMIN --cap-add SYS_ADMIN)
		add_host lb "${IDLE[@]}"
	fi
	docker cp "$BINARY" lb:/xdp-proxy >/dev/null
}

up() {
	CAPABILITIES=()
	docker info >/dev/null 2>&1 ||
		fail "no Docker engine answers 'docker info': start one, or set LAB=netns"
	need_binary
	refuse_strangers
	down
	trap down ERR
	make_image
	add_web_server http1
	add_web_server http2
	add_host client "${IDLE[@]}"
	add_balancer
	trap - ERR
}

down() {
	local things
	has docker && docker info >/dev/null 2>&1 || return 0
	things=$(docker ps -aq --filter "label=$LAB_NAME")
	# shellcheck disable=SC2086 # one word a container
	[[ -z $things ]] || docker rm -f $things >/dev/null
	things=$(docker images -q --filter "label=$LAB_NAME")
	# shellcheck disable=SC2086 # one word an image
	[[ -z $things ]] || docker rmi -f $things >/dev/null
}

address() { # HOST
	docker inspect -f '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' "$1"
}

# Starts the load balancer on `lb`, prints its line "ready: ...".
balance() { # ARGUMENTS of `xdp-proxy run`
	is_ours lb || fail "the lab is not up: type 'make run'"
	unbalance
	docker exec -d lb sh -c \
		'echo $$ >/lb.pid; exec /xdp-proxy run "$@" >/lb.out 2>/lb.log' run "$@"
	wait_ready output balancing log
}

output() { docker exec lb cat /lb.out; }
log() { docker exec lb cat /lb.out /lb.log; }

# Until the shell in the container has written its number, it is starting.
balancing() {
	docker exec lb sh -c '! [ -s /lb.pid ] || kill -0 "$(cat /lb.pid)"' 2>/dev/null
}

unbalance() {
	docker exec lb sh -c '[ ! -s /lb.pid ] || {
		kill -TERM "$(cat /lb.pid)" && while kill -0 "$(cat /lb.pid)"; do sleep 0.1; done
		rm -f /lb.pid /lb.out /lb.log
	} 2>/dev/null'
}

# wget's words are shown only when it fails. Its own -T crashes in Debian 12's
# busybox-static.
fetch() { # URL
	docker exec client sh -c 'timeout 5 wget -O - "$1" 2>/tmp/fetch || {
		cat /tmp/fetch >&2
		exit 1
	}' fetch "$1"
}

main() {
	local verb=${1:-}
	case $verb in
	up | down | log | unbalance) "$verb" ;;
	balance | address) "$verb" "${@:2}" ;;
	exec) exec docker exec "${@:2}" ;;
	fetch) fetch "${@:2}" ;;
	wrk) exec docker exec client wrk "${@:2}" ;;
	*) fail "usage: $(sed -n 's/^# Usage: //p' "$0") (see the top of the file)" ;;
	esac
}

[[ ${BASH_SOURCE[0]} != "$0" ]] || main "$@"
