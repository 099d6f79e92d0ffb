// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! What the kernel's messages say. Pure.

use std::net::{IpAddr, Ipv4Addr};

use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use rtnetlink::packet_route::link::{
    InfoData, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, LinkXdp, Prop,
};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteVia};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::hop::Entry;
use super::netlink::{Event, Held, Route};
use super::{Interface, Peer, Tag, Vlan};

pub fn event(payload: NetlinkPayload<RouteNetlinkMessage>) -> Option<Event> {
    use RouteNetlinkMessage as Message;
    let message = match payload {
        NetlinkPayload::Overrun(_) => return Some(Event::Lost),
        NetlinkPayload::InnerMessage(message) => message,
        _ => return None,
    };
    match message {
        // Bridges announce their ports in messages of their own family; a port
        // that leaves its bridge is no interface that is gone.
        Message::NewLink(link) if link.header.interface_family == AddressFamily::Unspec => {
            Some(Event::Link(Box::new(interface(&link))))
        }
        Message::DelLink(link) if link.header.interface_family == AddressFamily::Unspec => {
            Some(Event::Gone(link.header.index))
        }
        Message::NewNeighbour(message) => {
            let (address, entry) = entry(&message)?;
            Some(Event::Neighbour(
                message.header.ifindex,
                address,
                Some(entry),
            ))
        }
        Message::DelNeighbour(message) => {
            let (address, _) = entry(&message)?;
            Some(Event::Neighbour(message.header.ifindex, address, None))
        }
        Message::NewRoute(_) | Message::DelRoute(_) | Message::NewRule(_) | Message::DelRule(_) => {
            Some(Event::Routes)
        }
        Message::NewAddress(_) | Message::DelAddress(_) => Some(Event::Routes),
        _ => None,
    }
}

/// Of these, IFLA_LINK is what they are stacked on.
const STACKED: [&str; 6] = ["ipvlan", "ipvtap", "macsec", "macvlan", "macvtap", "vlan"];

pub fn interface(link: &LinkMessage) -> Interface {
    let mut found = Interface {
        index: link.header.index,
        name: String::new(),
        mac: [0; 6],
        mtu: 0,
        up: link
            .header
            .flags
            .contains(LinkFlags::Up | LinkFlags::LowerUp),
        kind: None,
        vlan: None,
        stacked_on: None,
        controller: None,
        peer: Peer::None,
        xdp_program: None,
    };
    let (mut lower, mut elsewhere, mut tag) = (None, false, None);
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => found.name.clone_from(name),
            LinkAttribute::Address(mac) => {
                found.mac = mac.as_slice().try_into().unwrap_or_default()
            }
            LinkAttribute::Mtu(mtu) => found.mtu = *mtu,
            LinkAttribute::Link(index) => lower = Some(*index),
            LinkAttribute::LinkNetNsId(_) => elsewhere = true,
            LinkAttribute::Controller(index) => found.controller = Some(*index),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(kind) => found.kind = Some(kind.to_string()),
                        LinkInfo::Data(InfoData::Vlan(data)) => tag = Some(self::tag(data)),
                        _ => {}
                    }
                }
            }
            LinkAttribute::Xdp(attributes) => {
                found.xdp_program = attributes.iter().find_map(|attribute| match attribute {
                    LinkXdp::ProgId(id) => Some(*id),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    if STACKED
        .iter()
        .any(|kind| found.kind.as_deref() == Some(kind))
    {
        found.stacked_on = lower.filter(|_| !elsewhere);
    }
    if found.kind.as_deref() == Some("veth") {
        found.peer = match lower {
            Some(index) if !elsewhere => Peer::Here(index),
            _ => Peer::Elsewhere,
        };
    }
    found.vlan = match (tag, lower) {
        (Some(tag), Some(below)) if !elsewhere => Some(Vlan { tag, below }),
        _ => None,
    };
    found
}

fn tag(data: &[InfoVlan]) -> Tag {
    let mut tag = Tag { protocol: 0, id: 0 };
    for info in data {
        match info {
            InfoVlan::Id(id) => tag.id = *id,
            InfoVlan::Protocol(protocol) => tag.protocol = (*protocol).into(),
            _ => {}
        }
    }
    tag
}

pub fn alternative_names(link: &LinkMessage) -> Vec<String> {
    let properties = link
        .attributes
        .iter()
        .filter_map(|attribute| match attribute {
            LinkAttribute::PropList(properties) => Some(properties),
            _ => None,
        });
    let names = properties.flatten().filter_map(|property| match property {
        Prop::AltIfName(name) => Some(name.clone()),
        _ => None,
    });
    names.collect()
}

pub fn held(message: &AddressMessage) -> Option<Held> {
    // For IPv4 the same bit says that it stands behind another of its network.
    let is_ipv6 = message.header.family == AddressFamily::Inet6;
    let flags = message.header.flags;
    Some(Held {
        address: address(message)?,
        interface: message.header.index,
        temporary: is_ipv6 && flags.contains(AddressHeaderFlags::Secondary),
    })
}

/// The address that a message tells an interface to have.
pub fn address(message: &AddressMessage) -> Option<IpAddr> {
    let mut found = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(local) => return Some(*local),
            // On IPv4 links between two ends this is the far one; IPv6 often has no LOCAL.
            AddressAttribute::Address(address) => found = Some(*address),
            _ => {}
        }
    }
    found
}

