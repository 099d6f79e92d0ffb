// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The way to the backends: nobody types a MAC.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::common::http::{self, Connection};
use crate::common::lab::{LB, Lab, TWO};

/// One lost SYN more or less is none of the load balancer's doing.
const HASTE: Duration = Duration::from_millis(150);

fn answers(lab: &Lab, count: usize) -> BTreeSet<String> {
    lab.within("client", || {
        (0..count).map(|_| http::host(LB).unwrap()).collect()
    })
}

fn names(hosts: &[&str]) -> BTreeSet<String> {
    hosts.iter().map(|host| (*host).to_owned()).collect()
}

fn backend(status: &Value, index: usize) -> &Value {
    &status["services"][0]["backends"][index]
}

#[test]
fn a_backend_whose_mac_changes_is_reached_again() {
    let Some(lab) = crate::lab("a_backend_whose_mac_changes_is_reached_again") else {
        return;
    };
    let lb = lab.balance("--listen 10.0.0.5:80 --backend 10.0.0.2");
    let mut held = lab.within("client", || Connection::open(LB).unwrap());
    assert_eq!(held.host().unwrap(), "http1");
    for round in 1..=5 {
        // Any moment between two questions of the daemon.
        std::thread::sleep(Duration::from_millis(400 + round * 170));
        let mac = format!("02:00:00:00:02:{round:02x}");
        lab.at("http1", &format!("ip link set eth0 address {mac}"));
        let start = Instant::now();
        lab.within("client", || {
            while Connection::open_within(LB, HASTE)
                .and_then(|mut c| c.host())
                .is_err()
            {
                assert!(
                    start.elapsed() < Duration::from_secs(5),
                    "not reached again"
                );
            }
        });
        println!("reached by the new MAC after {:.0?}", start.elapsed());
        assert_eq!(backend(&lab.status(), 0)["mac"], mac);
    }
    assert_eq!(
        held.host().unwrap(),
        "http1",
        "the connection that was held"
    );
    lb.end();
}

#[test]
fn a_backend_behind_a_router_is_reached_by_the_routers_mac() {
    let Some(lab) = crate::lab("a_backend_behind_a_router_is_reached_by_the_routers_mac") else {
        return;
    };
    lab.script(
        "ADDRESS[router]=10.0.0.254; add_host router; add_namespace far
         ip -n router link add eth1 type veth peer name eth0 netns far
         ip -n router addr add 10.9.0.254/24 dev eth1
         ip -n router link set eth1 up
         ip netns exec router sysctl -qw net.ipv4.ip_forward=1
         ip -n far addr add 10.9.0.1/24 dev eth0
         ip -n far link set eth0 up
         ip -n far route add default via 10.9.0.254
         ip -n lb route add 10.9.0.0/24 via 10.0.0.254
         serve far",
    );
    let lb = lab.balance("--listen 10.0.0.5:80 --backend 10.9.0.1 --backend 10.0.0.2");
    let router = lab.at("router", "cat /sys/class/net/eth0/address");
    let status = lab.status();
    assert_eq!(backend(&status, 0)["mac"], router.trim());
    assert_eq!(backend(&status, 0)["next_hop"], "10.0.0.254");
    assert_eq!(answers(&lab, 50), names(&["far", "http1"]));
    lab.within("client", || {
        let mut connection = Connection::open(LB).unwrap();
        for _ in 0..20 {
            connection.get("/1m").unwrap();
        }
    });

    lab.at("router", "ip link set eth0 address 02:00:00:00:03:01");
    let start = Instant::now();
    lb.until("by the new MAC", |status| {
        backend(status, 0)["mac"] == "02:00:00:00:03:01"
    });
    println!(
        "the router's new MAC was taken after {:.0?}",
        start.elapsed()
    );
    assert_eq!(answers(&lab, 50), names(&["far", "http1"]));
    lb.end();
}

