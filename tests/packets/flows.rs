// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! A flow's life, from its SYN to its end.

use crate::common::case::Expect::*;
use crate::common::case::*;
use crate::common::frame::*;
use crate::common::root_or_skip;

/// From what is believed to be of a flow.
const FAR: u32 = 1 << 20;

fn far(frame: &mut Frame) {
    frame.tcp().sequence_number += FAR;
}

const SYN_SENT: &[Packet] = &[client(SYN)];
const ANSWERED: &[Packet] = &[client(SYN), backend(SYN | ACK)];
const OPEN: &[Packet] = &[client(SYN), backend(SYN | ACK), client(ACK)];
const CLIENT_FINISHED: &[Packet] = &[
    client(SYN),
    backend(SYN | ACK),
    client(ACK),
    client(FIN | ACK),
];
const BACKEND_FINISHED: &[Packet] = &[
    client(SYN),
    backend(SYN | ACK),
    client(ACK),
    backend(FIN | ACK),
];
const BOTH_FINISHED: &[Packet] = &[
    client(SYN),
    backend(SYN | ACK),
    client(ACK),
    client(FIN | ACK),
    backend(FIN | ACK),
];
const CLOSED: &[Packet] = &[
    client(SYN),
    backend(SYN | ACK),
    client(ACK),
    client(FIN | ACK),
    backend(FIN | ACK),
    client(ACK),
];
const CLIENT_RESET: &[Packet] = &[client(SYN), backend(SYN | ACK), client(ACK), client(RST)];
const REFUSED: &[Packet] = &[client(SYN), backend(RST | ACK)];

