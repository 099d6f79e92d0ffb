// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! A host of the client's network that forges frames: it knows a flow's addresses and
//! ports, and not its numbers.

use std::net::{SocketAddr, UdpSocket};
use std::thread::sleep;
use std::time::Duration;

use xdp_proxy::service::Protocol;

use crate::common::echo::Echo;
use crate::common::frame::*;
use crate::common::http::Connection;
use crate::common::lab::{HTTP1, LB, Lab};
use crate::common::random::Random;
use crate::common::wire::{Wire, mac};

const SERVED: &str = "
[[service]]
listen = '10.0.0.5:80'
health = { type = 'none' }
timeouts = { closing = '1s' }
backend = [{ address = '10.0.0.2' }]
[[service]]
listen = '10.0.0.5:53/udp'
health = { type = 'none' }
backend = [{ address = '10.0.0.2' }]
";
/// So many of each; one in 16,384 would be near a flow's numbers.
const FORGED: usize = 200;

/// The stranger, and whom he sends to.
struct Stranger {
    wire: Wire,
    macs: ([u8; 6], [u8; 6]),
    random: Random,
}

impl Stranger {
    fn on(lab: &Lab, host: &str) -> Stranger {
        Stranger {
            wire: lab.within(host, Wire::open),
            macs: (mac(lab, host), mac(lab, "lb")),
            random: Random(11),
        }
    }

    fn word(&mut self) -> u32 {
        self.random.word() as u32
    }

    /// Segments with these flags and any numbers, half of them with a wrong sum.
    fn send_segments(&mut self, from: SocketAddr, to: SocketAddr, flags: u8) {
        for number in 0..FORGED {
            let mut frame = Frame::new(Protocol::Tcp, self.macs, from, to);
            set_flags(frame.tcp(), flags);
            frame.tcp().sequence_number = self.word();
            frame.tcp().acknowledgment_number = self.word();
            let mut bytes = frame.bytes(Sum::Complete);
            let sum = frame.transport_at() + 16;
            bytes[sum] ^= (number % 2) as u8;
            self.wire.send(&[bytes]);
        }
    }

    /// Errors which say that no more than 552 bytes get from `from` to `to`.
    fn narrow_path(&mut self, protocol: Protocol, from: SocketAddr, to: SocketAddr) {
        for _ in 0..FORGED {
            let mut about = Frame::new(protocol, self.macs, from, to);
            about.payload = pattern(1000);
            if protocol == Protocol::Tcp {
                set_flags(about.tcp(), ACK);
                about.tcp().sequence_number = self.word();
            }
            let told = Icmp(
                3,
                4,
                [0, 0, 552_u16.to_be_bytes()[0], 552_u16.to_be_bytes()[1]],
            );
            let mut error = Frame::icmp(self.macs, to.ip(), from.ip(), told);
            error.payload = about.packet(Sum::Complete)[..28].to_vec();
            self.wire.send(&[error.bytes(Sum::Complete)]);
        }
    }
}

fn vip(port: u16) -> SocketAddr {
    (LB.parse::<std::net::IpAddr>().unwrap(), port).into()
}

#[test]
fn a_stranger_ends_no_connection_that_is_idle() {
    let Some(lab) = crate::lab("a_stranger_ends_no_connection_that_is_idle") else {
        return;
    };
    let config = lab.write("forged.toml", SERVED);
    let lb = lab.balance(&format!("-c {config}"));
    let mut connection = lab.within("client", || Connection::open(LB).unwrap());
    assert_eq!(connection.host().unwrap(), "http1");
    let client: SocketAddr = format!("10.0.0.4:{}", connection.local_port())
        .parse()
        .unwrap();
    let flows = || lab.status()["services"][0]["flows"].as_u64().unwrap();
    let before = lab.at("lb", "/run/xdp-proxy flows --json");

    let mut stranger = Stranger::on(&lab, "http2");
    for flags in [RST, RST | ACK, FIN | ACK, SYN | ACK, ACK] {
        stranger.send_segments(client, vip(80), flags);
    }
    // Towards the client, as if they were the backend's.
    let port: serde_json::Value = serde_json::from_str(&before).unwrap();
    let source = port["flows"][0]["source"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    let backend = format!("{HTTP1}:80").parse().unwrap();
    for flags in [RST, RST | ACK, FIN | ACK] {
        stranger.send_segments(backend, source, flags);
    }
    // A flow that had been ended would be over by now.
    sleep(Duration::from_millis(2500));
    assert_eq!(flows(), 1);
    assert_eq!(connection.host().unwrap(), "http1");
    lb.end();
}

#[test]
fn a_stranger_lowers_no_path_mtu() {
    let Some(lab) = crate::lab("a_stranger_lowers_no_path_mtu") else {
        return;
    };
    let config = lab.write("forged.toml", SERVED);
    let lb = lab.balance(&format!("-c {config}"));
    let _echo = Echo::start(&lab, "http1", "0.0.0.0:53");
    let mut connection = lab.within("client", || Connection::open(LB).unwrap());
    assert_eq!(connection.host().unwrap(), "http1");
    let tcp: SocketAddr = format!("10.0.0.4:{}", connection.local_port())
        .parse()
        .unwrap();
    let udp = lab.within("client", || {
        let socket = UdpSocket::bind("10.0.0.4:0").unwrap();
        socket.connect((LB, 53)).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        socket.send(b"who").unwrap();
        socket.recv(&mut [0; 9]).unwrap();
        socket.local_addr().unwrap()
    });
    let mut stranger = Stranger::on(&lab, "http2");
    stranger.narrow_path(Protocol::Tcp, vip(80), tcp);
    stranger.narrow_path(Protocol::Udp, vip(53), udp);
    let route = lab.at("http1", "ip route get 10.0.0.5");
    assert!(!route.contains("mtu"), "{route}");
    let dropped = lab.status()["packets"]["dropped"]["unproven"].as_u64();
    assert!(dropped.unwrap() >= 2 * FORGED as u64 - 1, "{dropped:?}");
    assert_eq!(connection.host().unwrap(), "http1");
    lb.end();
}
