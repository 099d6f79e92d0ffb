// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Flows whose backend is down or has drained.

use xdp_proxy::abi::OutcomeCode;
use xdp_proxy::service::{AllDown, Health, OnFailure};
use xdp_proxy::tables::Condition;

use crate::common::case::WAYS;
use crate::common::exchange::*;
use crate::common::frame::*;
use crate::common::rig::*;
use crate::common::root_or_skip;

const GONE: OutcomeCode = OutcomeCode::OUTCOME_REFUSED_BACKEND_GONE;
const NO_FLOW: OutcomeCode = OutcomeCode::OUTCOME_REFUSED_NO_FLOW;

fn two_backends(settings: xdp_proxy::datapath::Settings) -> Rig {
    let backends = [("10.0.0.2:80", 1), ("10.0.0.3:8080", 1)];
    Rig::new(&config(vec![service("10.0.0.5:80", &backends)]), settings)
}

/// Tells the program what became of a backend.
fn write(rig: &mut Rig, backend: usize, condition: Condition) {
    rig.tables.backends[backend - 1].condition = condition;
    rig.tables.conclude();
    for index in 1..=rig.tables.backends.len() {
        rig.datapath.write_backend(&rig.tables, index).unwrap();
    }
    rig.datapath.write_maglev(&rig.tables, 0).unwrap();
}

fn down() -> Condition {
    Condition {
        health: Health::Down,
        ..Condition::default()
    }
}

/// An open flow of client `number`: its path, and its backend's index.
fn opened(rig: &Rig, number: u32, sum: Sum) -> (Path, usize) {
    let mut connection = Exchange::new(rig, WEB, number).with_sum(sum);
    connection.open();
    let path = connection.path();
    (path, rig.backend_index(path.backend))
}

fn resumed(rig: &Rig, number: u32, path: Path, sum: Sum) -> Exchange<'_> {
    Exchange::new(rig, WEB, number)
        .with_path(path)
        .with_sum(sum)
}

#[test]
fn a_clients_next_segment_to_a_backend_that_is_gone_gets_a_reset() {
    if !root_or_skip("a_clients_next_segment_to_a_backend_that_is_gone_gets_a_reset") {
        return;
    }
    let over = Condition {
        drained: true,
        draining_since_s: 1,
        drain_is_over: true,
        ..Condition::default()
    };
    for (settings, sum) in WAYS {
        let mut rig = two_backends(*settings);
        let segments = [
            (ACK, 0),
            (PSH | ACK, 333),
            (FIN | ACK, 0),
            (FIN, 10),
            (0, 0),
        ];
        let conditions = [down(), over];
        let cases = conditions.iter().flat_map(|c| segments.map(|s| (*c, s)));
        for ((condition, (flags, bytes)), number) in cases.zip(1..) {
            let (path, index) = opened(&rig, number, *sum);
            write(&mut rig, index, condition);
            let before = rig.counters();
            let connection = resumed(&rig, number, path, *sum);
            // What the backend still says arrives.
            connection.reply(PSH | ACK);
            let mut segment = connection.client_frame(flags);
            segment.payload = pattern(bytes);
            connection.is_reset(&segment, GONE);
            let after = rig.counters();
            let ended = |c: &xdp_proxy::stats::Counters| c.backends[index - 1].flows_ended;
            assert_eq!(ended(&after), ended(&before) + 1);
            // That was its end, for both.
            connection.is_reset(&segment, NO_FLOW);
            connection.is_passed(&connection.backend_frame(ACK).bytes(Sum::Complete));
            write(&mut rig, index, Condition::default());
        }
    }
}

#[test]
fn the_clients_own_reset_still_reaches_a_backend_that_is_gone() {
    if !root_or_skip("the_clients_own_reset_still_reaches_a_backend_that_is_gone") {
        return;
    }
    for (settings, sum) in WAYS {
        let mut rig = two_backends(*settings);
        let (path, index) = opened(&rig, 1, *sum);
        write(&mut rig, index, down());
        resumed(&rig, 1, path, *sum).forward(RST | ACK);
        let counters = rig.counters();
        assert_eq!(counters.backends[index - 1].flows(), 0);
        assert_eq!(counters.of(GONE), 0);
    }
}

#[test]
fn a_syn_that_a_backend_did_not_answer_is_sent_to_another_once_it_is_down() {
    if !root_or_skip("a_syn_that_a_backend_did_not_answer_is_sent_to_another_once_it_is_down") {
        return;
    }
    for (settings, sum) in WAYS {
        let mut rig = two_backends(*settings);
        let mut connection = Exchange::new(&rig, WEB, 1).with_sum(*sum);
        connection.forward(SYN);
        let dead = connection.path().backend;
        let index = rig.backend_index(dead);
        write(&mut rig, index, down());
        let mut again = Exchange::new(&rig, WEB, 1).with_sum(*sum);
        again.open();
        assert_ne!(again.path().backend, dead);
        let counters = rig.counters();
        assert_eq!(counters.backends[index - 1].flows(), 0);
    }
}