const LIFE: &[Case] = &[
    case("a SYN begins a flow", &[], client(SYN), Forwarded).begins(),
    case(
        "a SYN sent again keeps its port",
        SYN_SENT,
        client(SYN),
        Forwarded,
    ),
    case(
        "a SYN sent again after the answer keeps its port",
        ANSWERED,
        client(SYN),
        Forwarded,
    ),
    case(
        "a SYN with data (fast open) begins a flow",
        &[],
        client(SYN).payload(99),
        Forwarded,
    )
    .begins(),
    case(
        "a SYN that negotiates ECN begins a flow",
        &[],
        client(SYN).edit(|s| {
            s.tcp().ece = true;
            s.tcp().cwr = true;
        }),
        Forwarded,
    )
    .begins(),
    case(
        "a SYN+ACK returns to the client",
        SYN_SENT,
        backend(SYN | ACK),
        Returned,
    ),
    case(
        "the ACK of the handshake is forwarded",
        ANSWERED,
        client(ACK),
        Forwarded,
    ),
    case(
        "an ACK before any answer is forwarded",
        SYN_SENT,
        client(ACK),
        Forwarded,
    ),
    case(
        "data of even length is forwarded",
        OPEN,
        client(PSH | ACK).payload(1000),
        Forwarded,
    ),
    case(
        "data of odd length is forwarded",
        OPEN,
        client(PSH | ACK).payload(1001),
        Forwarded,
    ),
    case(
        "a single byte is forwarded",
        OPEN,
        client(PSH | ACK).payload(1),
        Forwarded,
    ),
    case(
        "a full frame is forwarded",
        OPEN,
        client(ACK).payload(1460),
        Forwarded,
    ),
    case(
        "data of even length returns",
        OPEN,
        backend(PSH | ACK).payload(1000),
        Returned,
    ),
    case(
        "data of odd length returns",
        OPEN,
        backend(PSH | ACK).payload(1001),
        Returned,
    ),
    case(
        "a full frame returns",
        OPEN,
        backend(ACK).payload(1460),
        Returned,
    ),
    case(
        "sequence numbers and window are untouched",
        OPEN,
        client(ACK).edit(|s| {
            s.tcp().sequence_number = u32::MAX;
            s.tcp().acknowledgment_number = 0x8000_0001;
            s.tcp().window_size = 1;
        }),
        Forwarded,
    ),
    case(
        "the client's FIN alone ends nothing",
        OPEN,
        client(FIN | ACK),
        Forwarded,
    ),
    case(
        "the backend's FIN alone ends nothing",
        OPEN,
        backend(FIN | ACK),
        Returned,
    ),
    case(
        "data returns after the client's FIN",
        CLIENT_FINISHED,
        backend(ACK).payload(500),
        Returned,
    ),
    case(
        "data is forwarded after the backend's FIN",
        BACKEND_FINISHED,
        client(ACK).payload(500),
        Forwarded,
    ),
    case(
        "the client's FIN sent again ends nothing",
        CLIENT_FINISHED,
        client(FIN | ACK),
        Forwarded,
    ),
    case(
        "the backend's FIN after the client's ends nothing before it is acknowledged",
        CLIENT_FINISHED,
        backend(FIN | ACK),
        Returned,
    ),
    case(
        "the client's FIN after the backend's ends nothing before it is acknowledged",
        BACKEND_FINISHED,
        client(FIN | ACK),
        Forwarded,
    ),
    case(
        "the client's ACK of the last FIN ends the flow",
        BOTH_FINISHED,
        client(ACK),
        Forwarded,
    )
    .ends(),
    case(
        "the backend's ACK of the last FIN ends the flow",
        &[
            client(SYN),
            backend(SYN | ACK),
            client(ACK),
            backend(FIN | ACK),
            client(FIN | ACK),
        ],
        backend(ACK),
        Returned,
    )
    .ends(),
    case(
        "an ACK of less than the last FIN ends nothing",
        BOTH_FINISHED,
        client(ACK).edit(|s| s.tcp().acknowledgment_number -= 1),
        Forwarded,
    ),
    case(
        "an ACK of more than the last FIN ends nothing",
        BOTH_FINISHED,
        client(ACK).edit(|s| s.tcp().acknowledgment_number += 1),
        Forwarded,
    ),
    case(
        "the last ACK sent again is forwarded",
        CLOSED,
        client(ACK),
        Forwarded,
    ),
    case(
        "a FIN far from the flow's numbers is none of it",
        &[
            client(SYN),
            backend(SYN | ACK),
            client(ACK),
            client(FIN | ACK).edit(far),
            backend(FIN | ACK).edit(|s| s.tcp().acknowledgment_number += FAR + 1),
        ],
        client(ACK),
        Forwarded,
    ),
    case(
        "data beyond a FIN shows that the FIN was another's",
        &[
            client(SYN),
            backend(SYN | ACK),
            client(ACK),
            client(FIN | ACK),
            client(ACK).payload(9),
            backend(FIN | ACK),
        ],
        client(ACK),
        Forwarded,
    ),
    case(
        "the last ACK after both FINs returns",
        BOTH_FINISHED,
        backend(ACK),
        Returned,
    ),
    case(
        "a FIN sent again that acknowledges the other ends the flow",
        BOTH_FINISHED,
        client(FIN | ACK),
        Forwarded,
    )
    .ends(),
    case(
        "the client's RST ends the flow",
        OPEN,
        client(RST),
        Forwarded,
    )
    .ends(),
    case(
        "the client's RST+ACK ends the flow",
        OPEN,
        client(RST | ACK),
        Forwarded,
    )
    .ends(),
    case(
        "a RST far from the client's numbers ends nothing",
        OPEN,
        client(RST).edit(far),
        Forwarded,
    ),
    case(
        "a RST far from the backend's numbers ends nothing",
        OPEN,
        backend(RST).edit(far),
        Returned,
    ),
    case(
        "a RST on a flow without answer that acknowledges no SYN ends nothing",
        SYN_SENT,
        backend(RST | ACK).edit(|s| s.tcp().acknowledgment_number += FAR),
        Returned,
    ),
    case(
        "the backend's RST ends the flow",
        OPEN,
        backend(RST),
        Returned,
    )
    .ends(),
    case(
        "a backend that refuses ends the flow",
        SYN_SENT,
        backend(RST | ACK),
        Returned,
    )
    .ends(),
    case(
        "the client's RST before any answer ends the flow",
        SYN_SENT,
        client(RST),
        Forwarded,
    )
    .ends(),
    case(
        "a late packet after a RST is forwarded",
        CLIENT_RESET,
        client(ACK),
        Forwarded,
    ),
    case(
        "a late reply after a RST returns",
        CLIENT_RESET,
        backend(ACK).payload(9),
        Returned,
    ),
    case(
        "a RST sent again ends no flow twice",
        CLIENT_RESET,
        client(RST),
        Forwarded,
    ),
    case(
        "a RST after both FINs ends no flow twice",
        CLOSED,
        client(RST),
        Forwarded,
    ),
    case(
        "a SYN on a closing flow begins a new one (port reuse)",
        CLOSED,
        client(SYN),
        ForwardedAnew,
    )
    .begins(),
    case(
        "a SYN after a RST begins a new flow",
        CLIENT_RESET,
        client(SYN),
        ForwardedAnew,
    )
    .begins(),
    case(
        "a SYN after a refusal begins a new flow",
        REFUSED,
        client(SYN),
        ForwardedAnew,
    )
    .begins(),
    case(
        "a SYN on an open flow is left to the backend",
        OPEN,
        client(SYN),
        Forwarded,
    ),
    case(
        "a SYN after one FIN is left to the backend",
        CLIENT_FINISHED,
        client(SYN),
        Forwarded,
    ),
];

#[test]
fn a_flow_lives_from_its_syn_to_its_end() {
    if root_or_skip("a_flow_lives_from_its_syn_to_its_end") {
        check(LIFE);
    }
}
