// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The addresses that flows come from: which the host still has, and what becomes of
//! the flows of those that are configured no more.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::Result;

use super::{Daemon, succession};
use crate::neighbour;
use crate::tables::{Plan, Tables};

impl Daemon {
    /// Looks which sources the host still has, where the routes name others. Where it can't
    /// be asked, what was known last stays.
    pub(super) async fn look_at_sources(&mut self) {
        let kept = self.sources_kept().await;
        let kept = self.troubles.note("looking for the source addresses", kept);
        self.kept_sources = kept.unwrap_or_else(|| std::mem::take(&mut self.kept_sources));
    }

    async fn sources_kept(&self) -> Result<BTreeSet<IpAddr>> {
        let mut kept = BTreeSet::new();
        if self.sources_moved() {
            for (_, source) in self.tables.sources_in_use() {
                if neighbour::is_held(source.address).await? {
                    kept.insert(source.address);
                }
            }
        }
        Ok(kept)
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
    pub(super) async fn move_sources(&mut self) {
        if self.absent || !self.sources_moved() {
            self.stranded = false;
            return;
        }
        let kept = self.sources_kept().await;
        let Some(kept) = (self.troubles).note("looking for the source addresses", kept) else {
            return;
        };
        if kept != self.kept_sources {
            self.kept_sources = kept;
            self.apply(|_| ());
        }
        if !self.kept_sources.is_empty() {
            self.stranded = false;
            return;
        }
        // Addresses that go and come back are none of it.
        if !std::mem::replace(&mut self.stranded, true) {
            return;
        }
        let moved = self.try_to_move_sources().await;
        self.troubles.note("changing the source addresses", moved);
    }

    async fn try_to_move_sources(&mut self) -> Result<()> {
        let listed = |tables: &Tables| {
            let sources = tables.sources_in_use();
            let sources: Vec<String> = sources.map(|(_, s)| s.address.to_string()).collect();
            sources.join(", ")
        };
        let Plan { tables, notices } =
            succession::plan(&self.config, self.informants(), self.before(), None).await?;
        let (before, now) = (listed(&self.tables), listed(&tables));
        self.follow(self.config.clone(), tables, None)?;
        self.stranded = false;
        tracing::warn!(
            "{}: the host has {before} no more, so that no answer to their flows arrives: these \
             end, and new ones come from {now}",
            self.interface.name,
        );
        notices.iter().for_each(|line| tracing::warn!("{line}"));
        Ok(())
    }
}
