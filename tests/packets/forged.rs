// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Packets of a stranger who knows a flow's addresses and ports, and not its numbers.

use std::thread::sleep;
use std::time::Duration;

use xdp_proxy::abi::OutcomeCode;
use xdp_proxy::service::{PortRanges, Protocol};

use crate::common::exchange::*;
use crate::common::fragment::Fragmented;
use crate::common::frame::*;
use crate::common::icmp::*;
use crate::common::rig::*;
use crate::common::root_or_skip;
use crate::common::served::{SERVED, both};

const EXHAUSTED: OutcomeCode = OutcomeCode::OUTCOME_REFUSED_SNAT_EXHAUSTED;
const UNPROVEN: OutcomeCode = OutcomeCode::OUTCOME_DROPPED_UNPROVEN;
/// From what is believed to be of a flow.
const FAR: u32 = 1 << 24;

/// One service, with so many source ports.
fn with_ports(listen: &str, backends: &[(&str, u16)], count: u16) -> Rig {
    let mut service = service(listen, backends);
    service.source_ports = PortRanges::new(vec![2000..=1999 + count]).unwrap();
    Rig::new(&config(vec![service]), GENERIC)
}

fn served_by(protocol: Protocol) -> impl Iterator<Item = (&'static str, [(&'static str, u16); 2])> {
    SERVED
        .into_iter()
        .filter(move |(listen, _)| listen.ends_with("/udp") == (protocol == Protocol::Udp))
}

fn ended(rig: &Rig) -> u64 {
    rig.counters().backends.iter().map(|b| b.flows_ended).sum()
}

fn with_numbers(mut frame: Frame, sequence: u32, acknowledged: u32) -> Frame {
    frame.tcp().sequence_number = sequence;
    frame.tcp().acknowledgment_number = acknowledged;
    frame
}

#[test]
fn only_the_number_of_the_backends_answer_establishes_a_flow() {
    if !root_or_skip("only_the_number_of_the_backends_answer_establishes_a_flow") {
        return;
    }
    for (listen, backends) in served_by(Protocol::Tcp) {
        let rig = with_ports(listen, &backends, 20);
        let mut flow = Exchange::new(&rig, listen, 1);
        flow.forward(SYN);
        // Before there is an answer, there is nothing that proves anything.
        flow.forward(ACK);
        assert_eq!(rig.unconfirmed().0, 1);
        flow.reply(SYN | ACK);
        for wrong in [0, 1, BACKEND_SEQUENCE, BACKEND_SEQUENCE + 2, u32::MAX] {
            for flags in [ACK, PSH | ACK, FIN | ACK] {
                let mut frame = with_numbers(flow.client_frame(flags), CLIENT_SEQUENCE + 1, wrong);
                frame.payload = pattern(99);
                flow.forward_frame(&frame);
                assert_eq!(rig.unconfirmed().0, 1, "{flags} that acknowledges {wrong}");
            }
        }
        let mut wrong = with_numbers(flow.client_frame(ACK), CLIENT_SEQUENCE + 1, 7);
        wrong.payload = pattern(60);
        Fragmented::new(&flow, &wrong, 9, &[24]).check(&flow);
        assert_eq!(rig.unconfirmed().0, 1, "a first fragment");
        // The number without the flag is none.
        let frame = with_numbers(flow.client_frame(PSH), 1001, BACKEND_SEQUENCE + 1);
        flow.forward_frame(&frame);
        assert_eq!(rig.unconfirmed().0, 1);
        flow.forward(ACK);
        assert_eq!(rig.unconfirmed().0, 0);
    }
}

#[test]
fn an_answer_that_comes_again_with_another_number_is_as_good() {
    if !root_or_skip("an_answer_that_comes_again_with_another_number_is_as_good") {
        return;
    }
    let rig = Rig::new(&config(vec![service(WEB, &[("10.0.0.2:80", 1)])]), GENERIC);
    let answer = |flow: &Exchange, sequence| {
        with_numbers(flow.backend_frame(SYN | ACK), sequence, CLIENT_SEQUENCE + 1)
    };
    let answers = |flow: &Exchange| {
        for number in [70_000_000, 80_000_000] {
            flow.reply_frame(&answer(flow, number));
        }
    };
    let ack = |flow: &Exchange, acknowledged| {
        with_numbers(flow.client_frame(ACK), CLIENT_SEQUENCE + 1, acknowledged)
    };
    let unconfirmed = || rig.unconfirmed().0;
    // The client has the second one.
    let mut flow = Exchange::new(&rig, WEB, 1);
    flow.forward(SYN);
    answers(&flow);
    flow.forward_frame(&ack(&flow, 80_000_001));
    assert_eq!(unconfirmed(), 0);
    // It has the first one, as the backend's data shows.
    let mut flow = Exchange::new(&rig, WEB, 2);
    flow.forward(SYN);
    answers(&flow);
    flow.forward_frame(&ack(&flow, 70_000_001));
    assert_eq!(unconfirmed(), 1);
    let mut data = with_numbers(
        flow.backend_frame(PSH | ACK),
        70_000_001,
        CLIENT_SEQUENCE + 1,
    );
    data.payload = pattern(1000);
    flow.reply_frame(&data);
    flow.forward_frame(&ack(&flow, 70_001_001));
    assert_eq!(unconfirmed(), 0);
    // Fast open: it acknowledges data that came behind the answer.
    let mut flow = Exchange::new(&rig, WEB, 3);
    flow.forward(SYN);
    flow.reply(SYN | ACK);
    let mut data = flow.backend_frame(PSH | ACK);
    data.tcp().sequence_number = BACKEND_SEQUENCE + 1;
    data.payload = pattern(1400);
    flow.reply_frame(&data);
    flow.forward_frame(&ack(&flow, BACKEND_SEQUENCE + 1 + 70_000));
    assert_eq!(unconfirmed(), 1, "more than anybody has sent");
    flow.forward_frame(&ack(&flow, BACKEND_SEQUENCE + 1 + 1400));
    assert_eq!(unconfirmed(), 0);
}

