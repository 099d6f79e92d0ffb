// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Packets that are for no service and of no flow: the host gets them byte for byte.

use crate::common::case::Expect::*;
use crate::common::case::*;
use crate::common::frame::*;
use crate::common::root_or_skip;

const OPEN: &[Packet] = &[client(SYN), backend(SYN | ACK), client(ACK)];

/// Offsets in a frame without IP options.
const IP: usize = 14;
const TCP: usize = 34;

fn tag(frame: &mut Vec<u8>, ethertype: [u8; 2]) {
    frame.splice(12..12, [ethertype[0], ethertype[1], 0, 5]);
}

const NOT_OURS: &[Case] = &[
    case(
        "a port that is no service is passed",
        &[],
        client(SYN).edit(|s| s.tcp().destination_port = 81),
        Passed,
    ),
    case(
        "port 0 is passed",
        &[],
        client(SYN).edit(|s| s.tcp().destination_port = 0),
        Passed,
    ),
    case(
        "SSH to our own address is passed",
        &[],
        client(PSH | ACK)
            .payload(36)
            .edit(|s| s.tcp().destination_port = 22),
        Passed,
    ),
    case(
        "another destination address is passed",
        &[],
        client(SYN).edit(|s| s.ipv4().destination = [10, 0, 0, 6]),
        Passed,
    ),
    case(
        "the broadcast address is passed",
        &[],
        client(SYN).edit(|s| s.ipv4().destination = [255; 4]),
        Passed,
    ),
    case(
        "a frame to another MAC is passed",
        OPEN,
        client(ACK).edit(|s| s.to_mac = [2, 0, 0, 0, 0, 2]),
        Passed,
    ),
    case(
        "a broadcast frame is passed",
        OPEN,
        client(ACK).edit(|s| s.to_mac = [255; 6]),
        Passed,
    ),
    case(
        "a multicast frame is passed",
        &[],
        client(SYN).edit(|s| s.to_mac = [1, 0, 94, 0, 0, 1]),
        Passed,
    ),
    case(
        "a reply from another address is passed",
        OPEN,
        backend(ACK).edit(|s| s.ipv4().source = [10, 0, 0, 99]),
        Passed,
    ),
    case(
        "a reply from another port is passed",
        OPEN,
        backend(ACK).edit(|s| s.tcp().source_port = 81),
        Passed,
    ),
    case(
        "a reply to a port without a flow is passed",
        OPEN,
        backend(ACK).edit(|s| s.tcp().destination_port = 1),
        Passed,
    ),
    case(
        "a reply of a flow to another MAC is passed",
        OPEN,
        backend(ACK).edit(|s| s.to_mac = [2, 0, 0, 0, 0, 2]),
        Passed,
    ),
    case(
        "UDP to the service's address and port is passed",
        &[],
        client(SYN).damage(|f| f[IP + 9] = 17),
        Passed,
    ),
    case(
        "SCTP to the service's address and port is passed",
        &[],
        client(SYN).damage(|f| f[IP + 9] = 132),
        Passed,
    ),
    case(
        "ICMP echo to the VIP is passed",
        &[],
        client(SYN).payload(40).damage(|f| {
            f[IP + 9] = 1;
            f[TCP..TCP + 8].copy_from_slice(&[8, 0, 0xf7, 0xff, 0, 0, 0, 0]);
        }),
        Passed,
    ),
    case(
        "IPv6 is passed",
        &[],
        client(SYN).payload(40).damage(|f| {
            f[12..14].copy_from_slice(&[0x86, 0xdd]);
            f[IP] = 0x60;
        }),
        Passed,
    ),
    case(
        "IP version 6 under the type of IPv4 is passed",
        &[],
        client(SYN).damage(|f| f[IP] = 0x65),
        Passed,
    ),
    case(
        "IP version 0 is passed",
        &[],
        client(SYN).damage(|f| f[IP] = 0x05),
        Passed,
    ),
    case(
        "an IP header length below 5 is passed",
        &[],
        client(SYN).damage(|f| f[IP] = 0x44),
        Passed,
    ),
    case(
        "an IP header length of 0 is passed",
        &[],
        client(SYN).damage(|f| f[IP] = 0x40),
        Passed,
    ),
    case(
        "an IP header length beyond the frame is passed",
        &[],
        client(SYN).damage(|f| f[IP] = 0x4f),
        Passed,
    ),
    case(
        "ARP is passed",
        &[],
        client(SYN).damage(|f| {
            f.truncate(IP + 28);
            f[12..14].copy_from_slice(&[8, 6]);
            f[IP..IP + 8].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, 1]);
        }),
        Passed,
    ),
    case(
        "802.1Q is passed",
        OPEN,
        client(ACK).damage(|f| tag(f, [0x81, 0])),
        Passed,
    ),
    case(
        "802.1ad is passed",
        OPEN,
        client(ACK).damage(|f| tag(f, [0x88, 0xa8])),
        Passed,
    ),
    case(
        "an LLC frame (spanning tree) is passed",
        &[],
        client(SYN).damage(|f| {
            f[..6].copy_from_slice(&[1, 0x80, 0xc2, 0, 0, 0]);
            f[12..17].copy_from_slice(&[0, 38, 0x42, 0x42, 3]);
        }),
        Passed,
    ),
    case(
        "LLC to our MAC is passed",
        &[],
        client(SYN).damage(|f| f[12..14].copy_from_slice(&[0, 40])),
        Passed,
    ),
    case(
        "PPPoE is passed",
        &[],
        client(SYN).damage(|f| f[12..14].copy_from_slice(&[0x88, 0x64])),
        Passed,
    ),
    case(
        "a total length beyond the frame of another service is passed",
        &[],
        client(SYN)
            .edit(|s| s.tcp().destination_port = 81)
            .damage(|f| f[IP + 2] = 6),
        Passed,
    ),
    case(
        "TTL 1 to another service is passed",
        &[],
        client(SYN).edit(|s| {
            s.tcp().destination_port = 22;
            *s.hops() = 1;
        }),
        Passed,
    ),
];

#[test]
fn what_is_not_ours_is_passed_byte_for_byte() {
    if root_or_skip("what_is_not_ours_is_passed_byte_for_byte") {
        check(NOT_OURS);
    }
}
