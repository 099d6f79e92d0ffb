// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! What the datapath's maps hold for a configuration: pure, so that the same
//! configuration gives the same bytes on every host (but for the seed).

mod condition;
mod groups;
mod listeners;
mod notes;
mod parts;
mod plan;
mod records;
mod routes;
mod size;
mod sources;

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::Result;

use crate::abi;
use crate::service::{Config, Listen, Protocol, Scheduler, Service, Towards};
pub use condition::Condition;
pub use groups::{Change, changes, groups, leads_to};
pub use listeners::Listeners;
pub use notes::Notes;
pub use parts::{BackendTable, Path, ServiceTable, SourceTable, Tenure};
pub use plan::{Plan, World};
pub use routes::Routes;
pub use size::with_room;

/// The contents of the maps. What an index stands for stays so while flows may
/// have it; backends count from 1.
#[derive(Clone, Default)]
pub struct Tables {
    pub vips: Vec<IpAddr>,
    pub sources: Vec<SourceTable>,
    pub addresses: Vec<abi::address>,
    pub listeners: Listeners,
    pub services: Vec<ServiceTable>,
    pub backends: Vec<BackendTable>,
    /// Where answers to clients go.
    pub routes: Routes,
    /// Some service is of IPv6.
    pub serves_ipv6: bool,
    /// Some service is of UDP.
    pub serves_udp: bool,
    /// Some service goes by the backends' flows.
    pub counts_loads: bool,
    /// Packets and bytes are counted for each flow.
    pub counts_in_flows: bool,
    /// The sources that have left with this change, whose flows end.
    pub given_up: Vec<usize>,
    /// The backends whose indexes stood for others before.
    pub recycled: Vec<usize>,
}

impl Tables {
    /// `path_of` tells the path to a backend; `tick` is the length of a jiffy.
    ///
    /// # Errors
    /// More than [`SOURCES_MAX`] source addresses, two services that send from
    /// one address with different ports, or hashes that collide too much.
    pub fn new(
        config: &Config,
        tick: Duration,
        path_of: impl Fn(&Towards) -> Path,
    ) -> Result<Tables> {
        Tables::default().followed_by(config, tick, path_of, |_| false)
    }

    /// The tables of another configuration, in which everything keeps the index
    /// that it had. `has_flows` tells of a backend's index whether flows have it.
    ///
    /// # Errors
    /// As above, and other ports of a source address than its flows have.
    pub fn followed_by(
        &self,
        config: &Config,
        tick: Duration,
        path_of: impl Fn(&Towards) -> Path,
        has_flows: impl Fn(usize) -> bool,
    ) -> Result<Tables> {
        let mut tables = Tables {
            vips: self.vips.clone(),
            routes: self.routes.clone(),
            serves_ipv6: config.services.iter().any(|s| s.listen.vip.is_ipv6()),
            serves_udp: config
                .services
                .iter()
                .any(|s| s.listen.protocol == Protocol::Udp),
            counts_in_flows: config.flow_counters,
            counts_loads: config
                .services
                .iter()
                .any(|s| s.scheduler == Scheduler::LeastConnections),
            ..Tables::default()
        };
        tables.leave(self);
        let mut indexes: HashMap<Listen, usize> = HashMap::new();
        for (index, service) in tables.services.iter().enumerate() {
            if service.tenure != Tenure::Vacant {
                indexes.insert(service.listen, index);
            }
        }
        let vacant =
            |(index, old): (usize, &ServiceTable)| (old.tenure == Tenure::Vacant).then_some(index);
        let mut vacant: Vec<usize> = self
            .services
            .iter()
            .enumerate()
            .filter_map(vacant)
            .collect();
        let mut vacant_backends: Vec<usize> = (1..)
            .zip(&self.backends)
            .filter_map(|(index, old)| (old.tenure == Tenure::Vacant).then_some(index))
            .collect();
        let known: HashMap<_, usize> = (1..)
            .zip(&tables.backends)
            .filter(|(_, known)| known.tenure != Tenure::Vacant)
            .map(|(index, known)| ((known.service, known.backend.address), index))
            .collect();
        // Each source address, with the service that fixed its ports.
        let mut users: HashMap<IpAddr, &Service> = HashMap::new();
        for (number, service) in config.services.iter().enumerate() {
            let index = match indexes.get(&service.listen) {
                Some(index) => *index,
                None => vacant.pop().unwrap_or(tables.services.len()),
            };
            tables.put_service(index, number, service);
            tables.put_backends(index, service, &path_of, &known, &mut vacant_backends);
            tables.put_sources(self, index, service, &mut users)?;
        }
        tables.vacate(has_flows);
        tables.withhold();
        tables.place_services(self, config, tick);
        tables.listeners = tables.listen()?;
        tables.addresses = tables.place_addresses()?;
        Ok(tables)
    }

    /// Takes over the old services and backends, as such that leave unless they turn
    /// out to be configured.
    fn leave(&mut self, old: &Tables) {
        let leaving = |tenure| match tenure {
            Tenure::Vacant => Tenure::Vacant,
            Tenure::Configured | Tenure::Leaving => Tenure::Leaving,
        };
        self.backends = old.backends.clone();
        for backend in &mut self.backends {
            backend.tenure = leaving(backend.tenure);
        }
        self.sources = old.sources.clone();
        for source in &mut self.sources {
            source.tenure = leaving(source.tenure);
            source.fresh = false;
        }
        self.services = old.services.clone();
        for service in &mut self.services {
            service.tenure = leaving(service.tenure);
            service.fresh = false;
            service.backends.clear();
        }
    }

