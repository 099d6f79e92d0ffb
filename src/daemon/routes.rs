// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! What the routes and the neighbours say of a configuration's addresses.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::{Result, bail};

use crate::abi;
use crate::datapath::Hook;
use crate::neighbour::{self, Interface, Link, Neighbours, Reach, Replies};
use crate::service::{Config, Towards};
use crate::tables::{Path, Routes, ServiceTable, Tables, Tenure};
use crate::vlan::Trunk;

/// The configured interface, else the one that holds a VIP, else the one that
/// routes to the first backend.
pub(super) async fn choose_interface(config: &Config) -> Result<Interface> {
    if let Some(name) = &config.interface {
        return neighbour::interface(name).await;
    }
    for service in &config.services {
        let holder = neighbour::interface_with_address(service.listen.vip).await?;
        if let Some(interface) = holder {
            tracing::info!("{} holds {}", interface.name, service.listen.vip);
            return Ok(interface);
        }
    }
    let first = config.services[0].backends[0].address.ip();
    match neighbour::interface_towards(first).await? {
        Some(interface) => {
            tracing::info!("{} routes to {first}", interface.name);
            Ok(interface)
        }
        None => bail!(
            "no interface holds {}, and none routes to {first}: name one with -i",
            config.services[0].listen.vip
        ),
    }
}

/// The source to make a port table for where no route tells one yet, as while
/// the interface is down: the first VIP that it, or a VLAN device on it, holds.
pub(super) async fn held_vip(config: &Config, interface: &Interface) -> Result<Option<IpAddr>> {
    for service in &config.services {
        let vip = service.listen.vip;
        if let Some(holder) = neighbour::interface_with_address(vip).await?
            && neighbour::tags_on(interface, &holder).await?.is_some()
        {
            return Ok(Some(vip));
        }
    }
    Ok(None)
}

/// # Errors
/// Clients of a VIP would be refused: it is no host's address, or what comes to it does not
/// come to the program on this interface, or can't go on from there.
pub(super) async fn refuse_vips(
    config: &Config,
    interface: &Interface,
    neighbours: &Neighbours,
) -> Result<()> {
    let vips = vips(config, &Tables::default());
    let mut astray = neighbours.astray().into_iter();
    if let Some((_, why)) = astray.find(|(vip, _)| vips.contains(vip)) {
        bail!("{why}");
    }
    let services = config.services.iter();
    let sources = services.flat_map(|service| service.source.iter().copied());
    let all = vips.into_iter().chain(sources).collect();
    if let Some(address) = neighbour::of_no_host(&all).await?.first() {
        bail!("{address} is a broadcast or anycast address here; give the address of one host");
    }
    if let Some("macvlan" | "macvtap") = interface.kind.as_deref()
        && let first = config.services[0].backends[0].address.ip()
        && let Some(other) = neighbour::interface_towards(first).await?
        && other.index != interface.index
    {
        bail!(
            "{} is a {} with a MAC of its own, and backends are reached through {}: put the VIP on \
             {2} itself (keepalived: without `use_vmac`), and name that with -i",
            interface.name,
            interface.kind.as_deref().unwrap_or_default(),
            other.name
        );
    }
    Ok(())
}

pub(super) fn backend_addresses(config: &Config) -> BTreeSet<Towards> {
    let services = config.services.iter();
    services
        .flat_map(|service| {
            service
                .backends
                .iter()
                .map(|backend| service.towards(backend))
        })
        .collect()
}

/// Of backends whose flows live on, configured or not.
pub(super) fn addresses_with_flows(
    tables: &Tables,
    has_flows: impl Fn(usize) -> bool,
) -> impl Iterator<Item = Towards> {
    let backends = tables.backends.iter().zip(1..);
    backends
        .filter(move |(backend, index)| backend.tenure != Tenure::Vacant && has_flows(*index))
        .map(|(backend, _)| backend.backend.address.ip().into())
}

/// Those that are configured, and those of before that flows may have.
pub(super) fn vips(config: &Config, before: &Tables) -> BTreeSet<IpAddr> {
    let services = config.services.iter();
    let services = services.map(|service| service.listen.vip);
    let in_use = |service: &&ServiceTable| service.tenure != Tenure::Vacant;
    let before = before.services.iter().filter(in_use);
    services
        .chain(before.map(|service| service.listen.vip))
        .collect()
}

/// Takes in how answers get to clients.
pub(super) fn take_routes(
    tables: &mut Tables,
    replies: &Replies,
    trunk: &Trunk,
    hook: Option<Hook>,
) {
    let takes = |link: &Link| trunk.takes(hook, &replies.vip_tags, &link.tags);
    tables.routes = Routes::new(replies, &tables.vips, takes);
}

pub(super) fn reach_of(neighbours: &Neighbours, trunk: &Trunk, towards: &Towards) -> Option<Reach> {
    let reach = neighbours.reach(towards.clone())?;
    Some(trunk.limit(towards.address, reach))
}

pub(super) fn path_of(reach: Option<Reach>) -> Path {
    match reach {
        Some(Reach::Resolved {
            mac, tags, source, ..
        }) => {
            let mut path = Path {
                mac: Some(mac),
                source: Some(source),
                alive: true,
                ..Path::default()
            };
            for (place, tag) in path.tags.iter_mut().zip(tags) {
                *place = abi::vlan_tag(tag.protocol, tag.id);
            }
            path
        }
        Some(Reach::Unresolved { source, .. }) => Path {
            source,
            ..Path::default()
        },
        None => Path::default(),
    }
}
