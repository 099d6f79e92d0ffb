// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The tables of the next configuration.

use std::collections::BTreeMap;

use xdp_proxy::service::{Health, ListenPorts, PortRanges};
use xdp_proxy::tables::{ServiceTable, Tables, Tenure};

use super::{TICK, news};
use crate::common::rig::{config, service};

/// The index of each backend, by its address.
fn indexes(tables: &Tables) -> BTreeMap<String, (usize, Tenure)> {
    let backends = tables.backends.iter().zip(1..);
    backends
        .filter(|(table, _)| table.tenure != Tenure::Vacant)
        .map(|(table, index)| (table.backend.to_string(), (index, table.tenure)))
        .collect()
}

#[test]
fn what_stays_configured_keeps_its_indexes_and_what_has_flows_leaves_last() {
    use Tenure::{Configured, Leaving};
    let with = |services: &[(&str, &[(&str, u16)])]| {
        config(services.iter().map(|(l, b)| service(l, b)).collect())
    };
    let follow = |tables: &Tables, config, busy: &[usize]| {
        let has_flows = |index: usize| busy.contains(&index);
        tables
            .followed_by(&config, TICK, |_| news(1), has_flows)
            .unwrap()
    };
    let place = |tables: &Tables, port: u16| {
        let is_it =
            |s: &ServiceTable| s.tenure == Configured && s.listen.ports == ListenPorts::One(port);
        let index = tables.services.iter().position(is_it).unwrap();
        (index, tables.services[index].entry.maglev)
    };
    let (a, b, c) = (("10.0.0.2:80", 1), ("10.0.0.3:80", 1), ("10.0.0.4:80", 1));
    let first = Tables::new(
        &with(&[("10.0.0.5:80", &[a, b]), ("10.0.0.5:81", &[c])]),
        TICK,
        |_| news(1),
    )
    .unwrap();
    assert_eq!(place(&first, 81), (1, 1));

    // The first service goes, its second backend has flows; another one comes.
    let second = follow(
        &first,
        with(&[("10.0.0.6:90", &[a]), ("10.0.0.5:81", &[c])]),
        &[2],
    );
    assert_eq!(place(&second, 81), (1, 1), "nothing of it has changed");
    assert_eq!(
        place(&second, 90),
        (2, 2),
        "the old look-up table is left alone"
    );
    let wanted = [
        ("10.0.0.2:80".into(), (4, Configured)),
        ("10.0.0.3:80".into(), (2, Leaving)),
        ("10.0.0.4:80".into(), (3, Configured)),
    ];
    assert_eq!(indexes(&second), wanted.into());
    assert_eq!(
        second
            .listeners
            .entries
            .iter()
            .filter(|l| l.vip != 0)
            .count(),
        2
    );

    // Its flows have ended: what was vacant before is used again, this is not yet.
    let third = follow(
        &second,
        with(&[("10.0.0.6:90", &[a, b]), ("10.0.0.5:81", &[c])]),
        &[],
    );
    let wanted = [
        ("10.0.0.2:80".into(), (4, Configured)),
        ("10.0.0.3:80".into(), (1, Configured)),
        ("10.0.0.4:80".into(), (3, Configured)),
    ];
    assert_eq!(indexes(&third), wanted.into());
    assert_eq!(third.recycled, [1], "its counters begin from zero");
    assert_eq!(place(&third, 81), (1, 1));
    assert_eq!(
        place(&third, 90),
        (2, 3),
        "another table, in a place that is free"
    );
}

#[test]
fn flows_are_found_by_the_ports_that_a_source_has_and_had_and_by_none_before() {
    let mut config = config(vec![service("10.0.0.5:80", &[("10.0.0.2:80", 1)])]);
    let tables = Tables::new(&config, TICK, |_| news(1)).unwrap();
    let mut follow = |tables: &Tables, ports| {
        config.services[0].source_ports = PortRanges::new(vec![ports]).unwrap();
        tables.followed_by(&config, TICK, |_| news(1), |_| false)
    };
    let earlier = |tables: &Tables| tables.sources[0].earlier.as_ref().map(ToString::to_string);
    assert_eq!(earlier(&tables), None);
    let next = follow(&tables, 2000..=3000).unwrap();
    assert_eq!(earlier(&next), Some(tables.sources[0].ports.to_string()));
    let mut same = follow(&next, 2000..=3000).unwrap();
    assert_eq!(earlier(&same), earlier(&next));
    let error = follow(&same, 4000..=5000)
        .err()
        .map(|error| error.to_string());
    let error = error.unwrap();
    assert!(
        error.contains("were changed before, and flows of then are left"),
        "{error}"
    );
    same.forget_earlier(|_| Ok(false)).unwrap();
    let other = follow(&same, 4000..=5000).unwrap();
    assert_eq!(earlier(&other).unwrap(), "2000-3000");
    // And back.
    let back = follow(&other, 2000..=3000).unwrap();
    assert_eq!(earlier(&back).unwrap(), "4000-5000");
}

/// The running program reads its tables while those of the next one are written.
#[test]
fn no_look_up_table_is_written_over_one_in_use() {
    let backends = &[("10.0.0.2:80", 1), ("10.0.0.3:80", 1)];
    let weighted = &[("10.0.0.2:80", 2), ("10.0.0.3:80", 1)];
    let (web, alt) = ("10.0.0.5:80", "10.0.0.5:81");
    let mut tables = Tables::default();
    let mut written = 0;
    for services in [
        vec![service(alt, backends), service(web, backends)],
        vec![service(web, backends)],
        vec![service(web, weighted)],
        vec![service(web, backends)],
        vec![service(web, weighted), service(alt, backends)],
        vec![service(alt, weighted)],
        vec![service(alt, weighted), service(web, weighted)],
        vec![service(alt, backends), service(web, backends)],
    ] {
        let next = tables.followed_by(&config(services), TICK, |_| news(1), |_| false);
        let next = next.unwrap();
        let in_use = tables.configured();
        let places = in_use.iter().map(|service| service.entry.maglev);
        let places: Vec<u32> = places.collect();
        for service in next.services.iter().filter(|service| service.fresh) {
            assert!(
                !places.contains(&service.entry.maglev),
                "{places:?}: {service:?}"
            );
            written += 1;
        }
        tables = next;
    }
    assert!(written > 8, "{written}");
}

#[test]
fn a_backend_that_died_meanwhile_is_not_in_the_next_look_up_table() {
    let config = config(vec![service(
        "10.0.0.5:80",
        &[("10.0.0.2:80", 1), ("10.0.0.3:80", 1)],
    )]);
    let tables = Tables::new(&config, TICK, |_| news(1)).unwrap();
    let mut next = tables
        .followed_by(&config, TICK, |_| news(1), |_| false)
        .unwrap();
    assert!(!next.services[0].fresh);
    let died = next.backends[0].backend.address;
    next.take_health(1, |(_, address)| {
        Some(if *address == died {
            Health::Down
        } else {
            Health::Up
        })
    });
    next.place_services(&tables, &config, TICK);
    assert!(next.services[0].fresh);
    let [old, new] = [&tables, &next].map(|tables| tables.services[0].entry.maglev);
    assert_ne!(old, new);
    assert!(next.maglev(0).iter().all(|backend| *backend == 2));
}