#[test]
fn an_address_nobody_answers_for_gets_no_flows_until_somebody_does() {
    let test = "an_address_nobody_answers_for_gets_no_flows_until_somebody_does";
    let Some(lab) = crate::lab(test) else {
        return;
    };
    let lb = lab.balance(&format!("{TWO} --backend 10.0.0.6:80"));
    assert_eq!(
        lb.ready,
        "ready: eth0 (generic) 10.0.0.5:80/tcp -> 2 of 3 backends"
    );
    assert!(lb.log().contains("10.0.0.6:80"), "{}", lb.log());
    let status = lab.status();
    assert_eq!(backend(&status, 2)["state"], "unreachable");
    assert_eq!(
        backend(&status, 2)["reason"],
        "nobody answers ARP for 10.0.0.6"
    );
    assert_eq!(answers(&lab, 100), names(&["http1", "http2"]));
    let status = lab.status();
    assert_eq!(backend(&status, 2)["flows_begun"], 0);
    let plain = lab.at("lb", "/run/xdp-proxy status");
    assert!(plain.contains("nobody answers ARP for 10.0.0.6"), "{plain}");

    lab.add_web_server("http3", "10.0.0.6");
    let took = lb.until("up", |status| backend(status, 2)["state"] == "up");
    println!("the late backend got flows after {took:.1?}");
    assert_eq!(answers(&lab, 100), names(&["http1", "http2", "http3"]));

    lab.at("http3", "ip link set eth0 down");
    let took = lb.until("gone", |status| {
        backend(status, 2)["state"] == "unreachable"
    });
    println!("the dead backend was noticed after {took:.1?}");
    assert_eq!(answers(&lab, 100), names(&["http1", "http2"]));
    lb.end();
}

#[test]
fn a_backend_reached_from_another_address_has_flows_from_there_once_the_first_is_gone() {
    let test = "a_backend_reached_from_another_address_has_flows_from_there_once_the_first_is_gone";
    let Some(lab) = crate::lab(test) else {
        return;
    };
    let lb = lab.balance(TWO);
    lab.at("lb", "ip addr add 10.0.0.77/32 dev eth0");
    lab.at("lb", "ip route add 10.0.0.2/32 dev eth0 src 10.0.0.77");
    std::thread::sleep(Duration::from_secs(1));
    // The host still has the address that has ports.
    assert_eq!(answers(&lab, 30), names(&["http1", "http2"]));
    lab.at("lb", "ip addr del 10.0.0.5/24 dev eth0");
    lb.until("moved", |status| {
        backend(status, 0)["source"] == "10.0.0.77"
    });
    lb.until("without http2", |status| {
        backend(status, 1)["state"] == "unreachable" && backend(status, 0)["state"] == "up"
    });
    lab.at("lb", "ip addr add 10.0.0.5/24 dev eth0");
    lb.until("both up", |status| {
        backend(status, 0)["state"] == "up" && backend(status, 1)["state"] == "up"
    });
    assert_eq!(answers(&lab, 30), names(&["http1", "http2"]));
    lb.end();
}

#[test]
fn with_no_backend_alive_clients_are_refused_and_served_once_one_is() {
    let test = "with_no_backend_alive_clients_are_refused_and_served_once_one_is";
    let Some(lab) = crate::lab(test) else {
        return;
    };
    lab.at("http1", "ip link set eth0 down");
    let lb = lab.balance("--listen 10.0.0.5:80 --backend 10.0.0.2");
    assert!(lb.ready.ends_with("-> 0 of 1 backend"), "{}", lb.ready);
    let start = Instant::now();
    let error = lab.within("client", || http::host(LB).unwrap_err());
    println!("refused after {:?}", start.elapsed());
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    lab.at("http1", "ip link set eth0 up");
    lb.until("up", |status| backend(status, 0)["state"] == "up");
    assert_eq!(answers(&lab, 10), names(&["http1"]));
    lb.end();
}
