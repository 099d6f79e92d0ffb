// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! What the daemon tells of itself: the line on stdout, warnings, the status.

use std::collections::{BTreeSet, HashMap};
use std::io::Write as _;
use std::net::IpAddr;

use anyhow::Result;

use super::Daemon;
use super::routes::{reach_of, vips};
use super::update::now_s;
use crate::config;
use crate::health::Report;
use crate::manager;
use crate::neighbour::{self, Reach};
use crate::service::Health;
use crate::stats::BackendCounters;
use crate::status::{BackendStatus, HealthStatus, ServiceStatus, Status, counted};
use crate::tables::{BackendTable, Tables, Tenure};

impl Daemon {
    /// The one line on stdout, and the same for the service manager.
    pub(super) fn announce(&self) {
        let summary = self.summary();
        let mut stdout = std::io::stdout().lock();
        if let Err(error) = writeln!(stdout, "ready: {summary}").and_then(|()| stdout.flush()) {
            tracing::warn!("writing to stdout that it is ready: {error}");
        }
        manager::ready(&summary);
    }

    /// Warns of what is amiss around what is served. It is served, whatever these find, so
    /// that what they can't find out is a warning too.
    pub(super) async fn report(&self) {
        let foreign = self.report_foreign_sources().await;
        self.report_unreachable();
        let vlan = self.report_vlan_faults().await;
        for error in [foreign, vlan].into_iter().filter_map(Result::err) {
            tracing::warn!("{error:#}");
        }
    }

    /// "eth0 (generic) 192.0.2.1:80/tcp -> 2 backends"
    pub(super) fn summary(&self) -> String {
        let services: Vec<String> = (0..self.config.services.len())
            .map(|index| {
                let members = self.backends_of(index);
                let (all, serving) = members.fold((0, 0), |(all, serving), index| {
                    (all + 1, serving + u64::from(self.tables.takes_flows(index)))
                });
                let part = if serving == all {
                    String::new()
                } else {
                    format!("{serving} of ")
                };
                let listen = self.config.services[index].listen;
                format!("{listen} -> {part}{}", counted(all, "backend"))
            })
            .collect();
        format!(
            "{} ({}) {}",
            self.interface.name,
            self.attachment.hook().name(),
            services.join(", ")
        )
    }

    /// Nobody answers ARP for an address that no interface has.
    async fn report_foreign_sources(&self) -> Result<()> {
        let services = self.config.services.iter();
        let sources: BTreeSet<IpAddr> = services.flat_map(|s| s.source.iter().copied()).collect();
        for source in sources {
            if !neighbour::is_held(source).await? {
                let prefix = if source.is_ipv4() { 32 } else { 128 };
                tracing::warn!(
                    "source {source}: no interface has it, so that the backends' replies do not \
                     arrive: ip addr add {source}/{prefix} dev {}",
                    self.interface.name
                );
            }
        }
        Ok(())
    }

    fn report_unreachable(&self) {
        for backend in self
            .tables
            .backends
            .iter()
            .filter(|b| b.tenure == Tenure::Configured)
        {
            if let Some(why) = self.why_not(backend) {
                tracing::warn!("backend {} gets no flows: {why}", backend.backend);
            } else if backend.backend.weight == 0 {
                tracing::info!("backend {} drains, as its weight is 0", backend.backend);
            }
        }
    }

    /// Warns where the program does not see the tags that it would have to change.
    async fn report_vlan_faults(&self) -> Result<()> {
        let hook = self.attachment.hook();
        let mut faults = BTreeSet::new();
        let mut tags_of_vip = HashMap::new();
        for vip in vips(&self.config, &Tables::default()) {
            tags_of_vip.insert(vip, self.trunk.tags_of_vip(vip).await?);
        }
        for (index, service) in self.config.services.iter().enumerate() {
            let vip_tags = &tags_of_vip[&service.listen.vip];
            for index in self.backends_of(index) {
                let table = &self.tables.backends[index - 1];
                if let Some(Reach::Resolved { tags, .. }) = self.reach(table) {
                    faults.extend(self.trunk.fault(hook, vip_tags, &tags));
                }
            }
        }
        for fault in faults {
            tracing::warn!("{fault}");
        }
        Ok(())
    }

