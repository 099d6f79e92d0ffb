// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Properties over random packets of UDP and IPv6: right sums, and replies
//! that find the client.

use etherparse::{IpNumber, Ipv6FlowLabel};
use xdp_proxy::abi::OutcomeCode;
use xdp_proxy::datapath::Settings;

use crate::common::exchange::*;
use crate::common::frame::*;
use crate::common::frames::*;
use crate::common::random::{Random, at_most};
use crate::common::rig::*;
use crate::common::root_or_skip;

/// For each protocol and family, divided between three settings.
const PACKETS: usize = 200_000;
const FLOWS: u32 = 500;

/// Every field random that does not decide whose packet it is, nor ends its flow.
fn randomize(frame: &mut Frame, random: &mut Random, payload_bytes_max: usize) {
    let word = random.word().to_be_bytes();
    *frame.hops() = word[0].max(2);
    match &mut frame.network {
        Network::V4(ip) => {
            ip.identification = u16::from_be_bytes([word[1], word[2]]);
            ip.dont_fragment = word[3] & 1 == 0;
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
    if let Transport::Tcp(tcp) = &mut frame.transport {
        tcp.sequence_number = random.word() as u32;
        tcp.acknowledgment_number = random.word() as u32;
        tcp.window_size = u16::from_be_bytes([word[5], word[6]]);
        tcp.urgent_pointer = random.word() as u16;
        let words = random.below(11);
        tcp.set_options_raw(&random.bytes(4 * words)).unwrap();
    } else {
        frame.unsummed = frame.addresses().0.is_ipv4() && random.once_in(8);
    }
    let limit = if random.once_in(4) {
        payload_bytes_max
    } else {
        128
    };
    let bytes = random.below(limit + 1);
    frame.payload = random.bytes(bytes);
    if random.once_in(4) {
        frame.padding = random.bytes(5);
    }
}

fn random_packets(service_name: &str, backends: &[(&str, u16)]) {
    let mut checked = 0;
    for (settings, mixed) in [(WHOLE, false), (GENERIC, true), (NATIVE, true)] {
        checked += with_settings(service_name, backends, settings, mixed);
    }
    println!("{service_name}: {checked} packets");
}

fn with_settings(name: &str, backends: &[(&str, u16)], settings: Settings, mixed: bool) -> usize {
    let rig = Rig::new(&config(vec![service(name, backends)]), settings);
    let mut random = Random(9);
    let mut flows: Vec<(Exchange, [Sum; 2])> = (0..FLOWS)
        .map(|_| {
            let mut sums = [Sum::Complete; 2];
            for sum in &mut sums {
                if mixed && random.once_in(2) {
                    *sum = Sum::Partial;
                }
            }
            let mut exchange = Exchange::new(&rig, name, random.word() as u32 >> 8);
            exchange.sum = sums[0];
            exchange.forward(SYN);
            exchange.sum = sums[1];
            exchange.reply(SYN | ACK);
            (exchange, sums)
        })
        .collect();
    let mut out = vec![0; FRAME_BYTES_MAX];
    let rounds = at_most(PACKETS).div_ceil(6);
    for _ in 0..rounds {
        let i = random.below(flows.len());
        let (exchange, sums) = &mut flows[i];
        let (to_backend, to_client) = (exchange.client_frame(ACK), exchange.backend_frame(ACK));
        for (mut frame, sum) in [to_backend, to_client].into_iter().zip(*sums) {
            let from_client = frame.source() == exchange.client;
            // The MTU counts headers: longer ones are GSO packets, all partial.
            randomize(&mut frame, &mut random, 1000);
            exchange.sum = sum;
            let wanted = match from_client {
                true => exchange.forwarded(&frame),
                false => exchange.returned(&frame),
            };
            let bytes = frame.bytes(sum);
            let (verdict, out) = rig.run_into(&bytes, &mut out);
            assert_eq!(verdict, XDP_TX, "{frame:?}");
            assert_eq!(out, wanted.bytes(exchange.sum_out()), "{sum:?} {frame:?}");
        }
    }
    let each = rounds as u64 + u64::from(FLOWS);
    assert_eq!(rig.counter(OutcomeCode::OUTCOME_FORWARDED), each);
    assert_eq!(rig.counter(OutcomeCode::OUTCOME_RETURNED), each);
    2 * rounds
}

#[test]
fn random_datagrams_over_ipv4() {
    if root_or_skip("random_datagrams_over_ipv4") {
        random_packets(
            "10.0.0.5:53/udp",
            &[("10.0.0.2:53", 1), ("10.0.0.3:5353", 2)],
        );
    }
}

#[test]
fn random_segments_over_ipv6() {
    if root_or_skip("random_segments_over_ipv6") {
        random_packets(
            "[fd00::5]:80",
            &[("[fd00::2]:80", 1), ("[fd00::3]:8080", 2)],
        );
    }
}

#[test]
fn random_datagrams_over_ipv6() {
    if root_or_skip("random_datagrams_over_ipv6") {
        let backends = [("[fd00::2]:53", 1), ("[fd00::3]:5353", 2)];
        random_packets("[fd00::5]:53/udp", &backends);
    }
}
