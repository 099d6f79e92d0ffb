// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The tables of a daemon that is gone.

use std::net::IpAddr;

use xdp_proxy::service::{Scheduler, Towards};
use xdp_proxy::tables::{Notes, Path, SourceTable, Tables};

use super::{TICK, news};
use crate::common::rig::{config, service};

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
    let path_of = |towards: &Towards| match towards.address {
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
