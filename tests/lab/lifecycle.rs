// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! From the start to the end, and nothing after it.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use libbpf_rs::MapHandle;
use libbpf_rs::query::{ProgInfoIter, ProgInfoQueryOptions};
use nix::sys::signal::Signal;

use crate::common::http;
use crate::common::lab::{BINARY, LB, Lab, TWO, refusal};

/// The kernel frees programs and maps some time after their last use.
const FREED_WITHIN: Duration = Duration::from_secs(3);

/// What the running load balancer has in the kernel: by number, since other
/// tests on this machine may have theirs.
#[derive(Debug, Default)]
struct Possessions {
    programs: BTreeSet<u32>,
    maps: BTreeSet<u32>,
}

impl Possessions {
    fn of(lab: &Lab) -> Possessions {
        let id = lab.status()["program_id"].as_u64().unwrap() as u32;
        let all =
            || ProgInfoIter::with_query_opts(ProgInfoQueryOptions::default().include_map_ids(true));
        let maps: BTreeSet<u32> = all()
            .find(|info| info.id == id)
            .unwrap()
            .map_ids
            .into_iter()
            .collect();
        let programs = all().filter(|info| info.map_ids.iter().any(|map| maps.contains(map)));
        let programs = programs.map(|info| info.id).collect();
        assert!(maps.len() > 5, "{maps:?}");
        Possessions { programs, maps }
    }

    fn take(&mut self, more: Possessions) {
        self.programs.extend(more.programs);
        self.maps.extend(more.maps);
    }

