// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Properties over random packets of each protocol and family: right sums, replies that
//! find the client, and exact accounting.

use std::time::{Duration, Instant};

use etherparse::{IpDscp, IpEcn, IpNumber, Ipv6FlowLabel};
use xdp_proxy::abi::OutcomeCode;

use crate::common::exchange::*;
use crate::common::frame::*;
use crate::common::random::{Random, at_most};
use crate::common::rig::*;
use crate::common::root_or_skip;
use crate::common::served::SERVED;

/// Of IPv4's segments, divided between three settings.
const SEGMENTS: usize = 1_000_000;
/// Of each other kind.
const OTHERS: usize = 200_000;
const FLOWS: u32 = 2000;
/// Longer than the MTU, and nearly what BPF_PROG_TEST_RUN takes.
const GSO_BYTES: usize = 3400;

/// Every field random that does not decide whose packet it is, nor ends its flow.
pub fn randomize(frame: &mut Frame, packet_bytes_max: usize, random: &mut Random) {
    let word = random.word().to_be_bytes();
    *frame.hops() = word[0].max(2);
    match &mut frame.network {
        Network::V4(ip) => {
            ip.identification = u16::from_be_bytes([word[1], word[2]]);
            ip.dont_fragment = word[3] & 1 == 0;
            ip.dscp = IpDscp::try_new(word[3] >> 2).unwrap();
            ip.ecn = IpEcn::try_new(word[4] & 3).unwrap();
            if random.once_in(4) {
                let words = random.below(11);
                let options = random.bytes(4 * words);
                ip.options = options.as_slice().try_into().unwrap();
            }
        }
        Network::V6(ip, extensions) => {
            ip.traffic_class = word[1];
            let label = u32::from_be_bytes([0, word[2] & 0xf, word[3], word[4]]);
            ip.flow_label = Ipv6FlowLabel::try_new(label).unwrap();
            if random.once_in(3) {
                let kinds = [
                    IpNumber::IPV6_DESTINATION_OPTIONS,
                    IpNumber::IPV6_ROUTE_HEADER,
                    IpNumber::IPV6_HEADER_HOP_BY_HOP,
                ];
                for _ in 0..random.below(5) {
                    let bytes = 8 * random.below(7) + 6;
                    let kind = kinds[random.below(kinds.len())];
                    extensions.push(Extension::Raw(kind, random.bytes(bytes)));
                }
            }
        }
    }
    match &mut frame.transport {
        Transport::Tcp(tcp) => {
            tcp.sequence_number = random.word() as u32;
            tcp.acknowledgment_number = random.word() as u32;
            tcp.window_size = u16::from_be_bytes([word[5], word[6]]);
            tcp.urgent_pointer = random.word() as u16;
            let flags = random.word();
            tcp.ns = flags & 1 != 0;
            tcp.psh = flags & 2 != 0;
            tcp.ack = flags & 4 != 0;
            tcp.urg = flags & 8 != 0;
            tcp.ece = flags & 16 != 0;
            tcp.cwr = flags & 32 != 0;
            if random.once_in(2) {
                let words = random.below(11);
                tcp.set_options_raw(&random.bytes(4 * words)).unwrap();
            }
        }
        _ => frame.unsummed = frame.addresses().0.is_ipv4() && random.once_in(8),
    }
    frame.payload.clear();
    let longest = packet_bytes_max - frame.packet(Sum::Complete).len();
    // Mostly short ones: the references sum every byte.
    let longest = if random.once_in(4) {
        longest
    } else {
        longest.min(128)
    };
    let bytes = random.below(longest + 1);
    frame.payload = random.bytes(bytes);
    if random.once_in(2) {
        let frame_bytes = frame.bytes(Sum::Complete).len();
        // As Ethernet pads, and as nobody does.
        let padding = if random.once_in(2) {
            5
        } else {
            60usize.saturating_sub(frame_bytes)
        };
        frame.padding = random.bytes(padding);
    }
}

