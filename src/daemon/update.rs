// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Brings the maps up to what neighbours, checks, commands and the time say, and
//! tells of each change.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result};
use nix::time::{ClockId, clock_gettime};

use super::Daemon;
use super::routes::{path_of, take_routes};
use crate::datapath::Maps;
use crate::manager;
use crate::neighbour::{DisplayMac, Interface};
use crate::repeats::WINDOW;
use crate::service::Health;
use crate::tables::{BackendTable, Condition, Path, Tables, Tenure};

/// Seconds since boot: time that no clock that is set can change, and that a later
/// daemon counts on.
pub fn now_s() -> Result<u32> {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).context("reading the clock")?;
    u32::try_from(now.tv_sec()).context("reading the clock")
}

/// What follows for packets from what is known of a backend.
#[derive(Clone, Copy, PartialEq)]
struct Standing {
    path: Path,
    condition: Condition,
    takes_flows: bool,
    ends_flows: bool,
}

/// What the maps don't have yet of the tables.
#[derive(Default)]
pub(super) struct Unwritten {
    /// Places of the hash table over addresses.
    addresses: BTreeSet<usize>,
    backends: BTreeSet<usize>,
    /// Services whose look-up tables are others now.
    services: BTreeSet<usize>,
}

impl Unwritten {
    pub(super) fn is_empty(&self) -> bool {
        self.addresses.is_empty() && self.backends.is_empty() && self.services.is_empty()
    }

    /// These tables were written into maps of their own, but for look-up tables that the
    /// program before had as well.
    pub(super) fn follows(&mut self, tables: &Tables) {
        self.addresses.clear();
        self.backends.clear();
        self.services.retain(|index| *index < tables.services.len());
    }

    /// Each by itself: one that can't be written keeps no other from it.
    ///
    /// # Errors
    /// Some are left; the last one's reason.
    fn write(&mut self, tables: &Tables, maps: &Maps) -> Result<()> {
        let mut written = Ok(());
        let mut is_left = |done: Result<()>| {
            let failed = done.is_err();
            if failed {
                written = done;
            }
            failed
        };
        self.addresses
            .retain(|place| is_left(maps.write_address(tables, *place)));
        self.backends
            .retain(|index| is_left(maps.write_backend(tables, *index)));
        // No new flow may go by a record that is not there.
        let waits = |service: &usize| {
            let mut backends = tables.services[*service].backends.iter();
            backends.any(|index| self.backends.contains(index) && tables.takes_flows(*index))
        };
        let ready = self.services.iter().filter(|service| !waits(service));
        let ready = Vec::from_iter(ready.copied());
        if !is_left(maps.write_maglevs(tables, &ready)) {
            self.services
                .retain(|service| ready.binary_search(service).is_err());
        }
        written
    }
}

impl Standing {
    fn differs_in_words(&self, other: &Standing) -> bool {
        let words = |of: &Standing| {
            (
                of.condition.health,
                of.condition.drain_is_over,
                of.takes_flows,
            )
        };
        words(self) != words(other)
    }
}

/// What a line of the log is about, by its index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Subject {
    Backend(usize),
    Service(usize),
}

impl Daemon {
    fn standings(&self) -> Vec<Standing> {
        let standing = |index: usize| Standing {
            path: self.tables.backends[index - 1].path,
            condition: self.tables.backends[index - 1].condition,
            takes_flows: self.tables.takes_flows(index),
            ends_flows: self.tables.ends_flows(index),
        };
        (1..=self.tables.backends.len()).map(standing).collect()
    }

    /// Makes a change to the tables, takes in all other news, and brings the maps up
    /// to it: at once, or as soon as they can be written.
    pub(super) fn apply(&mut self, change: impl FnOnce(&mut Tables)) {
        self.apply_interface();
        let before = self.standings();
        let ignored = self.services_that_ignore_health();
        change(&mut self.tables);
        for index in 0..self.tables.backends.len() {
            let table = &self.tables.backends[index];
            if table.tenure != Tenure::Vacant {
                self.tables.backends[index].path = self.path_now(table);
            }
        }
        if let Some(now_s) = self.troubles.note("reading the clock", now_s()) {
            let checks = &self.checks;
            self.tables
                .take_health(now_s, |target| checks.health(target));
            self.tables.drain(now_s);
        }

        let after = self.standings();
        let mut services = BTreeSet::new();
        for (index, (old, new)) in (1..).zip(before.iter().zip(&after)) {
            if old == new {
                continue;
            }
            self.unwritten.backends.insert(index);
            if old.takes_flows != new.takes_flows {
                services.insert(self.tables.backends[index - 1].service);
            }
            if old.differs_in_words(new) && self.may_tell(Subject::Backend(index)) {
                self.tell(index, old, new);
            }
        }
        self.unwritten.services.extend(&services);
        self.write();
        let told = services.iter().copied();
        let told = told.filter(|service| self.may_tell(Subject::Service(*service)));
        let told = told.collect();
        self.tell_of_services(&told, &ignored, &before, &after);
        if !services.is_empty() {
            manager::status(&self.summary());
        }
    }

    /// Writes into the maps what they don't have yet; what can't be written is for the
    /// next time.
    pub(super) fn write(&mut self) {
        let written = self.unwritten.write(&self.tables, &self.datapath);
        self.troubles.note("writing into the maps", written);
    }

    /// The path to a backend by all that is known. Where the source that the routes name
    /// has no ports for new flows, it is one that has some and that the host still has.
    fn path_now(&self, table: &BackendTable) -> Path {
        let mut path = table.path_after(path_of(self.reach(table)));
        let Some(named) = path.source else {
            return path;
        };
        let has_ports = table.source.is_some() || self.kept_sources.contains(&named);
        if !has_ports && !self.kept_sources.is_empty() {
            let fits = |kept: &&IpAddr| kept.is_ipv4() == named.is_ipv4();
            let before = table.path.source;
            let before = before.filter(|source| self.kept_sources.contains(source));
            let other = || self.kept_sources.iter().find(fits).copied();
            path.source = before.or_else(other).or(path.source);
        }
        path
    }

