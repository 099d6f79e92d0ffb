// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The kernel refuses memory for the maps, by the control group's limit.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::lab;
use crate::common::lab::{BINARY, LB, Lab, refusal};
use crate::common::load::Clients;
use crate::faults::told;

const MIB: u64 = 1 << 20;
/// What the load balancer runs in.
const GROUP: &str = "/sys/fs/cgroup/lb";
const SOURCES: std::ops::Range<u32> = 101..109;

/// What must be told.
const WORDS: &str = "the kernel has no memory for the maps, which take ";

/// The control group that `lb` runs in, which has a limit.
struct Limit;

impl Limit {
    fn new(lab: &Lab) -> Limit {
        fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+memory").unwrap();
        fs::create_dir(GROUP).unwrap();
        // On a host of the lab /sys is another one.
        lab.write(
            "in-group",
            "mkdir -p /run/cgroup && mount -t cgroup2 cgroup2 /run/cgroup\n\
             echo $$ >/run/cgroup/lb/cgroup.procs && exec \"$@\"\n",
        );
        Limit
    }

    /// The load balancer with no more than that from its start on.
    fn command(&self, bytes: u64) -> String {
        fs::write(format!("{GROUP}/memory.max"), bytes.to_string()).unwrap();
        format!("sh /run/in-group {BINARY}")
    }

    /// Leaves one that runs so much more than it has.
    fn leave(&self, more: u64) {
        let used = fs::read_to_string(format!("{GROUP}/memory.current")).unwrap();
        let used: u64 = used.trim().parse().unwrap();
        fs::write(format!("{GROUP}/memory.max"), (used + more).to_string()).unwrap();
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        // Who ran in it may still be ending.
        for _ in 0..50 {
            if !Path::new(GROUP).exists() || fs::remove_dir(GROUP).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// Two backends and eight source addresses, of which each takes 4.3 MiB, and 2 MiB where
/// flows are counted.
fn config(lab: &Lab, counted: bool) -> String {
    let sources: Vec<String> = SOURCES.map(|n| format!("'10.0.0.{n}'")).collect();
    let text = format!(
        "flow_counters = {counted}\n[[service]]\nlisten = '{LB}:80'\nsource = [{}]\n\
         backend = [{{ address = '10.0.0.2' }}, {{ address = '10.0.0.3' }}]\n",
        sources.join(", ")
    );
    lab.write("large.toml", &text)
}

fn hold_sources(lab: &Lab) {
    for n in SOURCES {
        lab.at("lb", &format!("ip addr add 10.0.0.{n}/24 dev eth0"));
    }
}

#[test]
fn a_start_that_is_refused_memory_says_how_much_and_leaves_nothing() {
    let test = "a_start_that_is_refused_memory_says_how_much_and_leaves_nothing";
    let Some(lab) = lab(test) else { return };
    hold_sources(&lab);
    let file = config(&lab, false);
    let limit = Limit::new(&lab);
    let refused = lab.try_at("lb", &format!("{} run -c {file}", limit.command(24 * MIB)));
    let line = refusal(&refused, 1);
    println!("{line}");
    assert!(line.contains(WORDS), "{line}");
    assert!(!line.contains("attaching"), "{line}");
    assert_eq!(lab.attached(), None);
    let left = lab.at("lb", "find /sys/fs/bpf");
    assert!(!left.contains("xdp-proxy/"), "{left}");
    // The mend that was named.
    let lb = lab.balance_by(&format!("{} run -c {file}", limit.command(200 * MIB)));
    Clients::open(&lab).go_on(&lab);
    lb.end();
}

#[test]
fn a_reload_that_is_refused_memory_changes_nothing_and_works_once_there_is_room() {
    let test = "a_reload_that_is_refused_memory_changes_nothing_and_works_once_there_is_room";
    let Some(lab) = lab(test) else { return };
    hold_sources(&lab);
    let file = config(&lab, false);
    let limit = Limit::new(&lab);
    let lb = lab.balance_by(&format!("{} run -c {file}", limit.command(200 * MIB)));
    let mut kept = Clients::open(&lab);
    let program = lab.status()["program_id"].clone();
    config(&lab, true);
    limit.leave(6 * MIB);
    for _ in 0..3 {
        let line = refusal(&lab.proxy("reload"), 1);
        assert!(line.contains(WORDS), "{line}");
        kept.go_on(&lab);
    }
    println!("{}", told(&lb, "not reloaded, nothing was changed: "));
    assert_eq!(lab.status()["program_id"], program);
    limit.leave(100 * MIB);
    lab.at("lb", &format!("{BINARY} reload"));
    assert_ne!(lab.status()["program_id"], program);
    kept.go_on(&lab);
    lb.end();
    assert_eq!(lab.attached(), None);
}
