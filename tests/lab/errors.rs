// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! What keeps it from serving, in one line, with nothing attached.

use std::fs;

use super::faults::told;
use crate::common::http;
use crate::common::lab::{BINARY, LB, TWO, refusal};

#[test]
fn an_interface_that_cannot_be_used_is_named() {
    let Some(lab) = crate::lab("an_interface_that_cannot_be_used_is_named") else {
        return;
    };
    let cases = [
        (format!("run -i eth7 {TWO}"), 1, vec!["eth7", "lo, eth0"]),
        (format!("run -i lo {TWO}"), 1, vec!["lo", "-i"]),
        (format!("run -i a/b {TWO}"), 2, vec!["a/b", "ip link"]),
        (
            "run --listen 10.0.0.5:80 --backend 172.16.0.1 -i eth9".into(),
            1,
            vec!["eth9"],
        ),
        (
            "run --listen 192.0.2.1:80 --backend 172.16.0.1".into(),
            1,
            vec!["192.0.2.1", "172.16.0.1", "-i"],
        ),
    ];
    for (arguments, code, needles) in cases {
        let error = refusal(&lab.proxy(&arguments), code);
        println!("{error}");
        for needle in needles {
            assert!(error.contains(needle), "{needle}: {error}");
        }
    }
    assert_eq!(lab.attached(), None);
}

#[test]
fn without_privilege_it_says_what_it_needs() {
    let Some(lab) = crate::lab("without_privilege_it_says_what_it_needs") else {
        return;
    };
    let as_nobody = format!("setpriv --reuid 65534 --regid 65534 --clear-groups {BINARY}");
    let error = refusal(&lab.try_at("lb", &format!("{as_nobody} run {TWO}")), 1);
    println!("{error}");
    assert!(
        error.contains("NET_ADMIN") && error.contains("root"),
        "{error}"
    );
    assert_eq!(lab.attached(), None);
    // Configuration goes before privilege, and needs none.
    refusal(
        &lab.try_at("lb", &format!("{as_nobody} run --listen x --backend y")),
        2,
    );
    lab.at("lb", &format!("{as_nobody} check {TWO}"));

    // With just the capabilities that it names, it works.
    let caps =
        "--inh-caps=-all,+net_admin,+bpf,+perfmon --bounding-set=-all,+net_admin,+bpf,+perfmon";
    let lb = lab.balance_by(&format!("setpriv {caps} {BINARY} run {TWO}"));
    lab.within("client", || http::host(LB).unwrap());
    let error = refusal(&lab.try_at("lb", &format!("{as_nobody} stop")), 1);
    println!("{error}");
    assert!(lab.attached().is_some());
    lab.within("client", || http::host(LB).unwrap());
    lb.end();
    assert_eq!(lab.attached(), None);
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let Some(lab) = crate::lab("a_file_that_cannot_be_read_is_named") else {
        return;
    };
    let closed = lab.write("closed.toml", "");
    fs::set_permissions(
        lab.path(&closed),
        std::os::unix::fs::PermissionsExt::from_mode(0o600),
    )
    .unwrap();
    let line =
        format!("setpriv --reuid 65534 --regid 65534 --clear-groups {BINARY} check -c {closed}");
    let error = refusal(&lab.try_at("lb", &line), 2);
    assert!(
        error.contains(&closed) && error.contains("permission"),
        "{error}"
    );
}

#[test]
fn an_interface_that_is_down_is_served_once_it_is_up() {
    let Some(lab) = crate::lab("an_interface_that_is_down_is_served_once_it_is_up") else {
        return;
    };
    lab.at("lb", "ip link set eth0 down");
    let lb = lab.balance(&format!("-i eth0 {TWO}"));
    println!("{}\n{}", lb.ready, lb.log());
    assert!(lb.ready.ends_with("-> 0 of 2 backends"), "{}", lb.ready);
    lab.at("lb", "ip link set eth0 up");
    lb.until("up", |status| {
        let backends = status["services"][0]["backends"].as_array().unwrap();
        backends.iter().all(|backend| backend["state"] == "up")
    });
    lab.within("client", || {
        (0..20).for_each(|_| drop(http::host(LB).unwrap()))
    });
    lb.end();
}

#[test]
fn nothing_runs_is_an_error_of_status_and_stop() {
    let Some(lab) = crate::lab("nothing_runs_is_an_error_of_status_and_stop") else {
        return;
    };
    for arguments in [
        "status",
        "status --json",
        "status -i eth0",
        "stop",
        "stop -i eth0",
    ] {
        let error = refusal(&lab.proxy(arguments), 1);
        assert!(
            error.contains("no xdp-proxy runs") && error.contains("xdp-proxy run"),
            "{error}"
        );
    }
    let error = refusal(&lab.proxy("stop -i eth7"), 1);
    println!("{error}");
    assert!(error.contains("eth7"), "{error}");
}

