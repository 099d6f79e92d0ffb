// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The subcommands that are not the daemon: `check`, `drain`, `reload`, `stop`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result, bail};
use nix::net::if_::if_nameindex;

use crate::config::{self, Footprint};
use crate::control::{self, Request, Response};
use crate::datapath::{self, Found, Pins};
use crate::health;
use crate::neighbour::{self, Interface};
use crate::service::Config;
use crate::tables::{Path, Tables};

/// What would run, with every default, and the memory it takes.
pub fn check(config: &Config) -> Result<String> {
    // Which address reaches the backends only the routes tell, and not to
    // everybody: one for each family, which stands for itself here.
    let tables = Tables::new(config, datapath::tick()?, |backend| Path {
        source: Some(match backend {
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

/// Has what runs on an interface, or on all of this network namespace, read its
/// configuration file again. Returns what was changed, by line.
///
/// # Errors
/// The file has an error or asks for what can't be changed: nothing was. Or nothing
/// runs there.
pub fn reload(interface: Option<&str>) -> Result<String> {
    let mut done = String::new();
    for name in interfaces(interface)? {
        match control::ask(&name, Request::Reload)? {
            Some(Response::Reloaded(change)) => done += &format!("reloaded: {name}: {change}\n"),
            Some(Response::Error(error)) => bail!("the daemon on {name}: {error}"),
            Some(_) | None => {}
        }
    }
    if done.is_empty() {
        bail!("{}", nothing_runs(interface));
    }
    Ok(done)
}

/// Drains a backend of what runs on an interface, or on all of this network namespace;
/// or ends that. Returns what was done, by line.
///
/// # Errors
/// There is no such backend on any of them. Or nothing runs there.
pub fn drain(
    interface: Option<&str>,
    backend: &str,
    service: Option<&str>,
    drains: bool,
) -> Result<String> {
    let mut done = String::new();
    let mut refused = None;
    for name in interfaces(interface)? {
        let request = Request::Drain {
            backend: backend.into(),
            service: service.map(Into::into),
            drains,
        };
        match control::ask(&name, request)? {
            Some(Response::Done(lines)) => done += &lines,
            Some(Response::Error(error)) => {
                refused = Some(format!("the daemon on {name}: {error}"))
            }
            Some(_) | None => {}
        }
    }
    // One that has it is enough.
    if done.is_empty() {
        bail!("{}", refused.unwrap_or_else(|| nothing_runs(interface)));
    }
    Ok(done)
}

/// Ends what runs on an interface, or on all of this network namespace, and
/// removes what a dead daemon left attached. Returns what was done, by line.
///
/// # Errors
/// There was nothing to end.
pub async fn stop(interface: Option<&str>) -> Result<String> {
    let mut done = String::new();
    for name in interfaces(interface)? {
        match control::ask(&name, Request::Stop)? {
            Some(Response::Stopped) => done += &format!("stopped: {name}\n"),
            Some(Response::Error(error)) => bail!("the daemon on {name}: {error}"),
            Some(_) | None => {}
        }
    }
    let left = match interface {
        Some(name) => vec![neighbour::interface(name).await?],
        None => neighbour::interfaces().await?,
    };
    for Interface { index, name, .. } in left {
        if let Some(found) = found_on(index)? {
            datapath::detach_fd(index, found.program(), found.hook)
                .with_context(|| format!("detaching from {name}"))?;
            done += &format!(
                "detached: {name}, from program {} of a dead daemon\n",
                found.id
            );
        }
        Pins::of(index)?.keep(None);
    }
    for _ in 0..datapath::remove_pins_of_gone() {
        done += "unpinned: the program of an interface that is not there any more\n";
    }
    if done.is_empty() {
        bail!("{}", nothing_runs(interface));
    }
    Ok(done)
}

/// Our program on an interface.
fn found_on(interface: u32) -> Result<Option<Found>> {
    match datapath::attached(interface)? {
        Some(there) => Found::open(interface, &there),
        None => Ok(None),
    }
}

pub(crate) fn interfaces(interface: Option<&str>) -> Result<Vec<String>> {
    match interface {
        Some(name) => Ok(vec![name.to_owned()]),
        None => control::daemons(),
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
