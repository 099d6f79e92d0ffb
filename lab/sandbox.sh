#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
# Runs COMMAND in a private mount, process and network namespace, with /run and
# /sys of its own: a lab made inside is seen by nobody outside and vanishes with
# COMMAND. It is also killed, with all it started, when the thread that started
# this script ends, however that ends.
#
#   lab/sandbox.sh sh -c 'lab/netns.sh up && exec sleep infinity' &
#   nsenter -t $(pgrep -P $!) -m -p -n ip netns exec client curl http://10.0.0.2/
#
# The process to enter is the only child of this one. Signals other than
# SIGKILL do not end the sandbox (COMMAND is its process 1): kill it with that.
#
# Usage: lab/sandbox.sh COMMAND...
set -euo pipefail
# shellcheck source=lab/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# The control groups stay in sight, for a container engine inside.
prepare() {
	mount -t tmpfs -o mode=755 tmpfs /run
	mkdir -p /run/netns /run/lock
	if mountpoint -q /sys/fs/cgroup; then
		mkdir /run/cgroup
		mount --rbind /sys/fs/cgroup /run/cgroup
	fi
	# `ip` would take a bpffs that the new /sys hides for one that is there.
	while mountpoint -q /sys/fs/bpf; do umount /sys/fs/bpf; done
	mount -t sysfs sysfs /sys
	if [[ -d /run/cgroup ]]; then
		mount --rbind /run/cgroup /sys/fs/cgroup
		umount -l /run/cgroup
		rmdir /run/cgroup
	fi
	ip link set lo up
}

if [[ ${1:-} == --inside ]]; then
	prepare
	exec "${@:2}"
fi
(($#)) || fail "usage: lab/sandbox.sh COMMAND..."
[[ $EUID -eq 0 ]] || fail "sandbox.sh needs root"
exec setpriv --pdeathsig KILL \
	unshare --mount --pid --net --ipc --fork --kill-child --mount-proc \
	"$0" --inside "$@"