#[test]
fn status_tells_what_the_documentation_promises() {
    let Some(lab) = crate::lab("status_tells_what_the_documentation_promises") else {
        return;
    };
    let lb = lab.balance(TWO);
    lab.within("client", || {
        (0..10).for_each(|_| drop(http::host(LB).unwrap()))
    });
    let status = lab.status();
    for path in [
        "/interface",
        "/mode",
        "/program_id",
        "/pid",
        "/uptime_seconds",
        "/flows_capacity",
        "/packets/received",
        "/packets/passed",
        "/packets/sent/forwarded",
        "/packets/sent/snat_exhausted",
        "/packets/dropped/malformed",
        "/services/0/name",
        "/services/0/listen",
        "/services/0/forwarding",
        "/services/0/scheduler",
        "/services/0/flows",
        "/services/0/flows_begun",
        "/services/0/forwarded_packets",
        "/services/0/forwarded_bytes",
        "/services/0/returned_packets",
        "/services/0/returned_bytes",
        "/services/0/backends/1/address",
        "/services/0/backends/1/weight",
        "/services/0/backends/1/state",
        "/services/0/backends/1/mac",
        "/services/0/backends/1/next_hop",
        "/services/0/backends/1/sources/0",
        "/services/0/backends/1/flows",
        "/services/0/backends/1/flows_begun",
        "/services/0/backends/1/forwarded_bytes",
        "/services/0/backends/1/returned_bytes",
    ] {
        let value = status.pointer(path);
        assert!(
            value.is_some_and(|value| !value.is_null()),
            "{path}: {status:#}"
        );
    }
    assert_eq!(status["services"][0]["flows_begun"], 10);
    assert_eq!(status["program_id"], lab.attached().unwrap()["prog"]["id"]);
    let plain = lab.at("lb", &format!("{BINARY} status -i eth0"));
    for needle in [
        "eth0 (generic)",
        "10.0.0.5:80/tcp",
        "10.0.0.2:80",
        "10.0.0.3:80",
        "up",
        "passed",
    ] {
        assert!(plain.contains(needle), "{needle}: {plain}");
    }
    lb.end();
}

/// As keepalived makes one with `use_vmac`.
#[test]
fn a_vip_that_clients_would_be_refused_at_is_refused_with_the_mend() {
    let test = "a_vip_that_clients_would_be_refused_at_is_refused_with_the_mend";
    let Some(lab) = crate::lab(test) else { return };
    let macvlan = |there: bool| {
        match there {
        true => lab.script(
            "ip -n lb link add link eth0 name vrrp.51 address 00:00:5e:00:01:33 type macvlan mode private
             ip -n lb link set vrrp.51 up
             ip -n lb addr add 10.0.0.9/32 dev vrrp.51",
        ),
        false => lab.at("lb", "ip link del vrrp.51"),
    }
    };
    let nine = "--listen 10.0.0.9:80 --backend 10.0.0.2";
    let mend = "keepalived: without `use_vmac`";
    macvlan(true);
    for (arguments, needles) in [
        (
            format!("run -i eth0 {nine}"),
            ["10.0.0.9 is on vrrp.51", mend],
        ),
        (
            format!("run {nine}"),
            ["backends are reached through eth0", mend],
        ),
        (
            "run -i eth0 --listen 10.0.0.255:80 --backend 10.0.0.2".into(),
            ["10.0.0.255 is a broadcast", "one host"],
        ),
    ] {
        let error = refusal(&lab.proxy(&arguments), 1);
        println!("{error}");
        assert!(
            needles.iter().all(|needle| error.contains(needle)),
            "{error}"
        );
    }
    assert_eq!(lab.attached(), None);

    // It comes later, when the other router dies.
    macvlan(false);
    let file = lab.write(
        "vip.toml",
        "[[service]]\nlisten = '10.0.0.9:80'\nbackend = [{ address = '10.0.0.2' }]\n",
    );
    let lb = lab.balance(&format!("-i eth0 -c {file}"));
    macvlan(true);
    let line = told(&lb, "10.0.0.9 is on vrrp.51");
    assert!(line.contains("ERROR") && line.contains(mend), "{line}");
    let error = refusal(&lab.proxy("reload"), 1);
    assert!(error.contains("10.0.0.9 is on vrrp.51"), "{error}");
    // The mend, as it is written.
    macvlan(false);
    lab.at("lb", "ip addr add 10.0.0.9/32 dev eth0");
    told(&lb, "VIP 10.0.0.9 is no more on a device with another MAC");
    lab.at("lb", &format!("{BINARY} reload"));
    lab.within("client", || http::host("10.0.0.9").unwrap());
    lb.end();
}