#[test]
fn a_reset_ends_a_flow_only_with_a_number_near_the_flows_and_a_right_sum() {
    if !root_or_skip("a_reset_ends_a_flow_only_with_a_number_near_the_flows_and_a_right_sum") {
        return;
    }
    for (listen, backends) in served_by(Protocol::Tcp) {
        let rig = with_ports(listen, &backends, 20);
        let mut flow = Exchange::new(&rig, listen, 1);
        flow.open();
        for far in [FAR, 1 << 31, u32::MAX - FAR, 131_073] {
            for flags in [RST, RST | ACK] {
                let (client, backend) = (flow.client_frame(flags), flow.backend_frame(flags));
                let sequence = CLIENT_SEQUENCE.wrapping_add(far);
                flow.forward_frame(&with_numbers(client, sequence, BACKEND_SEQUENCE + 1));
                let sequence = BACKEND_SEQUENCE.wrapping_add(far);
                flow.reply_frame(&with_numbers(backend, sequence, CLIENT_SEQUENCE + 1));
            }
        }
        for (frame, sum_at) in [flow.client_frame(RST), flow.backend_frame(RST)]
            .map(|frame| (frame.bytes(Sum::Complete), frame.transport_at() + 16))
        {
            let mut wrong = frame;
            wrong[sum_at] ^= 0x40;
            assert_eq!(
                rig.run(&wrong).verdict,
                XDP_TX,
                "its receiver sees the sum too"
            );
        }
        let mut rst = flow.client_frame(RST);
        rst.payload = pattern(60);
        Fragmented::new(&flow, &rst, 9, &[24]).check(&flow);
        assert_eq!(ended(&rig), 0);
        // Its numbers are as they were, and are followed as far as they go.
        let mut sequence = CLIENT_SEQUENCE + 1;
        for _ in 0..300 {
            let mut data =
                with_numbers(flow.client_frame(PSH | ACK), sequence, BACKEND_SEQUENCE + 1);
            data.payload = pattern(1400);
            flow.forward_frame(&data);
            sequence += 1400;
        }
        flow.forward(RST);
        assert_eq!(ended(&rig), 0, "a number of long ago");
        flow.forward_frame(&with_numbers(flow.client_frame(RST), sequence, 0));
        assert_eq!(ended(&rig), 1);
    }
}

#[test]
fn a_flow_of_udp_is_unconfirmed_until_its_client_goes_on_for_a_second() {
    if !root_or_skip("a_flow_of_udp_is_unconfirmed_until_its_client_goes_on_for_a_second") {
        return;
    }
    for (listen, backends) in served_by(Protocol::Udp) {
        let rig = with_ports(listen, &backends, 20);
        let mut flows: Vec<Exchange> = (0..2).map(|n| Exchange::new(&rig, listen, n)).collect();
        for flow in &mut flows {
            flow.forward(0);
            flow.forward(0);
        }
        flows[0].reply(0);
        flows[0].forward(0);
        assert_eq!(rig.unconfirmed().0, 2);
        Exchange::confirm(&mut flows);
        assert_eq!(rig.unconfirmed().0, 1, "one has had an answer");
    }
}

