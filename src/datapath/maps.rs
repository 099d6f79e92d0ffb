// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The maps of a datapath, of this process or of another one, by their names:
//! typed access to what they hold.

use std::num::NonZero;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::panic::resume_unwind;
use std::thread;

use anyhow::{Context as _, Result, ensure};
use libbpf_rs::query::{ProgInfoIter, ProgInfoQueryOptions};

use super::map::Map;
use crate::abi::{self, types};
use crate::stats::{BackendCounters, Counters};
use crate::tables::{Notes, Tables, Tenure};

/// The kernel cuts names to so many characters.
const NAME_CHARACTERS: usize = 15;
/// A thread for fewer look-up tables costs more than it gains.
const THREAD_SERVICES: usize = 16;

/// The maps of one program.
pub struct Maps {
    all: Vec<Map>,
}

impl Maps {
    pub(super) fn new(all: Vec<Map>) -> Maps {
        Maps { all }
    }

    /// Those that a program uses.
    ///
    /// # Errors
    /// Without CAP_SYS_ADMIN.
    pub(super) fn of_program(id: u32) -> Result<Maps> {
        let options = ProgInfoQueryOptions::default().include_map_ids(true);
        let program = ProgInfoIter::with_query_opts(options)
            .find(|program| program.id == id)
            .with_context(|| format!("asking for the maps of program {id}"))?;
        let all: Result<_> = program.map_ids.into_iter().map(Map::from_id).collect();
        Ok(Maps { all: all? })
    }

    pub fn of_descriptors(all: Vec<OwnedFd>) -> Result<Maps> {
        let all: Result<_> = all.into_iter().map(Map::new).collect();
        Ok(Maps { all: all? })
    }

    /// One of each map.
    pub fn descriptors(&self) -> Result<Vec<OwnedFd>> {
        let all = self.all.iter();
        all.map(|map| map.as_fd().try_clone_to_owned())
            .collect::<Result<_, _>>()
            .context("holding the maps")
    }

    /// Lets a program hold what only userspace uses.
    pub(super) fn bind(&self, program: BorrowedFd, names: &[&str]) -> Result<()> {
        for name in names {
            let map = self.named(name)?;
            // SAFETY: both descriptors live across the call; no options.
            let error = unsafe {
                libbpf_sys::bpf_prog_bind_map(
                    program.as_raw_fd(),
                    map.as_fd().as_raw_fd(),
                    std::ptr::null(),
                )
            };
            if error != 0 {
                return Err(std::io::Error::from_raw_os_error(-error))
                    .with_context(|| format!("binding the map {name:?} to the program"));
            }
        }
        Ok(())
    }

    pub(super) fn named(&self, name: &str) -> Result<&Map> {
        let cut = &name[..name.len().min(NAME_CHARACTERS)];
        let mut all = self.all.iter();
        all.find(|map| map.name() == cut)
            .with_context(|| format!("the program has no map {name:?}"))
    }

    pub(super) fn add(&mut self, map: Map) {
        self.all.push(map);
    }

    pub(super) fn forget(&mut self, name: &str) {
        self.all.retain(|map| map.name() != name);
    }

    pub(super) fn all(&self) -> &[Map] {
        &self.all
    }

    /// Both have one and the same map of this name.
    pub(super) fn share(&self, other: &Maps, name: &str) -> bool {
        let id = |maps: &Maps| maps.named(name).ok().map(|map| map.id);
        id(self) == id(other)
    }

    fn entries(&self, name: &str) -> Result<usize> {
        Ok(self.named(name)?.max_entries as usize)
    }

    /// Backends that there is room for.
    pub fn backends(&self) -> Result<usize> {
        Ok(self.entries("backends")? - 1)
    }

    /// What the daemon that loaded the program has noted.
    ///
    /// # Errors
    /// It is of another version.
    pub fn notes(&self) -> Result<Notes> {
        let bytes = self.named("notes")?.lookup(0)?;
        serde_json::from_slice(&bytes).context("reading the notes of another version")
    }

    pub(super) fn write_notes(&self, notes: &[u8]) -> Result<()> {
        self.named("notes")?.update(0, notes)
    }

    /// What the maps hold, as tables.
    pub fn tables(&self) -> Result<Tables> {
        let notes = self.notes()?;
        let mut services = Vec::with_capacity(notes.services.len());
        for index in 0..notes.services.len() {
            services.push(self.named("services")?.get(index as u32)?);
        }
        let mut backends = Vec::with_capacity(self.backends()?);
        for index in 1..=self.backends()? {
            backends.push(self.named("backends")?.get(index as u32)?);
        }
        Tables::recovered(&notes, &services, &backends)
    }

    /// Writes the place `place` of the addresses.
    pub fn write_address(&self, tables: &Tables, place: usize) -> Result<()> {
        let entry = &tables.addresses[place];
        self.named("addresses")?.put(place as u32, entry)
    }

    /// Writes the record of backend `index` (from 1).
    pub fn write_backend(&self, tables: &Tables, index: usize) -> Result<()> {
        let entry = tables.backend_entry(index);
        self.named("backends")?.put(index as u32, &entry)
    }

