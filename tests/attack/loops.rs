// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Packets that say that they come from where their answers would come back to us: one of
//! them must not go round without end.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde_json::Value;
use xdp_proxy::service::Protocol;

use crate::common::echo::Echo;
use crate::common::frame::{Frame, Icmp, SYN, Sum, set_flags};
use crate::common::lab::{Lab, sum};
use crate::common::wire::{Wire, mac};

/// VIPs that are routed to the load balancer, which does not have the latter of each family.
const VIPS: [&str; 4] = ["10.0.0.5", "10.0.1.5", "fd00::5", "fd00:1::5"];
/// A source address that is no VIP, another one of the host, one that it gets while it
/// serves, and of no host.
const OTHERS: [&str; 10] = [
    "10.0.0.10",
    "10.0.0.11",
    "10.0.0.12",
    "10.0.0.255",
    "240.0.0.1",
    "255.255.255.255",
    "fd00::10",
    "fd00::11",
    "fd00::12",
    "::1",
];
/// Of each kind of packet.
const TIMES: u64 = 3;

fn services() -> String {
    let service = |vip: &str| {
        let (vip, backend, source) = match vip.contains(':') {
            true => (format!("[{vip}]"), "fd00::2", "fd00::10"),
            false => (vip.into(), "10.0.0.2", "10.0.0.10"),
        };
        ["7/udp", "7/tcp"].map(|port| {
            format!(
                "[[service]]\nlisten = '{vip}:{port}'\nsource = ['{source}']\n\
                 health = {{ type = 'none' }}\nbackend = [{{ address = '{backend}' }}]\n"
            )
        })
    };
    VIPS.into_iter().flat_map(service).collect()
}

/// From an address to a VIP of the same family, by each protocol.
fn frames(macs: ([u8; 6], [u8; 6]), from: IpAddr, vip: IpAddr) -> Vec<Vec<u8>> {
    let ends = [from, vip].map(|ip| SocketAddr::new(ip, 7));
    let mut udp = Frame::new(Protocol::Udp, macs, ends[0], ends[1]);
    udp.payload = b"round".to_vec();
    let mut tcp = Frame::new(Protocol::Tcp, macs, ends[0], ends[1]);
    set_flags(tcp.tcp(), SYN);
    let kind = if vip.is_ipv4() { 8 } else { 128 };
    let echo = Frame::icmp(macs, from, vip, Icmp(kind, 0, [1, 2, 3, 4]));
    // Its time is over: an error would go back.
    let mut late = udp.clone();
    *late.hops() = 1;
    let all = [udp, tcp, echo, late];
    all.map(|frame| frame.bytes(Sum::Complete)).into()
}

fn packets(lab: &Lab) -> Value {
    lab.status()["packets"].clone()
}

#[test]
fn no_packet_goes_round_without_end() {
    let Some(lab) = crate::lab("no_packet_goes_round_without_end") else {
        return;
    };
    // A router that brings answers to these addresses back.
    lab.script("ADDRESS[router]=10.0.0.254; add_host router; forward router");
    for (network, gateway) in [("10.0.1.0/24", "10.0.0.5"), ("fd00:1::/64", "fd00::5")] {
        lab.at("router", &format!("ip route add {network} via {gateway}"));
    }
    for address in [
        "10.0.0.10/32",
        "10.0.0.11/32",
        "fd00::10/128",
        "fd00::11/128",
    ] {
        lab.at("lb", &format!("ip addr add {address} dev eth0"));
    }
    let _echoes = ["10.0.0.2:7", "[fd00::2]:7"].map(|at| Echo::start(&lab, "http1", at));
    let config = lab.write("loops.toml", &services());
    let lb = lab.balance(&format!("-i eth0 -c {config}"));
    for address in ["10.0.0.12/32", "fd00::12/128"] {
        lab.at("lb", &format!("ip addr add {address} dev eth0"));
    }
    // The daemon hears of it.
    std::thread::sleep(Duration::from_secs(1));

    let wire = lab.within("router", Wire::open);
    let macs = (mac(&lab, "router"), mac(&lab, "lb"));
    let parse = |text: &str| text.parse::<IpAddr>().unwrap();
    for vip in VIPS.map(parse) {
        let froms = VIPS.into_iter().chain(OTHERS).map(parse);
        for from in froms.filter(|from| from.is_ipv4() == vip.is_ipv4()) {
            let mut frames = frames(macs, from, vip);
            if ["10.0.0.5", "fd00::5"].map(parse).contains(&vip) {
                // The host's own answer to an echo request is its own affair.
                frames.remove(2);
            }
            let before = packets(&lab);
            for _ in 0..TIMES {
                wire.send(&frames);
            }
            std::thread::sleep(Duration::from_millis(50));
            let after = packets(&lab);
            let martians = |packets: &Value| packets["dropped"]["martian"].as_u64().unwrap();
            let sent = frames.len() as u64 * TIMES;
            let counted = martians(&after) - martians(&before);
            assert_eq!(counted, sent, "{from} to {vip}: {after:#}");
            let went = sum(&after["sent"]) - sum(&before["sent"]);
            assert_eq!(went, 0, "{from} to {vip}: {after:#}");
        }
    }
    println!("{:#}", packets(&lab));
    // Who has an address of his own is served.
    let client = lab.within("client", || {
        std::net::UdpSocket::bind("10.0.0.4:7").unwrap()
    });
    client
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    client.send_to(b"word", "10.0.0.5:7").unwrap();
    assert_eq!(client.recv(&mut [0; 16]).unwrap(), 4);
    lb.end();
}
