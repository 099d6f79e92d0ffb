// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! How large the maps are.

use super::{Tables, Tenure};
use crate::abi;
use crate::maglev::Packing;
use crate::service::{PortRanges, SOURCES_MAX};

/// What a datagram in fragments takes, in a hash map of the kernel's: of 6.18.
const FRAGMENT_BYTES: usize = 128;

/// Entries of a map that a reload may need more of: with room for a quarter.
pub fn with_room(entries: usize) -> usize {
    entries + entries / 4 + 4
}

impl Tables {
    /// How many look-up tables must fit.
    pub fn maglevs(&self) -> usize {
        let places = self.services.iter().map(|service| service.entry.maglev);
        places.max().map_or(0, |last| last as usize + 1)
    }

    /// How they are packed: all alike.
    pub fn packing(&self) -> Packing {
        let backends = self.services.iter().map(|service| service.backends.len());
        Packing::of(backends.max().unwrap_or_default())
    }

    /// How many flows there can be at a time.
    pub fn capacity(&self) -> usize {
        let sources = self.sources_in_use();
        let configured = sources.filter(|(_, source)| source.tenure == Tenure::Configured);
        configured
            .map(|(_, source)| {
                let withheld = source.withheld.as_ref().map_or(0, PortRanges::count);
                source.ports.count() - withheld
            })
            .sum()
    }

    /// Entries of a source's table: a record for each port, or as few as a map needs.
    pub fn flow_records(&self, source: usize) -> usize {
        let has_flows = |index: usize| {
            self.given_up.contains(&index) || self.sources_in_use().any(|(other, _)| other == index)
        };
        if has_flows(source) { abi::PORTS } else { 1 }
    }

    /// The same of what flows have had, where that is counted.
    pub fn flow_counters(&self, source: usize) -> usize {
        if self.counts_in_flows {
            self.flow_records(source)
        } else {
            1
        }
    }

    /// Bytes of kernel memory that the maps take, with `cpus` per-CPU copies.
    pub fn memory_bytes(&self, cpus: usize) -> usize {
        let backends = self.backends.len() + 1;
        let sources = (0..self.sources.len().max(1)).map(|source| {
            self.flow_records(source) * size_of::<abi::flow>()
                + self.flow_counters(source) * size_of::<abi::flow_counters>()
        });
        sources.sum::<usize>()
            + SOURCES_MAX * (size_of::<abi::group>() << abi::GROUP_BITS)
            + 2 * SOURCES_MAX * size_of::<abi::ports>()
            + self.services.len() * (size_of::<abi::service>() + cpus * size_of::<u64>())
            + self.listeners.entries.len() * size_of::<abi::listener>()
            + self.listeners.port_maps.len().max(1) * size_of::<abi::port_map>()
            + self.addresses.len() * size_of::<abi::address>()
            + with_room(self.maglevs()) * self.packing().value_bytes()
            + backends * size_of::<abi::backend>()
            + with_room(backends) * (size_of::<u64>() + cpus * size_of::<abi::backend_counters>())
            + abi::FRAGMENTED * FRAGMENT_BYTES
    }
}
