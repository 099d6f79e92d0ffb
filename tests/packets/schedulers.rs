// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! How each scheduler but Maglev (see `shares`) picks the backends of new flows.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use xdp_proxy::service::Scheduler;

use crate::common::exchange::*;
use crate::common::random::at_most;
use crate::common::rig::*;
use crate::common::{cpus, pin, root_or_skip};

const BACKENDS: [&str; 3] = ["10.0.0.2:80", "10.0.0.3:80", "10.0.0.4:80"];

fn rig(scheduler: Scheduler, weights: [u16; 3]) -> Rig {
    let backends: Vec<(&str, u16)> = BACKENDS.into_iter().zip(weights).collect();
    let mut service = service("10.0.0.5:80", &backends);
    service.scheduler = scheduler;
    Rig::new(&config(vec![service]), WHOLE)
}

/// The flows that each backend has now.
fn flows(rig: &Rig) -> Vec<u64> {
    let counters = rig.counters().backends;
    counters.iter().map(|backend| backend.flows()).collect()
}

#[test]
fn round_robin_goes_through_the_backends_in_turns_by_weight() {
    if !root_or_skip("round_robin_goes_through_the_backends_in_turns_by_weight") {
        return;
    }
    // Each CPU has turns of its own.
    pin(cpus()[0]);
    let rig = rig(Scheduler::RoundRobin, [1, 2, 3]);
    for round in 1..=50 {
        for number in 0..6 {
            assert!(Exchange::new(&rig, WEB, 6 * round as u32 + number).try_syn());
        }
        assert_eq!(flows(&rig), [round, 2 * round, 3 * round]);
    }
}

#[test]
fn a_place_is_read_in_as_many_bits_as_the_number_of_backends_needs() {
    if !root_or_skip("a_place_is_read_in_as_many_bits_as_the_number_of_backends_needs") {
        return;
    }
    pin(cpus()[0]);
    for count in [1, 3, 7, 100, 400] {
        let names: Vec<String> = (0..count)
            .map(|n| format!("10.0.{}.{}:80", 1 + n / 200, 1 + n % 200))
            .collect();
        let backends: Vec<(&str, u16)> = names.iter().map(|name| (name.as_str(), 1)).collect();
        // The first service's backends have the indexes before.
        let mut services = ["10.0.0.5:81", "10.0.0.5:80"].map(|vip| service(vip, &backends));
        services[1].scheduler = Scheduler::RoundRobin;
        let rig = Rig::new(&config(services.into()), WHOLE);
        let table = rig.tables.maglev(1);
        for (number, index) in (0..at_most(1000)).zip(&table) {
            let mut exchange = Exchange::new(&rig, WEB, number as u32);
            assert!(exchange.try_syn());
            let chosen = exchange.path().backend;
            let wanted = &rig.tables.backends[usize::from(*index) - 1];
            assert_eq!(chosen, wanted.backend.address, "place {number} of {count}");
        }
    }
}

#[test]
fn random_gives_shares_by_weight() {
    if !root_or_skip("random_gives_shares_by_weight") {
        return;
    }
    let clients = at_most(20_000);
    let rig = rig(Scheduler::Random, [1, 0, 3]);
    for number in 0..clients as u32 {
        assert!(Exchange::new(&rig, WEB, number).try_syn());
    }
    let begun: Vec<u64> = rig
        .counters()
        .backends
        .iter()
        .map(|b| b.flows_begun)
        .collect();
    // Five standard deviations of the smaller share.
    let tolerance = 5.0 * (clients as f64 * 0.25 * 0.75).sqrt();
    assert_eq!(begun[1], 0);
    assert!(
        (begun[0] as f64 - clients as f64 / 4.0).abs() < tolerance,
        "{begun:?}"
    );
}

#[test]
fn least_connections_picks_the_one_with_the_fewest_flows_for_its_weight() {
    if !root_or_skip("least_connections_picks_the_one_with_the_fewest_flows_for_its_weight") {
        return;
    }
    let rig = rig(Scheduler::LeastConnections, [1, 1, 2]);
    let mut open: BTreeMap<SocketAddr, Vec<Exchange>> = BTreeMap::new();
    for number in 0..400 {
        let mut connection = Exchange::new(&rig, WEB, number);
        connection.open();
        open.entry(connection.path().backend)
            .or_default()
            .push(connection);
        if number % 4 == 3 {
            let each = u64::from(number / 4) + 1;
            assert_eq!(flows(&rig), [each, each, 2 * each]);
        }
    }
    // One loses most of its flows: it gets all new ones until it has caught up.
    let first: SocketAddr = BACKENDS[0].parse().unwrap();
    for connection in open.get_mut(&first).unwrap().iter_mut().take(60) {
        connection.close();
    }
    for number in 1000..1060 {
        let mut connection = Exchange::new(&rig, WEB, number);
        connection.open();
        assert_eq!(connection.path().backend, first);
    }
    assert_eq!(flows(&rig), [100, 100, 200]);
}

#[test]
fn source_hash_keeps_all_flows_of_a_client_on_one_backend() {
    if !root_or_skip("source_hash_keeps_all_flows_of_a_client_on_one_backend") {
        return;
    }
    let rig = rig(Scheduler::SourceHash, [1, 1, 1]);
    let mut chosen: BTreeMap<SocketAddr, u32> = BTreeMap::new();
    for number in 0..300 {
        let ip = Exchange::new(&rig, WEB, number).client.ip();
        let backends: BTreeSet<SocketAddr> = (0..20)
            .map(|i| {
                let mut connection = Exchange::new(&rig, WEB, number);
                connection.client.set_port(2000 + 977 * i);
                connection.open();
                connection.path().backend
            })
            .collect();
        assert_eq!(backends.len(), 1, "{ip}: {backends:?}");
        *chosen.entry(*backends.first().unwrap()).or_default() += 1;
    }
    // 100 of 300 each, within five standard deviations.
    assert!(
        chosen.values().all(|count| (60..=140).contains(count)),
        "{chosen:?}"
    );
    assert_eq!(chosen.len(), 3);
}