/// The addresses of all hosts of the network that a message tells an interface to be in:
/// the last one, and what was named as such. A link between two has none (RFC 3021).
pub fn broadcasts(message: &AddressMessage) -> impl Iterator<Item = IpAddr> {
    let prefix = u32::from(message.header.prefix_len);
    let of = move |attribute: &AddressAttribute| match attribute {
        AddressAttribute::Broadcast(named) => Some(IpAddr::V4(*named)),
        AddressAttribute::Address(IpAddr::V4(address)) if prefix < 31 => {
            let last = u32::from(*address) | u32::MAX.checked_shr(prefix).unwrap_or_default();
            Some(Ipv4Addr::from(last).into())
        }
        _ => None,
    };
    let found: Vec<IpAddr> = message.attributes.iter().filter_map(of).collect();
    found.into_iter()
}

pub fn route(message: &RouteMessage) -> Route {
    let mut route = Route {
        kind: message.header.kind,
        interface: 0,
        gateway: None,
        source: None,
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => route.interface = *index,
            RouteAttribute::Gateway(address) => route.gateway = ip(address),
            RouteAttribute::Via(RouteVia::Inet(address)) => route.gateway = Some((*address).into()),
            RouteAttribute::Via(RouteVia::Inet6(address)) => {
                route.gateway = Some((*address).into())
            }
            RouteAttribute::PrefSource(address) => route.source = ip(address),
            _ => {}
        }
    }
    route
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

/// `None` for what is no neighbour: a bridge's MAC table, an address answered for others.
pub fn entry(message: &NeighbourMessage) -> Option<(IpAddr, Entry)> {
    if message.header.flags.contains(NeighbourFlags::Proxy) {
        return None;
    }
    let mut address = None;
    let mut entry = Entry {
        mac: None,
        fixed: matches!(
            message.header.state,
            NeighbourState::Permanent | NeighbourState::Noarp
        ) || message.header.flags.contains(NeighbourFlags::ExtLearned),
        failed: message.header.state == NeighbourState::Failed,
    };
    let valid = !matches!(
        message.header.state,
        NeighbourState::None | NeighbourState::Incomplete | NeighbourState::Failed
    );
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(found)) => {
                address = Some((*found).into())
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(found)) => {
                address = Some((*found).into())
            }
            NeighbourAttribute::LinkLayerAddress(mac) if valid => {
                entry.mac = mac.as_slice().try_into().ok()
            }
            _ => {}
        }
    }
    Some((address?, entry))
}
