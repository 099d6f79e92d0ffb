#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
# Runs tests on kernels of other Debian releases, which qemu emulates. The
# program loads with any two of its settings together ('make test' has all combinations,
# on this machine's kernel), and does with every packet what it does here; what is about
# VLANs, which this machine's kernel may lack, works in the lab; and so do faults that are
# a whole kernel's (a full neighbour table, a clock that jumps, no memory), and the unit
# of systemd under a systemd that is process 1. Needs no privilege.
#
# The kernels come from the Debian mirror that this machine's apt uses, by an
# apt configuration of their own: nothing is installed, and the second time
# nothing is fetched ('make clean' forgets them). Settings:
#   DEBIAN_MIRROR=URL  the mirror, for a machine whose apt has none of Debian
#   PACKETS=N          how much of each long test: packets, flows
#   TESTS='lab vlan'   one file of tests and which of them, in place of all
#   SYSTEMD_TESTS='lab systemd'  the same of those that run under systemd
#
# Usage: lab/kernels.sh [VERSION...]    of: 6.1 6.12
set -euo pipefail
# shellcheck source=lab/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

declare -A SUITE=([6.1]=bookworm [6.12]=trixie)
VERSIONS=(6.1 6.12)
META_PACKAGE=linux-image-cloud-amd64

KERNELS=$ROOT_DIR/build/kernels
# What they need to make the lab, and the order to load it in.
MODULES=(llc stp bridge garp mrp 8021q veth)
# All else is busybox's in the guest.
PROGRAMS=(bash bridge chown chmod curl dash ethtool ip journalctl mkdir mount mountpoint nginx
	nsenter nstat ping setpriv sysctl systemctl unshare)
# What is to be systemd there, and of its units: a system without devices and logins.
SYSTEMD=/usr/lib/systemd
UNITS=$SYSTEMD/system

# A guest that takes longer hangs; ten times what an idle machine needs.
GUEST_SECONDS=900
GUEST_MEMORY=1G
PACKETS=${PACKETS:-2000}

# Two guests for each kernel, those that take longer first. What is a whole kernel's is
# tested once.
PARTS=(packets lab)
declare -A OF_A_KERNEL=(
	[6.1]="own_kernel::clock"
	[6.12]="own_kernel::memory own_kernel::neighbours"
)
SYSTEMD_ON=6.12
# All combinations of the settings: 288 programs, for 24.
ON_ONE_KERNEL=the_verifier_walks_few_instructions_whatever_the_settings
if [[ -n ${TESTS:-}${SYSTEMD_TESTS:-} ]]; then PARTS=(chosen); fi

# Where cargo leaves the binary.
BUILT=$ROOT_DIR/target/x86_64-unknown-linux-gnu/release

# What the guest says last; the status of the tests follows.
LAST_WORD='guest: the tests ended with status'

mirror() {
	local url=${DEBIAN_MIRROR:-}
	# shellcheck disable=SC2016 # apt's variable, not the shell's
	[[ -n $url ]] || url=$(apt-get indextargets --format '$(REPO_URI)' \
		'Created-By: Packages' 'Origin: Debian' 'Label: Debian' | sed -n 1p)
	[[ -n $url ]] || fail "apt knows no mirror of Debian to fetch kernels from:" \
		"type 'apt-get update' as root, or set DEBIAN_MIRROR=URL"
	echo "$url"
}

# An apt that knows SUITE alone: to be run with APT_CONFIG=DIR/apt.conf.
private_apt() { # DIR SUITE MIRROR
	mkdir -p "$1/state/lists/partial" "$1/cache/archives/partial"
	echo "deb [arch=amd64 target=Packages signed-by=$DEBIAN_KEYRING] $3 $2 main" \
		>"$1/sources.list"
	cat >"$1/apt.conf" <<-APT
		Dir::Etc::SourceList "$1/sources.list";
		Dir::Etc::SourceParts "-";
		Dir::State "$1/state";
		Dir::State::status "/dev/null";
		Dir::Cache "$1/cache";
		APT::Architecture "amd64";
		APT::Sandbox::User "$(id -un)";
	APT
}

