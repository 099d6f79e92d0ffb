// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Properties, over random packets.

use std::time::{Duration, Instant};

use xdp_proxy::abi::OutcomeCode;
use xdp_proxy::datapath::Settings;
use xdp_proxy::stats::Counters;

use crate::common::connection::*;
use crate::common::frames::*;
use crate::common::icmp::*;
use crate::common::random::{Random, at_most};
use crate::common::rig::*;
use crate::common::root_or_skip;

const FLOWS: u32 = 2000;
/// For each of three settings; a million in all.
const PACKETS: usize = 334_000;
const BACKENDS: &[(&str, u16)] = &[("10.0.0.2:80", 1), ("10.0.0.3:8080", 3)];

/// Every field random that does not decide whose packet it is, nor ends its flow.
fn randomize(segment: &mut Segment, payload_bytes_max: usize, random: &mut Random) {
    let ip = &mut segment.ip;
    let word = random.word().to_be_bytes();
    ip.identification = u16::from_be_bytes([word[0], word[1]]);
    ip.time_to_live = word[2].max(2);
    ip.dont_fragment = word[3] & 1 == 0;
    ip.dscp = etherparse::IpDscp::try_new(word[3] >> 2).unwrap();
    ip.ecn = etherparse::IpEcn::try_new(word[3] & 3).unwrap();
    if random.once_in(4) {
        let mut options = random.bytes(40);
        options.truncate(4 * random.below(11));
        ip.options = options.as_slice().try_into().unwrap();
    }
    let tcp = &mut segment.tcp;
    tcp.sequence_number = random.word() as u32;
    tcp.acknowledgment_number = random.word() as u32;
    tcp.window_size = u16::from_be_bytes([word[4], word[5]]);
    tcp.urgent_pointer = u16::from_be_bytes([word[6], word[7]]);
    let flags = random.word();
    tcp.ns = flags & 1 != 0;
    tcp.psh = flags & 2 != 0;
    tcp.ack = flags & 4 != 0;
    tcp.urg = flags & 8 != 0;
    tcp.ece = flags & 16 != 0;
    tcp.cwr = flags & 32 != 0;
    if random.once_in(2) {
        let words = random.below(11);
        let options = random.bytes(4 * words);
        tcp.set_options_raw(&options).unwrap();
    }
    let headers_bytes = segment.ip.header_len() + segment.tcp.header_len();
    // Mostly short ones: the references sum every byte twice.
    let limit = if random.once_in(4) {
        payload_bytes_max
    } else {
        128
    };
    let payload_bytes = random.below(limit.min(payload_bytes_max - headers_bytes) + 1);
    segment.payload = random.bytes(payload_bytes);
    let frame_bytes = ETHERNET_BYTES + headers_bytes + payload_bytes;
    if frame_bytes < 60 && random.once_in(2) {
        segment.padding = random.bytes(60 - frame_bytes);
    }
}

/// Runs a frame, times it, and compares the verdict and every byte.
struct Runner<'rig> {
    rig: &'rig Rig,
    out: Box<[u8]>,
    taken: Duration,
}

impl Runner<'_> {
    fn sends(&mut self, segment: &Segment, (sent, left): (Sum, Sum), wanted: &Segment) -> u64 {
        let frame = segment.bytes(sent);
        let started = Instant::now();
        let (verdict, out) = self.rig.run_into(&frame, &mut self.out);
        self.taken += started.elapsed();
        assert_eq!(verdict, XDP_TX, "{segment:?}");
        if out != wanted.bytes(left) {
            assert_eq!(Segment::parse(out), *wanted, "fields");
            assert_eq!(out, wanted.bytes(left), "sums of {sent:?} {segment:?}");
        }
        out.len() as u64
    }
}

