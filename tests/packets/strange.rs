// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Random packets that are not ours, and mutated ones that may be.

use xdp_proxy::abi::OutcomeCode;
use xdp_proxy::stats::Counters;

use super::random::randomize;
use crate::common::exchange::*;
use crate::common::frame::*;
use crate::common::icmp::*;
use crate::common::random::{Random, at_most};
use crate::common::rig::*;
use crate::common::root_or_skip;

const BACKENDS: &[(&str, u16)] = &[("10.0.0.2:80", 1), ("10.0.0.3:8080", 3)];

/// Changes one field so that the frame, whatever else is in it, is not ours.
fn estrange(frame: &mut Vec<u8>, random: &mut Random) {
    const IP: usize = ETHERNET_BYTES;
    let other = |random: &mut Random, not: u8| not ^ (1 + random.below(255) as u8);
    match random.below(8) {
        0 => {
            let i = random.below(6);
            frame[i] = other(random, LB_MAC[i]);
        }
        1 => frame[12] = other(random, 0x08),
        2 => frame[13] = other(random, 0x00),
        3 => frame[IP] = (random.below(15) as u8 + 5) << 4 | frame[IP] & 0xf,
        4 => frame[IP] = 0x40 | random.below(5) as u8,
        5 => frame[IP + 9] = other(random, 6),
        6 => {
            let i = random.below(4);
            frame[IP + 16 + i] = other(random, VIP.octets()[i]);
        }
        _ if random.once_in(2) => frame.truncate(14 + random.below(24)),
        // A port that is no service's and that no flow has: below 1024.
        _ => {
            let port = [1, 22, 79, 81, 443, 1023][random.below(6)] as u16;
            let at = IP + usize::from(frame[IP] & 0xf) * 4 + 2;
            frame[at..at + 2].copy_from_slice(&port.to_be_bytes());
        }
    }
}

#[test]
fn random_frames_that_are_not_ours_are_passed_byte_for_byte() {
    if !root_or_skip("random_frames_that_are_not_ours_are_passed_byte_for_byte") {
        return;
    }
    let frames = at_most(200_000);
    let mut ran = 0;
    for settings in [WHOLE, GENERIC] {
        let rig = Rig::new(&config(vec![service("10.0.0.5:80", BACKENDS)]), settings);
        let mut random = Random(5);
        let mut flows: Vec<Exchange> = (0..100).map(|n| Exchange::new(&rig, WEB, n)).collect();
        flows.iter_mut().for_each(Exchange::open);
        let before = rig.counters();
        let mut out = [0; FRAME_BYTES_MAX];
        for number in 0..frames {
            let mut frame = if number % 2 == 0 {
                // Bytes of no meaning; some look like IPv4 to our MAC.
                let bytes = 14 + random.below(120);
                let mut frame = random.bytes(bytes);
                if random.once_in(2) {
                    frame[..6].copy_from_slice(&LB_MAC);
                    frame[12..14].copy_from_slice(&[8, 0]);
                }
                frame.resize(bytes.max(38 + 60), 0);
                frame
            } else {
                let connection = &flows[random.below(flows.len())];
                let mut segment = match random.below(3) {
                    0 => connection.client_frame(SYN),
                    1 => connection.client_frame(ACK),
                    _ => connection.backend_frame(ACK),
                };
                randomize(&mut segment, 200, &mut random);
                segment.bytes(Sum::Complete)
            };
            estrange(&mut frame, &mut random);
            let (verdict, out) = rig.run_into(&frame, &mut out);
            assert_eq!(verdict, XDP_PASS, "{frame:02x?}");
            assert_eq!(out, frame);
        }
        let mut moved: Counters = before.clone();
        moved.outcomes[OutcomeCode::OUTCOME_PASSED.0 as usize] += frames as u64;
        assert_eq!(rig.counters(), moved);
        ran += frames;
    }
    println!("{ran} frames");
}

/// Whether the IPv4 header's and the TCP segment's sums are right.
fn sums_are_right(frame: &[u8]) -> bool {
    let segment = segment_of(frame);
    let wanted = segment.bytes(Sum::Complete);
    let l4 = segment.transport_at();
    frame[24..26] == wanted[24..26] && frame[l4 + 16..l4 + 18] == wanted[l4 + 16..l4 + 18]
}

/// Packets of ours with a few bytes of their headers changed, the sums mended
/// afterwards where they can be: whatever becomes of it, no bad sum leaves and
/// what is not sent is not changed.
#[test]
fn mutated_packets_never_leave_with_a_bad_sum() {
    if !root_or_skip("mutated_packets_never_leave_with_a_bad_sum") {
        return;
    }
    let packets = at_most(200_000);
    for settings in [WHOLE, NATIVE] {
        let rig = Rig::new(&config(vec![service("10.0.0.5:80", BACKENDS)]), settings);
        let mut random = Random(6);
        let mut out = [0; FRAME_BYTES_MAX];
        let mut flows: Vec<Exchange> = (0..100).map(|n| Exchange::new(&rig, WEB, n)).collect();
        let (mut mended, mut sent) = (0, 0);
        for number in 0..packets {
            let i = random.below(flows.len());
            let connection = &mut flows[i];
            if number % 64 == 0 {
                connection.try_open();
            }
            let mut segment = match (random.below(3), connection.path) {
                (0, Some(_)) => connection.backend_frame(ACK),
                (1, _) => connection.client_frame(SYN),
                _ => connection.client_frame(ACK),
            };
            randomize(&mut segment, 200, &mut random);
            let mut frame = segment.bytes(Sum::Complete);
            for _ in 0..1 + random.below(3) {
                // The replies go to the MAC that the flow began with.
                let at = random.below(48);
                let at = if at < 6 { at } else { at + 6 };
                frame[at] = random.word() as u8;
            }
            let (ip, l4) = (14, 14 + usize::from(frame[14] & 0xf) * 4);
            let total = usize::from(u16::from_be_bytes([frame[ip + 2], frame[ip + 3]]));
            let whole = frame[12..14] == [8, 0]
                && (0x45..0x50).contains(&frame[14])
                && frame.len() >= l4 + 20
                && (l4 - ip + 20..=frame.len() - ip).contains(&total)
                && frame[l4 + 12] >> 4 >= 5
                && l4 - ip + usize::from(frame[l4 + 12] >> 4) * 4 <= total
                && frame[20] & 0x80 == 0
                && frame[l4 + 12] & 0xe == 0;
            if whole {
                frame = segment_of(&frame).bytes(Sum::Complete);
                mended += 1;
            }
            let (verdict, out) = rig.run_into(&frame, &mut out);
            if verdict == XDP_TX {
                sent += 1;
                if whole && frame[22] <= 1 {
                    let wanted = icmp_answer(&frame, l4, Told::TimeExceeded, None);
                    assert_eq!(out, wanted, "{frame:02x?}");
                } else {
                    assert!(!whole || sums_are_right(out), "{frame:02x?}\n{out:02x?}");
                }
            } else {
                assert_eq!(out, frame);
            }
        }
        println!("{packets} packets, {mended} with mended sums, {sent} sent");
        assert!(sent > packets / 4 && mended > packets / 4);
    }
}
