// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The tables of flows, one for each source address. That of the first is a map of the
//! program's own; those of others are made here, and stand in two maps of maps. All of
//! them go from one datapath to the next as they are.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd as _, AsRawFd as _};

use anyhow::{Context as _, Result};
use libbpf_rs::{ErrorKind, ProgramInput};

use super::map::Map;
use super::{Datapath, Maps};
use crate::abi::{self, types};
use crate::service::{PortRanges, SOURCES_MAX};
use crate::tables::{self, Change, SourceTable, Tables};

/// The maps of maps, and what the maps in them are called.
const KINDS: [(&str, &str); 2] = [
    ("flow_tables", "flows"),
    ("counter_tables", "flow_counters"),
];
/// Sweeps after which nothing of the program before is left to find: the first follows at
/// once, and the last two are a second apart.
const SWEEPS: usize = 3;

/// From one datapath to the next: homes do not know yet of flows from other sources, and
/// the flows of sources that are given up are to end.
#[derive(Default)]
pub(super) struct Transition {
    sweeps_left: usize,
    given_up: Vec<usize>,
    /// The groups that get other slots, by their indexes.
    changes: Vec<(usize, Change)>,
}

/// What the table of a source is called, which is of its index.
fn name_of(kind: &str, source: usize) -> String {
    match (source, kind) {
        (0, _) => kind.into(),
        // The kernel's names are short.
        (_, "flow_counters") => format!("counters_{source}"),
        _ => format!("{kind}_{source}"),
    }
}

impl Maps {
    /// The source addresses that have tables, by their indexes.
    pub fn sources(&self) -> Vec<usize> {
        let all = 0..SOURCES_MAX;
        let has_table = |source: &usize| {
            let table = self.flow_table(*source);
            table.is_ok_and(|table| table.max_entries as usize == abi::PORTS)
        };
        all.filter(has_table).collect()
    }

    pub(super) fn flow_table(&self, source: usize) -> Result<&Map> {
        self.named(&name_of("flows", source))
    }

    /// The ports of a source address that flows have which have not ended.
    pub fn ports_with_flows(&self, source: usize) -> Result<Vec<u16>> {
        let mut ports = Vec::new();
        self.flow_table(source)?.each(|port, flow: &types::flow| {
            if flow.family != 0 && flow.retired == 0 {
                ports.push(port as u16);
            }
        })?;
        Ok(ports)
    }

    /// Whether flows from a source are found only by the ports that it had before.
    pub fn needs_earlier(&self, source: usize) -> Result<bool> {
        let groups: BTreeMap<u16, types::group> = self.groups(source)?.into_iter().collect();
        let list: Vec<u16> = groups.keys().copied().collect();
        let reach = |number: u16| groups[&number].reach;
        let mut needs = false;
        self.flow_table(source)?.each(|port, flow: &types::flow| {
            let lives = flow.family != 0 && flow.retired == 0;
            needs |= lives && !tables::leads_to(&list, flow.hash, reach, port);
        })?;
        Ok(needs)
    }

    /// Hands on every record, and its counters where flows' packets are counted.
    pub fn each_flow(
        &self,
        mut take: impl FnMut(u32, &types::flow, Option<&types::flow_counters>),
    ) -> Result<()> {
        for source in self.sources() {
            let mut counters = Vec::new();
            if let Ok(table) = self.named(&name_of("flow_counters", source)) {
                table.each(|_, entry: &types::flow_counters| counters.push(*entry))?;
            }
            self.flow_table(source)?.each(|port, flow| {
                let slot = (source as u32) << abi::PORT_BITS | port;
                take(slot, flow, counters.get(port as usize));
            })?;
        }
        Ok(())
    }
}

impl Datapath {
    /// Gives each source its tables: those that it had, or new ones.
    pub(super) fn place_sources(&mut self, tables: &Tables, old: Option<&Maps>) -> Result<()> {
        let before = old.map(Maps::notes).transpose()?;
        for (index, source) in tables.sources_in_use() {
            let before = before.as_ref().filter(|_| !source.fresh);
            let before = before.and_then(|notes| notes.sources.get(index));
            self.place_groups(index, source, before)?;
        }
        if tables.has_several_sources() {
            for source in 0..tables.sources.len() {
                for (all, kind) in KINDS {
                    self.place_table(tables, old, source, all, kind)?;
                }
            }
        }
        if old.is_none() {
            return Ok(());
        }
        self.transition.sweeps_left = SWEEPS;
        self.transition.given_up = tables.given_up.clone();
        if let Some(bss) = self.skeleton.maps.bss_data.as_mut() {
            bss.carries = 1;
            bss.given_up = tables
                .given_up
                .iter()
                .fold(0, |bits, index| bits | 1 << index);
        }
        Ok(())
    }

    fn place_table(
        &mut self,
        tables: &Tables,
        old: Option<&Maps>,
        source: usize,
        all: &str,
        kind: &str,
    ) -> Result<()> {
        let (entries, value_bytes) = match kind {
            "flows" => (tables.flow_records(source), size_of::<types::flow>()),
            _ => (
                tables.flow_counters(source),
                size_of::<types::flow_counters>(),
            ),
        };
        if entries < abi::PORTS {
            return Ok(());
        }
        let name = name_of(kind, source);
        if source > 0 {
            let had = old.filter(|_| !tables.sources[source].fresh);
            let had = had.and_then(|old| old.named(&name).ok());
            let table = match had {
                Some(table) => Map::new(table.as_fd().try_clone_to_owned()?)?,
                None => Map::create(&name, value_bytes, entries)?,
            };
            self.maps.add(table);
        }
        let table = self.named(&name)?.as_fd().as_raw_fd();
        self.named(all)?.put(source as u32, &table)?;
        match (source, tables.given_up.contains(&source)) {
            // A map of the program's own.
            (0, _) => Ok(()),
            // The map of maps holds it, as long as that is needed.
            (_, true) => {
                self.maps.forget(&name);
                Ok(())
            }
            (_, false) => self.bind(self.program().as_fd(), &[&name]),
        }
    }