/// So many of the kind that this service takes, divided between three settings.
fn random_packets(of: usize, packets: usize) {
    let (listen, backends) = SERVED[of];
    for (settings, mixed) in [(WHOLE, false), (GENERIC, true), (NATIVE, true)] {
        let rig = Rig::new(&config(vec![service(listen, &backends)]), settings);
        check(&rig, listen, at_most(packets).div_ceil(6), mixed);
    }
}

/// `mixed`: half of the flows' ends send sums that are still to be completed.
fn check(rig: &Rig, listen: &str, rounds: usize, mixed: bool) {
    let mut random = Random(9);
    let mut flows: Vec<(Exchange, [Sum; 2])> = (0..FLOWS)
        .map(|_| {
            let mut sum = || match mixed && random.once_in(2) {
                true => Sum::Partial,
                false => Sum::Complete,
            };
            let sums = [sum(), sum()];
            let mut exchange = Exchange::new(rig, listen, random.word() as u32 >> 8);
            exchange.sum = sums[0];
            exchange.forward(SYN);
            exchange.sum = sums[1];
            exchange.reply(SYN | ACK);
            exchange.sum = sums[0];
            exchange.forward(ACK);
            (exchange, sums)
        })
        .collect();
    let mut expected = rig.counters();
    let mut out = vec![0; FRAME_BYTES_MAX];
    let mut taken = Duration::ZERO;
    for number in 0..rounds {
        let i = random.below(flows.len());
        let (exchange, sums) = &mut flows[i];
        let backend = rig.backend_index(exchange.path().backend);
        let of_backend = &mut expected.backends[backend - 1];
        for (from_client, sum) in [true, false].into_iter().zip(*sums) {
            let mut frame = match from_client {
                true => exchange.client_frame(ACK),
                false => exchange.backend_frame(ACK),
            };
            // A packet longer than the MTU is a GSO packet, whose sum is partial.
            let longest = match sum {
                Sum::Partial if number % 16 == 0 && random.once_in(2) => GSO_BYTES,
                _ => MTU_BYTES as usize,
            };
            randomize(&mut frame, longest, &mut random);
            exchange.sum = sum;
            let bytes = frame.bytes(sum);
            let began = Instant::now();
            let (verdict, out) = rig.run_into(&bytes, &mut out);
            taken += began.elapsed();
            assert_eq!(verdict, XDP_TX, "{frame:?}");
            let (wanted, packets, bytes) = match from_client {
                true => (
                    exchange.forwarded(&frame),
                    &mut of_backend.forwarded_packets,
                    &mut of_backend.forwarded_bytes,
                ),
                false => (
                    exchange.returned(&frame),
                    &mut of_backend.returned_packets,
                    &mut of_backend.returned_bytes,
                ),
            };
            assert_eq!(out, wanted.bytes(exchange.sum_out()), "{sum:?} {frame:?}");
            *packets += 1;
            *bytes += out.len() as u64;
        }
    }
    expected.outcomes[OutcomeCode::OUTCOME_FORWARDED.0 as usize] += rounds as u64;
    expected.outcomes[OutcomeCode::OUTCOME_RETURNED.0 as usize] += rounds as u64;
    assert_eq!(rig.counters(), expected, "exact accounting");
    let rate = 2.0 * rounds as f64 / taken.as_secs_f64();
    println!("{listen}: {} packets, {rate:.0} a second", 2 * rounds);
}

#[test]
fn random_segments_over_ipv4() {
    if root_or_skip("random_segments_over_ipv4") {
        random_packets(0, SEGMENTS);
    }
}

#[test]
fn random_datagrams_over_ipv4() {
    if root_or_skip("random_datagrams_over_ipv4") {
        random_packets(1, OTHERS);
    }
}

#[test]
fn random_segments_over_ipv6() {
    if root_or_skip("random_segments_over_ipv6") {
        random_packets(2, OTHERS);
    }
}

#[test]
fn random_datagrams_over_ipv6() {
    if root_or_skip("random_datagrams_over_ipv6") {
        random_packets(3, OTHERS);
    }
}
