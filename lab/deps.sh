#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
# Finds what is missing for GROUPs and installs it with apt, as root or by
# sudo; where it may not, prints the one command to type and fails. What is
# there already is not touched, and no service is started. Silent when all is
# there.
#
# Usage: lab/deps.sh GROUP...    of: build lint run test bench engine kernels
set -euo pipefail
# shellcheck source=lab/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

POLICY=/usr/sbin/policy-rc.d

MISSING=()
need() { # PACKAGE TEST...
	"${@:2}" || MISSING+=("$1")
}

has_archive() { # libNAME.a or an object file, where the linker looks
	has gcc && [[ $(gcc -print-file-name="$1") == */* ]]
}

links_zstd() {
	has pkg-config && pkg-config --static --libs libelf 2>/dev/null | grep -q zstd
}

build() {
	need clang has clang
	need gcc has gcc
	need make has make
	need pkg-config has pkg-config
	need binutils has readelf
	need libc6-dev has_archive libc.a
	need libelf-dev has_archive libelf.a
	need zlib1g-dev has_archive libz.a
	if links_zstd; then need libzstd-dev has_archive libzstd.a; fi
}

lint() {
	need clang-format has clang-format
}

run() {
	need iproute2 has ip
	need nginx has nginx
	need wrk has wrk
	need curl has curl
	need procps has ps
	need util-linux has unshare
	if has docker; then need busybox-static has busybox; fi
}

test() {
	run
	need clang has clang
	need dnsmasq-base has dnsmasq
	need ethtool has ethtool
	need fish has fish
	need iperf3 has iperf3
	need iputils-ping has ping
	need man-db has man
	need nftables has nft
	need strace has strace
	need systemd has systemd-analyze
	need tcpdump has tcpdump
	need traceroute has traceroute
	need zsh has zsh
}

bench() {
	run
	need ethtool has ethtool
	need nftables has nft
	need haproxy has haproxy
	need libnginx-mod-stream has_nginx_stream
}

kernels() {
	test
	need xz-utils has unxz
	need qemu-system-x86 has qemu-system-x86_64
	need busybox-static has busybox
	need debian-archive-keyring has_keyring
}

engine() {
	need docker.io has dockerd
	need busybox-static has busybox
	# Debian 13 has the client in a package of its own.
	if has dockerd; then need docker-cli has docker; fi
}

rust() {
	has cargo || fail "no Rust toolchain: type" \
		"'curl --proto =https --tlsv1.2 -sSf https://sh.rustup.rs | sh' (https://rustup.rs)"
}

find_missing() { # GROUP...
	local group
	MISSING=()
	for group in "$@"; do "$group"; done
	mapfile -t MISSING < <(printf '%s\n' "${MISSING[@]}" | sed '/^$/d' | sort -u)
}

# Packages such as nginx start a service when installed; a policy forbids it.
install_packages() { # PACKAGE...
	if [[ ! -e $POLICY ]]; then
		trap 'rm -f "$POLICY"' EXIT
		printf '#!/bin/sh\nexit 101\n' >"$POLICY"
		chmod +x "$POLICY"
	fi
	export DEBIAN_FRONTEND=noninteractive
	apt-get update -q
	apt-get install -q -y --no-install-recommends -o DPkg::Lock::Timeout=120 "$@"
}

install_missing() {
	local root=()
	if ! has apt-get; then
		fail "missing, by Debian's names: ${MISSING[*]}; install them and try again"
	fi
	if [[ $EUID -ne 0 ]]; then
		sudo -n true 2>/dev/null || fail "packages are missing: type" \
			"'sudo apt-get install -y --no-install-recommends ${MISSING[*]}'"
		root=(sudo -n)
	fi
	echo "deps: installing ${MISSING[*]}"
	"${root[@]}" "$LAB_DIR/deps.sh" --install "${MISSING[@]}" </dev/null
}

if [[ ${1:-} == --install ]]; then
	install_packages "${@:2}"
	exit
fi
for group in "$@"; do
	[[ $group =~ ^(build|lint|run|test|bench|engine|kernels)$ ]] || fail "deps: no group '$group'"
done
(($#)) || fail "usage: lab/deps.sh GROUP...    of: build lint run test bench engine kernels"
if [[ " $* " == *" build "* ]]; then rust; fi
# The second look is for what only the packages of the first let us see.
for look in 1 2; do
	find_missing "$@"
	((${#MISSING[@]})) || exit 0
	install_missing
done
find_missing "$@"
((${#MISSING[@]} == 0)) || fail "still missing after look $look: ${MISSING[*]}"
