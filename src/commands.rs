// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The subcommands that are not the daemon: `check`, `drain`, `reload`, `stop`.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result, bail};
use nix::net::if_::if_nameindex;

use crate::config::{self, Footprint};
use crate::control::{self, Daemon, Request, Response};
use crate::datapath::{self, Found, Pins};
use crate::health;
use crate::neighbour::{self, Interface};
use crate::service::Config;
use crate::tables::{Path, Tables};
use crate::terminal;

/// What would run, with every default, and the memory it takes.
pub fn check(config: &Config) -> Result<String> {
    // Which address reaches the backends only the routes tell, and not to
    // everybody: one for each family, which stands for itself here.
    let tables = Tables::new(config, datapath::tick()?, |towards| Path {
        source: Some(match towards.address {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        }),
        ..Path::default()
    })?;
    let footprint = Footprint {
        flows: tables.capacity() as u64,
        memory_bytes: tables.memory_bytes(datapath::cpus()) as u64,
    };
    health::Plan::new(config)?;
    Ok(config::describe(config, &footprint))
}

/// What a command has done, and what of it failed: where there are several daemons, each for
/// itself.
#[derive(Debug, Default)]
pub struct Outcome {
    /// By line, or as JSON.
    pub done: String,
    pub failures: Vec<String>,
}

impl Outcome {
    fn fail(&mut self, failure: impl Display) {
        self.failures.push(failure.to_string());
    }
}

/// Has what runs on an interface, or on all of this network namespace, read its
/// configuration file again. Tells what was changed, by line.
///
/// # Errors
/// Nothing runs there.
pub fn reload(interface: Option<&str>) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    for daemon in daemons(interface)? {
        let name = daemon.interface.clone();
        match daemon.ask(Request::Reload) {
            Ok(Some(Response::Reloaded(change))) => {
                outcome.done += &format!("reloaded: {name}: {change}\n");
            }
            // Its file has an error, or asks for what can't be changed: nothing was.
            Ok(Some(Response::Error(error))) => {
                outcome.fail(format!("the daemon on {name}: {error}"));
            }
            Ok(Some(_) | None) => {}
            Err(error) => outcome.fail(format!("{error:#}")),
        }
    }
    something(outcome, interface)
}

/// Drains a backend of what runs on an interface, or on all of this network namespace;
/// or ends that. Tells what was done, by line.
///
/// # Errors
/// Nothing runs there.
pub fn drain(
    interface: Option<&str>,
    backend: &str,
    service: Option<&str>,
    drains: bool,
) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    let mut refused = None;
    for daemon in daemons(interface)? {
        let name = daemon.interface.clone();
        let request = Request::Drain {
            backend: backend.into(),
            service: service.map(Into::into),
            drains,
        };
        match daemon.ask(request) {
            Ok(Some(Response::Done(lines))) => outcome.done += &lines,
            Ok(Some(Response::Error(error))) => {
                refused = Some(format!("the daemon on {name}: {error}"))
            }
            Ok(Some(_) | None) => {}
            Err(error) => outcome.fail(format!("{error:#}")),
        }
    }
    // One that has it is enough.
    if outcome.done.is_empty() {
        outcome.failures.extend(refused);
    }
    something(outcome, interface)
}

/// Ends what runs on an interface, or on all of this network namespace, and
/// removes what a dead daemon left attached. Tells what was done, by line.
///
/// # Errors
/// There was nothing to end.
pub async fn stop(interface: Option<&str>) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    let found = control::find(interface)?;
    found.tell_of_strangers(|word| terminal::warn(word));
    // What a daemon attached that hangs, or was not found among many, it would attach again.
    let unsure = found.strangers.iter();
    let unsure = unsure.filter(|one| one.may_be_a_daemon() || !one.was_asked());
    let mut alive: BTreeSet<String> = unsure.map(|one| one.interface().to_owned()).collect();
    for daemon in found.daemons {
        let name = daemon.interface.clone();
        match daemon.ask(Request::Stop) {
            Ok(Some(Response::Stopped)) => outcome.done += &format!("stopped: {name}\n"),
            Ok(Some(Response::Error(error))) => {
                outcome.fail(format!("the daemon on {name}: {error}"));
            }
            Ok(Some(_) | None) => {}
            Err(error) => {
                outcome.fail(format!("{error:#}"));
                alive.insert(name);
            }
        }
    }
    let left = match interface {
        Some(name) => match neighbour::interface(name).await {
            Ok(interface) => vec![interface],
            // A daemon that waits for it was there.
            Err(_) if !outcome.done.is_empty() => Vec::new(),
            Err(error) => return Err(error),
        },
        None => neighbour::interfaces().await?,
    };
    for Interface { index, name, .. } in left {
        if alive.contains(&name) {
            if let Ok(Some(found)) = found_on(index) {
                outcome.fail(format!(
                    "{name}: program {} is left as it is, as its daemon may be alive",
                    found.id
                ));
            }
            continue;
        }
        match remove_left(index) {
            Ok(Some(id)) => {
                outcome.done += &format!("detached: {name}, from program {id} of a dead daemon\n");
            }
            Ok(None) => {}
            Err(error) => outcome.fail(format!("{name}: {error:#}")),
        }
    }
    for _ in 0..datapath::remove_pins_of_gone() {
        outcome.done += "unpinned: the program of an interface that is not there any more\n";
    }
    something(outcome, interface)
}

/// Removes what a dead daemon left on an interface. Returns the number of the program.
fn remove_left(interface: u32) -> Result<Option<u32>> {
    let found = found_on(interface)?;
    if let Some(found) = &found {
        datapath::detach_fd(interface, found.program(), found.hook).context("detaching")?;
    }
    Pins::of(interface)?.keep(None);
    Ok(found.map(|found| found.id))
}

/// The daemons on an interface, or on all; on stderr, who else has their names.
pub(crate) fn daemons(interface: Option<&str>) -> Result<Vec<Daemon>> {
    let found = control::find(interface)?;
    found.tell_of_strangers(|word| terminal::warn(word));
    Ok(found.daemons)
}

fn something(outcome: Outcome, interface: Option<&str>) -> Result<Outcome> {
    if outcome.done.is_empty() && outcome.failures.is_empty() {
        bail!("{}", nothing_runs(interface));
    }
    Ok(outcome)
}

/// Our program on an interface.
fn found_on(interface: u32) -> Result<Option<Found>> {
    match datapath::attached(interface)? {
        Some(there) => Found::open(interface, &there),
        None => Ok(None),
    }
}

pub(crate) fn nothing_runs(interface: Option<&str>) -> String {
    if let Some((name, id)) = hidden(interface) {
        return format!(
            "no daemon of xdp-proxy runs on {name}, and what its XDP program {id} is, this process \
             may not see: try again as root"
        );
    }
    let place = interface.unwrap_or("any interface");
    format!(
        "no xdp-proxy runs on {place} in this network namespace: start one with `xdp-proxy run`, \
         or go to its namespace with `ip netns exec` or `docker exec`"
    )
}

/// An interface with a program that may be ours, as far as this process may know.
fn hidden(interface: Option<&str>) -> Option<(String, u32)> {
    let all = if_nameindex().ok()?;
    all.iter().find_map(|there| {
        let name = there.name().to_str().ok()?;
        let is_meant = interface.is_none_or(|meant| meant == name);
        let program = datapath::attached(there.index()).ok()??;
        (is_meant && program.name.is_none()).then(|| (name.to_owned(), program.id))
    })
}