    /// Who leaves without flows has left.
    fn vacate(&mut self, has_flows: impl Fn(usize) -> bool) {
        let mut busy = HashSet::new();
        for (index, backend) in (1..).zip(&mut self.backends) {
            if backend.tenure != Tenure::Leaving {
                continue;
            }
            if has_flows(index) {
                busy.insert(backend.service);
            } else {
                backend.tenure = Tenure::Vacant;
            }
        }
        for (index, service) in self.services.iter_mut().enumerate() {
            if service.tenure == Tenure::Leaving && !busy.contains(&index) {
                service.tenure = Tenure::Vacant;
            }
        }
    }

    fn put_service(&mut self, index: usize, number: usize, service: &Service) {
        let table = ServiceTable {
            name: service.name.clone(),
            listen: service.listen,
            scheduler: service.scheduler,
            policy: service.policy,
            tenure: Tenure::Configured,
            number,
            entry: abi::service::default(),
            ignores_health: false,
            fresh: true,
            backends: Vec::with_capacity(service.backends.len()),
        };
        put(&mut self.services, index, table);
        if !self.vips.contains(&service.listen.vip) {
            let in_use = |vip: &IpAddr| {
                let mut services = self.services.iter();
                services.any(|s| s.tenure != Tenure::Vacant && s.listen.vip == *vip)
            };
            let free = self.vips.iter().position(|vip| !in_use(vip));
            let place = free.unwrap_or(self.vips.len());
            put(&mut self.vips, place, service.listen.vip);
        }
    }

    fn put_backends(
        &mut self,
        service_index: usize,
        service: &Service,
        path_of: &impl Fn(&Towards) -> Path,
        known: &HashMap<(usize, SocketAddr), usize>,
        vacant: &mut Vec<usize>,
    ) {
        for backend in &service.backends {
            let known = known.get(&(service_index, backend.address)).copied();
            let mut table = BackendTable {
                service: service_index,
                tenure: Tenure::Configured,
                backend: *backend,
                source: service.source.first().copied(),
                path: known.map_or_else(Path::default, |index| self.backends[index - 1].path),
                condition: known.map_or_else(Condition::default, |index| {
                    self.backends[index - 1].condition
                }),
            };
            table.path = table.path_after(path_of(&service.towards(backend)));
            let index = known
                .or_else(|| {
                    let index = vacant.pop()?;
                    self.recycled.push(index);
                    Some(index)
                })
                .unwrap_or(self.backends.len() + 1);
            put(&mut self.backends, index - 1, table);
            self.services[service_index].backends.push(index);
        }
    }

    /// What flows keep to. A service whose look-up table stays as it was keeps its
    /// place too; of another one, the old table is left alone. To be asked again when
    /// more is known of the backends, and before these tables are in use.
    pub fn place_services(&mut self, old: &Tables, config: &Config, tick: Duration) {
        let in_use = |service: &&ServiceTable| service.tenure != Tenure::Vacant;
        let places = |service: &ServiceTable| service.entry.maglev;
        let mut taken: HashSet<u32> = old.services.iter().filter(in_use).map(places).collect();
        let mut free = 0;
        for index in 0..self.services.len() {
            let table = &self.services[index];
            if table.tenure != Tenure::Configured {
                continue;
            }
            let same = old
                .services
                .get(index)
                .filter(|old| old.tenure != Tenure::Vacant && old.scheduler == table.scheduler);
            let kept = same.filter(|_| old.members(index) == self.members(index));
            let place = kept.map_or_else(
                || {
                    while !taken.insert(free) {
                        free += 1;
                    }
                    free
                },
                places,
            );
            let service = &config.services[table.number];
            let position = |all: &[IpAddr], address| all.iter().position(|known| known == address);
            let sources = service.source.iter();
            let sources: Vec<usize> = sources
                .filter_map(|source| self.source_index(*source))
                .collect();
            let vip = position(&self.vips, &service.listen.vip).unwrap_or_default();
            let fresh = kept.is_none();
            let table = &mut self.services[index];
            table.fresh = fresh;
            table.entry = abi::service_entry(service, vip, place as usize, &sources, tick);
        }
    }

    /// A bit for each port, modulo 512, that some service has, or had when flows of
    /// it began that may still be there.
    pub fn port_filter(&self) -> [u64; 8] {
        let mut filter = [0; 8];
        let in_use = |service: &&ServiceTable| service.tenure != Tenure::Vacant;
        for service in self.services.iter().filter(in_use) {
            for port in service.listen.ports.range().take(512) {
                filter[usize::from(port) / 64 % 8] |= 1 << (port % 64);
            }
        }
        filter
    }
}

/// Puts a value in a place that is there, or the next one.
fn put<T>(all: &mut Vec<T>, place: usize, value: T) {
    match all.get_mut(place) {
        Some(old) => *old = value,
        None => all.push(value),
    }
}

/// A number nobody can foresee: the standard library keys its hash maps with
/// the kernel's randomness.
pub fn random_seed() -> u64 {
    RandomState::new().build_hasher().finish()
}
