// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! How large the maps are.

use super::Tables;
use crate::abi;
use crate::service::PortRanges;

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

    /// How many flows there can be at a time.
    pub fn capacity(&self) -> usize {
        self.source_ports.iter().map(PortRanges::count).sum()
    }

    /// Flows whose packets are counted, each in the slot of its record; one at least,
    /// as a map needs.
    pub fn flow_counters(&self) -> usize {
        match self.counts_in_flows {
            true => self.source_ports.len() * abi::PORTS,
            false => 1,
        }
    }

    /// Bytes of kernel memory that the maps take, with `cpus` per-CPU copies.
    pub fn memory_bytes(&self, cpus: usize) -> usize {
        let sources = self.source_ports.len();
        let backends = self.backends.len() + 1;
        let of_source = abi::PORTS * size_of::<abi::flow>()
            + (size_of::<abi::group>() << abi::GROUP_BITS)
            + size_of::<abi::ports>();
        sources * of_source
            + self.flow_counters() * size_of::<abi::flow_counters>()
            + self.services.len() * (size_of::<abi::service>() + cpus * size_of::<u64>())
            + self.listeners.entries.len() * size_of::<abi::listener>()
            + self.listeners.port_maps.len().max(1) * size_of::<abi::port_map>()
            + self.addresses.len() * size_of::<abi::address>()
            + with_room(self.maglevs()) * size_of::<abi::maglev>()
            + backends * size_of::<abi::backend>()
            + with_room(backends) * (size_of::<u64>() + cpus * size_of::<abi::backend_counters>())
            + abi::FRAGMENTED * FRAGMENT_BYTES
    }
}