/// `mixed`: half of the flows' ends send sums that are still to be completed.
fn random_packets(name: &str, settings: Settings, mixed: bool) {
    let rig = Rig::new(&config(vec![service("10.0.0.5:80", BACKENDS)]), settings);
    let mut random = Random(4);
    let mut flows: Vec<(Connection, Sum, Sum)> = (0..FLOWS)
        .map(|_| {
            let mut connection = Connection::new(&rig, random.word() as u32 >> 8);
            let mut sum = || match mixed && random.once_in(2) {
                true => Sum::Partial,
                false => Sum::Complete,
            };
            let (of_client, of_backend) = (sum(), sum());
            connection.sum = of_client;
            connection.forward(SYN);
            connection.sum = of_backend;
            connection.reply(SYN | ACK);
            connection.sum = of_client;
            connection.forward(ACK);
            (connection, of_client, of_backend)
        })
        .collect();
    let mut expected = rig.counters();
    let mut runner = Runner {
        rig: &rig,
        out: vec![0; FRAME_BYTES_MAX].into(),
        taken: Duration::ZERO,
    };
    let (mut forwarded, mut partial) = (0, 0);
    let started = Instant::now();
    for number in 0..at_most(PACKETS) / 2 {
        let (connection, of_client, of_backend) = &mut flows[random.below(FLOWS as usize)];
        let left = |sum: Sum| match settings.complete_checksums {
            true => Sum::Complete,
            false => sum,
        };
        // A packet longer than the MTU is a GSO packet, whose sum is partial.
        let packet_bytes_max = |sum: Sum, random: &mut Random| match sum {
            Sum::Partial if number % 16 == 0 && random.once_in(2) => 3400,
            _ => MTU_BYTES as usize,
        };
        let mut out = connection.client_segment(ACK);
        let longest = packet_bytes_max(*of_client, &mut random);
        randomize(&mut out, longest, &mut random);
        let path = connection.path();
        let to_backend = Connection::forwarded(&out, path);
        let bytes = runner.sends(&out, (*of_client, left(*of_client)), &to_backend);
        let of_path = &mut expected.backends[rig.backend_index(path.backend.into()) - 1];
        of_path.forwarded_packets += 1;
        of_path.forwarded_bytes += bytes;

        // What the backend answers goes back the way the packet came.
        let mut back = Segment::new(
            (to_backend.to_mac, to_backend.from_mac),
            to_backend.destination(),
            to_backend.source(),
        );
        let longest = packet_bytes_max(*of_backend, &mut random);
        randomize(&mut back, longest, &mut random);
        let mut to_client = back.clone();
        to_client.to_mac = out.from_mac;
        to_client.from_mac = out.to_mac;
        to_client.set_source(out.destination());
        to_client.set_destination(out.source());
        to_client.ip.time_to_live -= 1;
        let bytes = runner.sends(&back, (*of_backend, left(*of_backend)), &to_client);
        of_path.returned_packets += 1;
        of_path.returned_bytes += bytes;

        forwarded += 1;
        partial += u32::from(*of_client == Sum::Partial) + u32::from(*of_backend == Sum::Partial);
    }
    expected.outcomes[OutcomeCode::OUTCOME_FORWARDED.0 as usize] += forwarded;
    expected.outcomes[OutcomeCode::OUTCOME_RETURNED.0 as usize] += forwarded;
    assert_eq!(rig.counters(), expected, "exact accounting");
    let packets = 2 * forwarded;
    println!(
        "{name}: {packets} packets ({partial} partial), {:.0} a second with their references, \
         {:.0} a second through the program alone",
        packets as f64 / started.elapsed().as_secs_f64(),
        packets as f64 / runner.taken.as_secs_f64(),
    );
}

#[test]
fn random_packets_leave_with_right_sums_and_replies_find_the_client() {
    if root_or_skip("random_packets_leave_with_right_sums_and_replies_find_the_client") {
        random_packets("complete sums", WHOLE, false);
    }
}

#[test]
fn random_packets_of_both_kinds_leave_right_in_generic_mode() {
    if root_or_skip("random_packets_of_both_kinds_leave_right_in_generic_mode") {
        random_packets("generic mode", GENERIC, true);
    }
}

#[test]
fn random_packets_of_both_kinds_leave_complete_in_native_mode() {
    if root_or_skip("random_packets_of_both_kinds_leave_complete_in_native_mode") {
        random_packets("native mode", NATIVE, true);
    }
}

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
        let mut flows: Vec<Connection> = (0..100).map(|n| Connection::new(&rig, n)).collect();
        flows.iter_mut().for_each(Connection::open);
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
                    0 => connection.client_segment(SYN),
                    1 => connection.client_segment(ACK),
                    _ => connection.backend_segment(ACK),
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
    let segment = Segment::parse(frame);
    let wanted = segment.bytes(Sum::Complete);
    let l4 = ETHERNET_BYTES + segment.ip.header_len();
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
        let mut flows: Vec<Connection> = (0..100).map(|n| Connection::new(&rig, n)).collect();
        let (mut mended, mut sent) = (0, 0);
        for number in 0..packets {
            let i = random.below(flows.len());
            let connection = &mut flows[i];
            if number % 64 == 0 {
                connection.try_open();
            }
            let mut segment = match (random.below(3), connection.path) {
                (0, Some(_)) => connection.backend_segment(ACK),
                (1, _) => connection.client_segment(SYN),
                _ => connection.client_segment(ACK),
            };
            randomize(&mut segment, 200, &mut random);
            let mut frame = segment.bytes(Sum::Complete);
            for _ in 0..1 + random.below(3) {
                let at = random.below(54);
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
                frame = Segment::parse(&frame).bytes(Sum::Complete);
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