/// Only a frame with the flow's numbers shows that its client has moved.
#[test]
fn a_strangers_frame_turns_no_flow_to_itself() {
    if !root_or_skip("a_strangers_frame_turns_no_flow_to_itself") {
        return;
    }
    for (listen, backends) in SERVED {
        let rig = with_ports(listen, &backends, 20);
        let mut flow = Exchange::new(&rig, listen, 1);
        flow.forward(SYN);
        let stranger = [2, 0, 0, 0, 0, 0x66];
        let forge = |flow: &Exchange, flags, sequence, acknowledged| {
            let mut frame = flow.client_frame(flags);
            if flow.protocol == Protocol::Tcp {
                frame = with_numbers(frame, sequence, acknowledged);
            }
            frame.from_mac = stranger;
            frame
        };
        let [ours, theirs] = [CLIENT_SEQUENCE + 1, BACKEND_SEQUENCE + 1];
        flow.forward_frame(&forge(&flow, SYN, 77, 0));
        flow.reply(SYN | ACK);
        flow.forward(SYN);
        flow.forward_frame(&forge(&flow, ACK, ours, theirs + 9));
        flow.reply(SYN | ACK);
        flow.forward(ACK);
        for flags in [ACK, PSH | ACK, SYN, FIN | ACK, RST | ACK] {
            flow.forward_frame(&forge(&flow, flags, ours + FAR, theirs));
            flow.reply(ACK);
        }
        // One of the numbers may have been guessed.
        flow.forward_frame(&forge(&flow, ACK, ours, theirs + FAR));
        flow.reply(ACK);
        flow.forward_frame(&forge(&flow, ACK, ours, theirs));
        if flow.protocol == Protocol::Tcp {
            flow.client_mac = stranger;
        }
        flow.reply(ACK);
    }
}

#[test]
fn an_error_about_a_segment_that_did_not_pass_goes_nowhere() {
    if !root_or_skip("an_error_about_a_segment_that_did_not_pass_goes_nowhere") {
        return;
    }
    for (listen, backends) in SERVED {
        let rig = with_ports(listen, &backends, 20);
        let mut flow = Exchange::new(&rig, listen, 1);
        flow.open();
        let is_ipv4 = flow.service.is_ipv4();
        let too_big = |mtu: u16| {
            let [high, low] = mtu.to_be_bytes();
            if is_ipv4 {
                Icmp(3, 4, [0, 0, high, low])
            } else {
                Icmp(2, 0, [0, 0, high, low])
            }
        };
        for about in both(&flow, 600) {
            let check = |flow: &Exchange, about: &Frame, icmp: Icmp, believed: bool| {
                let error = translated(flow, about, None, icmp, 64);
                match believed {
                    true => error.check(flow),
                    false => flow.is_dropped(&error.error.bytes(Sum::Complete), UNPROVEN),
                }
            };
            check(&flow, &about, too_big(1400), true);
            // Of IPv6 no path is smaller; of IPv4 a datagram proves nothing.
            let is_tcp = flow.protocol == Protocol::Tcp;
            check(&flow, &about, too_big(1280), true);
            check(&flow, &about, too_big(1279), is_ipv4 && is_tcp);
            check(&flow, &about, too_big(552), is_ipv4 && is_tcp);
            if is_tcp {
                let mut about = about.clone();
                about.tcp().sequence_number = about.tcp().sequence_number.wrapping_add(FAR);
                for icmp in errors(is_ipv4) {
                    check(&flow, &about, icmp, false);
                }
            }
        }
    }
}

/// Who may be dead makes room first, then who was silent for longest; nobody who is busy.
#[test]
fn where_no_port_is_free_the_longest_idle_makes_room() {
    if !root_or_skip("where_no_port_is_free_the_longest_idle_makes_room") {
        return;
    }
    let (listen, backends) = served_by(Protocol::Tcp).next().unwrap();
    let rig = with_ports(listen, &backends, 4);
    let open = |number| {
        let mut flow = Exchange::new(&rig, listen, number);
        flow.open();
        flow
    };
    let mut flows: Vec<Exchange> = (0..4).map(open).collect();
    let refused = |number| {
        let flow = Exchange::new(&rig, listen, number);
        flow.is_reset(&flow.client_frame(SYN), EXHAUSTED);
    };
    refused(10);
    flows[1].forward(PSH | ACK);
    sleep(Duration::from_secs(3));
    flows[2].reply(FIN | ACK);
    flows[3].forward(PSH | ACK);
    refused(11);
    // All have been silent for longer than ten seconds, but the fourth.
    sleep(Duration::from_millis(7500));
    flows[3].forward(PSH | ACK);
    sleep(Duration::from_millis(3000));
    assert_eq!(ended(&rig), 0);
    let ports: Vec<u16> = [20, 21, 22].map(|number| open(number).port()).into();
    assert_eq!(ports[0], flows[2].port(), "half closed");
    assert_eq!(
        ports[1..],
        [0, 1].map(|nth: usize| flows[nth].port()),
        "in their order"
    );
    refused(12);
    flows[3].forward(PSH | ACK);
    flows[3].reply(PSH | ACK);
    assert_eq!(ended(&rig), 3);
    // Its client can't go on with what it had.
    flows[0].is_reset(
        &flows[0].client_frame(ACK),
        OutcomeCode::OUTCOME_REFUSED_NO_FLOW,
    );
}
