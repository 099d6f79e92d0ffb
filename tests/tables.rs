// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The tables follow what is known of the paths, within the configuration.

mod common;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use common::rig::{config, service};
use xdp_proxy::abi;
use xdp_proxy::service::{AllDown, Health, ListenPorts, PortRanges, Protocol, Scheduler};
use xdp_proxy::tables::{Notes, Path, ServiceTable, SourceTable, Tables, Tenure};

const TICK: Duration = Duration::from_millis(4);

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// As the kernel's routes have it.
fn news(mac: u8) -> Path {
    Path {
        mac: Some([2, 0, 0, 0, 0, mac]),
        tags: Default::default(),
        source: Some(address("10.0.0.5")),
        alive: true,
    }
}

fn sources(tables: &Tables) -> Vec<IpAddr> {
    tables.sources.iter().map(|source| source.address).collect()
}

#[test]
fn a_configured_source_stays_whatever_the_routes_say() {
    let mut service = service("10.0.0.5:80", &[("10.0.0.2:80", 1)]);
    service.source = vec![address("10.0.0.6")];
    let config = config(vec![service]);
    let mut tables = Tables::new(&config, TICK, |_| news(1)).unwrap();
    for mac in [1, 2] {
        assert_eq!(tables.backends[0].path.source, Some(address("10.0.0.6")));
        assert_eq!(tables.backend_entry(1).reachable, 1);
        assert_eq!(tables.backend_entry(1).mac[5], mac);
        tables.backends[0].path = tables.backends[0].path_after(news(2));
    }
}

#[test]
fn a_source_that_nobody_configured_follows_the_routes() {
    let config = config(vec![service("10.0.0.5:80", &[("10.0.0.2:80", 1)])]);
    let mut tables = Tables::new(&config, TICK, |_| news(1)).unwrap();
    let moved = Path {
        source: Some(address("10.0.0.7")),
        ..news(1)
    };
    tables.backends[0].path = tables.backends[0].path_after(moved);
    assert_eq!(tables.backends[0].path.source, Some(address("10.0.0.7")));
}

#[test]
fn backends_of_configured_sources_are_reachable_once_their_mac_is_known() {
    let mut service = service("10.0.0.5:80", &[("10.0.0.2:80", 1)]);
    service.source = vec![address("10.0.0.6"), address("10.0.0.7")];
    let config = config(vec![service]);
    let unknown = Path {
        mac: None,
        alive: false,
        ..news(1)
    };
    let mut tables = Tables::new(&config, TICK, |_| unknown).unwrap();
    assert_eq!(tables.backend_entry(1).reachable, 0);
    // The route's source is none of the service's, and has no ports.
    assert_eq!(sources(&tables), [address("10.0.0.6"), address("10.0.0.7")]);
    tables.backends[0].path = tables.backends[0].path_after(news(1));
    assert_eq!(tables.backend_entry(1).reachable, 1);
}

#[test]
fn a_service_names_its_sources_by_their_indexes() {
    let with = |listen: &str, sources: &[&str]| {
        let mut service = service(listen, &[("10.0.0.2:80", 1)]);
        service.source = sources.iter().map(|source| address(source)).collect();
        service
    };
    let tables = Tables::new(
        &config(vec![
            with("10.0.0.5:80", &["10.0.0.6", "10.0.0.7"]),
            with("10.0.0.5:81", &[]),
            with("10.0.0.5:82", &["10.0.0.8", "10.0.0.7"]),
        ]),
        TICK,
        |_| news(1),
    )
    .unwrap();
    let wanted = ["10.0.0.6", "10.0.0.7", "10.0.0.5", "10.0.0.8"].map(address);
    assert_eq!(sources(&tables), wanted);
    let named = |port: u16| {
        let mut services = tables.services.iter();
        let is_it = |table: &&ServiceTable| table.listen.ports == ListenPorts::One(port);
        let entry = &services.find(is_it).unwrap().entry;
        entry.source[..entry.source_count.into()].to_vec()
    };
    assert_eq!(
        [named(80), named(81), named(82)],
        [vec![0, 1], vec![], vec![3, 1]]
    );
    assert_eq!(tables.capacity(), 4 * 36_280);
}

/// The service of each port of 10.0.0.5, as its place among the configured.
fn served(tables: &Tables, protocol: u8) -> Vec<Option<usize>> {
    let listeners = &tables.listeners;
    let at = |port: u16| {
        let is_it = |entry: &&abi::listener| {
            (entry.vip, entry.protocol, entry.port) == (1, protocol, port.to_be())
        };
        listeners.entries.iter().find(is_it)
    };
    let leads_on = at(0);
    (0..=u16::MAX)
        .map(|port| match (port, at(port), leads_on) {
            (1.., Some(listener), _) => Some(listener.target.into()),
            (_, _, Some(listener)) => {
                let map = &listeners.port_maps[usize::from(listener.target)];
                usize::from(map.service[usize::from(port)]).checked_sub(1)
            }
            _ => None,
        })
        .collect()
}

