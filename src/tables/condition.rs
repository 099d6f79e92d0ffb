// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! What is known of a backend beside the path to it: its health, and whether it
//! drains. What follows for the flows it has and for new ones.

use super::{BackendTable, Tables, Tenure};
use crate::service::{AllDown, Health, OnFailure, Protocol};

/// Times are in seconds since boot. It outlives a reload and, in the backend's
/// record, the daemon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Condition {
    pub health: Health,
    pub health_since_s: u32,
    /// By command.
    pub drained: bool,
    /// By command, by weight 0 or since it is not configured any more; 0: it does
    /// not drain.
    pub draining_since_s: u32,
    /// It has drained for as long as its flows may go on.
    pub drain_is_over: bool,
}

impl BackendTable {
    /// Whether it keeps its flows and gets no new ones.
    pub fn drains(&self) -> bool {
        self.condition.drained || self.backend.weight == 0 || self.tenure == Tenure::Leaving
    }
}

impl Tables {
    /// The backends of service `index`, with their own, that could take new flows if
    /// they were up.
    pub(super) fn able(&self, index: usize) -> impl Iterator<Item = (usize, &BackendTable)> {
        self.services[index]
            .backends
            .iter()
            .map(|number| (*number, &self.backends[number - 1]))
            .filter(|(_, table)| {
                let source = table.path.source;
                table.path.alive
                    && !table.drains()
                    && table.path.mac.is_some()
                    && source.is_some_and(|source| self.sources.contains(&source))
            })
    }

    /// Every backend that could take flows is down, and the service goes on with
    /// them.
    pub fn ignores_health(&self, index: usize) -> bool {
        self.services[index].policy.all_down == AllDown::IgnoreHealth
            && (self.able(index)).all(|(_, table)| table.condition.health == Health::Down)
    }

    /// Whether the flows of a backend end with their clients' next packets.
    pub(super) fn ends_flows(&self, table: &BackendTable) -> bool {
        let service = &self.services[table.service];
        let failed = table.condition.health == Health::Down
            && service.policy.on_failure == OnFailure::Reset
            && !self.ignores_health(table.service);
        // TCP would send again what was lost until the neighbour is back.
        let silent = service.listen.protocol == Protocol::Udp && !table.path.alive;
        failed || silent || table.condition.drain_is_over
    }

    /// Brings up to the time who drains and since when. Returns the indexes of the
    /// backends that changed.
    pub fn drain(&mut self, now_s: u32) -> Vec<usize> {
        let mut changed = Vec::new();
        for (index, table) in (1..).zip(&mut self.backends) {
            let old = table.condition;
            let drains = table.tenure != Tenure::Vacant && table.drains();
            let policy = &self.services[table.service].policy;
            let since_s = match (drains, old.draining_since_s) {
                (false, _) => 0,
                (true, 0) => now_s.max(1),
                (true, since_s) => since_s,
            };
            table.condition.draining_since_s = since_s;
            table.condition.drain_is_over = drains
                && policy.drain_timeout.is_some_and(|timeout| {
                    u64::from(now_s.saturating_sub(since_s)) >= timeout.as_secs()
                });
            if table.condition != old {
                changed.push(index);
            }
        }
        changed
    }
}
