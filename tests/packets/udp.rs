// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! UDP over IPv4 and IPv6: flows of datagrams, their checksums, their end.

use std::thread::sleep;
use std::time::Duration;

use xdp_proxy::abi::OutcomeCode;
use xdp_proxy::service::PortRanges;

use crate::common::case::WAYS;
use crate::common::exchange::*;
use crate::common::frame::*;
use crate::common::icmp::Told;
use crate::common::rig::*;
use crate::common::root_or_skip;

const MALFORMED: OutcomeCode = OutcomeCode::OUTCOME_DROPPED_MALFORMED;
const NO_BACKEND: OutcomeCode = OutcomeCode::OUTCOME_REFUSED_NO_BACKEND;
const EXHAUSTED: OutcomeCode = OutcomeCode::OUTCOME_REFUSED_SNAT_EXHAUSTED;
const TIME_EXCEEDED: OutcomeCode = OutcomeCode::OUTCOME_TIME_EXCEEDED;
const LATER: Duration = Duration::from_secs(3600);
const SOON: Duration = Duration::from_millis(50);
const SOON_OVER: Duration = Duration::from_millis(120);

/// A service of each family with two backends.
type Served = (&'static str, [(&'static str, u16); 2]);
const SERVED: [Served; 2] = [
    (
        "10.0.0.5:53/udp",
        [("10.0.0.2:53", 1), ("10.0.0.3:5353", 1)],
    ),
    (
        "[fd00::5]:53/udp",
        [("[fd00::2]:53", 1), ("[fd00::3]:5353", 1)],
    ),
];

fn rig_of((listen, backends): &Served, settings: xdp_proxy::datapath::Settings) -> Rig {
    Rig::new(&config(vec![service(listen, backends)]), settings)
}

/// For both families, each with all kinds of checksums.
fn in_every_way(check: impl Fn(&Rig, &str, Sum)) {
    for served in &SERVED {
        for (settings, sum) in WAYS {
            check(&rig_of(served, *settings), served.0, *sum);
        }
    }
}

#[test]
fn the_first_datagram_begins_a_flow_and_the_next_ones_are_of_it() {
    if !root_or_skip("the_first_datagram_begins_a_flow_and_the_next_ones_are_of_it") {
        return;
    }
    in_every_way(|rig, service, sum| {
        let mut one = Exchange::new(rig, service, 1).with_sum(sum);
        let mut other = Exchange::new(rig, service, 2).with_sum(sum);
        for exchange in [&mut one, &mut other] {
            exchange.forward(0);
            exchange.reply(0);
        }
        assert_ne!(one.path().source, other.path().source);
        for bytes in (0..=130).chain([255, 1023, 1024, 1025, 1430]) {
            for exchange in [&mut one, &mut other] {
                let mut out = exchange.client_frame(0);
                let mut back = exchange.backend_frame(0);
                (out.payload, back.payload) = (pattern(bytes), pattern(bytes));
                exchange.forward_frame(&out);
                exchange.reply_frame(&back);
            }
        }
        let begun: u64 = rig.counters().backends.iter().map(|b| b.flows_begun).sum();
        assert_eq!(begun, 2);
    });
}

/// RFC 768; RFC 8200, section 8.1.
#[test]
fn no_checksum_stays_none_both_ways_and_is_malformed_over_ipv6() {
    if !root_or_skip("no_checksum_stays_none_both_ways_and_is_malformed_over_ipv6") {
        return;
    }
    in_every_way(|rig, service, sum| {
        let mut exchange = Exchange::new(rig, service, 1).with_sum(sum);
        exchange.open();
        for bytes in [0, 1, 64, 1001] {
            let [mut out, mut back] = [exchange.client_frame(0), exchange.backend_frame(0)];
            for frame in [&mut out, &mut back] {
                (frame.unsummed, frame.payload) = (true, pattern(bytes));
            }
            if exchange.service.is_ipv4() {
                exchange.forward_frame(&out);
                exchange.reply_frame(&back);
            } else {
                exchange.is_dropped(&out.bytes(sum), MALFORMED);
                exchange.is_dropped(&back.bytes(sum), MALFORMED);
            }
        }
    });
}

/// Two bytes of the payload so that the sum of `out` is computed as 0: they
/// take what is left of the sum with 0 in their place.
fn zero_sum(frame: &mut Frame, out: impl Fn(&Frame) -> Frame) {
    frame.payload = vec![0, 0, 0xab, 0xcd];
    let left = out(frame).complete_sum();
    frame.payload[..2].copy_from_slice(&left.to_be_bytes());
    assert_eq!(out(frame).complete_sum(), 0xffff, "computed as 0");
}

