// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The maps of a loaded program, seen from beside it: without a system call
//! where they can be mapped, so that a look costs nothing.

use std::num::NonZeroUsize;
use std::ptr::NonNull;

use libbpf_rs::query::{ProgInfoIter, ProgInfoQueryOptions};
use libbpf_rs::{MapCore as _, MapFlags, MapHandle};
use nix::sys::mman::{self, ProtFlags};
use xdp_proxy::abi::{self, types};

use crate::rigs::PORTS;
use crate::wire::UDP;

/// A map that this process shares with the program.
struct Shared<T> {
    first: NonNull<T>,
    count: usize,
    bytes: NonZeroUsize,
}

impl<T: Copy> Shared<T> {
    fn new(map: &MapHandle, count: usize) -> Shared<T> {
        let bytes = (count * size_of::<T>()).next_multiple_of(4096);
        let bytes = NonZeroUsize::new(bytes).expect("a map is not empty");
        let (access, flags) = (
            ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
            mman::MapFlags::MAP_SHARED,
        );
        // SAFETY: a new mapping, of a map that is as large.
        let first = unsafe { mman::mmap(None, bytes, access, flags, map, 0) };
        Shared {
            first: first.expect("mapping a map").cast(),
            count,
            bytes,
        }
    }

    fn get(&self, index: usize) -> T {
        assert!(index < self.count);
        // SAFETY: within the mapping; the program runs only when this thread asks it to.
        unsafe { self.first.add(index).read_volatile() }
    }

    fn set(&self, index: usize, value: T) {
        assert!(index < self.count);
        // SAFETY: as above; every bit pattern is a value of the maps' types.
        unsafe { self.first.add(index).write_volatile(value) }
    }

    /// Changes the first entry in its place.
    fn change(&self, change: impl FnOnce(&mut T)) {
        // SAFETY: as above, and nobody else has a reference into it.
        change(unsafe { &mut *self.first.as_ptr() });
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        // SAFETY: nobody holds a reference into it.
        let _ = unsafe { mman::munmap(self.first.cast(), self.bytes.get()) };
    }
}

/// An index and what is there.
type Entry = (u32, Vec<u8>);

pub struct Maps {
    /// A table for each source address.
    flows: Vec<Shared<types::flow>>,
    bss: Shared<types::bss>,
    fragments: MapHandle,
    maglevs: MapHandle,
    outcomes: MapHandle,
    /// What is written anew before each round, with its first contents.
    kept: Vec<(MapHandle, Vec<Entry>)>,
}

impl Maps {
    /// Of the program with this id.
    pub fn new(program: u32, sources: usize) -> Maps {
        let options = ProgInfoQueryOptions::default().include_map_ids(true);
        let ids = ProgInfoIter::with_query_opts(options)
            .find(|info| info.id == program)
            .expect("the program is loaded")
            .map_ids;
        let mut maps: Vec<MapHandle> = ids
            .into_iter()
            .map(|id| MapHandle::from_map_id(id).expect("a map of the program"))
            .collect();
        // The kernel keeps 15 bytes of a name.
        let mut take = |name: &str| {
            let name = &name[..name.len().min(15)];
            let is_it = |map: &MapHandle| map.name().to_string_lossy().ends_with(name);
            let place = maps.iter().position(is_it);
            maps.swap_remove(place.unwrap_or_else(|| panic!("no map {name}")))
        };
        let kept = ["maglevs", "backends", "groups"].map(|name| {
            let map = take(name);
            let entry = |index: u32| {
                let value = map.lookup(&index.to_ne_bytes(), MapFlags::ANY);
                value.expect("reading a map").expect("an array's entry")
            };
            // No other groups have ports.
            let of_ports = |index: &u32| {
                let group = *index as usize % (1 << abi::GROUP_BITS);
                let ports = group * abi::GROUP_SLOTS..(group + 1) * abi::GROUP_SLOTS;
                let source = *index as usize >> abi::GROUP_BITS;
                name != "groups"
                    || source < sources
                        && PORTS.into_iter().any(|port| ports.contains(&port.into()))
            };
            let indexes = (0..map.max_entries()).filter(of_ports);
            let entries: Vec<Entry> = indexes.map(|index| (index, entry(index))).collect();
            (map, entries)
        });
        let maglevs = MapHandle::try_from(&kept[0].0).expect("the same map");
        Maps {
            flows: (0..sources)
                .map(|source| match source {
                    0 => "flows".to_owned(),
                    _ => format!("flows_{source}"),
                })
                .map(|name| Shared::new(&take(&name), abi::PORTS))
                .collect(),
            bss: Shared::new(&take(".bss"), 1),
            fragments: take("fragments"),
            outcomes: take("outcome_counters"),
            maglevs,
            kept: kept.into(),
        }
    }