#[test]
fn flows_of_a_backend_that_is_gone_end_without_a_packet_too() {
    if !root_or_skip("flows_of_a_backend_that_is_gone_end_without_a_packet_too") {
        return;
    }
    let mut rig = two_backends(GENERIC);
    let (path, index) = opened(&rig, 1, Sum::Complete);
    write(&mut rig, index, down());
    rig.datapath.sweep().unwrap();
    assert_eq!(rig.counters().backends[index - 1].flows(), 0);
    // The client is told all the same.
    let connection = resumed(&rig, 1, path, Sum::Complete);
    connection.is_reset(&connection.client_frame(ACK), GONE);
    assert_eq!(rig.counters().backends[index - 1].flows_ended, 1);
}

#[test]
fn flows_that_are_to_be_kept_go_on_while_new_ones_go_elsewhere() {
    if !root_or_skip("flows_that_are_to_be_kept_go_on_while_new_ones_go_elsewhere") {
        return;
    }
    let drained = Condition {
        drained: true,
        draining_since_s: 1,
        ..Condition::default()
    };
    for (on_failure, condition) in [(OnFailure::Keep, down()), (OnFailure::Reset, drained)] {
        let mut rig = two_backends(GENERIC);
        rig.tables.services[0].policy.on_failure = on_failure;
        let (path, index) = opened(&rig, 1, Sum::Complete);
        write(&mut rig, index, condition);
        rig.datapath.sweep().unwrap();
        let mut connection = resumed(&rig, 1, path, Sum::Complete);
        connection.forward(PSH | ACK);
        connection.reply(PSH | ACK);
        for number in 2..100 {
            let (new, _) = opened(&rig, number, Sum::Complete);
            assert_ne!(new.backend, path.backend);
        }
        connection.close();
    }
}

#[test]
fn where_health_is_ignored_when_all_are_down_all_serve() {
    if !root_or_skip("where_health_is_ignored_when_all_are_down_all_serve") {
        return;
    }
    for all_down in [AllDown::Reject, AllDown::IgnoreHealth] {
        let mut rig = two_backends(GENERIC);
        rig.tables.services[0].policy.all_down = all_down;
        let (path, index) = opened(&rig, 1, Sum::Complete);
        write(&mut rig, index, down());
        write(&mut rig, 3 - index, down());
        let mut connection = resumed(&rig, 1, path, Sum::Complete);
        if all_down == AllDown::Reject {
            connection.is_reset(&connection.client_frame(ACK), GONE);
            let new = Exchange::new(&rig, WEB, 2);
            let refused = OutcomeCode::OUTCOME_REFUSED_NO_BACKEND;
            new.is_reset(&new.client_frame(SYN), refused);
        } else {
            connection.forward(ACK);
            let backends = (2..100).map(|number| opened(&rig, number, Sum::Complete).1);
            let backends: std::collections::HashSet<usize> = backends.collect();
            assert_eq!(backends.len(), 2);
        }
        // One is up again: it alone serves.
        write(&mut rig, 3 - index, Condition::default());
        for number in 200..250 {
            assert_eq!(opened(&rig, number, Sum::Complete).1, 3 - index);
        }
    }
}

#[test]
fn flows_of_udp_outlive_a_drain_and_a_failure_that_is_to_change_nothing() {
    if !root_or_skip("flows_of_udp_outlive_a_drain_and_a_failure_that_is_to_change_nothing") {
        return;
    }
    let drained = Condition {
        drained: true,
        draining_since_s: 1,
        ..Condition::default()
    };
    let over = Condition {
        drain_is_over: true,
        ..drained
    };
    const LISTEN: &str = "10.0.0.5:53/udp";
    for (on_failure, condition, moves) in [
        (OnFailure::Reset, drained, false),
        (OnFailure::Reset, over, true),
        (OnFailure::Keep, down(), false),
        (OnFailure::Reset, down(), true),
    ] {
        let backends = [("10.0.0.2:53", 1), ("10.0.0.3:53", 1)];
        let mut rig = Rig::new(&config(vec![service(LISTEN, &backends)]), GENERIC);
        rig.tables.services[0].policy.on_failure = on_failure;
        let mut exchange = Exchange::new(&rig, LISTEN, 1);
        exchange.open();
        let path = exchange.path();
        let index = rig.backend_index(path.backend);
        write(&mut rig, index, condition);
        rig.datapath.sweep().unwrap();
        let mut after = Exchange::new(&rig, LISTEN, 1);
        after.open();
        assert_eq!(after.path() != path, moves, "{condition:?}");
        let mut new = Exchange::new(&rig, LISTEN, 2);
        new.open();
        assert_ne!(new.path().backend, path.backend);
        assert_eq!(rig.counters().of(GONE), 0);
    }
}