#[test]
fn a_sum_computed_as_0_is_sent_as_ffff() {
    if !root_or_skip("a_sum_computed_as_0_is_sent_as_ffff") {
        return;
    }
    in_every_way(|rig, service, sum| {
        let mut exchange = Exchange::new(rig, service, 1).with_sum(sum);
        exchange.forward(0);
        let mut out = exchange.client_frame(0);
        zero_sum(&mut out, |frame| exchange.forwarded(frame));
        exchange.forward_frame(&out);
        let mut back = exchange.backend_frame(0);
        zero_sum(&mut back, |frame| exchange.returned(frame));
        exchange.reply_frame(&back);
        // And where it comes so, it goes on as what it is then.
        let mut out = exchange.client_frame(0);
        zero_sum(&mut out, Frame::clone);
        exchange.forward_frame(&out);
        let mut back = exchange.backend_frame(0);
        zero_sum(&mut back, Frame::clone);
        exchange.reply_frame(&back);
    });
}

#[test]
fn bad_lengths_are_malformed() {
    if !root_or_skip("bad_lengths_are_malformed") {
        return;
    }
    in_every_way(|rig, service, sum| {
        let mut exchange = Exchange::new(rig, service, 1).with_sum(sum);
        exchange.forward(0);
        let path = exchange.path();
        for new in [false, true] {
            let exchange = Exchange::new(rig, service, 1 + u32::from(new)).with_path(path);
            for mut frame in [exchange.client_frame(0), exchange.backend_frame(0)] {
                frame.payload = pattern(20);
                let at = frame.transport_at() + 4;
                for length in [0u16, 1, 7, 29, 1000, 0xffff] {
                    let mut bytes = frame.bytes(sum);
                    bytes[at..at + 2].copy_from_slice(&length.to_be_bytes());
                    exchange.is_dropped(&bytes, MALFORMED);
                }
                // Within the frame, but in its padding.
                frame.padding = vec![0; 9];
                let mut bytes = frame.bytes(sum);
                bytes[at..at + 2].copy_from_slice(&30u16.to_be_bytes());
                exchange.is_dropped(&bytes, MALFORMED);
                // The frame ends before the header does.
                for end in at..at + 4 {
                    exchange.is_dropped(&bytes[..end], MALFORMED);
                }
                exchange.is_passed(&bytes[..at - 1]);
            }
        }
    });
}

#[test]
fn each_protocol_has_its_own_services() {
    if !root_or_skip("each_protocol_has_its_own_services") {
        return;
    }
    for (settings, sum) in WAYS {
        for (vip, backend) in [("10.0.0.5", "10.0.0.2"), ("[fd00::5]", "[fd00::2]")] {
            let backends = [1, 2, 3].map(|port| format!("{backend}:{port}"));
            let listen = |port: u16, udp: &str| format!("{vip}:{port}{udp}");
            let rig = Rig::new(
                &config(vec![
                    service(&listen(53, ""), &[(&backends[0], 1)]),
                    service(&listen(53, "/udp"), &[(&backends[1], 1)]),
                    service(&listen(80, ""), &[(&backends[2], 1)]),
                    service(&listen(443, "/udp"), &[(&backends[2], 1)]),
                ]),
                *settings,
            );
            // One client's port to both: two flows.
            let mut tcp = Exchange::new(&rig, &listen(53, ""), 1).with_sum(*sum);
            let mut udp = Exchange::new(&rig, &listen(53, "/udp"), 1).with_sum(*sum);
            for _ in 0..2 {
                tcp.open();
                udp.open();
            }
            assert_eq!(tcp.path().backend.port(), 1);
            assert_eq!(udp.path().backend.port(), 2);
            assert_ne!(tcp.path().source, udp.path().source, "of one port space");
            // A reply by the other protocol is nobody's.
            let (tcp_path, udp_path) = (tcp.path(), udp.path());
            let (tcp, udp) = (tcp.with_path(udp_path), udp.with_path(tcp_path));
            tcp.is_passed(&tcp.backend_frame(ACK).bytes(*sum));
            udp.is_passed(&udp.backend_frame(0).bytes(*sum));

            for other in [listen(80, "/udp"), listen(443, ""), listen(54, "/udp")] {
                let exchange = Exchange::new(&rig, &other, 1);
                let mut frame = exchange.client_frame(SYN);
                frame.payload = pattern(99);
                *frame.hops() = 1;
                exchange.is_passed(&frame.bytes(*sum));
            }
        }
    }
}