    /// Writes the groups of a source, but for those that the program `before` works with:
    /// they are changed when this one is in its place.
    fn place_groups(
        &mut self,
        index: usize,
        source: &SourceTable,
        before: Option<&SourceTable>,
    ) -> Result<()> {
        let seed = self.settings.hash_seed.wrapping_add(index as u64);
        let of = |ports: &PortRanges| tables::groups(ports, source.withheld.as_ref(), seed);
        let groups = of(&source.ports);
        self.write_list(index, groups.keys())?;
        if let Some(earlier) = &source.earlier {
            self.write_list(abi::SOURCES + index, of(earlier).keys())?;
        }
        let put = |number: u16, group: &types::group| {
            let place = index << abi::GROUP_BITS | usize::from(number);
            self.named("groups")?.put(place as u32, group)
        };
        let Some(before) = before else {
            return groups
                .iter()
                .try_for_each(|(number, group)| put(*number, group));
        };
        let lists = [Some(&before.ports), before.earlier.as_ref()];
        let known: BTreeSet<u16> = lists
            .into_iter()
            .flatten()
            .flat_map(|ports| of(ports).into_keys())
            .collect();
        let mut later = Vec::new();
        for change in tables::changes(before, source) {
            match groups.get(&change.number) {
                Some(group) if !known.contains(&change.number) => put(change.number, group)?,
                _ => later.push((index, change)),
            }
        }
        self.transition.changes.extend(later);
        Ok(())
    }

    fn write_list<'a>(&self, list: usize, groups: impl Iterator<Item = &'a u16>) -> Result<()> {
        let mut ports = types::ports::default();
        for (place, number) in ports.group.iter_mut().zip(groups) {
            *place = *number;
            ports.groups += 1;
        }
        self.named("ports")?.put(list as u32, &ports)
    }

    /// Gives groups the slots that became theirs, withholds others, and ends the flows in
    /// those that did not stay theirs. What an error kept from it is left for the next time.
    pub(super) fn regroup(&mut self) -> Result<()> {
        let mut changes = std::mem::take(&mut self.transition.changes);
        // More than once, as a flow may have begun while its slot was looked at.
        let (mut round, mut left) = (0, 0);
        while !changes.is_empty() && (round < 2 || left > 0) {
            (round, left) = (round + 1, 0);
            for number in 0..changes.len() {
                let (source, change) = &mut changes[number];
                let answer = match self.regroup_one(*source, change) {
                    Ok(answer) => answer,
                    Err(error) => {
                        self.transition.changes = changes;
                        return Err(error);
                    }
                };
                left += answer;
                if answer != abi::REGROUP_AGAIN {
                    (change.gained, change.withheld) = (0, 0);
                }
            }
            changes.retain(|(_, change)| !change.is_none());
        }
        Ok(())
    }

    fn regroup_one(&mut self, source: usize, change: &Change) -> Result<u32> {
        if let Some(bss) = self.skeleton.maps.bss_data.as_mut() {
            bss.regrouped = (source << abi::GROUP_BITS) as u32 | u32::from(change.number);
            bss.gained = change.gained;
            bss.lost = change.lost;
            bss.withheld = change.withheld;
            bss.new_share = change.share.into();
        }
        let program = &self.skeleton.progs.xdp_proxy_regroup;
        loop {
            let input = ProgramInput {
                data_in: Some(&[0; 64]),
                ..Default::default()
            };
            match program.test_run(input) {
                // By a signal.
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                output => return Ok(output.context("changing source ports")?.return_value),
            }
        }
    }

    pub(super) fn sources_to_sweep(&self) -> BTreeSet<usize> {
        let all = self.sources().into_iter();
        let all = all.chain(self.transition.given_up.iter().copied());
        BTreeSet::from_iter(all)
    }

    /// Ends the flows of what was given up, before anything else is done with the maps.
    pub(super) fn end_transition(&mut self) -> Result<()> {
        while self.transition.sweeps_left > 0 && !self.transition.given_up.is_empty() {
            self.sweep()?;
        }
        self.regroup()
    }

    /// All sources were swept once.
    pub(super) fn has_swept(&mut self) -> Result<()> {
        match self.transition.sweeps_left {
            0 => return Ok(()),
            1 => {}
            _ => {
                self.transition.sweeps_left -= 1;
                return Ok(());
            }
        }
        // First what can fail, which the next sweep tries again then.
        let given_up = self.transition.given_up.iter();
        for source in given_up.filter(|source| **source > 0) {
            for (all, _) in KINDS {
                let all = self.named(all)?;
                all.remove(*source as u32)
                    .with_context(|| format!("removing the tables of source {source}"))?;
            }
        }
        if let Some(bss) = self.skeleton.maps.bss_data.as_mut() {
            (bss.carries, bss.given_up) = (0, 0);
        }
        self.transition = Transition::default();
        Ok(())
    }
}
