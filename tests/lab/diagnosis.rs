// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! ping and traceroute see the load balancer as they see any router and host.

use crate::common::echo::Echo;
use crate::common::lab::{HOSTS, Lab};

/// An address that `lb` does not hold, which is routed to it, and one that it holds.
const ROUTED: [&str; 2] = ["10.0.1.5", "fd00:1::5"];
const HELD: [&str; 2] = ["10.0.0.5", "fd00::5"];

/// HTTP, and an echo of datagrams, on each of the VIPs.
fn services() -> String {
    let service = |vip: &str, port: &str| {
        let (vip, backend) = match vip.contains(':') {
            true => (format!("[{vip}]"), "fd00::2"),
            false => (vip.into(), "10.0.0.2"),
        };
        format!("[[service]]\nlisten = '{vip}:{port}'\nbackend = [{{ address = '{backend}' }}]\n")
    };
    let vips = ROUTED.into_iter().chain(HELD);
    vips.map(|vip| service(vip, "80") + &service(vip, "7/udp"))
        .collect()
}

fn route(lab: &Lab, host: &str) {
    lab.at(host, "ip route add 10.0.1.5 via 10.0.0.5");
    lab.at(host, "ip route add fd00:1::5 via fd00::5");
}

fn echo_replies(lab: &Lab) -> u64 {
    let status = lab.status();
    status["packets"]["sent"]["echo_reply"].as_u64().unwrap()
}

fn answers_pings(lab: &Lab, mode: &str) {
    let config = lab.write("ping.toml", &services());
    route(lab, "client");
    let lb = lab.balance(&format!("-i eth0 --mode {mode} -c {config}"));
    for vip in ROUTED {
        let before = echo_replies(lab);
        for line in [
            format!("ping -n -c 5 -i 0.05 -W 1 {vip}"),
            format!("ping -n -c 5 -i 0.05 -W 1 -s 1400 -p 5a {vip}"),
        ] {
            let words = lab.at("client", &line);
            assert!(words.contains(" 0% packet loss"), "{words}");
            assert!(!words.contains("wrong data"), "{words}");
        }
        assert_eq!(echo_replies(lab) - before, 10, "{vip}");
    }
    // The host itself answers for its own addresses.
    let before = echo_replies(lab);
    for vip in HELD {
        lab.at("client", &format!("ping -n -c 5 -i 0.05 -W 1 {vip}"));
    }
    assert_eq!(echo_replies(lab), before);
    lab.checksums_were_right(&HOSTS);
    lb.end();
}

#[test]
fn a_ping_to_a_vip_is_answered_whoever_holds_it() {
    if let Some(lab) = crate::lab("a_ping_to_a_vip_is_answered_whoever_holds_it") {
        answers_pings(&lab, "generic");
    }
}

#[test]
fn a_ping_to_a_vip_is_answered_in_native_mode() {
    if let Some(lab) = crate::lab("a_ping_to_a_vip_is_answered_in_native_mode") {
        lab.script("native");
        answers_pings(&lab, "native");
    }
}

/// Who answered at each hop.
fn hops(lab: &Lab, host: &str, options: &str) -> Vec<String> {
    let line = format!("traceroute -n -q 1 -N 1 -w 2 -m 6 {options}");
    let words = lab.at(host, &line);
    println!("{host}: {words}");
    let hops = words.lines().skip(1);
    hops.map(|line| line.split_whitespace().nth(1).unwrap().to_owned())
        .collect()
}

#[test]
fn traceroute_shows_the_load_balancer_and_the_routers_before_it() {
    let Some(lab) = crate::lab("traceroute_shows_the_load_balancer_and_the_routers_before_it")
    else {
        return;
    };
    lab.script("add_far");
    for host in ["client", "router"] {
        route(&lab, host);
    }
    let addresses = ["10.0.0.2:7", "[fd00::2]:7"];
    let _servers = addresses.map(|address| Echo::start(&lab, "http1", address));
    let config = lab.write("trace.toml", &services());
    let lb = lab.balance(&format!("-i eth0 -c {config}"));
    for (vip, routers) in [
        (ROUTED[0], ["10.8.0.254", "10.7.0.1"]),
        (HELD[0], ["10.8.0.254", "10.7.0.1"]),
        (ROUTED[1], ["fd08::254", "fd07::1"]),
        (HELD[1], ["fd08::254", "fd07::1"]),
    ] {
        for how in ["-T -p 80", "-U -p 7"] {
            // The load balancer's own hop, then the backend's answer.
            let options = format!("{how} {vip}");
            assert_eq!(hops(&lab, "client", &options), [vip, vip]);
            assert_eq!(
                hops(&lab, "far", &options),
                [routers[0], routers[1], vip, vip]
            );
        }
    }
    lab.checksums_were_right(&["client", "far", "router", "lb"]);
    lb.end();
}

#[test]
fn traceroute_shows_no_router_behind_the_load_balancer() {
    let Some(lab) = crate::lab("traceroute_shows_no_router_behind_the_load_balancer") else {
        return;
    };
    lab.script("add_far; serve far");
    let addresses = ["10.8.0.1:7", "[fd08::1]:7"];
    let _servers = addresses.map(|address| Echo::start(&lab, "far", address));
    let config = services()
        .replace("'10.0.0.2'", "'10.8.0.1'")
        .replace("'fd00::2'", "'fd08::1'");
    let config = lab.write("trace.toml", &config);
    route(&lab, "client");
    let lb = lab.balance(&format!("-i eth0 -c {config}"));
    for vip in ROUTED.into_iter().chain(HELD) {
        for how in ["-T -p 80", "-U -p 7"] {
            // Itself, the two routers whose errors it translates, the backend.
            let seen = hops(&lab, "client", &format!("{how} {vip}"));
            assert_eq!(seen, [vip; 4]);
        }
        // What the router says of the narrow cable reaches a sender of datagrams too.
        let line = format!("traceroute --mtu -n -q 1 -N 1 -w 2 -m 6 -U -p 7 {vip}");
        let words = lab.at("client", &line);
        assert!(words.contains("F=1280"), "{words}");
    }
    lab.checksums_were_right(&["client", "far", "router", "lb"]);
    lb.end();
}