#[test]
fn without_a_backend_the_client_is_told_port_unreachable() {
    if !root_or_skip("without_a_backend_the_client_is_told_port_unreachable") {
        return;
    }
    for served in &SERVED {
        for (settings, sum) in WAYS {
            let mut rig = rig_of(served, *settings);
            for backend in &mut rig.tables.backends {
                backend.path.alive = false;
            }
            rig.datapath.write_maglev(&rig.tables, 0).unwrap();
            let exchange = Exchange::new(&rig, served.0, 1).with_sum(*sum);
            for bytes in [0, 1, 55, 56, 57, 1000] {
                let mut frame = exchange.client_frame(0);
                frame.payload = pattern(bytes);
                frame.padding = vec![0xa5; 18usize.saturating_sub(bytes)];
                exchange.is_told(&frame, Told::PortUnreachable, NO_BACKEND);
                frame.unsummed = frame.addresses().0.is_ipv4();
                exchange.is_told(&frame, Told::PortUnreachable, NO_BACKEND);
            }
            let ended = rig
                .counters()
                .backends
                .iter()
                .map(|b| b.flows_begun)
                .sum::<u64>();
            assert_eq!(ended, 0);
        }
    }
}

#[test]
fn a_datagram_whose_time_is_over_is_told_of_both_ways() {
    if !root_or_skip("a_datagram_whose_time_is_over_is_told_of_both_ways") {
        return;
    }
    in_every_way(|rig, service, sum| {
        let mut exchange = Exchange::new(rig, service, 1).with_sum(sum);
        let mut frame = exchange.client_frame(0);
        *frame.hops() = 1;
        exchange.is_told(&frame, Told::TimeExceeded, TIME_EXCEEDED);
        exchange.open();
        for hops in [0, 1] {
            for mut frame in [exchange.client_frame(0), exchange.backend_frame(0)] {
                frame.payload = pattern(77);
                *frame.hops() = hops;
                exchange.is_told(&frame, Told::TimeExceeded, TIME_EXCEEDED);
            }
        }
        let begun: u64 = rig.counters().backends.iter().map(|b| b.flows_begun).sum();
        assert_eq!(begun, 1);
    });
}

#[test]
fn without_a_port_the_client_is_told_port_unreachable() {
    if !root_or_skip("without_a_port_the_client_is_told_port_unreachable") {
        return;
    }
    for (listen, backends) in &SERVED {
        let mut service = service(listen, backends);
        service.source_ports = PortRanges::new(vec![2000..=2001]).unwrap();
        let rig = Rig::new(&config(vec![service]), GENERIC);
        let mut flows = [1, 2].map(|number| Exchange::new(&rig, listen, number));
        for flow in &mut flows {
            flow.open();
            // One of two ports is what the unconfirmed may have.
            Exchange::confirm(std::slice::from_mut(flow));
        }
        for sum in [Sum::Complete, Sum::Partial] {
            let late = Exchange::new(&rig, listen, 3).with_sum(sum);
            let frame = late.client_frame(0);
            late.is_told(&frame, Told::PortUnreachable, EXHAUSTED);
        }
        flows.iter_mut().for_each(Exchange::open);
    }
}

#[test]
fn more_errors_than_the_limit_are_dropped_and_counted() {
    if !root_or_skip("more_errors_than_the_limit_are_dropped_and_counted") {
        return;
    }
    const DATAGRAMS: u64 = 4000;
    for served in &SERVED {
        let rig = rig_of(served, GENERIC);
        let frames: Vec<_> = (0..DATAGRAMS)
            .map(|number| {
                let mut frame = Exchange::new(&rig, served.0, number as u32).client_frame(0);
                *frame.hops() = 1;
                frame.bytes(Sum::Complete)
            })
            .collect();
        let tick = xdp_proxy::datapath::tick().unwrap();
        let started = std::time::Instant::now();
        let mut told = 0;
        for frame in &frames {
            let ran = rig.run(frame);
            match ran.verdict {
                XDP_TX => told += 1,
                _ => assert_eq!((ran.verdict, &ran.frame), (XDP_DROP, frame)),
            }
        }
        let ticks = started.elapsed().as_nanos() / tick.as_nanos() + 2;
        println!("{told} told in {ticks} ticks");
        assert!(
            told >= 16 && u128::from(told) <= 16 * ticks,
            "{told} in {ticks}"
        );
        assert!(told < DATAGRAMS, "the limit was met");
        assert_eq!(rig.counter(TIME_EXCEEDED), told);
        let limited = rig.counter(OutcomeCode::OUTCOME_DROPPED_ICMP_LIMIT);
        assert_eq!(limited, DATAGRAMS - told);
    }
}