    /// As they were when the program was loaded; `slots` are all that may have
    /// had a flow.
    pub fn reset(&self, slots: impl Iterator<Item = usize>) {
        slots.for_each(|slot| self.set_flow(slot, types::flow::default()));
        for (map, entries) in &self.kept {
            for (index, value) in entries {
                map.update(&index.to_ne_bytes(), value, MapFlags::ANY)
                    .expect("writing a map");
            }
        }
        for key in self.fragment_keys() {
            self.fragments.delete(&key).expect("a fragment's entry");
        }
        self.limit_icmp(false);
    }

    pub fn write_maglev(&self, place: u32, contents: &[u8]) {
        self.maglevs
            .update(&place.to_ne_bytes(), contents, MapFlags::ANY)
            .expect("writing a look-up table");
    }

    pub fn flow(&self, slot: usize) -> types::flow {
        self.flows[slot >> abi::PORT_BITS].get(slot % abi::PORTS)
    }

    fn set_flow(&self, slot: usize, flow: types::flow) {
        self.flows[slot >> abi::PORT_BITS].set(slot % abi::PORTS, flow);
    }

    /// Makes the flow in a slot older.
    pub fn age_flow(&self, slot: usize, ticks: u32) {
        let mut flow = self.flow(slot);
        flow.seen = flow.seen.wrapping_sub(ticks);
        if flow.protocol == UDP {
            // When it began.
            flow.client_next = flow.client_next.wrapping_sub(ticks);
        }
        self.set_flow(slot, flow);
    }

    /// All before any is written: the order changes with that.
    fn fragment_keys(&self) -> Vec<Vec<u8>> {
        self.fragments.keys().collect()
    }

    pub fn age_fragments(&self, ticks: u32) {
        for key in self.fragment_keys() {
            let value = self.fragments.lookup(&key, MapFlags::ANY);
            let mut value = value.expect("reading fragments").expect("it is there");
            let seen_at = std::mem::offset_of!(types::fragment, seen);
            let seen = &mut value[seen_at..seen_at + 4];
            let old = u32::from_ne_bytes(seen.try_into().expect("4 bytes"));
            seen.copy_from_slice(&old.wrapping_sub(ticks).to_ne_bytes());
            self.fragments
                .update(&key, &value, MapFlags::ANY)
                .expect("writing fragments");
        }
    }

    /// Whether ICMP errors are at their limit; if so, until the next tick alone. If not,
    /// nobody was told of any.
    pub fn limit_icmp(&self, limited: bool) {
        self.bss.change(|bss| {
            bss.icmp_tokens = if limited { 0 } else { 16 };
            if !limited {
                bss.icmp_until.fill(0);
            }
        });
    }

    /// Packets by outcome.
    pub fn outcomes(&self) -> Vec<u64> {
        let of_cpus = |index: u32| {
            let values = self
                .outcomes
                .lookup_percpu(&index.to_ne_bytes(), MapFlags::ANY);
            let values = values.expect("reading counters").expect("a counter");
            let count =
                |bytes: &Vec<u8>| u64::from_ne_bytes(bytes[..8].try_into().expect("8 bytes"));
            values.iter().map(count).sum()
        };
        (0..self.outcomes.max_entries()).map(of_cpus).collect()
    }
}
