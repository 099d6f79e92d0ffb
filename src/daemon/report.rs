// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! What the daemon tells of itself: the line on stdout, warnings, the status.

use std::collections::{BTreeSet, HashMap};
use std::io::Write as _;
use std::net::IpAddr;

use anyhow::{Context as _, Result};

use super::Daemon;
use super::routes::{reach_of, vips};
use crate::config;
use crate::manager;
use crate::neighbour::{self, DisplayMac, Reach};
use crate::stats::BackendCounters;
use crate::status::{BackendStatus, ServiceStatus, Status};
use crate::tables::{BackendTable, Tenure};

impl Daemon {
    /// The one line on stdout, and the same for the service manager.
    pub(super) fn announce(&self) -> Result<()> {
        let summary = self.summary();
        let mut stdout = std::io::stdout().lock();
        writeln!(stdout, "ready: {summary}")
            .and_then(|()| stdout.flush())
            .context("writing to stdout")?;
        manager::ready(&summary);
        Ok(())
    }

    /// "eth0 (generic) 192.0.2.1:80/tcp -> 2 backends"
    pub(super) fn summary(&self) -> String {
        let services: Vec<String> = (0..self.config.services.len())
            .map(|index| {
                let members = self.backends_of(index);
                let (all, alive) = members.fold((0, 0), |(all, alive), b| {
                    (all + 1, alive + i32::from(b.path.alive))
                });
                let count = if alive == all {
                    format!("{all}")
                } else {
                    format!("{alive} of {all}")
                };
                let noun = if all == 1 { "backend" } else { "backends" };
                format!("{} -> {count} {noun}", self.config.services[index].listen)
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
    pub(super) async fn report_foreign_sources(&self) -> Result<()> {
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

    pub(super) fn report_unreachable(&self) {
        for backend in self
            .tables
            .backends
            .iter()
            .filter(|b| b.tenure == Tenure::Configured)
        {
            if let Some(why) = self.obstacle(backend) {
                tracing::warn!("backend {} gets no flows: {why}", backend.backend);
            }
        }
    }

    /// Warns where the program does not see the tags that it would have to change.
    pub(super) async fn report_vlan_faults(&self) -> Result<()> {
        let hook = self.attachment.hook();
        let mut faults = BTreeSet::new();
        let mut tags_of_vip = HashMap::new();
        for vip in vips(&self.config) {
            tags_of_vip.insert(vip, self.trunk.tags_of_vip(vip).await?);
        }
        for (index, service) in self.config.services.iter().enumerate() {
            let vip_tags = &tags_of_vip[&service.listen.vip];
            for table in self.backends_of(index) {
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
        let counters = self.datapath.counters(self.tables.backends.len())?;
        let mut services: Vec<ServiceStatus> = self
            .config
            .services
            .iter()
            .map(|service| ServiceStatus {
                name: service.name.clone(),
                listen: service.listen.to_string(),
                forwarding: "nat".into(),
                scheduler: config::scheduler_word(service.scheduler).into(),
                flows: 0,
                counters: BackendCounters::default(),
                backends: Vec::with_capacity(service.backends.len()),
            })
            .collect();
        for (table, counters) in self.tables.backends.iter().zip(&counters.backends) {
            let owner = &self.tables.services[table.service];
            if table.tenure == Tenure::Vacant || owner.tenure != Tenure::Configured {
                continue;
            }
            let service = &mut services[owner.number];
            service.counters.add(counters);
            service.flows = service.counters.flows();
            service.backends.push(self.backend_status(table, counters));
        }
        Ok(Status {
            interface: self.interface.name.clone(),
            mode: self.attachment.hook().name().into(),
            program_id: self.program_id,
            pid: std::process::id(),
            uptime_seconds: self.started.elapsed().as_secs(),
            flows_capacity: self.tables.capacity() as u64,
            services,
            packets: counters.packets(),
        })
    }

    pub(super) fn reach(&self, table: &BackendTable) -> Option<Reach> {
        reach_of(&self.neighbours, &self.trunk, table.backend.address.ip())
    }

    /// Why a backend gets no new flows, if it does not.
    pub(super) fn obstacle(&self, table: &BackendTable) -> Option<String> {
        match (self.reach(table), table.path.source) {
            (Some(Reach::Unresolved { why, .. }), _) => Some(why),
            (_, Some(source)) if !self.tables.sources.contains(&source) => Some(format!(
                "the address that reaches it is now {source}, which has no port table; start \
                 again to give it one"
            )),
            _ => None,
        }
    }

    fn backend_status(&self, table: &BackendTable, counters: &BackendCounters) -> BackendStatus {
        let next_hop = match self.reach(table) {
            Some(Reach::Resolved { next_hop, .. }) => Some(next_hop),
            _ => None,
        };
        let reason = self.obstacle(table);
        BackendStatus {
            address: table.backend.to_string(),
            weight: table.backend.weight,
            state: match (table.tenure, &reason) {
                (Tenure::Leaving, _) => "leaving",
                (_, None) => "up",
                (_, Some(_)) => "unreachable",
            }
            .into(),
            reason,
            mac: table.path.mac.map(|mac| DisplayMac(mac).to_string()),
            next_hop,
            source: table.path.source,
            sources: match &self.config.services[self.tables.services[table.service].number].source
                [..]
            {
                [] => Vec::from_iter(table.path.source),
                configured => configured.to_vec(),
            },
            flows: counters.flows(),
            counters: *counters,
        }
    }
}
