// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! An interface gets another name while it is served.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::common::lab::{BINARY, Balancer, Lab, TWO, refusal};
use crate::common::load::Clients;
use crate::faults::told;

const PATIENCE: Duration = Duration::from_secs(5);

/// Older kernels rename only what is down.
fn rename(lab: &Lab, from: &str, to: &str) {
    lab.script(&format!(
        "ip -n lb link set {from} down
         ip -n lb link set {from} name {to}
         ip -n lb link set {to} up"
    ));
}

#[test]
fn a_renamed_interface_is_found_by_its_new_name_and_loses_no_flow() {
    let test = "a_renamed_interface_is_found_by_its_new_name_and_loses_no_flow";
    let Some(lab) = crate::lab(test) else { return };
    let lb = lab.balance(TWO);
    let mut kept = Clients::open(&lab);
    let program = lab.status()["program_id"].clone();
    let serves_on = |lb: &Balancer, name: &str| {
        lb.until("serving by the new name", |status| {
            let backends = status["services"][0]["backends"].as_array().unwrap();
            status["interface"] == name && backends.iter().all(|backend| backend["state"] == "up")
        });
    };
    rename(&lab, "eth0", "wan0");
    told(&lb, "eth0 is called wan0 now");
    serves_on(&lb, "wan0");
    kept.go_on(&lab);
    let status = lab.at("lb", &format!("{BINARY} status -i wan0"));
    assert!(
        status.starts_with(&format!("wan0 (generic), program {program}, pid ")),
        "{status}"
    );
    let gone = refusal(&lab.proxy("status -i eth0"), 1);
    assert!(gone.contains("no interface \"eth0\""), "{gone}");
    let second = refusal(&lab.proxy(&format!("run -i wan0 {TWO}")), 1);
    assert!(
        second.contains("another xdp-proxy runs on wan0"),
        "{second}"
    );

    // The next daemon finds it, and what it is called then.
    let next = lab.balance(&format!("--take-over {TWO}"));
    assert!(
        next.ready.starts_with("ready: wan0 (generic) "),
        "{}",
        next.ready
    );
    assert_eq!(lb.wait().code(), Some(0));
    rename(&lab, "wan0", "eth0");
    told(&next, "wan0 is called eth0 now");
    serves_on(&next, "eth0");
    kept.go_on(&lab);
    assert_eq!(
        lab.at("lb", &format!("{BINARY} stop -i eth0")),
        "stopped: eth0\n"
    );
    assert_eq!(next.wait().code(), Some(0));
    assert_eq!(lab.attached(), None);
}

/// Each of two daemons goes with its interface, whoever had the name before.
#[test]
fn interfaces_that_exchange_their_names_keep_their_daemons() {
    let test = "interfaces_that_exchange_their_names_keep_their_daemons";
    let Some(lab) = crate::lab(test) else { return };
    lab.script(
        "ip -n switch link add lb2 type veth peer name eth1 netns lb
         ip -n switch link set lb2 master br0 up
         ip -n lb addr add 10.0.0.6/24 dev eth1
         ip -n lb link set eth1 up",
    );
    let first = lab.balance(&format!("-i eth0 {TWO}"));
    let second = lab.balance("-i eth1 --listen 10.0.0.6:80 --backend 10.0.0.2");
    // What the daemon says that clients reach by each name.
    let served = |names: [&str; 2]| {
        names.map(|name| {
            let status = lab.proxy(&format!("status --json -i {name}")).stdout;
            let status: Value = serde_json::from_slice(&status).unwrap_or_default();
            [&status["interface"], &status["pid"], &status["program_id"]].map(Value::clone)
        })
    };
    let [mut one, mut other] = served(["eth0", "eth1"]);
    assert!(one[1].is_u64() && other[1].is_u64(), "{one:?}, {other:?}");
    rename(&lab, "eth0", "other");
    rename(&lab, "eth1", "eth0");
    rename(&lab, "other", "eth1");
    told(&first, " is called eth1 now");
    told(&second, "eth1 is called eth0 now");
    (one[0], other[0]) = ("eth1".into(), "eth0".into());
    let wanted = [one, other];
    // One may have to wait for the other's name.
    let begun = Instant::now();
    while served(["eth1", "eth0"]) != wanted {
        assert!(begun.elapsed() < PATIENCE, "{:?}", served(["eth1", "eth0"]));
    }
    first.end();
    second.end();
}
