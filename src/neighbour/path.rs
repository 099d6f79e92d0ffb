// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The way to an address, by the routes: the device that packets leave by, the
//! next hop, and who asks for its MAC.

use std::io;
use std::net::IpAddr;

use rtnetlink::packet_route::route::RouteType;

use super::netlink::Netlink;
use super::{DisplayMac, Interface, Tag, gone, refused};

/// VLAN tags of a frame, at most: as many as the datapath takes.
const TAGS: usize = crate::abi::VLAN_TAGS;

/// The way to an address, before anything is known of the next hop's MAC.
pub enum Path {
    Via {
        /// The interface that is followed, or a VLAN device stacked on it.
        device: Interface,
        /// What the VLAN devices put on a frame, outermost first.
        tags: Vec<Tag>,
        next_hop: IpAddr,
        source: IpAddr,
    },
    Blocked {
        why: String,
        source: Option<IpAddr>,
    },
}

/// How the routes lead to the address, if that is through `here`.
pub async fn find(netlink: &Netlink, here: &Interface, address: IpAddr) -> io::Result<Path> {
    let blocked = |why, source| Ok(Path::Blocked { why, source });
    let route = match netlink.route(address, None).await {
        Err(error) if refused(&error) => return blocked(format!("no route to {address}"), None),
        route => route?,
    };
    match route.kind {
        RouteType::Unicast => {}
        RouteType::Local => return blocked(format!("{address} is an address of this host"), None),
        _ => return blocked(format!("{address} is no address of one host"), None),
    }
    let device = match netlink.interface(route.interface).await {
        // There will be a notification of what is there instead.
        Err(error) if gone(&error) => return blocked(format!("no route to {address}"), None),
        device => device?,
    };
    let (name, source) = (&device.name, route.source);
    let Some(tags) = tags(netlink, &device, here.index).await? else {
        let why = format!("{address} is reached through {name}, not {}", here.name);
        return blocked(why, source);
    };
    if device.mac != here.mac {
        let why = format!(
            "{name}, which leads to {address}, has a MAC of its own: give it that of {} (`ip link \
             set dev {name} address {}`)",
            here.name,
            DisplayMac(here.mac)
        );
        return blocked(why, source);
    }
    match source {
        Some(source) => Ok(Path::Via {
            next_hop: route.gateway.unwrap_or(address),
            source,
            device,
            tags,
        }),
        None => blocked(
            format!("{name} has no address to reach {address} from"),
            None,
        ),
    }
}

/// The tags of a frame that `device` sends, outermost first, where that is the interface
/// of the index `below` (no tags) or a VLAN device stacked on it.
pub async fn tags(
    netlink: &Netlink,
    device: &Interface,
    below: u32,
) -> io::Result<Option<Vec<Tag>>> {
    let mut tags = Vec::new();
    let mut device = device.clone();
    while device.index != below {
        let Some(vlan) = device.vlan.filter(|_| tags.len() < TAGS) else {
            return Ok(None);
        };
        tags.insert(0, vlan.tag);
        device = match netlink.interface(vlan.below).await {
            Err(error) if gone(&error) => return Ok(None),
            device => device?,
        };
    }
    Ok(Some(tags))
}

/// Who asks for the next hop: the address that reaches the next hop itself,
/// which need not be the one that reaches what lies behind it.
pub async fn asker(netlink: &Netlink, address: IpAddr, path: &Path) -> Option<IpAddr> {
    let Path::Via {
        device,
        next_hop,
        source,
        ..
    } = path
    else {
        return None;
    };
    let asker = if *next_hop == address {
        *source
    } else {
        let route = netlink.route(*next_hop, Some(device.index)).await;
        let asker = route.ok().and_then(|route| route.source);
        asker.unwrap_or(*source)
    };
    (asker.is_ipv4() == next_hop.is_ipv4()).then_some(asker)
}