#[test]
fn port_maps_lead_each_port_to_its_service() {
    let listens = [
        "10.0.0.5:8000-8099",
        "10.0.0.5:*",
        "10.0.0.5:8050",
        "10.0.0.5:8100-8100",
        "10.0.0.5:65000-65535/udp",
        "10.0.0.5:1-9/udp",
        "10.0.0.6:*/udp",
    ];
    let services = listens.map(|listen| service(listen, &[("10.0.0.2", 1)]));
    let tables = Tables::new(&config(services.into()), TICK, |_| news(1)).unwrap();
    assert_eq!(tables.services.len(), listens.len());
    assert_eq!(tables.listeners.port_maps.len(), 3);
    for (port, service) in (0..).zip(served(&tables, 6)) {
        let wanted = match port {
            0 => None,
            8050 => Some(2),
            8100 => Some(3),
            8000..=8099 => Some(0),
            _ => Some(1),
        };
        assert_eq!(service, wanted, "tcp {port}");
    }
    for (port, service) in (0..).zip(served(&tables, 17)) {
        let wanted = match port {
            1..=9 => Some(5),
            65_000.. => Some(4),
            _ => None,
        };
        assert_eq!(service, wanted, "udp {port}");
    }
}

#[test]
fn memory_and_flows_grow_with_port_maps_and_sources() {
    let of = |listens: &[&str], sources: &[&str]| {
        let services = listens.iter().map(|listen| {
            let mut service = service(listen, &[("10.0.0.2", 1)]);
            service.source = sources.iter().map(|source| address(source)).collect();
            service.source_ports = PortRanges::new(vec![1024..=65535]).unwrap();
            service
        });
        let tables = Tables::new(&config(services.collect()), TICK, |_| news(1)).unwrap();
        (tables.capacity(), tables.memory_bytes(2))
    };
    // One port map is there in any case.
    let two = &["10.0.0.5:1-9", "10.0.0.5:10-19"];
    let two_maps = &["10.0.0.5:1-9", "10.0.0.5:10-19/udp"];
    let (flows, bytes) = of(two, &["10.0.0.6"]);
    assert_eq!(flows, 64_512);
    assert_eq!(of(two_maps, &["10.0.0.6"]), (flows, bytes + 2 * 65_536));
    let (flows, more) = of(two, &["10.0.0.6", "10.0.0.7"]);
    assert_eq!(flows, 129_024);
    // 65,536 flows of 64 bytes each, and their groups.
    assert!(
        (4 << 20..7 << 20).contains(&(more - bytes)),
        "{}",
        more - bytes
    );
}

/// Five ports of one VIP whose hashes are the same, whatever the table's size.
#[test]
fn hashes_that_collide_too_much_are_an_error_and_no_endless_loop() {
    let mut by_place: BTreeMap<usize, Vec<u16>> = BTreeMap::new();
    for port in 1..=u16::MAX {
        let entry = abi::listener_entry(0, port, Protocol::Tcp, 0);
        let ports = by_place
            .entry(abi::listener_place(&entry) % (1 << 15))
            .or_default();
        ports.push(port);
    }
    let colliding = by_place.values().find(|ports| ports.len() > abi::PROBES);
    let colliding = colliding.expect("65,535 hashes in half as many places");
    let tables = |count| {
        let services = colliding[..count]
            .iter()
            .map(|port| service(&format!("10.0.0.5:{port}"), &[("10.0.0.2:80", 1)]));
        Tables::new(&config(services.collect()), TICK, |_| news(1))
    };
    assert!(tables(4).is_ok());
    assert_eq!(
        tables(5).err().unwrap().to_string(),
        "5 services or addresses do not fit in 32768 places of a hash table, as more than 4 of \
         them fall on one: change a VIP, a source address or a port"
    );
}

