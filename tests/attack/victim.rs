// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Who forges the address of a victim has little sent there.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use xdp_proxy::service::Protocol;

use crate::common::frame::{Frame, Sum};
use crate::common::lab::Lab;
use crate::common::wire::{Wire, mac};

const FORGED: u64 = 20_000;
const BATCH: u64 = 100;
/// At once, as Linux has it; then one a second.
const BURST: u64 = 6;
const VICTIMS: [&str; 2] = ["10.0.0.77", "fd00::77"];

/// One service whose backend answers, and one that has none, for either family.
const SERVICES: &str = "
[[service]]
listen = '10.0.0.5:7/udp'
backend = [{ address = '10.0.0.2' }]
[[service]]
listen = '[fd00::5]:7/udp'
backend = [{ address = 'fd00::2' }]
[[service]]
listen = '10.0.0.5:9/udp'
backend = [{ address = '10.0.0.99' }]
[[service]]
listen = '[fd00::5]:9/udp'
backend = [{ address = 'fd00::99' }]
";

/// ICMP errors that a host was sent so far.
fn told(lab: &Lab, host: &str) -> u64 {
    let names = [
        "IcmpInTimeExcds",
        "IcmpInDestUnreachs",
        "Icmp6InTimeExcds",
        "Icmp6InDestUnreachs",
    ];
    names.iter().map(|name| lab.counter(host, name)).sum()
}

/// From the victim's address, by this port.
fn forged(lab: &Lab, victim: &str, port: u16, hops: u8) -> Vec<u8> {
    let victim: IpAddr = victim.parse().unwrap();
    let vip: IpAddr = match victim {
        IpAddr::V4(_) => "10.0.0.5".parse().unwrap(),
        IpAddr::V6(_) => "fd00::5".parse().unwrap(),
    };
    let macs = (mac(lab, "victim"), mac(lab, "lb"));
    let ends = [SocketAddr::new(victim, 5000), SocketAddr::new(vip, port)];
    let mut frame = Frame::new(Protocol::Udp, macs, ends[0], ends[1]);
    *frame.hops() = hops;
    frame.payload = vec![7; 100];
    frame.bytes(Sum::Complete)
}

#[test]
fn a_victim_is_told_no_more_of_what_it_did_not_send_than_by_any_host() {
    let test = "a_victim_is_told_no_more_of_what_it_did_not_send_than_by_any_host";
    let Some(lab) = crate::lab(test) else {
        return;
    };
    lab.script("ADDRESS[victim]=10.0.0.77; add_host victim");
    let config = lab.write("victim.toml", SERVICES);
    let lb = lab.balance(&format!("-c {config}"));
    // An answer goes to the MAC that a packet came from: that of the router which brings
    // the forged ones, or here that of the victim.
    let wire = lab.within("victim", Wire::open);
    // Time exceeded, then port unreachable.
    for (port, hops) in [(7, 1), (9, 64)] {
        for victim in VICTIMS {
            let frame = forged(&lab, victim, port, hops);
            let before = told(&lab, "victim");
            let started = Instant::now();
            for _ in 0..FORGED / BATCH {
                wire.send(&vec![&frame; BATCH as usize]);
            }
            let count = told(&lab, "victim") - before;
            let most = BURST + started.elapsed().as_secs() + 1;
            println!("{victim}: {count} errors for {FORGED} forged datagrams to port {port}");
            assert!((BURST..=most).contains(&count), "{count}, not {most}");
        }
        // What was sent is forgotten.
        std::thread::sleep(Duration::from_secs(BURST));
    }
    let status = lab.status();
    let limited = status["packets"]["dropped"]["icmp_limit"].as_u64().unwrap();
    println!("{limited} were not told");
    assert!(limited > 4 * FORGED * 9 / 10, "{status:#}");
    // Who is no victim is told meanwhile.
    let words = lab.at("client", "traceroute -n -q 3 -w 2 -m 3 -U -p 7 10.0.0.5");
    assert!(words.contains("10.0.0.5"), "{words}");
    lb.end();
}
