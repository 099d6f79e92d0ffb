// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Where a bpffs is mounted, the next daemon needs no CAP_SYS_ADMIN.

use std::time::{Duration, Instant};

use libbpf_rs::{MapHandle, MapType};
use nix::sys::signal::Signal;

use crate::common::http;
use crate::common::lab::{BINARY, Balancer, LB, Lab, TWO, refusal};
use crate::common::load::Kept;
use crate::privileges::with;

/// A bpffs for all commands on `lb`, each of which has a /sys of its own.
struct Bpffs<'a> {
    lab: &'a Lab,
    /// What a command begins with to have it.
    within: String,
}

impl Bpffs<'_> {
    fn mount(lab: &Lab) -> Bpffs<'_> {
        lab.script("mkdir /run/bpf; mount -t bpf bpf /run/bpf");
        let script = lab.write(
            "with-bpffs",
            "set -e\nmount --bind /run/bpf /sys/fs/bpf\nexec \"$@\"\n",
        );
        let user = with("net_admin bpf perfmon net_raw");
        Bpffs {
            lab,
            within: format!("sh {script} {user} {BINARY}"),
        }
    }

    /// As an ordinary user without CAP_SYS_ADMIN.
    fn balance(&self) -> Balancer<'_> {
        self.lab.balance_by(&format!("{} run {TWO}", self.within))
    }

    fn stop(&self) -> String {
        self.lab.at("lb", &format!("{} stop", self.within))
    }

    /// The numbers of the programs that are pinned.
    fn programs(&self) -> Vec<u64> {
        let folders = self
            .lab
            .script("find /run/bpf -mindepth 3 -maxdepth 3 -type d");
        let names = folders.lines().map(|line| line.rsplit('/').next().unwrap());
        names.map(|name| name.parse().unwrap()).collect()
    }

    /// Pins, and folders of them.
    fn entries(&self) -> String {
        self.lab.script("find /run/bpf -mindepth 2")
    }
}

fn attached(lab: &Lab) -> u64 {
    lab.attached().unwrap()["prog"]["id"].as_u64().unwrap()
}

fn kill_9(lb: Balancer<'_>) {
    lb.signal(Signal::SIGKILL);
    lb.wait();
}

#[test]
fn an_ordinary_user_goes_on_by_the_pins_and_stop_removes_them() {
    let test = "an_ordinary_user_goes_on_by_the_pins_and_stop_removes_them";
    let Some(lab) = crate::lab(test) else { return };
    let bpffs = Bpffs::mount(&lab);
    let mut lb = bpffs.balance();
    lab.within("client", || {
        let mut kept = Kept::open(LB, 20);
        for _ in 0..3 {
            assert_eq!(bpffs.programs(), [attached(&lab)]);
            kill_9(lb);
            lb = bpffs.balance();
            assert!(lb.log().contains("taking over program"), "{}", lb.log());
            assert!(!lb.log().contains("WARN"), "{}", lb.log());
            kept.go_on();
        }
        // After a crash, and at the end of a daemon.
        kill_9(lb);
        assert!(bpffs.stop().starts_with("detached: eth0"));
        assert_eq!((lab.attached(), bpffs.entries()), (None, String::new()));
        let lb = bpffs.balance();
        assert_eq!(bpffs.programs(), [attached(&lab)]);
        lb.end();
        assert_eq!((lab.attached(), bpffs.entries()), (None, String::new()));
    });
    // Without pins it takes more than an ordinary user has.
    let user = with("net_admin bpf perfmon net_raw");
    kill_9(lab.balance_by(&format!("{user} {BINARY} run {TWO}")));
    let error = refusal(&lab.try_at("lb", &format!("{user} {BINARY} run {TWO}")), 1);
    assert!(
        error.contains("whose name this process may not read"),
        "{error}"
    );
}