#[test]
fn a_thousand_services_on_addresses_and_ports_in_a_row_fit() {
    let vip = |i: u32| std::net::Ipv4Addr::from(0x0a05_0000 + i);
    /// The VIP's number and the port of each service.
    type Shape = (&'static str, fn(u32) -> (u32, u32));
    let shapes: [Shape; 7] = [
        ("ports in a row", |i| (0, 1 + i)),
        ("every 63rd port", |i| (0, 1 + 63 * i)),
        ("ports at random", |i| {
            (0, i.wrapping_mul(0x9e37_79b1) >> 16 | 1)
        }),
        ("addresses in a row", |i| (i, 80)),
        ("every 16th address", |i| (16 * i, 80)),
        ("four ports of each", |i| (i / 4, 8080 + i % 4)),
        ("each with a port of its own", |i| (i, 8080 + i)),
    ];
    for (shape, listen) in shapes {
        let services = (0..1024).map(listen).map(|(host, port)| {
            let listen = format!("{}:{port}", vip(host));
            service(&listen, &[("10.0.0.2:80", 1)])
        });
        let tables = Tables::new(&config(services.collect()), TICK, |_| news(1)).unwrap();
        let places = (tables.listeners.entries.len(), tables.addresses.len());
        println!("{shape}: places of services and addresses: {places:?}");
    }
}

#[test]
fn echo_is_answered_for_vips_that_the_host_does_not_have() {
    let mut tables = Tables::new(
        &config(vec![
            service("10.0.0.5:80", &[("10.0.0.2:80", 1)]),
            service("10.0.0.9:80", &[("10.0.0.2:80", 1)]),
            service("10.0.0.8:80", &[("10.0.0.2:80", 1)]),
        ]),
        TICK,
        // A source address that is no VIP.
        |_| Path {
            source: Some(address("10.0.0.7")),
            ..news(1)
        },
    )
    .unwrap();
    let answers = |tables: &Tables| {
        let places = tables
            .addresses
            .iter()
            .filter(|entry| entry.answers_echo != 0);
        let mut last: Vec<u8> = places
            .map(|entry| entry.address[0].to_ne_bytes()[3])
            .collect();
        last.sort();
        last
    };
    let held = |texts: &[&str]| texts.iter().map(|text| address(text)).collect();
    let changed = tables.set_held(&held(&["10.0.0.5", "10.0.0.7"]));
    assert_eq!((answers(&tables), changed.len()), (vec![8, 9], 2));
    assert_eq!(tables.set_held(&held(&["10.0.0.5"])), Vec::<usize>::new());
    let changed = tables.set_held(&held(&["10.0.0.9"]));
    assert_eq!((answers(&tables), changed.len()), (vec![5, 8], 2));
    for place in changed {
        assert_ne!(tables.addresses[place].vip, 0);
    }
}

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

    // Ports that flows have can't be taken away from under them.
    let mut other = with(&[("10.0.0.5:81", &[c])]);
    other.services[0].source_ports = PortRanges::new(vec![2000..=3000]).unwrap();
    let refused = third.followed_by(&other, TICK, |_| news(1), |_| false);
    let error = refused.err().map(|error| error.to_string()).unwrap();
    assert!(
        error.contains("can't change to 2000-3000 while it runs"),
        "{error}"
    );
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

#[test]
fn tables_are_recovered_from_their_records_and_notes() {
    let v6 = service(
        "[fd00::5]:53/udp",
        &[("[fd00::2]:53", 1), ("[fd00::3]:0", 3)],
    );
    let mut range = service("10.0.0.5:8000-8099", &[("10.0.0.4", 1)]);
    range.scheduler = Scheduler::LeastConnections;
    let first = config(vec![
        service("10.0.0.5:80", &[("10.0.0.2:80", 1), ("10.0.0.3:8080", 7)]),
        v6,
        range,
    ]);
    let path_of = |address: IpAddr| match address {
        IpAddr::V4(_) => news(1),
        // Nobody answers.
        IpAddr::V6(_) => Path::default(),
    };
    let first = Tables::new(&first, TICK, path_of).unwrap();
    // The first backend leaves with flows, the second without.
    let second = config(vec![service("10.0.0.5:80", &[("10.0.0.9:80", 1)])]);
    let second = first
        .followed_by(&second, TICK, path_of, |index| index == 1)
        .unwrap();
    for tables in [first, second] {
        let services = (0..tables.services.len()).map(|index| tables.service_entry(index));
        let backends = (1..=tables.backends.len()).map(|index| tables.backend_entry(index));
        let notes = serde_json::to_string(&tables.notes(1, u64::MAX)).unwrap();
        let notes: Notes = serde_json::from_str(&notes).unwrap();
        assert_eq!(notes.hash_seed, u64::MAX);
        let services: Vec<_> = services.collect();
        let backends: Vec<_> = backends.collect();
        let again = Tables::recovered(&notes, &services, &backends).unwrap();
        assert_eq!(again.vips, tables.vips);
        let placed = |source: &SourceTable| SourceTable {
            fresh: false,
            ..source.clone()
        };
        let placed: Vec<SourceTable> = tables.sources.iter().map(placed).collect();
        assert_eq!(again.sources, placed);
        for (again, service) in again.services.iter().zip(&tables.services) {
            assert_eq!(
                (&again.name, again.listen, again.scheduler),
                (&service.name, service.listen, service.scheduler)
            );
            assert_eq!(
                (again.tenure, again.number, &again.backends),
                (service.tenure, service.number, &service.backends)
            );
            assert_eq!(again.entry.maglev, service.entry.maglev);
        }
        for (again, backend) in again.backends.iter().zip(&tables.backends) {
            assert_eq!(
                (again.service, again.tenure, again.backend, again.path),
                (
                    backend.service,
                    backend.tenure,
                    backend.backend,
                    backend.path
                )
            );
        }
        assert_eq!(again.services.len(), tables.services.len());
        assert_eq!(again.backends.len(), tables.backends.len());
    }
}

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
