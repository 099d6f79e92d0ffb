// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! What is known of a backend beside the path to it: its health, and whether it
//! drains. What follows for the flows it has and for new ones.

use std::collections::HashMap;
use std::time::Duration;

use super::{BackendTable, Tables, Tenure};
use crate::health::Target;
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
    /// The backends of service `index` that could take new flows if they were up.
    fn able(&self, index: usize) -> impl Iterator<Item = &BackendTable> {
        let backends = self.services[index].backends.iter();
        let tables = backends.map(|number| &self.backends[number - 1]);
        tables.filter(|table| self.is_able(table))
    }

    fn is_able(&self, table: &BackendTable) -> bool {
        let source = table.path.source;
        table.path.alive
            && table.path.mac.is_some()
            && source.is_some_and(|source| self.source_index(source).is_some())
            && !table.drains()
    }

    /// Whether backend `index` gets new flows.
    pub fn takes_flows(&self, index: usize) -> bool {
        let table = &self.backends[index - 1];
        table.tenure == Tenure::Configured
            && self.is_able(table)
            && (table.condition.health != Health::Down
                || self.services[table.service].ignores_health)
    }

    /// Notes where health is ignored: every backend that could take flows is down, and
    /// the service is to go on with them. Asked for each of them, so noted once.
    pub fn conclude(&mut self) {
        for index in 0..self.services.len() {
            let ignores_health = self.services[index].policy.all_down == AllDown::IgnoreHealth
                && (self.able(index)).all(|table| table.condition.health == Health::Down);
            self.services[index].ignores_health = ignores_health;
        }
    }

    /// Whether the flows of backend `index` end with their clients' next packets.
    pub fn ends_flows(&self, index: usize) -> bool {
        let table = &self.backends[index - 1];
        let service = &self.services[table.service];
        let failed = table.condition.health == Health::Down
            && service.policy.on_failure == OnFailure::Reset
            && !service.ignores_health;
        // TCP would send again what was lost until the neighbour is back.
        let silent = service.listen.protocol == Protocol::Udp && !table.path.alive;
        failed || silent || table.condition.drain_is_over
    }

    /// What is known of the configured backends' health.
    pub fn health(&self) -> HashMap<Target, Health> {
        let tables = self.backends.iter();
        let configured = tables.filter(|table| table.tenure == Tenure::Configured);
        configured
            .map(|table| {
                let listen = self.services[table.service].listen;
                ((listen, table.backend.address), table.condition.health)
            })
            .collect()
    }

    /// Takes in what checks say of the configured backends; `None`: one is not checked.
    pub fn take_health(&mut self, now_s: u32, health: impl Fn(&Target) -> Option<Health>) {
        for table in &mut self.backends {
            let target = (self.services[table.service].listen, table.backend.address);
            let condition = &mut table.condition;
            let health = match table.tenure {
                Tenure::Configured => health(&target).unwrap_or_default(),
                // Nobody asks it any more.
                Tenure::Leaving | Tenure::Vacant => condition.health,
            };
            if health != condition.health || condition.health_since_s == 0 {
                (condition.health, condition.health_since_s) = (health, now_s.max(1));
            }
        }
    }

    /// Brings up to the time who drains, since when, and for whom it is over; to be
    /// called after all other news.
    pub fn drain(&mut self, now_s: u32) {
        for table in &mut self.backends {
            let drains = table.tenure != Tenure::Vacant && table.drains();
            let timeout = self.services[table.service].policy.drain_timeout;
            let condition = &mut table.condition;
            if !drains {
                condition.draining_since_s = 0;
            } else if condition.draining_since_s == 0 {
                condition.draining_since_s = now_s.max(1);
            }
            condition.drain_is_over = drains && is_over(condition, timeout, now_s);
        }
        self.conclude();
    }

    /// Whether for some backend the drain is over that was not yet at the last look.
    pub fn drain_is_due(&self, now_s: u32) -> bool {
        self.backends.iter().any(|table| {
            let condition = &table.condition;
            let timeout = self.services[table.service].policy.drain_timeout;
            condition.draining_since_s > 0
                && !condition.drain_is_over
                && is_over(condition, timeout, now_s)
        })
    }
}

fn is_over(condition: &Condition, timeout: Option<Duration>, now_s: u32) -> bool {
    let drained = Duration::from_secs(now_s.saturating_sub(condition.draining_since_s).into());
    timeout.is_some_and(|timeout| drained >= timeout)
}
