// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! From a route and what is known of its next hop to [`Reach`], and to words. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use tracing::{info, warn};

use super::hop::Hop;
use super::{DisplayMac, Interface, Reach};

/// The way to an address, before anything is known of the next hop's MAC.
pub enum Path {
    Via { next_hop: IpAddr, source: IpAddr },
    Blocked { why: String, source: Option<IpAddr> },
}

/// How an address is reached, and whether that is certain already.
pub fn reach(
    interface: &Interface,
    hops: &BTreeMap<IpAddr, Hop>,
    address: IpAddr,
    path: &Path,
) -> (Reach, bool) {
    let unresolved = |why, source| Reach::Unresolved { why, source };
    let name = &interface.name;
    let (next_hop, source) = match path {
        Path::Blocked { why, source } => return (unresolved(why.clone(), *source), true),
        Path::Via { next_hop, source } => (*next_hop, *source),
    };
    if !interface.up {
        return (
            unresolved(
                format!("{name}, which leads to {address}, is down"),
                Some(source),
            ),
            true,
        );
    }
    let hop = hops.get(&next_hop);
    if let Some(mac) = hop.and_then(Hop::mac) {
        return (
            Reach::Resolved {
                mac,
                next_hop,
                source,
            },
            true,
        );
    }
    let protocol = if next_hop.is_ipv4() {
        "ARP"
    } else {
        "neighbour solicitation"
    };
    let router = if next_hop == address {
        String::new()
    } else {
        format!("{next_hop}, the router to ")
    };
    let why = if hop.is_some_and(Hop::fixed) {
        format!("the neighbour entry of {router}{address} on {name} has no Ethernet address")
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

/// Tells of a change that is certain.
pub fn log(address: IpAddr, old: Option<&Reach>, new: &Reach) {
    let via = |next_hop: &IpAddr| {
        if *next_hop == address {
            String::new()
        } else {
            format!("by {next_hop} ")
        }
    };
    match (old, new) {
        (
            Some(Reach::Resolved { mac: old, .. }),
            Reach::Resolved {
                mac,
                next_hop,
                source,
            },
        ) => info!(
            "{address} is reached {}at {} (before: {}) from {source}",
            via(next_hop),
            DisplayMac(*mac),
            DisplayMac(*old)
        ),
        (
            _,
            Reach::Resolved {
                mac,
                next_hop,
                source,
            },
        ) => {
            info!(
                "{address} is reached {}at {} from {source}",
                via(next_hop),
                DisplayMac(*mac)
            );
        }
        (Some(Reach::Resolved { mac, .. }), Reach::Unresolved { why, .. }) => {
            warn!(
                "{address} is not reached at {} any more: {why}",
                DisplayMac(*mac)
            );
        }
        (_, Reach::Unresolved { why, .. }) => warn!("{address} is not reached: {why}"),
    }
}
