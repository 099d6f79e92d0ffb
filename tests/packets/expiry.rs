// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Flows whose time is over. The tests sleep for longer than a flow may live;
//! what must still be alive has an hour, so that no slow machine fails them.

use std::thread::sleep;
use std::time::Duration;

use xdp_proxy::abi::OutcomeCode;
use xdp_proxy::service::{PortRanges, Timeouts};

use crate::common::exchange::*;
use crate::common::frame::*;
use crate::common::rig::*;
use crate::common::root_or_skip;

const SOON: Duration = Duration::from_millis(50);
const SOON_OVER: Duration = Duration::from_millis(120);
const LATER: Duration = Duration::from_secs(3600);
const NEVER: Timeouts = Timeouts {
    unanswered: LATER,
    established: LATER,
    half_closed: LATER,
    closing: LATER,
};
/// Slots of a source address over slots that a SYN without a port looks at.
const SYNS_MAX: usize = 65_536 / 64 + 1;

fn with(timeouts: Timeouts) -> Rig {
    let mut service = service("10.0.0.5:80", &[("10.0.0.2:80", 1)]);
    service.timeouts = timeouts;
    service.source_ports = PortRanges::new(vec![2000..=2003]).unwrap();
    Rig::new(&config(vec![service]), GENERIC)
}

fn ended(rig: &Rig) -> u64 {
    rig.counters().backends[0].flows_ended
}

/// What a flow has seen, and whether its time is over by timeouts.
type Life = fn(&mut Exchange);

const UNANSWERED: Life = |c| c.forward(SYN);
const ANSWERED: Life = |c| {
    c.forward(SYN);
    c.reply(SYN | ACK);
};
const ESTABLISHED: Life = |c| c.open();
const HALF_CLOSED: Life = |c| {
    c.open();
    c.forward(FIN | ACK);
};

/// Both have, and neither has acknowledged the other's.
const FINISHED: Life = |c| {
    c.open();
    let mut frame = c.backend_frame(FIN | ACK);
    frame.tcp().acknowledgment_number -= 1;
    c.reply_frame(&frame);
    let mut frame = c.client_frame(FIN | ACK);
    frame.tcp().acknowledgment_number -= 1;
    c.forward_frame(&frame);
};

#[test]
fn a_flow_ends_by_the_sweep_alone_when_the_timeout_of_its_state_is_over() {
    if !root_or_skip("a_flow_ends_by_the_sweep_alone_when_the_timeout_of_its_state_is_over") {
        return;
    }
    let unanswered = Timeouts {
        unanswered: SOON,
        ..NEVER
    };
    let established = Timeouts {
        established: SOON,
        ..NEVER
    };
    let half_closed = Timeouts {
        half_closed: SOON,
        ..NEVER
    };
    let table: &[(&str, Timeouts, Life, u64)] = &[
        ("an unanswered flow ends", unanswered, UNANSWERED, 1),
        (
            "an answer alone does not establish",
            unanswered,
            ANSWERED,
            1,
        ),
        (
            "an established flow has its own time",
            unanswered,
            ESTABLISHED,
            0,
        ),
        (
            "an unanswered flow has its own time",
            established,
            UNANSWERED,
            0,
        ),
        (
            "an answered flow is not established",
            established,
            ANSWERED,
            0,
        ),
        ("an established flow ends", established, ESTABLISHED, 1),
        (
            "a half-closed flow has its own time",
            established,
            HALF_CLOSED,
            0,
        ),
        ("a half-closed flow ends", half_closed, HALF_CLOSED, 1),
        (
            "who finished alone ends no flow before it is acknowledged",
            Timeouts {
                closing: SOON,
                ..NEVER
            },
            FINISHED,
            0,
        ),
        ("nothing ends before its time", NEVER, HALF_CLOSED, 0),
    ];
    for (name, timeouts, life, ends) in table {
        let mut rig = with(*timeouts);
        let mut connection = Exchange::new(&rig, WEB, 1);
        life(&mut connection);
        let path = connection.path();
        sleep(SOON_OVER);
        rig.datapath.sweep().unwrap();
        assert_eq!(ended(&rig), *ends, "{name}");
        rig.datapath.sweep().unwrap();
        assert_eq!(ended(&rig), *ends, "{name}: a flow ends once");
        // Until its port is needed, or `closing` is over, late packets find it.
        let mut connection = Exchange::new(&rig, WEB, 1).with_path(path);
        connection.forward(ACK);
        connection.reply(ACK);
    }
}

