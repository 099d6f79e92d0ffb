// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! What follows from a configuration, the world and what was before.

use std::net::IpAddr;

use xdp_proxy::service::{Config, Health, PortRanges};
use xdp_proxy::tables::{Path, Plan, Tables, Tenure, World};

use super::{TICK, address, news};
use crate::common::rig::{config, service};

/// The backend is reached from this address.
fn world(source: &str) -> World {
    let path = Path {
        source: Some(address(source)),
        ..news(1)
    };
    World {
        now_s: 100,
        tick: TICK,
        paths: [(address("10.0.0.2").into(), path)].into(),
        ..World::default()
    }
}

fn one_service() -> Config {
    config(vec![service("10.0.0.5:80", &[("10.0.0.2:80", 1)])])
}

fn begun() -> Tables {
    let first = Plan::new(&one_service(), &world("10.0.0.5"), &Tables::default());
    first.unwrap().tables
}

fn tenures(tables: &Tables) -> Vec<(IpAddr, Tenure)> {
    let sources = tables.sources.iter();
    sources
        .map(|source| (source.address, source.tenure))
        .collect()
}

#[test]
fn a_source_with_flows_is_kept_while_the_host_has_it_and_given_up_when_not() {
    let (old, new) = (address("10.0.0.5"), address("10.0.0.6"));
    let mut world = World {
        ports_with_flows: [(0, vec![30_000, 30_001])].into(),
        held_sources: [old].into(),
        ..world("10.0.0.6")
    };
    let kept = Plan::new(&one_service(), &world, &begun()).unwrap();
    let tenure = [(old, Tenure::Leaving), (new, Tenure::Configured)];
    assert_eq!(tenures(&kept.tables), tenure);
    assert_eq!(
        kept.notices,
        ["2 flows from 10.0.0.5 kept, no new ones begin there"]
    );

    world.held_sources.clear();
    let ended = Plan::new(&one_service(), &world, &begun()).unwrap();
    assert_eq!(ended.tables.given_up, [0]);
    assert_eq!(
        ended.notices,
        ["2 flows from 10.0.0.5 ended, as the host has it no more"]
    );
}

#[test]
fn what_checks_say_and_which_vips_the_host_has_is_in_the_plan() {
    let mut config = one_service();
    config.services[0].health = None;
    let target = (config.services[0].listen, "10.0.0.2:80".parse().unwrap());
    let world = World {
        health: [(target, Health::Down)].into(),
        held: [address("10.0.0.5")].into(),
        ..world("10.0.0.5")
    };
    let plan = Plan::new(&config, &world, &begun()).unwrap();
    let condition = plan.tables.backends[0].condition;
    assert_eq!(
        (condition.health, condition.health_since_s),
        (Health::Down, 100)
    );
    let mut addresses = plan.tables.addresses.iter();
    assert!(addresses.all(|entry| entry.answers_echo == 0));
}

#[test]
fn ports_of_before_are_forgotten_once_no_flow_needs_them() {
    let mut old = begun();
    old.sources[0].earlier = PortRanges::new(vec![1024..=2047]);
    let mut world = world("10.0.0.5");
    world.needs_earlier = [0].into();
    let needed = Plan::new(&one_service(), &world, &old).unwrap();
    assert!(needed.tables.is_relisted());
    world.needs_earlier.clear();
    let forgotten = Plan::new(&one_service(), &world, &old).unwrap();
    assert!(!forgotten.tables.is_relisted());
    // The plan is no change of what was before.
    assert!(old.is_relisted());
}
