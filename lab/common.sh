# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
# shellcheck shell=bash
# What every script of the lab shares. Sourced, not run.

LAB_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT_DIR=$(dirname "$LAB_DIR")
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

# The load balancer under test; BINARY=PATH puts another one in its place.
BINARY=${BINARY:-$ROOT_DIR/build/xdp-proxy}

# Every file of the namespace lab lies here.
STATE=/run/xdp-proxy-lab

# Seconds that the load balancer has to print "ready:".
READY_SECONDS=10

fail() {
	echo "lab: $*" >&2
	exit 1
}

has() {
	command -v "$1" >/dev/null
}

# Debian's signatures, for its packages on a machine that is another Debian.
DEBIAN_KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg
has_keyring() {
	[[ -e $DEBIAN_KEYRING ]]
}

# Debian has the module in a package of its own, nginx.org builds it in.
NGINX_STREAM=/usr/lib/nginx/modules/ngx_stream_module.so
has_nginx_stream() {
	[[ -e $NGINX_STREAM ]] || nginx -V 2>&1 | grep -qE -- '--with-stream( |$)'
}

# Runs this script again as root, with the settings that steer it.
as_root() { # ARGUMENTS of the script
	[[ $EUID -eq 0 ]] && return
	sudo -n true 2>/dev/null ||
		fail "${0##*/}${*:+ $*} needs root: type 'sudo -v' first, or set LAB=docker"
	exec sudo -n env "PATH=$PATH" "BINARY=$BINARY" "LAB=${LAB:-}" \
		"LAB_ACCESS_LOG=${LAB_ACCESS_LOG:-}" "$0" "$@"
}

need_binary() {
	[[ -x $BINARY ]] || fail "$BINARY is not there: type 'make build'"
}

# Waits until OUTPUT prints a line "ready: ...", and prints that line. Fails
# with what LOG prints when ALIVE says that the load balancer ended, or late.
wait_ready() { # OUTPUT ALIVE LOG: names of functions
	local line deadline=$((SECONDS + READY_SECONDS))
	while ((SECONDS < deadline)); do
		if line=$("$1" 2>/dev/null | grep -m 1 '^ready:'); then
			echo "$line"
			return
		fi
		if ! "$2"; then
			"$3" >&2
			fail "the load balancer ended before it was ready; its log is above"
		fi
		sleep 0.1
	done
	"$3" >&2
	fail "the load balancer was not ready within $READY_SECONDS s; its log is above"
}

# The script that drives the lab: LAB as given, else docker where an engine
# answers. Verbs that need a lab that is up find the one of namespaces first.
pick_lab() { # [up]
	local lab=${LAB:-}
	if [[ -z $lab && ${1:-} == up && -d $STATE ]]; then
		lab=netns
	elif [[ -z $lab ]]; then
		lab=netns
		if has docker && docker info >/dev/null 2>&1; then lab=docker; fi
	fi
	[[ $lab == netns || $lab == docker ]] ||
		fail "LAB=$lab: there is LAB=netns and LAB=docker"
	echo "$LAB_DIR/$lab.sh"
}
