// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Where the datapath finds a service: the hash table with those on one port, and
//! the port maps of those on several.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use anyhow::{Result, bail};

use crate::abi;
use crate::service::{Listen, ListenPorts, Protocol};

/// Places of a hash table, at most.
const PLACES_MAX: usize = 1 << 15;

/// The services as the datapath finds them.
#[derive(Clone, Default)]
pub struct Listeners {
    /// The hash table.
    pub entries: Vec<abi::listener>,
    /// One for each VIP and protocol that has services on several ports.
    pub port_maps: Vec<abi::port_map>,
}

impl Listeners {
    /// What each service listens on, the index of its VIP and its own index.
    pub(super) fn new(services: &[(Listen, usize, usize)]) -> Result<Listeners> {
        let mut entries = Vec::new();
        let mut several: BTreeMap<(usize, Protocol), Vec<(ListenPorts, usize)>> = BTreeMap::new();
        for (listen, vip, service) in services {
            match listen.ports {
                ListenPorts::One(port) => {
                    entries.push(abi::listener_entry(*vip, port, listen.protocol, *service));
                }
                ports => several
                    .entry((*vip, listen.protocol))
                    .or_default()
                    .push((ports, *service)),
            }
        }
        let mut port_maps = Vec::new();
        for ((vip, protocol), mut services) in several {
            // Ranges are written over what is on any port.
            services.sort_by_key(|(ports, _)| Reverse(*ports));
            let mut map = abi::port_map::default();
            for (ports, service) in services {
                let (first, last) = ports.range().into_inner();
                map.service[first.into()..=last.into()].fill(service as u16 + 1);
            }
            entries.push(abi::listener_entry(vip, 0, protocol, port_maps.len()));
            port_maps.push(map);
        }
        Ok(Listeners {
            entries: place(&entries, 0, abi::listener_place)?,
            port_maps,
        })
    }
}

/// Lays entries out so that each is within [`abi::PROBES`] places of its hash,
/// with no unused place before it: in the smallest power of two that allows it,
/// but at least four times their number with `more`, so that a miss ends at once.
///
/// # Errors
/// The hashes of too many are too close together.
pub(super) fn place<T: Copy + Default>(
    entries: &[T],
    more: usize,
    hash: impl Fn(&T) -> usize,
) -> Result<Vec<T>> {
    let mut size = ((entries.len() + more) * 4)
        .next_power_of_two()
        .max(abi::PROBES * 2);
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