    /// Tells the program what frames it gets.
    pub(super) fn tell_interface(&mut self, interface: &Interface) {
        let told = self.datapath.write_interface(interface.mac, interface.mtu);
        self.troubles.note("telling the program its MAC", told);
    }

    fn apply_interface(&mut self) {
        let interface = self.neighbours.interface();
        if (interface.mac, interface.mtu) != (self.interface.mac, self.interface.mtu) {
            self.tell_interface(&interface);
            tracing::info!(
                "{}: MAC {}, MTU {}",
                interface.name,
                DisplayMac(interface.mac),
                interface.mtu
            );
        }
        if interface.name != self.interface.name {
            tracing::info!("{} is called {} now", self.interface.name, interface.name);
            self.attachment.rename(&interface.name);
            self.trunk.rename(&interface.name);
        }
        self.interface = interface;
        self.checks.note_link(self.interface.up);
        self.checks.note_starved(&self.neighbours.starved());
        let places = self.tables.set_held(&self.neighbours.held());
        self.unwritten.addresses.extend(places);
        self.steer();
    }

    /// Sends answers by what routes, next hops and neighbours have become; what fails is for
    /// the next time.
    pub(super) fn steer(&mut self) {
        let steered = self.try_to_steer();
        self.troubles.note("sending answers by the routes", steered);
    }

    fn try_to_steer(&mut self) -> Result<()> {
        let replies = self.neighbours.replies();
        if Arc::ptr_eq(&replies, &self.replies) {
            return Ok(());
        }
        // Who follows the neighbours anew counts anew.
        let since = self.tables.routes.changes;
        let since = if replies.changes < since { 0 } else { since };
        let hook = Some(self.attachment.hook());
        take_routes(&mut self.tables, &replies, &self.trunk, hook);
        self.datapath.write_routes(&self.tables.routes)?;
        self.datapath.steer(since)?;
        self.replies = replies;
        Ok(())
    }

    fn services_that_ignore_health(&self) -> BTreeSet<usize> {
        let services = (0..).zip(&self.tables.services);
        services
            .filter_map(|(index, service)| service.ignores_health.then_some(index))
            .collect()
    }

    fn may_tell(&mut self, subject: Subject) -> bool {
        self.repeats.may_tell(&subject, Instant::now())
    }

    /// Tells how often that changed of which not every change was told.
    pub(super) fn sum_up(&mut self) {
        for (subject, count) in self.repeats.over(Instant::now()) {
            let within = format!("changed {count} more times within {} s", WINDOW.as_secs());
            match subject {
                Subject::Backend(index) => {
                    let Some(table) = self.tables.backends.get(index - 1) else {
                        continue;
                    };
                    let now = match self.tables.takes_flows(index) {
                        true => "gets flows",
                        false => "gets no new flows",
                    };
                    tracing::warn!("backend {} {within}: now it {now}", table.backend);
                }
                Subject::Service(index) => {
                    let Some(service) = self.tables.services.get(index) else {
                        continue;
                    };
                    let mut backends = service.backends.iter();
                    let now = match backends.any(|index| self.tables.takes_flows(*index)) {
                        true => "has one",
                        false => "has none",
                    };
                    let listen = service.listen;
                    tracing::warn!(
                        "whether {listen} has a backend for new flows {within}: now it {now}"
                    );
                }
            }
        }
    }

    /// What changed of a backend, in a line.
    fn tell(&self, index: usize, old: &Standing, new: &Standing) {
        let table = &self.tables.backends[index - 1];
        let backend = table.backend;
        let service = self.service_name(table);
        let (was, is) = (old.condition.health, new.condition.health);
        match (was, is) {
            (_, Health::Down) if was != is => {
                let why = self.failure(table).unwrap_or_default();
                tracing::warn!("backend {backend} of {service} is down, its check fails: {why}");
            }
            (Health::Down, _) if was != is => {
                tracing::info!("backend {backend} of {service} is up");
            }
            _ if old.takes_flows == new.takes_flows => {}
            _ => match self.why_not(table) {
                Some(why) if !new.takes_flows => {
                    tracing::warn!("backend {backend} gets no new flows: {why}");
                }
                _ if new.takes_flows => tracing::info!("backend {backend} gets flows"),
                _ => {}
            },
        }
        if new.condition.drain_is_over && !old.condition.drain_is_over {
            tracing::info!(
                "backend {backend} of {service} has drained: what is left of its flows ends"
            );
        }
    }

    /// Of services that have no backend for new flows any more, or have one again.
    fn tell_of_services(
        &self,
        services: &BTreeSet<usize>,
        ignored: &BTreeSet<usize>,
        before: &[Standing],
        after: &[Standing],
    ) {
        for service in services {
            let table = &self.tables.services[*service];
            let any = |standings: &[Standing]| {
                let mut backends = table.backends.iter();
                backends.any(|index| standings[index - 1].takes_flows)
            };
            let listen = table.listen;
            match (any(before), any(after)) {
                (true, false) => {
                    tracing::warn!("{listen} has no backend for new flows: clients are refused");
                }
                (false, true) => tracing::info!("{listen} has a backend for new flows again"),
                _ => {}
            }
        }
        for service in self.services_that_ignore_health().difference(ignored) {
            let listen = self.tables.services[*service].listen;
            tracing::warn!("all backends of {listen} are down: their health is ignored");
        }
    }
}
