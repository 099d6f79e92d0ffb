// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The addresses that flows to backends come from. An index stands for one of them
//! while flows come from it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use anyhow::{Result, ensure};

use super::{ServiceTable, SourceTable, Tables, Tenure, put};
use crate::abi;
use crate::service::{PortRanges, SOURCES_MAX, Service};

impl Tables {
    /// The sources that flows come from, with their indexes.
    pub fn sources_in_use(&self) -> impl Iterator<Item = (usize, &SourceTable)> {
        let numbered = self.sources.iter().enumerate();
        numbered.filter(|(_, source)| source.tenure != Tenure::Vacant)
    }

    /// Flows come, or came until now, from some other source than the first.
    pub fn has_several_sources(&self) -> bool {
        (1..self.sources.len()).any(|source| self.flow_records(source) == abi::PORTS)
    }

    /// The index of a source address; `None`: it has no ports.
    pub fn source_index(&self, address: IpAddr) -> Option<usize> {
        let mut sources = self.sources_in_use();
        sources.find_map(|(index, source)| (source.address == address).then_some(index))
    }

    /// The addresses that the service's flows come from. None takes the place of one
    /// that is in use in `old`.
    pub(super) fn put_sources<'a>(
        &mut self,
        old: &Tables,
        service_index: usize,
        service: &'a Service,
        users: &mut HashMap<IpAddr, &'a Service>,
    ) -> Result<()> {
        let backends = self.services[service_index].backends.iter();
        let reached_from = backends.filter_map(|index| self.backends[index - 1].path.source);
        let addresses: Vec<IpAddr> = service.source.iter().copied().chain(reached_from).collect();
        for address in addresses {
            let ports = &service.source_ports;
            let user = *users.entry(address).or_insert(service);
            ensure!(
                user.source_ports == *ports,
                "the services {:?} and {:?} both send from {address}: give them the same \
                 `source_ports`",
                user.name,
                service.name
            );
            if let Some(index) = self.source_index(address) {
                let source = &mut self.sources[index];
                source.tenure = Tenure::Configured;
                if source.ports == *ports {
                    continue;
                }
                ensure!(
                    source
                        .earlier
                        .as_ref()
                        .is_none_or(|earlier| earlier == ports),
                    "the source ports of {address} were changed before, and flows of then are \
                     left: wait for their end, or start again with {ports}"
                );
                source.earlier = Some(std::mem::replace(&mut source.ports, ports.clone()));
                continue;
            }
            let is_vacant = |index: &usize| {
                let vacant = |all: &[SourceTable]| {
                    all.get(*index).is_none_or(|s| s.tenure == Tenure::Vacant)
                };
                vacant(&old.sources) && vacant(&self.sources)
            };
            let index = (0..).find(is_vacant).unwrap_or_default();
            ensure!(
                index < SOURCES_MAX,
                "more than {SOURCES_MAX} source addresses are needed, those with flows of before \
                 among them: set `source` in the services"
            );
            let source = SourceTable {
                address,
                ports: ports.clone(),
                withheld: None,
                earlier: None,
                tenure: Tenure::Configured,
                fresh: true,
            };
            put(&mut self.sources, index, source);
        }
        Ok(())
    }

    /// The sources that are configured no more, with their indexes.
    pub fn leaving_sources(&self) -> Vec<(usize, IpAddr)> {
        let leaving = |(_, source): &(usize, &SourceTable)| source.tenure == Tenure::Leaving;
        let leaving = self.sources_in_use().filter(leaving);
        leaving
            .map(|(index, source)| (index, source.address))
            .collect()
    }

    /// No flow comes from these sources any more; to be said before the tables are in
    /// use.
    ///
    /// # Errors
    /// Hashes that collide too much.
    pub fn give_up(&mut self, sources: &[usize]) -> Result<()> {
        for index in sources {
            self.sources[*index].tenure = Tenure::Vacant;
        }
        self.given_up = sources.to_vec();
        self.addresses = self.place_addresses()?;
        Ok(())
    }

    /// No flow needs the ports of before any more that these sources had.
    pub fn forget_earlier(&mut self, is_needed: impl Fn(usize) -> Result<bool>) -> Result<()> {
        for (index, source) in self.sources.iter_mut().enumerate() {
            if source.earlier.is_some() && !is_needed(index)? {
                source.earlier = None;
            }
        }
        Ok(())
    }

    /// Some source address had other ports before.
    pub fn is_relisted(&self) -> bool {
        self.sources_in_use()
            .any(|(_, source)| source.earlier.is_some())
    }

    /// Where the datapath looks for flows of one family: in the lists of groups of its
    /// sources, then in those that they had before.
    pub fn sources_of(&self, is_ipv6: bool) -> abi::source_list {
        let mine = |(_, source): &(usize, &SourceTable)| source.address.is_ipv6() == is_ipv6;
        let mut all = abi::source_list::default();
        let mut add = |list: usize| {
            all.list[all.count as usize] = list as u8;
            all.count += 1;
            all.count
        };
        let mut turns = 0;
        for tenure in [Tenure::Configured, Tenure::Leaving] {
            for (index, source) in self.sources_in_use().filter(mine) {
                if source.tenure == tenure {
                    let count = add(index);
                    if tenure == Tenure::Configured {
                        turns = count;
                    }
                }
            }
        }
        for (index, source) in self.sources_in_use().filter(mine) {
            if source.earlier.is_some() {
                add(abi::SOURCES + index);
            }
        }
        all.turns = turns;
        all
    }

    /// Withholds from new flows the ports of each source that services of its address have:
    /// what a backend sends there from the port that it serves would be taken for an answer
    /// to the flow. The services with fewest ports come first, and half of the ports stay.
    pub(super) fn withhold(&mut self) {
        for index in 0..self.sources.len() {
            let source = &self.sources[index];
            let (mut open, ports) = (is_in(Some(&source.ports)), source.ports.count());
            let mut withheld: Vec<u16> = Vec::new();
            for served in self.served_ports(source.address) {
                let more: Vec<u16> = served.filter(|port| open[usize::from(*port)]).collect();
                if 2 * (withheld.len() + more.len()) <= ports {
                    more.iter()
                        .for_each(|port| open[usize::from(*port)] = false);
                    withheld.extend(more);
                }
            }
            let ranges = withheld.into_iter().map(|port| port..=port);
            self.sources[index].withheld = PortRanges::new(ranges.collect());
        }
    }

    /// Some source's address has services on ports that are not withheld.
    pub fn avoids_ports(&self) -> bool {
        self.sources_in_use().any(|(_, source)| {
            let [ours, withheld] = [Some(&source.ports), source.withheld.as_ref()].map(is_in);
            let mut served = self.served_ports(source.address).flatten().map(usize::from);
            served.any(|port| ours[port] && !withheld[port])
        })
    }

    /// The ports of each service of an address, those with the fewest first.
    fn served_ports(&self, address: IpAddr) -> impl Iterator<Item = RangeInclusive<u16>> {
        let in_use = |service: &&ServiceTable| service.tenure != Tenure::Vacant;
        let services = self.services.iter().filter(in_use);
        let of_address = services.filter(|service| service.listen.vip == address);
        let mut ports: Vec<_> = of_address.map(|s| s.listen.ports.range()).collect();
        ports.sort_by_key(|ports| ports.len());
        ports.into_iter()
    }

    /// The lowest port that flows to backends come from.
    pub fn first_port(&self) -> u16 {
        let lowest = self
            .sources_in_use()
            .flat_map(|(_, s)| s.ports.iter().next());
        lowest.min().unwrap_or_default()
    }
}

/// Of each port whether it is one of these.
fn is_in(ports: Option<&PortRanges>) -> Vec<bool> {
    let mut all = vec![false; abi::PORTS];
    for port in ports.into_iter().flat_map(PortRanges::iter) {
        all[usize::from(port)] = true;
    }
    all
}