    pub(super) fn status(&self) -> Result<Status> {
        let now_s = now_s()?;
        let counters = self.datapath.counters(self.tables.backends.len())?;
        let tell = |table: &BackendTable, counters: &BackendCounters| {
            self.backend_status(table, counters, now_s)
        };
        let services = ServiceStatus::all(&self.tables, &counters.backends, tell);
        Ok(Status {
            interface: self.interface.name.clone(),
            mode: self.attachment.hook().name().into(),
            program_id: self.attachment.program_id(),
            pid: Some(std::process::id()),
            uptime_seconds: Some(self.started.elapsed().as_secs()),
            flows_capacity: self.tables.capacity() as u64,
            services,
            packets: counters.packets(),
        })
    }

    pub(super) fn reach(&self, table: &BackendTable) -> Option<Reach> {
        let number = self.tables.services[table.service].number;
        let towards = match table.tenure {
            Tenure::Configured => self.config.services[number].towards(&table.backend),
            // As the addresses with flows are followed.
            Tenure::Leaving | Tenure::Vacant => table.backend.address.ip().into(),
        };
        reach_of(&self.neighbours, &self.trunk, &towards)
    }

    /// Why a backend gets no new flows, if it does not.
    pub(super) fn obstacle(&self, table: &BackendTable) -> Option<String> {
        match (self.reach(table), table.path.source) {
            (Some(Reach::Unresolved { why, .. }), _) => Some(why),
            (_, Some(source)) if self.tables.source_index(source).is_none() => Some(format!(
                "the address that reaches it is now {source}, which has no ports: a reload gives \
                 it some"
            )),
            _ => None,
        }
    }

    /// Why a backend gets no new flows though it does not drain, if so.
    pub(super) fn why_not(&self, table: &BackendTable) -> Option<String> {
        let down = || match table.condition.health {
            Health::Down => Some(format!("its check fails: {}", self.failure(table)?)),
            Health::Unknown | Health::Up => None,
        };
        self.obstacle(table).or_else(down)
    }

    /// Why the last check of a backend failed, if it did.
    pub(super) fn failure(&self, table: &BackendTable) -> Option<String> {
        self.report_of(table)?.error
    }

    fn report_of(&self, table: &BackendTable) -> Option<Report> {
        let listen = self.tables.services[table.service].listen;
        self.checks.report(&(listen, table.backend.address))
    }

    pub(super) fn service_name(&self, table: &BackendTable) -> &str {
        let owner = &self.tables.services[table.service];
        let service = self.config.services.get(owner.number);
        service.map_or("", |service| &service.name)
    }

    fn backend_status(
        &self,
        table: &BackendTable,
        counters: &BackendCounters,
        now_s: u32,
    ) -> BackendStatus {
        let next_hop = match self.reach(table) {
            Some(Reach::Resolved { next_hop, .. }) => Some(next_hop),
            _ => None,
        };
        let obstacle = self.obstacle(table);
        let service = &self.config.services[self.tables.services[table.service].number];
        let condition = &table.condition;
        let for_s = |since_s: u32| u64::from(now_s.saturating_sub(since_s));
        let report = self.report_of(table);
        let error = report.as_ref().and_then(|report| report.error.clone());
        let (state, reason) = match (table.tenure, obstacle, condition.health) {
            (Tenure::Leaving, obstacle, _) => ("leaving", obstacle),
            (_, obstacle, _) if table.drains() => ("draining", obstacle.or(error.clone())),
            (_, Some(why), _) => ("unreachable", Some(why)),
            (_, None, Health::Down) => ("down", error.clone()),
            (_, None, Health::Up | Health::Unknown) => ("up", None),
        };
        let health = report.zip(service.health.as_ref());
        let health = health.map(|(_, check)| HealthStatus {
            check: config::check_word(check).into(),
            state: match condition.health {
                Health::Unknown => "unknown",
                Health::Up => "up",
                Health::Down => "down",
            }
            .into(),
            for_seconds: for_s(condition.health_since_s),
            error,
        });
        BackendStatus {
            state: state.into(),
            reason,
            health,
            next_hop,
            ..BackendStatus::of(&self.tables, table, counters, now_s)
        }
    }
}
