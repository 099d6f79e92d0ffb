// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Looks at the world once, for a plan: routes, neighbours, checks, and the flows that
//! are there.

use std::collections::HashSet;
use std::net::IpAddr;

use anyhow::Result;

use super::routes::{backend_addresses, path_of, reach_of};
use super::update::now_s;
use crate::datapath::{self, Maps};
use crate::health::Checks;
use crate::neighbour::{self, Interface, Neighbours};
use crate::service::Config;
use crate::stats::Counters;
use crate::tables::{Path, Tables, World};
use crate::vlan::Trunk;

/// Who tells of the world of a configuration, as long as that is served.
pub(super) struct Surroundings {
    pub interface: Interface,
    pub trunk: Trunk,
    pub neighbours: Neighbours,
    pub checks: Checks,
}

/// The same, of one who keeps them.
#[derive(Clone, Copy)]
pub(super) struct Informants<'a> {
    pub trunk: &'a Trunk,
    pub neighbours: &'a Neighbours,
    pub checks: &'a Checks,
}

impl Surroundings {
    pub(super) fn informants(&self) -> Informants<'_> {
        Informants {
            trunk: &self.trunk,
            neighbours: &self.neighbours,
            checks: &self.checks,
        }
    }
}

/// What there was before: tables, and the maps of the program that works with them, if
/// one does.
#[derive(Clone, Copy)]
pub(super) struct Before<'a> {
    pub tables: &'a Tables,
    pub maps: Option<&'a Maps>,
}

impl Before<'_> {
    pub(super) fn counters(&self) -> Result<Counters> {
        match self.maps {
            Some(maps) => maps.counters(self.tables.backends.len()),
            None => Ok(Counters::default()),
        }
    }

    /// The indexes of the backends that flows are with.
    pub(super) fn backends_with_flows(&self) -> Result<HashSet<usize>> {
        let counters = self.counters()?;
        let backends = (1..).zip(&counters.backends);
        let busy = backends.filter(|(_, backend)| backend.flows() > 0);
        Ok(busy.map(|(index, _)| index).collect())
    }
}

/// The world as it is now. `default_source` stands in where no route tells the source
/// address of packets to a backend, and none did before.
pub(super) async fn look(
    config: &Config,
    informants: Informants<'_>,
    before: Before<'_>,
    default_source: Option<IpAddr>,
) -> Result<World> {
    let mut world = World {
        now_s: now_s()?,
        tick: datapath::tick()?,
        ..World::default()
    };
    for (_, source) in before.tables.sources_in_use() {
        if neighbour::is_held(source.address).await? {
            world.held_sources.insert(source.address);
        }
    }
    // From here on nothing is waited for: all of it is of one moment.
    let Informants {
        trunk,
        neighbours,
        checks,
    } = informants;
    let known = before.tables.backends.iter();
    let known = known.filter(|table| table.path.source.is_some());
    let known: HashSet<IpAddr> = known.map(|table| table.backend.address.ip()).collect();
    for towards in backend_addresses(config) {
        let path = path_of(reach_of(neighbours, trunk, &towards));
        let default = default_source.filter(|_| !known.contains(&towards.address));
        let source = path.source.or(default);
        world.paths.insert(towards, Path { source, ..path });
    }
    for service in &config.services {
        for backend in &service.backends {
            let target = (service.listen, backend.address);
            if let Some(health) = checks.health(&target) {
                world.health.insert(target, health);
            }
        }
    }
    world.held = neighbours.held();
    world.backends_with_flows = before.backends_with_flows()?;
    if let Some(maps) = before.maps {
        for (index, source) in before.tables.sources_in_use() {
            let ports = maps.ports_with_flows(index)?;
            world.ports_with_flows.insert(index, ports);
            if source.earlier.is_some() && maps.needs_earlier(index)? {
                world.needs_earlier.insert(index);
            }
        }
    }
    Ok(world)
}
