// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The addresses that flows come from: which the host still has, and what becomes of
//! the flows of those that are configured no more.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::Result;

use super::Daemon;
use super::routes::{path_of, reach_of};
use super::update::now_s;
use crate::datapath::{self, Maps};
use crate::neighbour;
use crate::status::counted;
use crate::tables::{Tables, Tenure};

/// Gives up the sources that are configured no more, but for those that the host still
/// has and flows come from. Returns what becomes of flows, in words.
pub(super) async fn leave_sources(
    tables: &mut Tables,
    old: &Tables,
    maps: &Maps,
) -> Result<Vec<String>> {
    let (mut given_up, mut lines) = (Vec::new(), Vec::new());
    let of =
        |flows: usize, address: IpAddr| format!("{} from {address}", counted(flows as u64, "flow"));
    for (index, address) in tables.leaving_sources() {
        let flows = maps.flows_from(index)?;
        if flows > 0 && neighbour::is_held(address).await? {
            if old.sources[index].tenure == Tenure::Configured {
                lines.push(of(flows, address) + " kept, no new ones begin there");
            }
            continue;
        }
        given_up.push(index);
        if flows > 0 {
            lines.push(of(flows, address) + " ended, as the host has it no more");
        }
    }
    for (index, source) in tables.sources_in_use().filter(|(_, source)| !source.fresh) {
        if old.sources[index].ports != source.ports {
            let flows = maps.flows_outside(index, &source.ports)?;
            if flows > 0 {
                lines.push(of(flows, source.address) + " ended, whose ports are its no more");
            }
        }
    }
    tables.give_up(&given_up)?;
    Ok(lines)
}

impl Daemon {
    /// Looks which sources the host still has, where the routes name others.
    pub(super) async fn look_at_sources(&mut self) -> Result<()> {
        let mut kept = BTreeSet::new();
        if self.sources_moved() {
            for (_, source) in self.tables.sources_in_use() {
                if neighbour::is_held(source.address).await? {
                    kept.insert(source.address);
                }
            }
        }
        self.kept_sources = kept;
        Ok(())
    }

    /// The routes name a source that has no ports.
    fn sources_moved(&self) -> bool {
        let mut backends = self.tables.backends.iter();
        let named = |table| self.reach(table)?.source();
        let moves = |source: IpAddr| self.tables.source_index(source).is_none();
        backends.any(|table| table.source.is_none() && named(table).is_some_and(moves))
    }

    /// Where the host has no source address of the flows any more, and the routes name
    /// another, no backend's answer arrives: then new flows come from that.
    pub(super) async fn move_sources(&mut self) -> Result<()> {
        if self.absent || !self.sources_moved() {
            self.stranded = false;
            return Ok(());
        }
        let before = self.kept_sources.clone();
        self.look_at_sources().await?;
        if self.kept_sources != before {
            self.apply(|_| ())?;
        }
        if !self.kept_sources.is_empty() {
            self.stranded = false;
            return Ok(());
        }
        // Addresses that go and come back are none of it.
        if !std::mem::replace(&mut self.stranded, true) {
            return Ok(());
        }
        let counters = self.datapath.counters(self.tables.backends.len())?;
        let mut tables = self.tables.followed_by(
            &self.config,
            datapath::tick()?,
            |address| path_of(reach_of(&self.neighbours, &self.trunk, address)),
            |index| counters.backends[index - 1].flows() > 0,
        )?;
        let ended = leave_sources(&mut tables, &self.tables, &self.datapath).await?;
        tables.set_held(&self.neighbours.held());
        tables.drain(now_s()?);
        tables.place_services(&self.tables, &self.config, datapath::tick()?);
        let mut datapath = self.datapath.successor(&tables, self.trunk.has_vlans)?;
        datapath.write_interface(self.interface.mac, self.interface.mtu)?;
        self.attachment.replace(&datapath)?;
        datapath.count_on(&self.datapath, &tables.recycled)?;
        let listed = |tables: &Tables| {
            let sources = tables.sources_in_use();
            let sources: Vec<String> = sources.map(|(_, s)| s.address.to_string()).collect();
            sources.join(", ")
        };
        tracing::warn!(
            "{}: the host has {} no more, so that no answer to their flows arrives: these end, and \
             new ones come from {}",
            self.interface.name,
            listed(&self.tables),
            listed(&tables)
        );
        ended.iter().for_each(|line| tracing::warn!("{line}"));
        datapath.sweep()?;
        self.program_id = datapath.program_id()?;
        (self.datapath, self.tables, self.stranded) = (datapath, tables, false);
        self.apply(|_| ())
    }
}
