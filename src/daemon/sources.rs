// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The addresses that flows come from: which the host still has, and what becomes of
//! the flows of those that it has no more.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::{Daemon, world};
use crate::neighbour;
use crate::tables::{Plan, SourceTable, Tables, Tenure};

/// So long flows outlive the address that they come from, should it come back.
const RETURN_DEADLINE: Duration = Duration::from_secs(2);

impl Daemon {
    /// Where the host has no source address of the flows any more, and the routes name
    /// another, no backend's answer arrives: then new flows come from that, at once. The old
    /// ones end if their address does not come back.
    pub(super) async fn move_sources(&mut self) {
        let moved = self.sources_moved();
        if self.absent || !moved && self.leaving_sources().next().is_none() {
            self.lost_sources.clear();
            self.kept_sources.clear();
            return;
        }
        let used: BTreeSet<IpAddr> = self.tables.sources_in_use().map(address).collect();
        let held = neighbour::held(&used).await;
        let Some(held) = self.troubles.note("looking for the source addresses", held) else {
            // What was known last stays.
            return;
        };
        let now = Instant::now();
        self.lost_sources
            .retain(|lost, _| used.contains(lost) && !held.contains(lost));
        for lost in used.difference(&held) {
            self.lost_sources.entry(*lost).or_insert(now);
        }
        let mut kept: BTreeSet<IpAddr> = configured(&self.tables).collect();
        kept.retain(|source| moved && held.contains(source));
        if kept != self.kept_sources {
            self.kept_sources = kept;
            self.apply(|_| ());
        }
        if moved && self.kept_sources.is_empty() {
            let moved = self.try_to_move_sources().await;
            self.troubles.note("changing the source addresses", moved);
        } else if self
            .leaving_sources()
            .any(|source| !self.may_return(source))
        {
            let left = self.follow_sources().await;
            let left = self.troubles.note("giving up source addresses", left);
            left.iter()
                .flatten()
                .for_each(|line| tracing::warn!("{line}"));
        }
    }

    /// The routes name a source that has no ports.
    fn sources_moved(&self) -> bool {
        let mut backends = self.tables.backends.iter();
        let named = |table| self.reach(table)?.source();
        let moves = |named: IpAddr| !configured(&self.tables).any(|source| source == named);
        backends.any(|table| table.source.is_none() && named(table).is_some_and(moves))
    }

    /// Those that flows may still come from, and new ones do not.
    fn leaving_sources(&self) -> impl Iterator<Item = IpAddr> {
        self.tables
            .leaving_sources()
            .into_iter()
            .map(|(_, source)| source)
    }

    fn may_return(&self, source: IpAddr) -> bool {
        let lost = self.lost_sources.get(&source);
        lost.is_none_or(|since| since.elapsed() < RETURN_DEADLINE)
    }

    async fn try_to_move_sources(&mut self) -> Result<()> {
        let listed = |sources: Vec<IpAddr>| {
            let sources: Vec<String> = sources.iter().map(IpAddr::to_string).collect();
            sources.join(", ")
        };
        let before = listed(configured(&self.tables).collect());
        self.follow_sources().await?;
        tracing::warn!(
            "{}: the host has {before} no more, so that no answer to their flows arrives: new ones \
             come from {}, and these end unless it is back within {} s",
            self.interface.name,
            listed(configured(&self.tables).collect()),
            RETURN_DEADLINE.as_secs()
        );
        Ok(())
    }

    /// Follows what the host has, but for addresses that may come back. Returns what becomes
    /// of flows, in words.
    async fn follow_sources(&mut self) -> Result<Vec<String>> {
        let mut world = world::look(&self.config, self.informants(), self.before(), None).await?;
        let lost = self.lost_sources.keys().copied();
        world
            .held_sources
            .extend(lost.filter(|source| self.may_return(*source)));
        let Plan { tables, notices } = Plan::new(&self.config, &world, &self.tables)?;
        self.follow(self.config.clone(), tables, None)?;
        Ok(notices)
    }
}

fn address((_, source): (usize, &SourceTable)) -> IpAddr {
    source.address
}

/// The sources that new flows come from.
fn configured(tables: &Tables) -> impl Iterator<Item = IpAddr> {
    let sources = tables.sources_in_use();
    sources
        .filter(|(_, source)| source.tenure == Tenure::Configured)
        .map(address)
}
