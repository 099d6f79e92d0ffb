// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! What is written into the maps, record by record.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;

use anyhow::Result;

use super::{Listeners, ServiceTable, Tables, Tenure, listeners};
use crate::abi;
use crate::maglev::{self, Member};
use crate::service::Scheduler;

/// Addresses of the host beside ours that there is room for.
const HOST_ADDRESSES: usize = 250;

impl Tables {
    /// Where what is configured is found.
    pub(super) fn listen(&self) -> Result<Listeners> {
        let configured = self.services.iter().enumerate();
        let listens: Vec<_> = configured
            .filter(|(_, service)| service.tenure == Tenure::Configured)
            .map(|(index, service)| (service.listen, usize::from(service.entry.vip) - 1, index))
            .collect();
        Listeners::new(&listens)
    }

    /// The hash table over VIPs and source addresses.
    pub(super) fn place_addresses(&self) -> Result<Vec<abi::address>> {
        let mut roles: BTreeMap<IpAddr, (Option<usize>, Option<usize>)> = BTreeMap::new();
        let in_use = |service: &&ServiceTable| service.tenure != Tenure::Vacant;
        let served: HashSet<IpAddr> = self
            .services
            .iter()
            .filter(in_use)
            .map(|service| service.listen.vip)
            .collect();
        for (index, vip) in self
            .vips
            .iter()
            .enumerate()
            .filter(|(_, vip)| served.contains(vip))
        {
            roles.entry(*vip).or_default().0 = Some(index);
        }
        for (index, source) in self.sources_in_use() {
            roles.entry(source.address).or_default().1 = Some(index);
        }
        let entries: Vec<_> = roles
            .into_iter()
            .map(|(address, (vip, source))| abi::address_entry(address, vip, source, false))
            .collect();
        listeners::place(&entries, HOST_ADDRESSES, abi::address_place)
    }

    /// Takes in which addresses the host has, and those of all hosts of its networks
    /// (broadcast): nobody else can send from them, and the datapath answers echo for the
    /// VIPs that are not among them. Those that there is no place for are left out.
    /// Returns the places of `addresses` that are new.
    pub fn set_held(&mut self, held: &BTreeSet<IpAddr>) -> Vec<usize> {
        let mut now = self.addresses.clone();
        let mut ours = HashSet::new();
        for entry in &mut now {
            if entry.vip == 0 && entry.source == 0 {
                *entry = abi::address::default();
                continue;
            }
            ours.insert((entry.family, entry.address));
            let vip = usize::from(entry.vip).checked_sub(1);
            let answers = vip.is_some_and(|vip| !held.contains(&self.vips[vip]));
            entry.answers_echo = answers.into();
        }
        // None of ours makes room for them, so that packets find those at all times.
        for address in held {
            let entry = abi::address_entry(*address, None, None, false);
            let hash = abi::address_place(&entry);
            let mut places = (hash..hash + abi::PROBES).map(|place| place % now.len());
            let free = places.find(|place| now[*place].family == 0);
            let ours = ours.contains(&(entry.family, entry.address));
            if let Some(place) = free.filter(|_| !ours) {
                now[place] = entry;
            }
        }
        let of = |entry: &abi::address| (entry.family, entry.address, entry.answers_echo);
        let differs = |place: &usize| of(&now[*place]) != of(&self.addresses[*place]);
        let changed = (0..now.len()).filter(differs).collect();
        self.addresses = now;
        changed
    }

    /// The record of backend `index` (from 1).
    pub fn backend_entry(&self, index: usize) -> abi::backend {
        let table = &self.backends[index - 1];
        let source = table.path.source;
        let source = source.and_then(|source| self.source_index(source));
        let path = table
            .path
            .mac
            .zip(source)
            .map(|(mac, source)| (mac, table.path.tags, source));
        let condition = &table.condition;
        abi::backend {
            ends_flows: self.ends_flows(index).into(),
            health: abi::health_number(condition.health),
            drained: condition.drained.into(),
            health_since_s: condition.health_since_s,
            draining_since_s: condition.draining_since_s,
            ..abi::backend_entry(
                table.backend.address.ip(),
                table.backend.address.port(),
                path,
                table.backend.weight,
                table.service,
            )
        }
    }

    /// The backends of service `index` that take new flows.
    pub(super) fn members(&self, index: usize) -> Vec<Member> {
        self.services[index]
            .backends
            .iter()
            .filter(|number| self.takes_flows(**number))
            .map(|number| {
                let backend = &self.backends[number - 1].backend;
                Member {
                    identity: backend.address,
                    weight: backend.weight,
                    index: *number as u16,
                }
            })
            .collect()
    }

    /// The record of service `index`.
    pub fn service_entry(&self, index: usize) -> abi::service {
        let service = &self.services[index];
        let members = match service.scheduler {
            Scheduler::LeastConnections => self.members(index).len(),
            _ => 0,
        };
        abi::service {
            members: members as u32,
            ..service.entry
        }
    }

    /// The look-up table of service `index`, over the backends that take new flows.
    pub fn maglev(&self, index: usize) -> Box<[u16]> {
        let members = self.members(index);
        match self.services[index].scheduler {
            Scheduler::LeastConnections => maglev::roll(&members),
            Scheduler::RoundRobin => maglev::turns(&members),
            Scheduler::Maglev | Scheduler::SourceHash | Scheduler::Random => {
                maglev::table(&members)
            }
        }
    }

    /// The same as the program has it.
    pub fn packed_maglev(&self, index: usize) -> Vec<u8> {
        let backends = self.services[index].backends.iter();
        let backends: Vec<u16> = backends.map(|number| *number as u16).collect();
        self.packing().pack(&self.maglev(index), &backends)
    }
}