#[test]
fn a_backends_answers_alone_keep_no_flow_alive() {
    if !root_or_skip("a_backends_answers_alone_keep_no_flow_alive") {
        return;
    }
    let mut rig = with(Timeouts {
        unanswered: SOON,
        ..NEVER
    });
    let mut connection = Exchange::new(&rig, WEB, 1);
    connection.forward(SYN);
    sleep(SOON_OVER);
    connection.reply(SYN | ACK);
    rig.datapath.sweep().unwrap();
    assert_eq!(ended(&rig), 1);
}

#[test]
fn traffic_alone_ends_flows_whose_time_is_over() {
    if !root_or_skip("traffic_alone_ends_flows_whose_time_is_over") {
        return;
    }
    let rig = with(Timeouts {
        unanswered: SOON,
        established: SOON,
        ..NEVER
    });
    let mut old: Vec<Exchange> = (0..4).map(|n| Exchange::new(&rig, WEB, n)).collect();
    old[..2].iter_mut().for_each(|c| c.forward(SYN));
    old[2..].iter_mut().for_each(Exchange::open);
    sleep(SOON_OVER);
    let mut new = Exchange::new(&rig, WEB, 9);
    let refused = (0..SYNS_MAX).take_while(|_| !new.try_syn()).count();
    assert!(refused < SYNS_MAX, "nothing has ended");
    assert!(old.iter().any(|c| c.port() == new.port()));
    assert!(ended(&rig) >= 1);
}

#[test]
fn unanswered_flows_go_first_where_ports_are_short() {
    if !root_or_skip("unanswered_flows_go_first_where_ports_are_short") {
        return;
    }
    let rig = with(Timeouts {
        unanswered: SOON,
        ..NEVER
    });
    let mut kept: Vec<Exchange> = (0..2).map(|n| Exchange::new(&rig, WEB, n)).collect();
    kept.iter_mut().for_each(Exchange::open);
    let mut lost: Vec<Exchange> = (2..4).map(|n| Exchange::new(&rig, WEB, n)).collect();
    lost.iter_mut().for_each(|c| c.forward(SYN));
    sleep(SOON_OVER);
    let mut new = Exchange::new(&rig, WEB, 9);
    let refused = (0..SYNS_MAX).take_while(|_| !new.try_syn()).count();
    assert!(refused < SYNS_MAX, "nothing has ended");
    assert!(lost.iter().any(|c| c.port() == new.port()));
    for connection in &mut kept {
        connection.forward(PSH | ACK);
        connection.reply(PSH | ACK);
    }
}

#[test]
fn busy_flows_are_never_ended_for_the_sake_of_new_ones() {
    if !root_or_skip("busy_flows_are_never_ended_for_the_sake_of_new_ones") {
        return;
    }
    let rig = with(NEVER);
    let mut flows: Vec<Exchange> = (0..4).map(|n| Exchange::new(&rig, WEB, n)).collect();
    flows.iter_mut().for_each(Exchange::open);
    let mut new = Exchange::new(&rig, WEB, 9);
    assert!((0..2 * SYNS_MAX).all(|_| !new.try_syn()));
    assert_eq!(ended(&rig), 0);
    for connection in &mut flows {
        connection.forward(PSH | ACK);
        connection.reply(PSH | ACK);
    }
}

#[test]
fn a_closing_flow_that_is_over_is_no_flow() {
    if !root_or_skip("a_closing_flow_that_is_over_is_no_flow") {
        return;
    }
    let rig = with(Timeouts {
        closing: SOON,
        ..NEVER
    });
    let mut connection = Exchange::new(&rig, WEB, 1);
    connection.open();
    connection.close();
    sleep(SOON_OVER);
    let ack = connection.client_frame(ACK);
    connection.is_reset(&ack, OutcomeCode::OUTCOME_REFUSED_NO_FLOW);
    connection.is_passed(&connection.backend_frame(ACK).bytes(Sum::Complete));
    let mut new = Exchange::new(&rig, WEB, 1);
    new.open();
    assert_ne!(new.port(), connection.port());
    new.forward(PSH | ACK);
    new.reply(PSH | ACK);
    // Its old port is taken again at last, and serves the new flow alone.
    for number in 2..5 {
        Exchange::new(&rig, WEB, number).open();
    }
    new.forward(PSH | ACK);
    new.reply(PSH | ACK);
}