    /// Writes the look-up tables of services, many on all CPUs at once: each takes a
    /// millisecond to compute. No thread is left when it returns.
    pub fn write_maglevs(&self, tables: &Tables, services: &[usize]) -> Result<()> {
        let write = |services: &[usize]| {
            let mut services = services.iter();
            services.try_for_each(|index| self.write_maglev(tables, *index))
        };
        if services.len() <= THREAD_SERVICES {
            return write(services);
        }
        let threads = thread::available_parallelism().map_or(1, NonZero::get);
        let share = services.len().div_ceil(threads).max(THREAD_SERVICES);
        thread::scope(|scope| {
            let mut shares = services.chunks(share);
            let own = shares.next().unwrap_or_default();
            let others: Vec<_> = shares
                .map(|share| {
                    let spawned = thread::Builder::new().spawn_scoped(scope, move || write(share));
                    spawned.map_err(|_| share)
                })
                .collect();
            write(own)?;
            others.into_iter().try_for_each(|other| match other {
                Ok(thread) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
                // No more threads are to be had.
                Err(share) => write(share),
            })
        })
    }

    /// Writes the look-up table of service `index`. One that is not configured any more
    /// gets no new flows, and its place may be another one's by now.
    pub fn write_maglev(&self, tables: &Tables, index: usize) -> Result<()> {
        let service = &tables.services[index];
        if service.tenure == Tenure::Configured {
            self.named("maglevs")?
                .update(service.entry.maglev, &tables.packed_maglev(index))?;
        }
        self.write_service(tables, index)
    }

    pub(super) fn write_service(&self, tables: &Tables, index: usize) -> Result<()> {
        let entry = tables.service_entry(index);
        self.named("services")?.put(index as u32, &entry)
    }

    /// Counts a backend's index from zero: another backend has it now.
    pub(super) fn clear_counters(&self, index: usize) -> Result<()> {
        for name in ["backend_counters", "earlier", "loads"] {
            self.named(name)?.clear(index as u32)?;
        }
        Ok(())
    }

    /// The counters of all CPUs added up; `backends` as many as were loaded.
    pub fn counters(&self, backends: usize) -> Result<Counters> {
        let mut counters = Counters::default();
        for (counter, code) in counters.outcomes.iter_mut().zip(0..) {
            *counter = self.counter(abi::OutcomeCode(code))?;
        }
        let of_cpus = self.named("backend_counters")?;
        let earlier = self.named("earlier")?;
        for index in 1..=backends as u32 {
            let mut total = BackendCounters::from(earlier.get::<types::backend_counters>(index)?);
            for cpu in of_cpus.per_cpu::<types::backend_counters>(index)? {
                total.add(&cpu.into());
            }
            counters.backends.push(total);
        }
        Ok(counters)
    }

    /// How many packets had this outcome.
    pub fn counter(&self, code: abi::OutcomeCode) -> Result<u64> {
        let outcomes = self.named("outcome_counters")?;
        Ok(outcomes.per_cpu::<u64>(code.0)?.iter().sum())
    }

    /// Goes on with the counts of the maps whose place these have taken, but for
    /// backends whose indexes stood for others before.
    pub fn count_on(&self, old: &Maps, recycled: &[usize]) -> Result<()> {
        if self.share(old, "backend_counters") {
            return Ok(());
        }
        let counters = old.counters(old.backends()?.min(self.backends()?))?;
        for (counters, index) in counters.backends.into_iter().zip(1..) {
            if recycled.contains(&index) {
                continue;
            }
            let counters = types::backend_counters::from(counters);
            self.named("earlier")?.put(index as u32, &counters)?;
        }
        Ok(())
    }

    /// The record of a source's port.
    pub fn flow(&self, source: usize, port: u16) -> Result<types::flow> {
        self.flow_table(source)?.get(port.into())
    }

    /// The ports of a source address that no flow has.
    pub fn free_ports(&self, source: usize) -> Result<Vec<u16>> {
        let mut free = Vec::new();
        for (number, group) in self.groups(source)? {
            let first = usize::from(number) * abi::GROUP_SLOTS;
            let slots = (0..abi::GROUP_SLOTS).filter(|slot| group.used & 1 << slot == 0);
            free.extend(slots.map(|slot| (first + slot) as u16));
        }
        Ok(free)
    }

    /// How many flows from a source address no client has confirmed yet, and how
    /// many of them made room for others so far.
    pub fn unconfirmed(&self, source: usize) -> Result<(u32, u64)> {
        let (mut unconfirmed, mut evicted) = (0, 0);
        for (_, group) in self.groups(source)? {
            unconfirmed += group.unconfirmed.count_ones();
            evicted += u64::from(group.evicted);
        }
        Ok((unconfirmed, evicted))
    }

    /// The groups of slots of a source address, with their numbers.
    pub fn groups(&self, source: usize) -> Result<Vec<(u16, types::group)>> {
        let ports: types::ports = self.named("ports")?.get(source as u32)?;
        let groups = self.named("groups")?;
        let numbers = ports.group.iter().take(ports.groups as usize);
        numbers
            .map(|number| {
                let index = source << abi::GROUP_BITS | usize::from(*number);
                Ok((*number, groups.get(index as u32)?))
            })
            .collect()
    }

    /// # Errors
    /// Another version laid the maps out.
    pub(super) fn check_layout(&self, layout: u32) -> Result<()> {
        /// What the notes of every version tell.
        #[derive(serde::Deserialize)]
        struct Least {
            layout: u32,
        }
        let bytes = self.named("notes").and_then(|map| map.lookup(0));
        let least = bytes.and_then(|bytes| Ok(serde_json::from_slice::<Least>(&bytes)?));
        let theirs = least.map_or(0, |least| least.layout);
        ensure!(
            theirs == layout,
            "its maps are of layout {theirs}, and this version's of {layout}"
        );
        Ok(())
    }
}
