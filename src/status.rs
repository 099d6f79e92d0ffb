// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! What `status` tells: the same facts as JSON and as text.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::config;
use crate::neighbour::DisplayMac;
use crate::service::Health;
use crate::stats::{BackendCounters, Packets};
use crate::tables::{BackendTable, Tables, Tenure};

/// "1 flow", "2 flows".
pub fn counted(count: u64, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// One running load balancer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub interface: String,
    /// "generic", "native" or "offload".
    pub mode: String,
    pub program_id: u32,
    /// Of the daemon; `None`: none runs, and what it knew last is told.
    pub pid: Option<u32>,
    pub uptime_seconds: Option<u64>,
    /// Flows that fit at a time.
    pub flows_capacity: u64,
    pub services: Vec<ServiceStatus>,
    pub packets: Packets,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServiceStatus {
    pub name: String,
    pub listen: String,
    pub forwarding: String,
    pub scheduler: String,
    /// Flows that exist now.
    pub flows: u64,
    /// All of its backends' together.
    #[serde(flatten)]
    pub counters: BackendCounters,
    pub backends: Vec<BackendStatus>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BackendStatus {
    pub address: String,
    pub weight: u16,
    /// "up", "down" (by its checks), "unreachable" (by its next hop), "draining", or
    /// "leaving" (configured no more).
    pub state: String,
    /// Why it is not up.
    pub reason: Option<String>,
    /// Of one that is checked.
    pub health: Option<HealthStatus>,
    /// By command.
    pub drained: bool,
    /// Of one that drains: by command or by weight 0.
    pub draining_for_seconds: Option<u64>,
    pub mac: Option<String>,
    /// The address that `mac` belongs to: the backend's own or a router's.
    pub next_hop: Option<IpAddr>,
    /// The first of `sources`.
    pub source: Option<IpAddr>,
    /// The addresses that packets to it come from.
    pub sources: Vec<IpAddr>,
    pub flows: u64,
    #[serde(flatten)]
    pub counters: BackendCounters,
}

/// What checks say of a backend.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HealthStatus {
    /// "tcp", "http", "https" or "udp".
    pub check: String,
    /// "up", "down", or "unknown": it was not asked yet.
    pub state: String,
    /// It is in that state.
    pub for_seconds: u64,
    /// Why the last check failed, if it did; one alone does not change the state.
    pub error: Option<String>,
}

impl ServiceStatus {
    /// The configured services, with what `tell` says of each of their backends.
    pub fn all(
        tables: &Tables,
        counters: &[BackendCounters],
        tell: impl Fn(&BackendTable, &BackendCounters) -> BackendStatus,
    ) -> Vec<ServiceStatus> {
        let services = tables.configured().into_iter();
        let mut services: Vec<ServiceStatus> = services
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
        for (backend, counters) in tables.backends.iter().zip(counters) {
            let owner = &tables.services[backend.service];
            if backend.tenure == Tenure::Vacant || owner.tenure != Tenure::Configured {
                continue;
            }
            let service = &mut services[owner.number];
            service.counters.add(counters);
            service.flows = service.counters.flows();
            service.backends.push(tell(backend, counters));
        }
        services
    }
}

impl BackendStatus {
    /// As far as the tables know it.
    pub fn of(
        tables: &Tables,
        backend: &BackendTable,
        counters: &BackendCounters,
        now_s: u32,
    ) -> BackendStatus {
        let condition = &backend.condition;
        let draining_for = now_s.saturating_sub(condition.draining_since_s);
        let configured = tables.services[backend.service].sources();
        let sources = configured.filter_map(|source| Some(tables.sources.get(source)?.address));
        let mut sources: Vec<IpAddr> = sources.collect();
        if sources.is_empty() {
            sources.extend(backend.path.source);
        }
        BackendStatus {
            address: backend.backend.to_string(),
            weight: backend.backend.weight,
            state: match (backend.tenure, condition.health) {
                (Tenure::Leaving, _) => "leaving",
                _ if backend.drains() => "draining",
                _ if backend.path.mac.is_none() => "unreachable",
                (_, Health::Down) => "down",
                (_, Health::Up | Health::Unknown) => "up",
            }
            .into(),
            reason: None,
            health: None,
            drained: condition.drained,
            draining_for_seconds: backend.drains().then_some(draining_for.into()),
            mac: backend.path.mac.map(|mac| DisplayMac(mac).to_string()),
            next_hop: None,
            source: backend.path.source,
            sources,
            flows: counters.flows(),
            counters: *counters,
        }
    }

    /// Why it gets no new flows and since when; empty if it does.
    fn remark(&self) -> String {
        let since = match (&*self.state, &self.health) {
            ("draining" | "leaving", _) => self.draining_for_seconds,
            ("down", Some(health)) => Some(health.for_seconds),
            _ => None,
        };
        let since = since.map(|seconds| format!("for {seconds} s"));
        let parts: Vec<String> = self.reason.clone().into_iter().chain(since).collect();
        match parts.is_empty() {
            true => String::new(),
            false => format!("  {}", parts.join(", ")),
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let daemon = match (self.pid, self.uptime_seconds) {
            (Some(pid), Some(uptime)) => format!("pid {pid}, up {uptime} s"),
            _ => "no daemon runs".to_owned(),
        };
        writeln!(
            f,
            "{} ({}), program {}, {daemon}, {} fit{}",
            self.interface,
            self.mode,
            self.program_id,
            counted(self.flows_capacity, "flow"),
            if self.flows_capacity == 1 { "s" } else { "" }
        )?;
        for service in &self.services {
            writeln!(
                f,
                "\n{}  {}  {}  {}  {}",
                service.name,
                service.listen,
                service.forwarding,
                service.scheduler,
                counted(service.flows, "flow")
            )?;
            writeln!(
                f,
                "  {:<22} {:>6} {:<12} {:>9} {:>12} {:>14} {:>14} {:>16} {:>16}",
                "BACKEND",
                "WEIGHT",
                "STATE",
                "FLOWS",
                "NEW FLOWS",
                "PACKETS TO",
                "PACKETS FROM",
                "BYTES TO",
                "BYTES FROM"
            )?;
            for backend in &service.backends {
                let counters = &backend.counters;
                writeln!(
                    f,
                    "  {:<22} {:>6} {:<12} {:>9} {:>12} {:>14} {:>14} {:>16} {:>16}{}",
                    backend.address,
                    backend.weight,
                    backend.state,
                    backend.flows,
                    counters.flows_begun,
                    counters.forwarded_packets,
                    counters.returned_packets,
                    counters.forwarded_bytes,
                    counters.returned_bytes,
                    backend.remark()
                )?;
            }
        }
        let packets = &self.packets;
        writeln!(
            f,
            "\npackets: {} received, {} passed to the host",
            packets.received, packets.passed
        )?;
        for (title, counts) in [("sent", &packets.sent), ("dropped", &packets.dropped)] {
            let total: u64 = counts.values().sum();
            write!(f, "  {title} {total}")?;
            let mut separator = ": ";
            for (name, count) in counts.iter().filter(|(_, count)| **count > 0) {
                write!(f, "{separator}{name} {count}")?;
                separator = ", ";
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
