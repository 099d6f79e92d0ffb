// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! `status` and `flows`: what is in the kernel, whether a daemon runs or not. Reads
//! and changes nothing.

use anyhow::{Context as _, Result, bail};
use serde::Serialize;

use crate::commands::{Outcome, daemons, nothing_runs};
use crate::control::{Request, Response, Silent};
use crate::daemon;
use crate::datapath::{self, Found, Hook, Maps};
use crate::flows::{Filter, Flows};
use crate::neighbour;
use crate::status::{BackendStatus, ServiceStatus, Status};
use crate::terminal;

/// What runs on an interface, or on all of this network namespace.
///
/// # Errors
/// Nothing is there.
pub async fn status(interface: Option<&str>, json: bool) -> Result<Outcome> {
    let mut all = Vec::new();
    let mut failures = Vec::new();
    for daemon in daemons(interface)? {
        let name = daemon.interface.clone();
        match unless_silent(daemon.ask(Request::Status)) {
            Ok(Some(Response::Status(status))) => all.push(*status),
            Ok(Some(Response::Error(error))) => {
                failures.push(format!("the daemon on {name}: {error}"));
            }
            Ok(Some(_) | None) => {}
            Err(error) => failures.push(format!("{error:#}")),
        }
    }
    let known: Vec<String> = all.iter().map(|status| status.interface.clone()).collect();
    for (name, found) in left(interface, &known).await? {
        all.push(left_status(name, found.id, found.hook, found.maps()?)?);
    }
    print(&all, failures, interface, json)
}

/// The flows that are asked for.
///
/// # Errors
/// Nothing is there, or no such service.
pub async fn flows(interface: Option<&str>, json: bool, filter: &Filter) -> Result<Outcome> {
    let mut all = Vec::new();
    let mut failures = Vec::new();
    for daemon in daemons(interface)? {
        let name = daemon.interface.clone();
        match unless_silent(daemon.maps()) {
            Ok(Some(descriptors)) => {
                let maps = Maps::of_descriptors(descriptors)?;
                all.push(Flows::read(&name, &maps, filter.clone())?);
            }
            Ok(None) => {}
            Err(error) => failures.push(format!("{error:#}")),
        }
    }
    let known: Vec<String> = all.iter().map(|flows| flows.interface.clone()).collect();
    for (name, found) in left(interface, &known).await? {
        all.push(Flows::read(&name, found.maps()?, filter.clone())?);
    }
    print(&all, failures, interface, json)
}

/// A daemon that does not answer is like none, but for a word on stderr.
fn unless_silent<T>(answer: Result<Option<T>>) -> Result<Option<T>> {
    match answer {
        Err(error) if error.is::<Silent>() => {
            terminal::warn(error);
            Ok(None)
        }
        answer => answer,
    }
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
    failures: Vec<String>,
    interface: Option<&str>,
    json: bool,
) -> Result<Outcome> {
    let done = match all {
        [] if failures.is_empty() => bail!("{}", nothing_runs(interface)),
        [] => String::new(),
        [one] if json => serde_json::to_string_pretty(one)? + "\n",
        all if json => serde_json::to_string_pretty(all)? + "\n",
        all => {
            let texts: Vec<String> = all.iter().map(ToString::to_string).collect();
            texts.join("\n")
        }
    };
    Ok(Outcome { done, failures })
}

/// As the maps have it: backends are as the daemon knew them last.
fn left_status(interface: String, program_id: u32, hook: Hook, maps: &Maps) -> Result<Status> {
    let tables = maps.tables()?;
    let counters = maps.counters(tables.backends.len())?;
    let now_s = daemon::now_s()?;
    let services = ServiceStatus::all(&tables, &counters.backends, |backend, counters| {
        BackendStatus::of(&tables, backend, counters, now_s)
    });
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