# Leaves VERSION/vmlinuz, which is there only when all is, and VERSION/modules.
fetch() { # VERSION
	local dir=$KERNELS/$1 url package module
	[[ -s $dir/vmlinuz && -d $dir/modules ]] && return
	url=$(mirror)
	rm -rf "$dir"
	mkdir -p "$dir"
	private_apt "$dir/apt" "${SUITE[$1]}" "$url"
	(
		cd "$dir"
		export APT_CONFIG=$dir/apt/apt.conf
		apt-get update -qq
		package=$(apt-cache depends "$META_PACKAGE" | sed -n 's/^ *Depends: //p')
		[[ $package == "linux-image-$1."* ]] ||
			fail "Debian ${SUITE[$1]} has no kernel $1, but '$package'"
		echo "kernels: fetching $package"
		apt-get download -qq "$package"
	) || fail "the kernel $1 of Debian ${SUITE[$1]} can't be fetched from $url"
	mkdir "$dir/modules" "$dir/package"
	dpkg-deb --extract "$dir"/*.deb "$dir/package"
	for module in "${MODULES[@]}"; do
		find "$dir/package" -name "$module.ko*" -exec mv {} "$dir/modules" \;
	done
	find "$dir/modules" -name '*.xz' -exec unxz {} +
	mv "$dir"/package/boot/vmlinuz-* "$dir/vmlinuz"
	rm -rf "$dir/apt" "$dir/package" "$dir"/*.deb
}

tests_of() { # VERSION PART
	case $2 in
	packets) echo "packets --skip $ON_ONE_KERNEL; fuzz" ;;
	lab) echo "neighbour vlan; lab vlan ${OF_A_KERNEL[$1]}" ;;
	chosen) echo "${TESTS:-}" ;;
	esac
}

# Those that want systemd to be process 1.
systemd_tests_of() { # VERSION PART
	case $1-$2 in
	"$SYSTEMD_ON-lab") echo "lab systemd::" ;;
	*-chosen) echo "${SYSTEMD_TESTS:-}" ;;
	esac
}

# What runs TESTS, one after the other.
run_tests() { # TESTS
	cat <<-RUN
		export PATH=/usr/bin:/usr/sbin:/applets PACKETS=$PACKETS RUST_BACKTRACE=1
		export REQUIRE_ROOT_TESTS=1 REQUIRE_VLAN_TESTS=1 OWN_KERNEL=1
		run() { "\$@" --test-threads=1 --show-output || echo 1 >/status; }
		${1:+run ${1//; /; run }}
	RUN
}

# The last thing that happens in the guest.
end() {
	cat <<-END
		echo "$LAST_WORD \$(busybox cat /status)"
		busybox poweroff -f
	END
}

# The guest's process 1; at last it becomes systemd, if that is to be tested.
init() { # TESTS SYSTEMD_TESTS
	cat <<-INIT
		#!/usr/bin/busybox sh
		busybox mkdir -p /applets /proc /sys /dev /run /tmp
		busybox mount -t proc proc /proc
		busybox --install -s /applets
		busybox mount -t sysfs sysfs /sys
		busybox mount -t devtmpfs devtmpfs /dev
		busybox mount -t bpf bpf /sys/fs/bpf
		busybox mount -t cgroup2 cgroup2 /sys/fs/cgroup
		for module in ${MODULES[*]}; do busybox insmod /modules/\$module.ko; done
		busybox ifconfig lo up
		echo "guest: Linux \$(busybox uname -r)"
		echo 0 >/status
		$(run_tests "$1")
		${2:+exec $SYSTEMD/systemd}
		$(end)
	INIT
}

# systemd, the units that others refer to, the journal, and one that runs the tests.
make_systemd() { # ROOT
	local unit program system=$1/etc/systemd/system
	# Before 254 it has no executor.
	for program in "$SYSTEMD"/systemd{,-executor,-journald,-shutdown}; do
		[[ ! -e $program ]] || install_here "$1" "$program"
	done
	mkdir -p "$1$UNITS" "$system"/{sysinit,sockets,multi-user}.target.wants
	cp -d "$UNITS"/*.target "$UNITS"/systemd-journald{.service,.socket,-dev-log.socket} "$1$UNITS"
	ln -s "$UNITS/systemd-journald.service" "$system/sysinit.target.wants"
	for unit in "$UNITS"/systemd-journald{,-dev-log}.socket; do
		ln -s "$unit" "$system/sockets.target.wants"
	done
	ln -sf "$UNITS/multi-user.target" "$system/default.target"
	# Without, systemd takes this for its first boot.
	printf '%032x\n' 1 >"$1/etc/machine-id"
	ln -s ../tests.service "$system/multi-user.target.wants"
	cat >"$system/tests.service" <<-UNIT
		[Unit]
		After=multi-user.target
		[Service]
		ExecStart=/usr/bin/busybox sh /tests.sh
		StandardOutput=tty
		StandardError=tty
		TTYPath=/dev/console
	UNIT
}

# A file and the libraries that it wants, at the places where they are here.
install_here() { # ROOT FILE...
	local file
	for file in "${@:2}"; do
		# shellcheck disable=SC2046 # one word a library
		cp -L --parents "$file" $(ldd "$file" 2>/dev/null | grep -o '/[^ ]*') "$1"
	done
}

# What is the same in all guests.
make_root() { # TEST...
	local root=$KERNELS/root program
	rm -rf "$root"
	mkdir -p "$root"/usr/{bin,sbin,lib,lib64} "$root/etc"
	for program in bin sbin lib lib64; do ln -s "usr/$program" "$root/$program"; done
	for program in "${PROGRAMS[@]}"; do install_here "$root" "$(command -v "$program")"; done
	install "$(command -v busybox)" "$root/usr/bin/busybox"
	ln -s dash "$root/usr/bin/sh"
	grep -E '^(root|nobody|nogroup):' /etc/passwd >"$root/etc/passwd"
	grep -E '^(root|nobody|nogroup):' /etc/group >"$root/etc/group"
	# The tests know these by the names that they have here.
	cp -r --parents "$LAB_DIR" "$root"
	clang -O2 -g -target bpf -c "$LAB_DIR/pass.bpf.c" -o "$root$LAB_DIR/pass.bpf.o"
	install_here "$root" "$BUILT/xdp-proxy"
	make -s -C "$ROOT_DIR" build install DESTDIR="$root" PREFIX=/usr
	make_systemd "$root"
	for program; do
		# Cargo's names end in a hash.
		install "$program" "$root/usr/bin/$(basename "${program%-*}")"
	done
}

# What only one guest has.
make_guest() { # FOLDER VERSION PART
	local systemd_tests
	systemd_tests=$(systemd_tests_of "$2" "$3")
	rm -rf "$1"
	mkdir "$1"
	cp -r "$KERNELS/$2/modules" "$1"
	init "$(tests_of "$2" "$3")" "$systemd_tests" >"$1/init"
	chmod +x "$1/init"
	{
		run_tests "$systemd_tests"
		end
	} >"$1/tests.sh"
}

# busybox makes the archives too: the kernel unpacks one after another.
archive() { # FOLDER
	(cd "$1" && find . | busybox cpio -o -H newc) 2>/dev/null
}

# The files that hold the tests.
build_tests() {
	cargo test --no-run --release --target x86_64-unknown-linux-gnu \
		--test packets --test fuzz --test neighbour --test lab --message-format json-render-diagnostics |
		sed -n 's/.*"kind":\["test"\].*"executable":"\([^"]*\)".*/\1/p'
}

