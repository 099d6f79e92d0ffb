// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! What headers may hold: what is kept, what is dropped.

use etherparse::{IpDscp, IpEcn};
use xdp_proxy::abi::OutcomeCode;

use crate::common::case::Expect::*;
use crate::common::case::*;
use crate::common::exchange::*;
use crate::common::frame::*;
use crate::common::rig::*;
use crate::common::root_or_skip;

const MALFORMED: OutcomeCode = OutcomeCode::OUTCOME_DROPPED_MALFORMED;

const OPEN: &[Packet] = &[client(SYN), backend(SYN | ACK), client(ACK)];
const MOVED: &[Packet] = &[
    client(SYN),
    backend(SYN | ACK),
    client(ACK).edit(|s| s.from_mac = [2, 0, 0, 7, 7, 7]),
];

/// Offsets in a frame without IP options.
const IP: usize = 14;
const TCP: usize = 34;

fn total_bytes(frame: &mut [u8], bytes: u16) {
    frame[IP + 2..IP + 4].copy_from_slice(&bytes.to_be_bytes());
}

fn data_offset(frame: &mut [u8], words: u8) {
    frame[TCP + 12] = words << 4 | frame[TCP + 12] & 0xf;
}

const KEPT: &[Case] = &[
    case(
        "one word of IP options is kept on the way out",
        OPEN,
        client(ACK).payload(31).edit(|s| {
            s.ipv4().options = [148, 4, 0, 0].into();
        }),
        Forwarded,
    ),
    case(
        "one word of IP options is kept on the way back",
        OPEN,
        backend(ACK).payload(31).edit(|s| {
            s.ipv4().options = [148, 4, 0, 0].into();
        }),
        Returned,
    ),
    case(
        "the longest IP options are kept",
        OPEN,
        client(ACK).payload(64).edit(|s| {
            s.ipv4().options = [1; 40].into();
        }),
        Forwarded,
    ),
    case(
        "a SYN with IP options begins a flow",
        &[],
        client(SYN).edit(|s| {
            s.ipv4().options = [1; 20].into();
        }),
        Forwarded,
    )
    .begins(),
    case(
        "DSCP and ECN are kept on the way out",
        OPEN,
        client(ACK).edit(|s| {
            s.ipv4().dscp = IpDscp::try_new(46).unwrap();
            s.ipv4().ecn = IpEcn::CongestionExperienced;
        }),
        Forwarded,
    ),
    case(
        "DSCP and ECN are kept on the way back",
        OPEN,
        backend(ACK).edit(|s| {
            s.ipv4().dscp = IpDscp::try_new(10).unwrap();
            s.ipv4().ecn = IpEcn::Ect0;
        }),
        Returned,
    ),
    case(
        "identification and DF are kept",
        OPEN,
        client(ACK).edit(|s| {
            s.ipv4().identification = 0xbeef;
            s.ipv4().dont_fragment = true;
        }),
        Forwarded,
    ),
    case(
        "the urgent pointer is kept",
        OPEN,
        client(PSH | ACK).payload(5).edit(|s| {
            s.tcp().urg = true;
            s.tcp().urgent_pointer = 5;
        }),
        Forwarded,
    ),
    case(
        "the options of a SYN are kept",
        &[],
        client(SYN).edit(|s| {
            // MSS, SACK permitted, timestamps, no operation, window scale
            let options = [
                2, 4, 5, 180, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7,
            ];
            s.tcp().set_options_raw(&options).unwrap();
        }),
        Forwarded,
    )
    .begins(),
    case(
        "timestamps and SACK blocks are kept",
        OPEN,
        backend(ACK).edit(|s| {
            let mut options = [0xab; 40];
            options[..6].copy_from_slice(&[1, 1, 8, 10, 1, 2]);
            options[12..16].copy_from_slice(&[1, 1, 5, 26]);
            s.tcp().set_options_raw(&options[..40]).unwrap();
        }),
        Returned,
    ),
    case(
        "the flags for ECN and NS are kept",
        OPEN,
        client(ACK).edit(|s| {
            s.tcp().ece = true;
            s.tcp().cwr = true;
            s.tcp().ns = true;
        }),
        Forwarded,
    ),
    case(
        "a frame padded to 60 bytes keeps its padding",
        OPEN,
        client(ACK).edit(|s| s.padding = vec![0; 6]),
        Forwarded,
    ),
    case(
        "padding is not summed, whatever it holds",
        OPEN,
        client(ACK).edit(|s| s.padding = vec![0xa5; 6]),
        Forwarded,
    ),
    case(
        "odd padding after odd data is kept",
        OPEN,
        backend(ACK).payload(1).edit(|s| s.padding = vec![0xff; 5]),
        Returned,
    ),
    case(
        "TTL 2 goes one hop further",
        OPEN,
        client(ACK).edit(|s| *s.hops() = 2),
        Forwarded,
    ),
    case(
        "TTL 255 goes one hop further",
        OPEN,
        backend(ACK).edit(|s| *s.hops() = 255),
        Returned,
    ),
    case(
        "a reply goes to the MAC that the last packet came from",
        MOVED,
        backend(ACK),
        Returned,
    ),
];