/// As of Linux: six at once, then one a second; the others get theirs meanwhile.
#[test]
fn one_client_is_told_six_times_and_then_once_a_second() {
    if !root_or_skip("one_client_is_told_six_times_and_then_once_a_second") {
        return;
    }
    for served in &SERVED {
        let rig = rig_of(served, GENERIC);
        let told = |number: u32, times: usize| {
            let mut frame = Exchange::new(&rig, served.0, number).client_frame(0);
            *frame.hops() = 1;
            let frame = frame.bytes(Sum::Complete);
            let told = (0..times).filter(|_| rig.run(&frame).verdict == XDP_TX);
            let told = told.count();
            // What is sent in one tick is limited too.
            std::thread::sleep(2 * xdp_proxy::datapath::tick().unwrap());
            told
        };
        let started = std::time::Instant::now();
        // The clock's tick may have begun a little earlier.
        let seconds = || (started.elapsed() + Duration::from_millis(20)).as_secs() as usize;
        assert_eq!(told(1, 6), 6, "{served:?}");
        let more = told(1, 1000);
        let now = seconds();
        assert!(more <= now, "{more} more in {now} s");
        assert_eq!(told(2, 6), 6, "another client");
        std::thread::sleep(Duration::from_millis(1100));
        let more = told(1, 1000);
        let seconds = seconds();
        assert!((1..=seconds).contains(&more), "{more} more in {seconds} s");
    }
}

/// Which of the two timeouts is short; whether the backend has answered; ends.
#[test]
fn a_flow_ends_when_nothing_was_sent_for_as_long_as_its_state_allows() {
    if !root_or_skip("a_flow_ends_when_nothing_was_sent_for_as_long_as_its_state_allows") {
        return;
    }
    let table = [
        (SOON, LATER, false, 1),
        (SOON, LATER, true, 0),
        (LATER, SOON, false, 0),
        (LATER, SOON, true, 1),
    ];
    for (listen, backends) in &SERVED {
        for (unanswered, established, answered, ends) in table {
            let mut service = service(listen, backends);
            service.timeouts.unanswered = unanswered;
            service.timeouts.established = established;
            let mut rig = Rig::new(&config(vec![service]), GENERIC);
            let mut exchange = Exchange::new(&rig, listen, 1);
            exchange.forward(0);
            if answered {
                exchange.reply(0);
            }
            let path = exchange.path();
            sleep(SOON_OVER);
            rig.datapath.sweep().unwrap();
            let ended: u64 = rig.counters().backends.iter().map(|b| b.flows_ended).sum();
            assert_eq!(ended, ends, "{listen} {unanswered:?} {answered}");
            // A late answer still returns; the next datagram begins a new flow.
            let late = Exchange::new(&rig, listen, 1).with_path(path);
            late.reply(0);
            let mut next = Exchange::new(&rig, listen, 1);
            next.forward(0);
            next.reply(0);
            assert_eq!(next.path() == path, ends == 0, "its port");
            assert_eq!(next.path().backend, path.backend, "its backend");
            let after: u64 = rig.counters().backends.iter().map(|b| b.flows()).sum();
            assert_eq!(after, 1);
        }
    }
}

#[test]
fn a_flow_moves_at_once_when_its_backend_is_gone() {
    if !root_or_skip("a_flow_moves_at_once_when_its_backend_is_gone") {
        return;
    }
    for served in &SERVED {
        for (settings, sum) in WAYS {
            let mut rig = rig_of(served, *settings);
            let mut exchange = Exchange::new(&rig, served.0, 1).with_sum(*sum);
            exchange.open();
            let path = exchange.path();
            let gone = rig.backend_index(path.backend);
            rig.tables.backends[gone - 1].path.alive = false;
            rig.datapath.write_backend(&rig.tables, gone).unwrap();
            rig.datapath.write_maglev(&rig.tables, 0).unwrap();

            // Its answers return as long as nothing else was sent.
            Exchange::new(&rig, served.0, 1)
                .with_sum(*sum)
                .with_path(path)
                .reply(0);
            let mut moved = Exchange::new(&rig, served.0, 1).with_sum(*sum);
            moved.open();
            moved.open();
            assert_ne!(moved.path().source, path.source, "its port");
            assert_ne!(moved.path().backend, path.backend, "its backend");
            let late = Exchange::new(&rig, served.0, 1).with_path(path);
            late.is_passed(&late.backend_frame(0).bytes(*sum));
            let counters = rig.counters();
            let of_gone = &counters.backends[gone - 1];
            assert_eq!((of_gone.flows_begun, of_gone.flows_ended), (1, 1));
            assert_eq!(counters.backends.iter().map(|b| b.flows()).sum::<u64>(), 1);
        }
    }
}