# An old processor, and none of the kernel's defences against a processor's
# leaks: together that is a third less to emulate (6.1: 14.5 s of CPU for 23.1). Nor those
# against its own faults: a sixteenth less (6.12: 20.2 s for 21.5).
# Without cmpxchg16b: qemu emulates it wrong now and then (its flags come
# out as garbage, and 6.12's kmalloc dies of a double fault in 2 of 8 runs).
emulate() { # VERSION INITRAMFS
	timeout --kill-after=5 "$GUEST_SECONDS" qemu-system-x86_64 \
		-accel tcg -cpu Nehalem,-cx16 -smp 1 -m "$GUEST_MEMORY" \
		-nodefaults -no-user-config -display none -no-reboot -serial stdio \
		-kernel "$KERNELS/$1/vmlinuz" -initrd "$2" \
		-append 'console=ttyS0 quiet panic=-1 mitigations=off init_on_alloc=0 hardened_usercopy=off' \
		</dev/null
}

test_kernel() { # VERSION PART
	local guest=$KERNELS/$1/$2 status=0 began=$SECONDS console last
	make_guest "$guest" "$1" "$2"
	{ archive "$KERNELS/root" && archive "$guest"; } >"$guest.initramfs"
	console=$guest.console
	emulate "$1" "$guest.initramfs" 2>&1 | stdbuf -o0 tr -d '\r' >"$console" || status=$?
	rm "$guest.initramfs"
	last=$(grep -a "^$LAST_WORD" "$console" || true)
	# Here is all that any test needs.
	if [[ $last == "$LAST_WORD 0" ]] && grep -aq '^SKIPPED' "$console"; then
		last="tests were skipped"
	fi
	if [[ $last != "$LAST_WORD 0" ]]; then
		cat "$console" >&2
		((status != 124)) || last="it did not end within $GUEST_SECONDS s"
		echo "kernels: $1, $2 failed: ${last:-the guest ended with no result}" >&2
		return 1
	fi
	echo "kernels: $1, $2 passed in $((SECONDS - began)) s:"
	grep -aE '^guest: Linux|instructions verified|^NOT HERE|^test result' "$console" | sed 's/^/    /'
}

[[ $(uname -m) == x86_64 ]] || fail "kernels.sh is for x86_64 so far, and this is $(uname -m)"
(($#)) || set -- "${VERSIONS[@]}"
for version in "$@"; do
	[[ -n ${SUITE[$version]:-} ]] || fail "no kernel '$version' of: ${VERSIONS[*]}"
done
for version in "$@"; do fetch "$version"; done
mapfile -t tests < <(build_tests)
((${#tests[@]} == 4)) || fail "the tests were not built"
make_root "${tests[@]}"
# One guest more at a time than there are CPUs, as those with a lab wait for two fifths of
# their time.
failed=()
declare -A guests
for version in "$@"; do
	for part in "${PARTS[@]}"; do
		while (($(jobs -rp | wc -l) > $(nproc))); do wait -n || true; done
		test_kernel "$version" "$part" &
		guests["$version, $part"]=$!
	done
done
for guest in "${!guests[@]}"; do
	wait "${guests[$guest]}" || failed+=("$guest;")
done
((${#failed[@]} == 0)) || fail "failed on the kernels: ${failed[*]}"
