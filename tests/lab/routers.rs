// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Clients behind routers: answers go as the host itself would send them, so that routers
//! die, are replaced and share addresses without a flow's notice. All of it with servers
//! that speak while their clients are silent.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::common::call::{CONFIG, Call, Server};
use crate::common::lab::{BINARY, Lab};

/// `far` behind two routers:
///
///     switch --- r1 10.0.0.251 --- outer --- far 10.9.0.1
///            --- r2 10.0.0.252 ---
///
/// It sends by `r1`, and so does `lb`.
fn behind_two_routers(test: &str) -> Option<Lab> {
    let lab = crate::lab(test)?;
    lab.script(
        "add_namespace outer
         ip -n outer link add br1 type bridge stp_state 0 forward_delay 0 mcast_snooping 0
         ip -n outer link set br1 up
         attach() { # HOST INTERFACE NUMBER
             ip -n outer link add \"$1\" type veth peer name \"$2\" netns \"$1\"
             ip -n outer link set \"$1\" master br1 up
             ip -n \"$1\" addr add \"10.9.0.$3/24\" dev \"$2\"
             ip -n \"$1\" addr add \"fd09::$3/64\" dev \"$2\"
             ip -n \"$1\" link set \"$2\" up
         }
         add_namespace far
         attach far eth0 1
         for number in 1 2; do
             ADDRESS[r$number]=10.0.0.25$number
             add_host r$number
             forward r$number
             attach r$number eth1 25$number
             ip netns exec r$number sysctl -qw net.ipv4.conf.all.rp_filter=0 \\
                 net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.eth0.send_redirects=0
         done
         ip -n far route add default via 10.9.0.251
         ip -n far route add default via fd09::251
         ip -n lb route add 10.9.0.0/24 via 10.0.0.251
         ip -n lb route add fd09::/64 via fd00::251",
    );
    lab.write("proxy.toml", CONFIG);
    Some(lab)
}

/// Nothing goes to `far` by a router, though what comes from it does.
fn closes(lab: &Lab, router: &str) {
    lab.at(router, "ip route add blackhole 10.9.0.1/32");
    lab.at(router, "ip route add blackhole fd09::1/128");
}

fn lead_by(lab: &Lab, router: u8) {
    lab.at(
        "lb",
        &format!("ip route replace 10.9.0.0/24 via 10.0.0.{router}"),
    );
    lab.at(
        "lb",
        &format!("ip route replace fd09::/64 via fd00::{router}"),
    );
}

fn answer_all(calls: &mut [Call]) {
    let took: Vec<Duration> = calls.iter_mut().map(Call::answer).collect();
    println!("answered within {:.0?}", took.iter().max().unwrap());
}

const RUN: &str = "-c /run/proxy.toml";

#[test]
fn a_router_that_dies_and_is_replaced_takes_no_flow_along() {
    let test = "a_router_that_dies_and_is_replaced_takes_no_flow_along";
    let Some(lab) = behind_two_routers(test) else {
        return;
    };
    let lb = lab.balance(RUN);
    let server = Server::start(&lab);
    let mut calls = server.calls_from(&lab, "far");
    answer_all(&mut calls);
    // Another one takes its addresses over, and says so to nobody.
    for line in ["link set eth0 down", "link set eth1 down"] {
        lab.at("r1", &format!("ip {line}"));
    }
    for (device, addresses) in [
        ("eth0", ["10.0.0.251/24", "fd00::251/64"]),
        ("eth1", ["10.9.0.251/24", "fd09::251/64"]),
    ] {
        for address in addresses {
            lab.at("r2", &format!("ip addr add {address} dev {device}"));
        }
    }
    answer_all(&mut calls);
    lab.at("far", "ip neigh flush dev eth0");
    answer_all(&mut server.calls_from(&lab, "far"));
    // Its MAC changes, as that of a virtual router.
    lab.at("r2", "ip link set eth0 address 00:00:5e:00:01:07");
    answer_all(&mut calls);
    lb.end();
}

#[test]
fn a_route_that_changes_takes_its_flows_along() {
    let Some(lab) = behind_two_routers("a_route_that_changes_takes_its_flows_along") else {
        return;
    };
    let lb = lab.balance(RUN);
    let server = Server::start(&lab);
    let mut calls = server.calls_from(&lab, "far");
    lead_by(&lab, 252);
    closes(&lab, "r1");
    answer_all(&mut calls);
    // Each frame of the clients still comes by the other one.
    calls.iter_mut().for_each(Call::ask);
    answer_all(&mut calls);
    answer_all(&mut server.calls_from(&lab, "far"));
    lb.end();
}

#[test]
fn answers_take_the_hosts_way_where_questions_take_another() {
    let test = "answers_take_the_hosts_way_where_questions_take_another";
    let Some(lab) = behind_two_routers(test) else {
        return;
    };
    lead_by(&lab, 252);
    closes(&lab, "r1");
    let lb = lab.balance(RUN);
    let server = Server::start(&lab);
    let mut calls = server.calls_from(&lab, "far");
    answer_all(&mut calls);
    // The next hop is nobody: what the client uses stays.
    lab.at("r1", "ip route del blackhole 10.9.0.1/32");
    lab.at("r1", "ip route del blackhole fd09::1/128");
    lead_by(&lab, 77);
    std::thread::sleep(Duration::from_secs(1));
    let mut calls = server.calls_from(&lab, "far");
    answer_all(&mut calls);
    lb.end();
}

#[test]
fn rules_by_source_lead_answers_as_the_hosts_own() {
    let Some(lab) = behind_two_routers("rules_by_source_lead_answers_as_the_hosts_own") else {
        return;
    };
    closes(&lab, "r1");
    let lb = lab.balance(RUN);
    let server = Server::start(&lab);
    for line in [
        "ip route add default via 10.0.0.252 table 7",
        "ip -6 route add default via fd00::252 table 7",
        "ip rule add from 10.0.0.5 to 10.9.0.0/16 lookup 7 priority 70",
        "ip -6 rule add from fd00::5 to fd09::/16 lookup 7 priority 70",
    ] {
        lab.at("lb", line);
    }
    let mut calls = server.calls_from(&lab, "far");
    answer_all(&mut calls);
    lb.end();
}

#[test]
fn a_daemon_that_follows_another_steers_its_flows() {
    let Some(lab) = behind_two_routers("a_daemon_that_follows_another_steers_its_flows") else {
        return;
    };
    let lb = lab.balance(RUN);
    let server = Server::start(&lab);
    let mut calls = server.calls_from(&lab, "far");
    lb.signal(Signal::SIGKILL);
    lb.wait();
    lead_by(&lab, 252);
    closes(&lab, "r1");
    let lb = lab.balance(RUN);
    answer_all(&mut calls);

    // While none looks, the router gets another MAC: a reload, a take-over.
    lab.at("r2", "ip link set eth0 address 02:00:00:00:03:02");
    lab.at("lb", &format!("{BINARY} reload"));
    answer_all(&mut calls);
    lab.at("r2", "ip link set eth0 address 02:00:00:00:03:03");
    let next = lab.balance(&format!("{RUN} --take-over"));
    assert_eq!(lb.wait().code(), Some(0));
    answer_all(&mut calls);
    answer_all(&mut server.calls_from(&lab, "far"));
    next.end();
}
