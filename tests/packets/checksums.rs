// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Checksums that are complete and checksums that are still to be completed
//! (CHECKSUM_PARTIAL): every row of the table in src/bpf/checksum.h. What must
//! come out is etherparse's full sum over the packet that came out.

use xdp_proxy::abi::OutcomeCode;

use crate::common::case::WAYS;
use crate::common::exchange::*;
use crate::common::frame::*;
use crate::common::rig::*;
use crate::common::root_or_skip;

const NO_FLOW: OutcomeCode = OutcomeCode::OUTCOME_REFUSED_NO_FLOW;

/// Payloads about every border of the program's loops, and about the MTU's.
fn payload_lengths() -> impl Iterator<Item = usize> {
    (0..=200)
        .chain([255, 256, 257, 511, 512, 513, 1023, 1024, 1025])
        .chain(1436..=1460)
}

/// Longer than the MTU, in one buffer: GSO packets. buffers.rs has longer ones.
fn gso_lengths() -> impl Iterator<Item = usize> {
    [1461, 1462, 1463, 2000, 2001, 2896, 3400].into_iter()
}

fn ip_options() -> [etherparse::Ipv4Options; 3] {
    [[].into(), [1, 1, 1, 0].into(), [1; 40].into()]
}

fn one_service(settings: xdp_proxy::datapath::Settings) -> Rig {
    let backends = [("10.0.0.2:80", 1), ("10.0.0.3:8080", 1)];
    Rig::new(&config(vec![service("10.0.0.5:80", &backends)]), settings)
}

/// Segments of each length in both directions, `change`d.
fn both_ways(
    connection: &mut Exchange,
    lengths: &mut dyn Iterator<Item = usize>,
    change: impl Fn(&mut Frame),
) -> usize {
    let mut checked = 0;
    for bytes in lengths {
        for options in ip_options() {
            if bytes + options.len() > 1460 && bytes <= 1460 {
                continue; // it would be longer than the MTU
            }
            let mut out = connection.client_frame(PSH | ACK);
            let mut back = connection.backend_frame(PSH | ACK);
            for segment in [&mut out, &mut back] {
                segment.payload = pattern(bytes);
                segment.ipv4().options = options.clone();
                change(segment);
            }
            connection.forward_frame(&out);
            connection.reply_frame(&back);
            checked += 2;
        }
    }
    checked
}

#[test]
fn sums_of_every_length_stay_right_however_they_come() {
    if !root_or_skip("sums_of_every_length_stay_right_however_they_come") {
        return;
    }
    let mut checked = 0;
    for (settings, sum) in WAYS {
        let rig = one_service(*settings);
        let mut connection = Exchange::new(&rig, WEB, 1).with_sum(*sum);
        connection.open();
        checked += both_ways(&mut connection, &mut payload_lengths(), |_| ());
        checked += both_ways(&mut connection, &mut gso_lengths(), |_| ());
    }
    println!("{checked} packets");
}

#[test]
fn a_clear_sum_teaches_how_a_coincidence_is_read() {
    if !root_or_skip("a_clear_sum_teaches_how_a_coincidence_is_read") {
        return;
    }
    for (settings, sum) in WAYS {
        let rig = one_service(*settings);
        let mut connection = Exchange::new(&rig, WEB, 1).with_sum(*sum);
        connection.open();
        both_ways(&mut connection, &mut payload_lengths(), Frame::coincide);
    }
}

#[test]
fn a_coincidence_longer_than_the_mtu_is_partial() {
    if !root_or_skip("a_coincidence_longer_than_the_mtu_is_partial") {
        return;
    }
    let rig = one_service(GENERIC);
    let mut connection = Exchange::new(&rig, WEB, 1);
    connection.open();
    connection.sum = Sum::Partial;
    both_ways(&mut connection, &mut gso_lengths(), Frame::coincide);
}

/// A packet of a history: what it says clearly, or that it is the coincidence.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Said {
    Clearly(Sum),
    Nothing,
}