#[test]
fn pins_of_what_is_not_attached_are_never_believed() {
    let Some(lab) = crate::lab("pins_of_what_is_not_attached_are_never_believed") else {
        return;
    };
    let bpffs = Bpffs::mount(&lab);
    kill_9(bpffs.balance());
    lab.at("lb", "ip link set dev eth0 xdpgeneric off");
    let stale = bpffs.programs();
    let lb = bpffs.balance();
    assert!(!lb.log().contains("taking over"), "{}", lb.log());
    assert_ne!(stale, [attached(&lab)]);
    assert_eq!(bpffs.programs(), [attached(&lab)]);
    lab.within("client", || http::host(LB).unwrap());
    // An interface that is gone leaves pins, which `stop` finds.
    kill_9(lb);
    lab.at("lb", "ip link del eth0");
    assert_ne!(bpffs.entries(), "");
    assert!(bpffs.stop().starts_with("unpinned: "));
    assert_eq!(bpffs.entries(), "");
}

#[test]
fn pins_of_an_interface_that_is_gone_are_removed_by_its_daemon_or_the_next() {
    let test = "pins_of_an_interface_that_is_gone_are_removed_by_its_daemon_or_the_next";
    let Some(lab) = crate::lab(test) else { return };
    let bpffs = Bpffs::mount(&lab);
    let add = |name: &str, address: &str| {
        lab.at(
            "lb",
            &format!("ip link add {name} type veth peer name {name}-end"),
        );
        lab.at("lb", &format!("ip addr add {address}/24 dev {name}"));
        lab.at("lb", &format!("ip link set {name} up"));
    };
    let serve = |name: &str, address: &str| {
        let line = format!("run -i {name} --listen {address}1:80 --backend {address}2");
        lab.balance_by(&format!("{} {line}", bpffs.within))
    };
    // By the daemon that waits for it.
    add("one", "10.1.0.1");
    let lb = serve("one", "10.1.0.");
    assert_eq!(bpffs.programs().len(), 1);
    lab.at("lb", "ip link del one");
    let start = Instant::now();
    while !bpffs.programs().is_empty() {
        assert!(start.elapsed() < Duration::from_secs(5), "{}", lb.log());
    }
    kill_9(lb);
    // By the daemon of another interface, whose own stay.
    add("two", "10.2.0.1");
    kill_9(serve("two", "10.2.0."));
    let left = bpffs.programs();
    lab.at("lb", "ip link del two");
    add("three", "10.3.0.1");
    let lb = serve("three", "10.3.0.");
    let start = Instant::now();
    while bpffs.programs().contains(&left[0]) {
        assert!(start.elapsed() < Duration::from_secs(5), "{}", lb.log());
    }
    kill_9(lb);
    let lb = bpffs.balance();
    assert!(!lb.log().contains("pins of"), "{}", lb.log());
    assert_eq!(bpffs.programs().len(), 2);
    assert!(!bpffs.programs().contains(&left[0]));
    lb.end();
    assert!(bpffs.stop().starts_with("detached: three"));
    assert_eq!(bpffs.entries(), "");
}

#[test]
fn a_bpffs_that_takes_no_pins_is_told_and_changes_nothing_else() {
    let test = "a_bpffs_that_takes_no_pins_is_told_and_changes_nothing_else";
    let Some(lab) = crate::lab(test) else { return };
    let bpffs = Bpffs::mount(&lab);
    let name = lab.path("/run/bpf/xdp-proxy");
    for is_full in [false, true] {
        if is_full {
            // A bpffs has no limit, but a name that somebody else has does not fit either.
            let options = libbpf_sys::bpf_map_create_opts {
                sz: size_of::<libbpf_sys::bpf_map_create_opts>() as libbpf_sys::size_t,
                ..Default::default()
            };
            let map = MapHandle::create(MapType::Array, Some("other"), 4, 4, 1, &options);
            map.unwrap().pin(&name).unwrap();
        } else {
            lab.script("mount -o remount,ro /run/bpf");
        }
        let lb = bpffs.balance();
        let log = lb.log();
        let warnings: Vec<&str> = log.lines().filter(|line| line.contains("WARN")).collect();
        assert!(
            warnings.len() == 1
                && warnings[0].contains("no pins, so that the next daemon needs CAP_SYS_ADMIN")
                && warnings[0].contains("/sys/fs/bpf/xdp-proxy"),
            "{log}"
        );
        println!("{}", warnings[0]);
        lab.within("client", || http::host(LB).unwrap());
        lb.end();
        assert_eq!(lab.attached(), None);
        match is_full {
            true => std::fs::remove_file(&name).unwrap(),
            false => drop(lab.script("mount -o remount,rw /run/bpf")),
        }
    }
}
