// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The programs that are tested: what they serve, and how they are set.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use xdp_proxy::abi;
use xdp_proxy::datapath::Settings;
use xdp_proxy::service::{PortRanges, Protocol, Service, Timeouts};

use crate::common::rig::*;
use crate::wire;

/// So few that they run out.
pub const PORTS: std::ops::RangeInclusive<u16> = 2000..=2063;

pub const HOUR: Duration = Duration::from_secs(3600);
/// In half hours, so that no flow is at the edge: time passes by whole hours.
pub const UNANSWERED: u32 = 2 * 10 + 1;
pub const ESTABLISHED: u32 = 2 * 30 + 1;
pub const HALF_CLOSED: u32 = 2 * 15 + 1;
pub const CLOSING: u32 = 2 * 5 + 1;

pub fn number_of(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => wire::TCP,
        Protocol::Udp => wire::UDP,
    }
}

/// What a program serves and how it is set, by the number of its rig.
pub fn rig_of(number: usize) -> (Vec<Service>, Settings) {
    let tcp: [(&str, &[(&str, u16)]); 2] = [
        (
            "10.0.0.5:80",
            &[("10.0.0.2:80", 1), ("10.0.0.3:8080", 2), ("10.0.0.4:80", 1)],
        ),
        ("10.0.1.1:443", &[("10.0.0.2:80", 1), ("10.0.0.6:443", 0)]),
    ];
    let udp: [(&str, &[(&str, u16)]); 1] = [(
        "10.0.0.5:53/udp",
        &[("10.0.0.2:53", 1), ("10.0.0.3:5353", 1)],
    )];
    let tcp_v6: [(&str, &[(&str, u16)]); 1] = [(
        "[fd00::5]:80",
        &[("[fd00::2]:80", 1), ("[fd00::3]:8080", 1)],
    )];
    let udp_v6: [(&str, &[(&str, u16)]); 1] = [(
        "[fd00:1::1]:53/udp",
        &[("[fd00::2]:53", 1), ("[fd00::4]:53", 1)],
    )];
    // Backends without a port keep the client's.
    let ranges: [(&str, &[(&str, u16)]); 3] = [
        ("10.0.0.5:*", &[("10.0.0.2", 1), ("10.0.0.3:8080", 1)]),
        ("10.0.0.5:8000-8099", &[("10.0.0.4", 1), ("10.0.0.6", 2)]),
        ("[fd00::5]:5000-5999/udp", &[("fd00::2", 1), ("fd00::3", 1)]),
    ];
    let (kind, number) = (number % KINDS, number / KINDS);
    let listens = match kind {
        0 => [&tcp[..], &udp, &tcp_v6, &udp_v6].concat(),
        1 => tcp.to_vec(),
        2 => [&tcp[..1], &udp].concat(),
        3 => [&udp_v6[..], &tcp_v6].concat(),
        _ => [&ranges[..], &tcp, &udp].concat(),
    };
    let several = |vip: IpAddr| match vip {
        IpAddr::V4(_) if kind == 4 => vec![SOURCE.into(), Ipv4Addr::new(10, 0, 0, 8).into()],
        _ => vec![],
    };
    let services = listens.iter().map(|(listen, backends)| Service {
        source: several(service(listen, backends).listen.vip),
        source_ports: PortRanges::new(vec![PORTS]).expect("ports"),
        timeouts: Timeouts {
            unanswered: HOUR * UNANSWERED / 2,
            established: HOUR * ESTABLISHED / 2,
            half_closed: HOUR * HALF_CLOSED / 2,
            closing: HOUR * CLOSING / 2,
        },
        ..service(listen, backends)
    });
    let sums = [WHOLE, GENERIC, NATIVE][number % 3];
    let vlan = number / 3 % 3;
    let settings = Settings {
        hash_seed: (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15),
        handles_vlan: vlan > 0,
        tags_may_hide: vlan > 1,
        ..sums
    };
    (services.collect(), settings)
}

/// Programs that differ in their services, and in their settings.
pub const RIGS: usize = KINDS * 9;
const KINDS: usize = 5;

/// The tags of the VLAN that a backend is in, where there are any.
pub fn tags_of(backend: IpAddr) -> [u32; wire::TAGS_MAX] {
    let last = match backend {
        IpAddr::V4(v4) => v4.octets()[3],
        IpAddr::V6(v6) => v6.octets()[15],
    };
    match last {
        2 => [abi::vlan_tag(0x8100, 10), 0],
        3 => [abi::vlan_tag(0x88a8, 200), abi::vlan_tag(0x8100, 30)],
        _ => [0, 0],
    }
}
