// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The way to an address, by the routes: the device that packets leave by, the
//! next hop, and who asks for its MAC.

use std::io;
use std::net::{IpAddr, Ipv6Addr, UdpSocket};
use std::os::fd::AsRawFd as _;

use nix::errno::Errno;
use nix::libc;
use rtnetlink::packet_route::route::RouteType;

use super::netlink::{Held, Netlink, Route};
use super::{DisplayMac, Interface, Tag, gone, refused};
use crate::service::Towards;

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

impl Path {
    /// Packets take the same way, wherever they come from.
    fn is_as(&self, other: &Path) -> bool {
        match (self, other) {
            (
                Path::Via {
                    device, next_hop, ..
                },
                Path::Via {
                    device: others,
                    next_hop: other,
                    ..
                },
            ) => device.index == others.index && next_hop == other,
            (Path::Blocked { .. }, _) | (_, Path::Blocked { .. }) => true,
        }
    }

    /// "by 10.0.0.254 on eth0"
    fn words(&self) -> String {
        match self {
            Path::Via {
                device, next_hop, ..
            } => format!("by {next_hop} on {}", device.name),
            Path::Blocked { why, .. } => why.clone(),
        }
    }
}

/// How the routes lead to the address, if that is through `here`. A backend has one next hop,
/// whichever of several addresses its packets come from.
pub async fn find(
    netlink: &Netlink,
    here: &Interface,
    own: &[Held],
    towards: &Towards,
) -> io::Result<Path> {
    let address = towards.address;
    let is_held = |source: &&IpAddr| own.iter().any(|held| held.address == **source);
    // What nobody has is told elsewhere.
    let mut sources = towards.sources.iter().filter(is_held);
    let Some(first) = sources.next() else {
        return find_from(netlink, here, own, address, None).await;
    };
    let path = find_from(netlink, here, own, address, Some(*first)).await?;
    for source in sources {
        let other = find_from(netlink, here, own, address, Some(*source)).await?;
        if let Path::Blocked { .. } = other {
            return Ok(other);
        }
        if !path.is_as(&other) {
            let why = format!(
                "{address} is reached {} from {first}, and {} from {source}: give the service \
                 sources whose packets take one way",
                path.words(),
                other.words(),
            );
            let source = Some(*first);
            return Ok(Path::Blocked { why, source });
        }
    }
    Ok(path)
}

async fn find_from(
    netlink: &Netlink,
    here: &Interface,
    own: &[Held],
    address: IpAddr,
    source: Option<IpAddr>,
) -> io::Result<Path> {
    let blocked = |why, source| Ok(Path::Blocked { why, source });
    let routed = match source {
        Some(source) => netlink.route_from(address, source).await,
        None => route(netlink, own, address).await,
    };
    let route = match routed {
        Err(error) if refused(&error) => {
            let from = source.map_or_else(String::new, |source| format!(" from {source}"));
            return blocked(format!("no route to {address}{from}"), source);
        }
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
    let (name, source) = (&device.name, source.or(route.source));
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

/// The route of packets from the address that this host would choose, if it were to last.
async fn route(netlink: &Netlink, own: &[Held], address: IpAddr) -> io::Result<Route> {
    let first = netlink.route(address, None).await?;
    let Some(chosen) = first.source.filter(|_| first.kind == RouteType::Unicast) else {
        return Ok(first);
    };
    let mut chosen_ones = own.iter().filter(|held| held.address == chosen);
    let source = match (chosen_ones.next(), address) {
        (Some(held), IpAddr::V6(address)) if held.temporary => lasting(address).unwrap_or(chosen),
        _ => chosen,
    };
    // Rules may go by the source.
    let route = netlink.route_from(address, source).await?;
    Ok(Route {
        source: Some(source),
        ..route
    })
}

/// The address that the kernel gives a socket that wants none of those that IPv6 makes up anew
/// from time to time (RFC 5014, RFC 6724): it sends nothing.
fn lasting(address: Ipv6Addr) -> io::Result<IpAddr> {
    const ANY_PORT: u16 = 9;
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?;
    let wanted = libc::IPV6_PREFER_SRC_PUBLIC;
    // SAFETY: the option's value is an int that lives across the call.
    let error = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IPV6,
            libc::IPV6_ADDR_PREFERENCES,
            (&raw const wanted).cast(),
            size_of_val(&wanted) as u32,
        )
    };
    Errno::result(error)?;
    socket.connect((address, ANY_PORT))?;
    Ok(socket.local_addr()?.ip())
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

/// The address that reaches a next hop on a device.
pub async fn asker_on(netlink: &Netlink, device: u32, next_hop: IpAddr) -> Option<IpAddr> {
    let route = netlink.route(next_hop, Some(device)).await.ok()?;
    let asker = route.source;
    asker.filter(|asker| asker.is_ipv4() == next_hop.is_ipv4())
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
