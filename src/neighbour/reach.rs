// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! From a route and what is known of its next hop to [`Reach`], and to words. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use tracing::{info, warn};

use super::hop::Hop;
use super::path::Path;
use super::{DisplayMac, DisplayTags, Interface, Reach, Tag};

/// How an address is reached, and whether that is certain already.
pub fn reach(
    interface: &Interface,
    hops: &BTreeMap<(u32, IpAddr), Hop>,
    address: IpAddr,
    path: &Path,
) -> (Reach, bool) {
    let unresolved = |why, source| Reach::Unresolved { why, source };
    let (device, tags, next_hop, source) = match path {
        Path::Blocked { why, source } => return (unresolved(why.clone(), *source), true),
        Path::Via {
            device,
            tags,
            next_hop,
            source,
        } => (device, tags, *next_hop, *source),
    };
    // Of the interface itself there is fresher news than from when the path was found.
    let on_it = Some(device).filter(|device| device.index != interface.index);
    let down = [Some(interface), on_it]
        .into_iter()
        .flatten()
        .find(|device| !device.up);
    if let Some(down) = down {
        let why = format!("{}, which leads to {address}, is down", down.name);
        return (unresolved(why, Some(source)), true);
    }
    let hop = hops.get(&(device.index, next_hop));
    if let Some(mac) = hop.and_then(Hop::mac) {
        return (
            Reach::Resolved {
                mac,
                tags: tags.clone(),
                next_hop,
                source,
            },
            true,
        );
    }
    let protocol = if next_hop.is_ipv4() {
        "ARP"
    } else {
        "neighbour solicitations"
    };
    let router = if next_hop == address {
        String::new()
    } else {
        format!("{next_hop}, the router to ")
    };
    let why = if hop.is_some_and(Hop::fixed) {
        format!(
            "the neighbour entry of {router}{address} on {} has no Ethernet address",
            device.name
        )
    } else if hop.is_some_and(Hop::silent) {
        format!("nobody answers {protocol} for {router}{address}")
    } else {
        format!("nobody has answered {protocol} for {router}{address} yet")
    };
    (
        unresolved(why, Some(source)),
        !hop.is_none_or(Hop::undecided),
    )
}

/// The limit of the neighbour table that the kernel keeps an address in.
pub fn limit(address: IpAddr) -> &'static str {
    match address {
        IpAddr::V4(_) => "net.ipv4.neigh.default.gc_thresh3",
        IpAddr::V6(_) => "net.ipv6.neigh.default.gc_thresh3",
    }
}

/// That the table has no room for an address, and what to do about it.
pub fn full(address: IpAddr, limit: &str) -> String {
    format!(
        "the kernel's neighbour table has no room for {address}: flows go on, but this host itself \
         can't send there, so that a check without an answer says nothing. Raise {limit} above the \
         number of neighbours that all network namespaces have: sysctl -w {limit}=16384"
    )
}

/// How an address is reached, behind its name.
pub fn words(address: IpAddr, reach: &Reach) -> String {
    match reach {
        Reach::Resolved {
            mac,
            tags,
            next_hop,
            source,
        } => format!(
            "is reached {}at {}{} from {source}",
            via(address, next_hop),
            DisplayMac(*mac),
            within(tags)
        ),
        Reach::Unresolved { why, .. } => format!("is not reached: {why}"),
    }
}

fn via(address: IpAddr, next_hop: &IpAddr) -> String {
    if *next_hop == address {
        return String::new();
    }
    format!("by {next_hop} ")
}

fn within(tags: &[Tag]) -> String {
    match tags {
        [] => String::new(),
        tags => format!(" in {}", DisplayTags(tags)),
    }
}

/// Tells of a change that is certain.
pub fn log(address: IpAddr, old: Option<&Reach>, new: &Reach) {
    match (old, new) {
        (
            Some(Reach::Resolved { mac: old, .. }),
            Reach::Resolved {
                mac,
                tags,
                next_hop,
                source,
            },
        ) => info!(
            "{address} is reached {}at {}{} (before: {}) from {source}",
            via(address, next_hop),
            DisplayMac(*mac),
            within(tags),
            DisplayMac(*old)
        ),
        (_, Reach::Resolved { .. }) => info!("{address} {}", words(address, new)),
        (Some(Reach::Resolved { mac, .. }), Reach::Unresolved { why, .. }) => {
            warn!(
                "{address} is not reached at {} any more: {why}",
                DisplayMac(*mac)
            );
        }
        (_, Reach::Unresolved { .. }) => warn!("{address} {}", words(address, new)),
    }
}