/// Each of these begins with a SYN of its own flow; `Nothing` is read as given.
#[test]
fn a_coincidence_is_read_as_its_direction_was_read_before() {
    if !root_or_skip("a_coincidence_is_read_as_its_direction_was_read_before") {
        return;
    }
    use Said::{Clearly, Nothing};
    const COMPLETE: Said = Clearly(Sum::Complete);
    const PARTIAL: Said = Clearly(Sum::Partial);
    let histories: &[(&str, &[Said], Sum)] = &[
        ("the first packet", &[], Sum::Complete),
        ("after a coincidence", &[Nothing], Sum::Complete),
        ("after a complete one", &[COMPLETE], Sum::Complete),
        ("after a partial one", &[PARTIAL], Sum::Partial),
        (
            "after a partial one and a coincidence",
            &[PARTIAL, Nothing],
            Sum::Partial,
        ),
        (
            "after a complete one and a coincidence",
            &[COMPLETE, Nothing],
            Sum::Complete,
        ),
        (
            "after partial, then complete",
            &[PARTIAL, COMPLETE],
            Sum::Complete,
        ),
        (
            "after complete, then partial",
            &[COMPLETE, PARTIAL],
            Sum::Partial,
        ),
    ];
    let rig = one_service(GENERIC);
    for ((name, history, read_as), number) in histories.iter().zip(1..) {
        println!("{name}");
        // Of the client: the other direction's sums must not matter.
        let mut connection = Exchange::new(&rig, WEB, number);
        for (said, i) in history.iter().zip(0..) {
            let mut segment = connection.client_frame(if i == 0 { SYN } else { ACK });
            let sum = said_as(*said, &mut segment, *read_as);
            connection.sum = sum;
            connection.forward_frame(&segment);
            connection.sum = opposite(sum);
            connection.reply(ACK);
        }
        let mut segment = connection.client_frame(if history.is_empty() { SYN } else { ACK });
        segment.coincide();
        connection.sum = *read_as;
        connection.forward_frame(&segment);

        // Of the backend.
        let mut connection = Exchange::new(&rig, WEB, 1000 + number);
        connection.sum = opposite(*read_as);
        connection.forward(SYN);
        for said in *history {
            let mut segment = connection.backend_frame(ACK);
            connection.sum = said_as(*said, &mut segment, *read_as);
            connection.reply_frame(&segment);
        }
        let mut segment = connection.backend_frame(ACK);
        segment.coincide();
        connection.sum = *read_as;
        connection.reply_frame(&segment);
    }
}

/// Makes a segment say what it should; how it is read.
fn said_as(said: Said, segment: &mut Frame, read_as: Sum) -> Sum {
    match said {
        Said::Clearly(sum) => sum,
        Said::Nothing => {
            segment.coincide();
            read_as
        }
    }
}

fn opposite(sum: Sum) -> Sum {
    match sum {
        Sum::Complete => Sum::Partial,
        Sum::Partial => Sum::Complete,
    }
}

#[test]
fn a_reset_keeps_the_kind_of_the_sum_that_it_answers() {
    if !root_or_skip("a_reset_keeps_the_kind_of_the_sum_that_it_answers") {
        return;
    }
    for (settings, sum) in WAYS {
        let rig = one_service(*settings);
        let connection = Exchange::new(&rig, WEB, 1).with_sum(*sum);
        for bytes in (0..=70).chain([1460]).chain(gso_lengths()) {
            for options in ip_options() {
                for flags in [ACK, FIN, PSH | ACK, SYN | ACK] {
                    let mut segment = connection.client_frame(flags);
                    segment.payload = pattern(bytes);
                    segment.ipv4().options = options.clone();
                    connection.is_reset(&segment, NO_FLOW);
                }
            }
        }
    }
}

/// It has no history: the coincidence is read as complete.
#[test]
fn a_reset_that_answers_a_coincidence_is_complete() {
    if !root_or_skip("a_reset_that_answers_a_coincidence_is_complete") {
        return;
    }
    for settings in [WHOLE, GENERIC, NATIVE] {
        let rig = one_service(settings);
        let connection = Exchange::new(&rig, WEB, 1);
        for bytes in 0..=130 {
            let mut segment = connection.client_frame(ACK);
            segment.payload = pattern(bytes);
            segment.coincide();
            connection.is_reset(&segment, NO_FLOW);
        }
    }
}

/// Where its sender got it wrong, the receiver must notice.
#[test]
fn a_wrong_sum_stays_wrong_by_the_same_amount() {
    if !root_or_skip("a_wrong_sum_stays_wrong_by_the_same_amount") {
        return;
    }
    for settings in [WHOLE, GENERIC, NATIVE] {
        let rig = one_service(settings);
        let mut connection = Exchange::new(&rig, WEB, 1);
        connection.open();
        let mut segment = connection.client_frame(ACK);
        segment.payload = pattern(100);
        let wanted = connection.forwarded(&segment);
        for wrong_by in [1u16, 0x100, 0x8000] {
            let mut frame = segment.bytes(Sum::Complete);
            let sum = segment.complete_sum();
            frame[50..52].copy_from_slice(&(sum ^ wrong_by).to_be_bytes());
            let ran = rig.run(&frame);
            assert_eq!(ran.verdict, XDP_TX);
            let out = u16::from_be_bytes([ran.frame[50], ran.frame[51]]);
            let off = |one: u16, other: u16| (u32::from(one) + u32::from(!other)) % 0xffff;
            assert_eq!(
                off(out, wanted.complete_sum()),
                off(sum ^ wrong_by, sum),
                "by {wrong_by:#x}"
            );
            let mut mended = ran.frame.clone();
            mended[50..52].copy_from_slice(&wanted.complete_sum().to_be_bytes());
            assert_eq!(mended, wanted.bytes(Sum::Complete));
        }
    }
}