    fn are_gone(&self) {
        assert!(!self.programs.is_empty(), "{self:?}");
        let start = Instant::now();
        loop {
            let programs = self
                .programs
                .iter()
                .filter(|id| libbpf_rs::Program::fd_from_id(**id).is_ok());
            let maps = self
                .maps
                .iter()
                .filter(|id| MapHandle::from_map_id(**id).is_ok());
            let left = programs.count() + maps.count();
            if left == 0 {
                return;
            }
            assert!(
                start.elapsed() < FREED_WITHIN,
                "{left} of {self:?} are left"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn each_way_to_end_it_leaves_nothing_behind() {
    let Some(lab) = crate::lab("each_way_to_end_it_leaves_nothing_behind") else {
        return;
    };
    for signal in [Some(Signal::SIGINT), Some(Signal::SIGTERM), None] {
        let lb = lab.balance(TWO);
        println!("ready after {:.0?}", lb.ready_after);
        let here = Possessions::of(&lab);
        let attached = lab.attached().unwrap();
        assert_eq!(attached["prog"]["name"], "xdp_proxy");
        lab.within("client", || http::host(LB).unwrap());
        match signal {
            Some(signal) => lb.signal(signal),
            None => assert_eq!(lab.at("lb", &format!("{BINARY} stop")), "stopped: eth0\n"),
        }
        assert_eq!(lb.wait().code(), Some(0), "{signal:?}");
        assert_eq!(lab.attached(), None, "{signal:?}");
        here.are_gone();
    }
}

#[test]
fn a_killed_daemon_leaves_its_program_serving_and_stop_or_run_take_over() {
    let test = "a_killed_daemon_leaves_its_program_serving_and_stop_or_run_take_over";
    let Some(lab) = crate::lab(test) else {
        return;
    };
    let mut all = Possessions::default();
    for next in ["stop", "run", "run --mode native"] {
        let lb = lab.balance(&format!("--mode generic {TWO}"));
        let here = Possessions::of(&lab);
        lb.signal(Signal::SIGKILL);
        lb.wait();
        assert!(lab.attached().is_some());
        let hosts: BTreeSet<_> = lab.within("client", || {
            (0..40).map(|_| http::host(LB).unwrap()).collect()
        });
        assert_eq!(hosts.len(), 2, "both are served");
        assert_eq!(lab.status()["pid"], serde_json::Value::Null);
        if let Some(arguments) = next.strip_prefix("run") {
            let lb = lab.balance(&format!("{arguments} {TWO}"));
            // The maps with the flows are the next one's.
            let programs = here.programs.clone();
            Possessions {
                programs,
                ..Possessions::default()
            }
            .are_gone();
            let mode = if arguments.contains("native") {
                "native"
            } else {
                "generic"
            };
            assert_eq!(lab.status()["mode"], mode);
            if mode == "generic" {
                lab.within("client", || http::host(LB).unwrap());
            }
            all.take(Possessions::of(&lab));
            lb.end();
        } else {
            let done = lab.at("lb", &format!("{BINARY} stop"));
            assert!(done.contains("eth0"), "{done}");
        }
        assert_eq!(lab.attached(), None);
        all.take(here);
    }
    all.are_gone();
}

#[test]
fn starting_and_ending_thirty_times_accumulates_nothing() {
    let Some(lab) = crate::lab("starting_and_ending_thirty_times_accumulates_nothing") else {
        return;
    };
    let mut all = Possessions::default();
    let mut slowest = Duration::ZERO;
    for _ in 0..30 {
        let lb = lab.balance(TWO);
        slowest = slowest.max(lb.ready_after);
        all.take(Possessions::of(&lab));
        lab.within("client", || http::host(LB).unwrap());
        lb.end();
        assert_eq!(lab.attached(), None);
    }
    println!("of 30 starts the slowest was ready after {slowest:.0?}");
    assert!(slowest < Duration::from_secs(5));
    all.are_gone();
    let sockets = lab.at("lb", "cat /proc/net/unix");
    assert!(!sockets.contains("xdp-proxy"), "{sockets}");
}

/// A signal may come while the program runs for the daemon, which sweeps the
/// flow table every second.
#[test]
fn a_signal_at_any_moment_is_no_error() {
    let Some(lab) = crate::lab("a_signal_at_any_moment_is_no_error") else {
        return;
    };
    let lb = lab.balance(TWO);
    for _ in 0..2500 {
        lb.signal(Signal::SIGHUP);
        std::thread::sleep(Duration::from_millis(1));
    }
    lab.within("client", || http::host(LB).unwrap());
    let word = "there is no file to read again";
    assert!(lb.log().contains(word), "{}", lb.log());
    lb.end();
}

#[test]
fn it_is_ready_in_time_when_nobody_answers() {
    let Some(lab) = crate::lab("it_is_ready_in_time_when_nobody_answers") else {
        return;
    };
    let nobody: String = (100..150)
        .map(|i| format!(" --backend 10.0.0.{i}"))
        .collect();
    let lb = lab.balance(&format!("{TWO}{nobody}"));
    println!("ready after {:.0?} with 50 dead backends", lb.ready_after);
    assert!(lb.ready.ends_with("-> 2 of 52 backends"), "{}", lb.ready);
    lab.within("client", || {
        (0..20).for_each(|_| drop(http::host(LB).unwrap()))
    });
    lb.end();
}

/// An image with nothing else in it: the kernel's /proc and /sys are there, as in any container.
#[test]
fn it_serves_from_a_root_that_holds_nothing_else() {
    let Some(lab) = crate::lab("it_serves_from_a_root_that_holds_nothing_else") else {
        return;
    };
    fs::create_dir(lab.path("/run/empty")).unwrap();
    fs::copy(lab.path(BINARY), lab.path("/run/empty/xdp-proxy")).unwrap();
    let version = lab.at("lb", "chroot /run/empty /xdp-proxy --version");
    assert!(version.starts_with("xdp-proxy "), "{version}");
    let check = format!("chroot /run/empty /xdp-proxy check {TWO}");
    refusal(&lab.try_at("lb", &check), 1);

    lab.script("cd /run/empty; mkdir proc sys; mount -t proc proc proc; mount -t sysfs sysfs sys");
    assert!(lab.at("lb", &check).contains("10.0.0.5:80/tcp"));
    let lb = lab.balance_by(&format!("chroot /run/empty /xdp-proxy run {TWO}"));
    let hosts: BTreeSet<_> = lab.within("client", || {
        (0..40).map(|_| http::host(LB).unwrap()).collect()
    });
    assert_eq!(hosts.len(), 2);
    let status = lab.at("lb", "chroot /run/empty /xdp-proxy status");
    assert!(status.contains("10.0.0.2:80"), "{status}");
    lb.end();
}

#[test]
fn a_kernel_without_btf_in_sight_is_enough() {
    let Some(lab) = crate::lab("a_kernel_without_btf_in_sight_is_enough") else {
        return;
    };
    // `ip netns exec` gives each command a /sys of its own.
    let hide = lab.write(
        "without-btf",
        "#!/bin/sh\nset -e\nmount -t tmpfs none /sys/kernel/btf\nexec \"$@\"\n",
    );
    let lb = lab.balance_by(&format!("sh {hide} {BINARY} run {TWO}"));
    lab.within("client", || http::host(LB).unwrap());
    lb.end();
}
