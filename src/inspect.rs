// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! `status` and `flows`: what is in the kernel, whether a daemon runs or not. Reads
//! and changes nothing.

use anyhow::{Context as _, Result, bail};
use serde::Serialize;

use crate::commands::{interfaces, nothing_runs};
use crate::config;
use crate::control::{self, Request, Response};
use crate::daemon;
use crate::datapath::{self, Found, Hook, Maps};
use crate::flows::{Filter, Flows};
use crate::neighbour::{self, DisplayMac};
use crate::service::Health;
use crate::stats::BackendCounters;
use crate::status::{BackendStatus, ServiceStatus, Status};
use crate::tables::{BackendTable, Tables, Tenure};

/// What runs on an interface, or on all of this network namespace.
///
/// # Errors
/// Nothing is there.
pub async fn status(interface: Option<&str>, json: bool) -> Result<String> {
    let mut all = Vec::new();
    for name in interfaces(interface)? {
        match control::ask(&name, Request::Status)? {
            Some(Response::Status(status)) => all.push(*status),
            Some(Response::Error(error)) => bail!("the daemon on {name}: {error}"),
            Some(_) | None => {}
        }
    }
    let known: Vec<String> = all.iter().map(|status| status.interface.clone()).collect();
    for (name, found) in left(interface, &known).await? {
        all.push(left_status(name, found.id, found.hook, found.maps()?)?);
    }
    print(&all, interface, json)
}

/// The flows that are asked for.
///
/// # Errors
/// Nothing is there, or no such service.
pub async fn flows(interface: Option<&str>, json: bool, filter: &Filter) -> Result<String> {
    let mut all = Vec::new();
    for name in interfaces(interface)? {
        if let Some(descriptors) = control::maps(&name)? {
            let maps = Maps::of_descriptors(descriptors)?;
            all.push(Flows::read(&name, &maps, filter.clone())?);
        }
    }
    let known: Vec<String> = all.iter().map(|flows| flows.interface.clone()).collect();
    for (name, found) in left(interface, &known).await? {
        all.push(Flows::read(&name, found.maps()?, filter.clone())?);
    }
    print(&all, interface, json)
}

/// What dead daemons have left on an interface, or on all that none is `known` of.
async fn left(interface: Option<&str>, known: &[String]) -> Result<Vec<(String, Found)>> {
    let interfaces = match interface {
        Some(name) if known.is_empty() => vec![neighbour::interface(name).await?],
        Some(_) => Vec::new(),
        None => neighbour::interfaces().await?,
    };
    let mut all = Vec::new();
    for interface in interfaces {
        if known.contains(&interface.name) {
            continue;
        }
        if let Some(there) = datapath::attached(interface.index)?
            && let Some(found) = Found::open(interface.index, &there)?
        {
            found
                .maps()
                .with_context(|| format!("reading program {} on {}", found.id, interface.name))?;
            all.push((interface.name, found));
        }
    }
    Ok(all)
}

fn print<T: Serialize + ToString>(
    all: &[T],
    interface: Option<&str>,
    json: bool,
) -> Result<String> {
    if all.is_empty() {
        bail!("{}", nothing_runs(interface));
    }
    if json {
        let text = match all {
            [one] => serde_json::to_string_pretty(one),
            _ => serde_json::to_string_pretty(all),
        };
        return text.map(|text| text + "\n").context("writing JSON");
    }
    let texts: Vec<String> = all.iter().map(ToString::to_string).collect();
    Ok(texts.join("\n"))
}

/// As the maps have it: backends are as the daemon knew them last.
fn left_status(interface: String, program_id: u32, hook: Hook, maps: &Maps) -> Result<Status> {
    let tables = maps.tables()?;
    let counters = maps.counters(tables.backends.len())?;
    let mut services = Vec::new();
    for service in tables.configured() {
        let mut status = ServiceStatus {
            name: service.name.clone(),
            listen: service.listen.to_string(),
            forwarding: "nat".into(),
            scheduler: config::scheduler_word(service.scheduler).into(),
            flows: 0,
            counters: BackendCounters::default(),
            backends: Vec::new(),
        };
        for (backend, counters) in tables.backends.iter().zip(&counters.backends) {
            let owner = &tables.services[backend.service];
            if backend.tenure != Tenure::Vacant && owner.listen == service.listen {
                status.counters.add(counters);
                let backend = left_backend(&tables, backend, counters)?;
                status.backends.push(backend);
            }
        }
        status.flows = status.counters.flows();
        services.push(status);
    }
    Ok(Status {
        interface,
        mode: hook.name().into(),
        program_id,
        pid: None,
        uptime_seconds: None,
        flows_capacity: tables.capacity() as u64,
        services,
        packets: counters.packets(),
    })
}

fn left_backend(
    tables: &Tables,
    backend: &BackendTable,
    counters: &BackendCounters,
) -> Result<BackendStatus> {
    let service = &tables.services[backend.service].entry;
    let configured = &service.source[..usize::from(service.source_count)];
    let sources = configured.iter().map(|index| usize::from(*index));
    let sources: Vec<_> = sources
        .filter_map(|index| tables.sources.get(index).map(|s| s.address))
        .collect();
    let condition = &backend.condition;
    let draining_for = daemon::now_s()?.saturating_sub(condition.draining_since_s);
    Ok(BackendStatus {
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
        sources: match sources.is_empty() {
            true => Vec::from_iter(backend.path.source),
            false => sources,
        },
        flows: counters.flows(),
        counters: *counters,
    })
}
