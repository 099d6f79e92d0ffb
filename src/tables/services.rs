// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Where the datapath finds a service: the hash table with those on one port,
//! behind it the others, and the port maps that lead to them.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::abi;
use crate::service::{Config, ListenPorts, Protocol, Service};

/// Places of a hash table, at most: a flow names its service's in 16 bits.
const PLACES_MAX: usize = 1 << 15;

/// The services as the datapath finds them.
pub struct Services {
    /// The hash table, and behind it the services on several ports.
    pub entries: Vec<abi::service>,
    /// Places of the hash table, a power of two.
    pub hashed: usize,
    /// One for each VIP and protocol that has services on several ports.
    pub port_maps: Vec<abi::port_map>,
}

impl Services {
    /// `vips` and `sources` in the order of their indexes; `tick` is the length
    /// of a jiffy.
    pub(super) fn new(
        config: &Config,
        tick: Duration,
        vips: &[IpAddr],
        sources: &[IpAddr],
    ) -> Result<Services> {
        let mut hashed = Vec::new();
        let mut several: Vec<(ListenPorts, abi::service)> = Vec::new();
        for (index, service) in config.services.iter().enumerate() {
            let entry = entry(index, service, tick, vips, sources);
            match service.listen.ports {
                ListenPorts::One(_) => hashed.push(entry),
                ports => several.push((ports, entry)),
            }
        }
        // Ranges are written over what is on any port.
        several.sort_by_key(|(ports, _)| Reverse(*ports));
        let key = |entry: &abi::service| (entry.vip, entry.protocol);
        let keys: BTreeSet<_> = several.iter().map(|(_, entry)| key(entry)).collect();
        let signposts = keys.iter().zip(0..);
        hashed.extend(signposts.map(|((vip, protocol), map)| abi::service {
            vip: *vip,
            protocol: *protocol,
            port_map: map,
            ..Default::default()
        }));

        let mut entries = place(&hashed, abi::service_place)?;
        let hashed = entries.len();
        let mut port_maps = vec![abi::port_map::default(); keys.len()];
        for (map, wanted) in port_maps.iter_mut().zip(&keys) {
            let places = several.iter().zip(hashed as u16..);
            for ((ports, _), place) in places.filter(|((_, entry), _)| key(entry) == *wanted) {
                let (first, last) = ports.range().into_inner();
                map.service[first.into()..=last.into()].fill(place);
            }
        }
        entries.extend(several.into_iter().map(|(_, entry)| entry));
        Ok(Services {
            entries,
            hashed,
            port_maps,
        })
    }

    /// How many there are, and so Maglev tables.
    pub fn count(&self) -> usize {
        let used = self.entries.iter().filter(|entry| entry.vip != 0);
        used.count() - self.port_maps.len()
    }
}

fn entry(
    index: usize,
    service: &Service,
    tick: Duration,
    vips: &[IpAddr],
    sources: &[IpAddr],
) -> abi::service {
    let place_in = |all: &[IpAddr], address| all.iter().position(|known| known == address);
    abi::ServiceEntry {
        vip: place_in(vips, &service.listen.vip).unwrap_or_default(),
        port: service.listen.ports.one().unwrap_or(0),
        protocol: match service.listen.protocol {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
        },
        maglev: index,
        sources: service
            .source
            .iter()
            .filter_map(|source| place_in(sources, source))
            .collect(),
        unanswered: abi::jiffies(service.timeouts.unanswered, tick),
        established: abi::jiffies(service.timeouts.established, tick),
        closing: abi::jiffies(service.timeouts.closing, tick),
    }
    .into()
}

/// Lays entries out so that each is within [`abi::PROBES`] places of its hash,
/// with no unused place before it: in the smallest power of two that allows it,
/// but at least four times their number, so that a miss ends at once.
///
/// # Errors
/// The hashes of too many are too close together.
pub(super) fn place<T: Copy + Default>(
    entries: &[T],
    hash: impl Fn(&T) -> usize,
) -> Result<Vec<T>> {
    let mut size = (entries.len() * 4).next_power_of_two().max(abi::PROBES * 2);
    while size <= PLACES_MAX {
        let mut table = vec![None; size];
        let fits = entries.iter().all(|entry| {
            let free = (0..abi::PROBES)
                .map(|probe| (hash(entry) + probe) & (size - 1))
                .find(|place| table[*place].is_none());
            free.map(|place| table[place] = Some(*entry)).is_some()
        });
        if fits {
            return Ok(table.into_iter().map(Option::unwrap_or_default).collect());
        }
        size *= 2;
    }
    bail!(
        "{} services or addresses do not fit in {PLACES_MAX} places of a hash table, as more than \
         {} of them fall on one: change a VIP, a source address or a port",
        entries.len(),
        abi::PROBES
    )
}