const OUT_OF_TIME: &[Case] = &[
    case(
        "TTL 1 is answered on the way out",
        OPEN,
        client(ACK).edit(|s| *s.hops() = 1),
        TimeExceeded,
    ),
    case(
        "TTL 0 is answered on the way out",
        OPEN,
        client(ACK).payload(43).edit(|s| *s.hops() = 0),
        TimeExceeded,
    ),
    case(
        "TTL 1 is answered on the way back",
        OPEN,
        backend(ACK).payload(44).edit(|s| *s.hops() = 1),
        TimeExceeded,
    ),
    case(
        "a SYN with TTL 1 begins nothing",
        &[],
        client(SYN).edit(|s| *s.hops() = 1),
        TimeExceeded,
    ),
    case(
        "no more than 64 bytes are quoted, and IP options are",
        OPEN,
        client(PSH | ACK).payload(1001).edit(|s| {
            *s.hops() = 1;
            s.ipv4().options = [1; 40].into();
        }),
        TimeExceeded,
    ),
    case(
        "padding is not quoted",
        OPEN,
        client(PSH | ACK).payload(1).edit(|s| {
            *s.hops() = 1;
            s.padding = vec![0xa5; 5];
        }),
        TimeExceeded,
    ),
    case(
        "a RST whose time is over ends nothing",
        OPEN,
        client(RST).edit(|s| *s.hops() = 1),
        TimeExceeded,
    ),
];

const BROKEN: &[Case] = &[
    case(
        "a total length beyond the frame is malformed",
        OPEN,
        client(ACK).damage(|f| total_bytes(f, 41)),
        Dropped(MALFORMED),
    ),
    case(
        "the greatest total length is malformed",
        &[],
        client(SYN).damage(|f| total_bytes(f, 65535)),
        Dropped(MALFORMED),
    ),
    case(
        "a total length shorter than both headers is malformed",
        OPEN,
        client(ACK).damage(|f| total_bytes(f, 39)),
        Dropped(MALFORMED),
    ),
    case(
        "a total length shorter than the IP header is malformed",
        OPEN,
        client(ACK).damage(|f| total_bytes(f, 19)),
        Dropped(MALFORMED),
    ),
    case(
        "a total length of 0 is malformed",
        OPEN,
        backend(ACK).damage(|f| total_bytes(f, 0)),
        Dropped(MALFORMED),
    ),
    case(
        "a data offset below 5 is malformed",
        OPEN,
        client(ACK).payload(9).damage(|f| data_offset(f, 4)),
        Dropped(MALFORMED),
    ),
    case(
        "a data offset of 0 is malformed",
        &[],
        client(SYN).damage(|f| data_offset(f, 0)),
        Dropped(MALFORMED),
    ),
    case(
        "a data offset beyond the packet is malformed",
        OPEN,
        backend(ACK).payload(3).damage(|f| data_offset(f, 6)),
        Dropped(MALFORMED),
    ),
    case(
        "the greatest data offset beyond the packet is malformed",
        &[],
        client(SYN).damage(|f| data_offset(f, 15)),
        Dropped(MALFORMED),
    ),
    case(
        "options beyond the packet though within the padding are malformed",
        OPEN,
        client(ACK)
            .edit(|s| s.padding = vec![0; 6])
            .damage(|f| data_offset(f, 6)),
        Dropped(MALFORMED),
    ),
    case(
        "IP options that push TCP out of the packet are malformed",
        OPEN,
        client(ACK)
            .payload(20)
            .edit(|s| s.ipv4().options = [0; 40].into())
            .damage(|f| f.truncate(IP + 60 + 19)),
        Dropped(MALFORMED),
    ),
];

#[test]
fn what_headers_hold_is_kept() {
    if root_or_skip("what_headers_hold_is_kept") {
        check(KEPT);
    }
}

#[test]
fn the_sender_is_told_that_its_packets_time_is_over() {
    if root_or_skip("the_sender_is_told_that_its_packets_time_is_over") {
        check(OUT_OF_TIME);
    }
}

#[test]
fn a_bad_packet_of_ours_is_dropped_and_counted() {
    if root_or_skip("a_bad_packet_of_ours_is_dropped_and_counted") {
        check(BROKEN);
    }
}

#[test]
fn a_runt_is_passed_until_its_ports_can_be_read_and_malformed_from_there_on() {
    let name = "a_runt_is_passed_until_its_ports_can_be_read_and_malformed_from_there_on";
    if !root_or_skip(name) {
        return;
    }
    for (settings, sum) in WAYS {
        let services = vec![service("10.0.0.5:80", &[("10.0.0.2:80", 1)])];
        let rig = Rig::new(&config(services), *settings);
        let mut connection = Exchange::new(&rig, WEB, 1).with_sum(*sum);
        connection.open();
        for segment in [connection.client_frame(ACK), connection.backend_frame(ACK)] {
            let frame = segment.bytes(*sum);
            assert_eq!(frame.len(), 54);
            for bytes in 14..=54 {
                let ran = rig.run(&frame[..bytes]);
                let verdict = match bytes {
                    ..38 => XDP_PASS,
                    38..54 => XDP_DROP,
                    _ => XDP_TX,
                };
                assert_eq!(ran.verdict, verdict, "the verdict on {bytes} bytes");
                assert_eq!(ran.frame.len(), bytes);
                if verdict != XDP_TX {
                    assert_eq!(ran.frame, frame[..bytes], "a runt of {bytes} bytes");
                }
            }
        }
        assert_eq!(rig.counter(OutcomeCode::OUTCOME_PASSED), 2 * (38 - 14));
        assert_eq!(rig.counter(MALFORMED), 2 * (54 - 38));
    }
}
