// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! What follows from a backend's health and drain.

use std::time::Duration;

use xdp_proxy::abi;
use xdp_proxy::service::{AllDown, Health};
use xdp_proxy::tables::Tables;

use super::{TICK, news};
use crate::common::rig::{config, service};

fn two_backends() -> Tables {
    let backends = [("10.0.0.2:80", 1), ("10.0.0.3:80", 1)];
    let config = config(vec![service("10.0.0.5:80", &backends)]);
    Tables::new(&config, TICK, |_| news(1)).unwrap()
}

#[test]
fn a_backend_that_is_back_has_the_places_that_it_had() {
    let mut tables = two_backends();
    let all = tables.maglev(0);
    for health in [Health::Down, Health::Up] {
        tables.take_health(7, |target| {
            let first = target.1 == tables_address("10.0.0.2:80");
            Some(if first { health } else { Health::Up })
        });
        tables.drain(7);
        let first = tables.maglev(0).iter().filter(|index| **index == 1).count();
        assert_eq!(first > 0, health == Health::Up);
        // Who had the others' places has them still.
        let now = tables.maglev(0);
        assert!(
            all.iter()
                .zip(&now)
                .all(|(old, new)| *old == 1 || old == new)
        );
    }
    assert_eq!(tables.maglev(0), all);
}

fn tables_address(text: &str) -> std::net::SocketAddr {
    text.parse().unwrap()
}

#[test]
fn health_has_a_time_from_which_it_counts() {
    let mut tables = two_backends();
    for (now_s, health, since_s) in [
        (10, Health::Up, 10),
        (20, Health::Up, 10),
        (30, Health::Down, 30),
        (40, Health::Down, 30),
    ] {
        tables.take_health(now_s, |_| Some(health));
        let condition = tables.backends[0].condition;
        assert_eq!(
            (condition.health, condition.health_since_s),
            (health, since_s)
        );
        assert_eq!(abi::health_of(tables.backend_entry(1).health), health);
        assert_eq!(tables.backend_entry(1).health_since_s, since_s);
    }
    // Nobody asks it any more.
    tables.take_health(50, |_| None);
    assert_eq!(tables.backends[0].condition.health, Health::Unknown);
}

#[test]
fn a_drain_has_an_end_if_it_is_told_one() {
    for (timeout, ends_s) in [
        (None, None),
        (Some(Duration::from_millis(29_500)), Some(40)),
    ] {
        let mut tables = two_backends();
        tables.services[0].policy.drain_timeout = timeout;
        tables.backends[0].condition.drained = true;
        for now_s in 10..100 {
            assert_eq!(tables.drain_is_due(now_s), ends_s == Some(now_s), "{now_s}");
            tables.drain(now_s);
            assert_eq!(tables.backends[0].condition.draining_since_s, 10);
            let over = ends_s.is_some_and(|ends_s| now_s >= ends_s);
            assert_eq!(tables.ends_flows(1), over);
            assert_eq!([1, 2].map(|index| tables.takes_flows(index)), [false, true]);
            assert!(!tables.ends_flows(2));
        }
        tables.backends[0].condition.drained = false;
        tables.drain(100);
        assert!(tables.takes_flows(1) && !tables.ends_flows(1));
        assert_eq!(tables.backend_entry(1).draining_since_s, 0);
    }
}

#[test]
fn health_is_ignored_only_while_nobody_else_is_left() {
    let mut tables = two_backends();
    tables.services[0].policy.all_down = AllDown::IgnoreHealth;
    let mut with = |first, second, drained| {
        tables.backends[1].condition.drained = drained;
        tables.take_health(1, |target| {
            Some(if target.1 == tables_address("10.0.0.2:80") {
                first
            } else {
                second
            })
        });
        tables.drain(1);
        [1, 2].map(|index| (tables.takes_flows(index), tables.ends_flows(index)))
    };
    let (up, down) = (Health::Up, Health::Down);
    let (takes, ends, rests) = ((true, false), (false, true), (false, false));
    assert_eq!(with(up, down, false), [takes, ends]);
    assert_eq!(with(down, down, false), [takes, takes]);
    // Who drains is none that could serve.
    assert_eq!(with(down, up, true), [takes, rests]);
    assert_eq!(with(down, Health::Unknown, false), [ends, takes]);
}
