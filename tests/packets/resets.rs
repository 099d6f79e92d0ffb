// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Segments that belong to no flow (RFC 9293, section 3.10.7.1).

use xdp_proxy::abi::OutcomeCode;

use crate::common::case::Expect::*;
use crate::common::case::*;
use crate::common::frame::*;
use crate::common::root_or_skip;

const NO_FLOW: OutcomeCode = OutcomeCode::OUTCOME_REFUSED_NO_FLOW;
const DROPPED_NO_FLOW: OutcomeCode = OutcomeCode::OUTCOME_DROPPED_NO_FLOW;

const NO_FLOWS: &[Case] = &[
    case(
        "an ACK of no flow gets a RST at its number",
        &[],
        client(ACK),
        Reset(NO_FLOW, 5001, None),
    ),
    case(
        "data of no flow gets a RST at its number",
        &[],
        client(PSH | ACK).payload(333),
        Reset(NO_FLOW, 5001, None),
    ),
    case(
        "a FIN+ACK of no flow gets a RST at its number",
        &[],
        client(FIN | ACK),
        Reset(NO_FLOW, 5001, None),
    ),
    case(
        "a SYN+ACK from a client gets a RST at its number",
        &[],
        client(SYN | ACK),
        Reset(NO_FLOW, 5001, None),
    ),
    case(
        "no flags at all get a RST that acknowledges",
        &[],
        client(0),
        Reset(NO_FLOW, 0, Some(1000)),
    ),
    case(
        "data without ACK gets a RST that acknowledges it",
        &[],
        client(PSH).payload(77),
        Reset(NO_FLOW, 0, Some(1077)),
    ),
    case(
        "a FIN without ACK counts as one byte",
        &[],
        client(FIN).payload(10),
        Reset(NO_FLOW, 0, Some(1011)),
    ),
    case(
        "a SYN+FIN begins nothing and counts as two",
        &[],
        client(SYN | FIN),
        Reset(NO_FLOW, 0, Some(1002)),
    ),
    case(
        "the acknowledgement wraps around",
        &[],
        client(FIN).payload(3).edit(|s| {
            s.tcp().sequence_number = u32::MAX - 1;
        }),
        Reset(NO_FLOW, 0, Some(2)),
    ),
    case(
        "padding does not count as data",
        &[],
        client(0).edit(|s| s.padding = vec![0xee; 6]),
        Reset(NO_FLOW, 0, Some(1000)),
    ),
    case(
        "TCP options do not count as data and are left out",
        &[],
        client(FIN).payload(4).edit(|s| {
            s.tcp().set_options_raw(&[1; 12]).unwrap();
        }),
        Reset(NO_FLOW, 0, Some(1005)),
    ),
    case(
        "the RST takes the way that the segment came",
        &[],
        client(ACK).edit(|s| {
            s.from_mac = [2, 0, 0, 9, 9, 9];
        }),
        Reset(NO_FLOW, 5001, None),
    ),
    case(
        "the RST keeps IP options",
        &[],
        client(ACK).payload(100).edit(|s| {
            s.ipv4().options = [7, 7, 4, 1, 2, 3, 4, 0].into();
        }),
        Reset(NO_FLOW, 5001, None),
    ),
    case(
        "the RST keeps the longest IP options",
        &[],
        client(ACK).edit(|s| {
            s.ipv4().options = [1; 40].into();
        }),
        Reset(NO_FLOW, 5001, None),
    ),
    case(
        "the RST has no urgent pointer",
        &[],
        client(ACK).edit(|s| {
            s.tcp().urg = true;
            s.tcp().urgent_pointer = 77;
        }),
        Reset(NO_FLOW, 5001, None),
    ),
    case(
        "a RST of no flow is dropped",
        &[],
        client(RST),
        Dropped(DROPPED_NO_FLOW),
    ),
    case(
        "a RST+ACK of no flow is dropped",
        &[],
        client(RST | ACK),
        Dropped(DROPPED_NO_FLOW),
    ),
    case(
        "a SYN+RST is no SYN",
        &[],
        client(SYN | RST),
        Dropped(DROPPED_NO_FLOW),
    ),
];

#[test]
fn a_segment_of_no_flow_is_answered_with_a_reset() {
    if root_or_skip("a_segment_of_no_flow_is_answered_with_a_reset") {
        check(NO_FLOWS);
    }
}
