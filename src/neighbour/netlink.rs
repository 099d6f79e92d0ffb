// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Questions to the kernel about interfaces, addresses, routes and
//! neighbours, and its notifications when they change (rtnetlink(7)).

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::time::Duration;

use futures_util::{Stream, StreamExt, TryStreamExt};
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{
    LinkAttribute, LinkFlags, LinkInfo, LinkMessage, LinkXdp, Prop,
};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteType, RouteVia,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use tokio::task::JoinSet;

use super::hop::Entry;
use super::{Interface, Peer};

/// The kernel answers at once; an answer that is missing for so long was not understood.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A connection to the kernel's rtnetlink, for questions.
pub struct Netlink {
    handle: rtnetlink::Handle,
    /// Moves the messages; ends with this.
    _connection: JoinSet<()>,
}

/// How the routing tables say that packets get to an address.
pub struct Route {
    pub kind: RouteType,
    /// The index of the interface they leave by.
    pub interface: u32,
    pub gateway: Option<IpAddr>,
    /// The source address the kernel would choose.
    pub source: Option<IpAddr>,
}

impl Netlink {
    /// In the network namespace of the calling thread; within a tokio runtime.
    pub fn open() -> io::Result<Netlink> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        let mut tasks = JoinSet::new();
        tasks.spawn(connection);
        Ok(Netlink {
            handle,
            _connection: tasks,
        })
    }

    /// Every interface, with its alternative names.
    pub async fn interfaces(&self) -> io::Result<Vec<(Interface, Vec<String>)>> {
        let links = collect(self.handle.link().get().execute()).await?;
        Ok(links
            .iter()
            .map(|link| (interface(link), alternative_names(link)))
            .collect())
    }

    /// ENODEV if there is none.
    pub async fn interface(&self, index: u32) -> io::Result<Interface> {
        let links = collect(self.handle.link().get().match_index(index).execute()).await?;
        links
            .first()
            .map(interface)
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// The indexes of the interfaces that have the address.
    pub async fn holders(&self, address: IpAddr) -> io::Result<Vec<u32>> {
        let all = collect(self.handle.address().get().execute()).await?;
        let held = all.iter().filter(|message| {
            let local = message
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    AddressAttribute::Local(local) => Some(*local),
                    _ => None,
                });
            // On IPv4 links between two ends ADDRESS is the far one; IPv6 often has no LOCAL.
            local.map_or_else(
                || {
                    message
                        .attributes
                        .contains(&AddressAttribute::Address(address))
                },
                |local| local == address,
            )
        });
        Ok(held.map(|message| message.header.index).collect())
    }

    /// ENETUNREACH and its like if the tables say so; `through`: as if only
    /// this interface were there.
    pub async fn route(&self, address: IpAddr, through: Option<u32>) -> io::Result<Route> {
        let mut message = RouteMessage::default();
        (
            message.header.address_family,
            message.header.destination_prefix_length,
        ) = match address {
            IpAddr::V4(_) => (AddressFamily::Inet, 32),
            IpAddr::V6(_) => (AddressFamily::Inet6, 128),
        };
        message
            .attributes
            .push(RouteAttribute::Destination(address.into()));
        message.attributes.extend(through.map(RouteAttribute::Oif));
        let routes = collect(self.handle.route().get(message).execute()).await?;
        routes
            .first()
            .map(route)
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// The kernel's neighbour table of one interface.
    pub async fn neighbours(&self, interface: u32) -> io::Result<BTreeMap<IpAddr, Entry>> {
        let mut request = self.handle.neighbours().get();
        request
            .message_mut()
            .attributes
            .push(NeighbourAttribute::IfIndex(interface));
        let all = collect(request.execute()).await?;
        Ok(all
            .iter()
            .filter(|message| message.header.ifindex == interface)
            .filter_map(entry)
            .collect())
    }

    /// Has the kernel create an entry and resolve it. EEXIST, and nothing
    /// changed, if there is one.
    pub async fn create(&mut self, interface: u32, address: IpAddr) -> io::Result<()> {
        self.use_neighbour(interface, address, NLM_F_CREATE | NLM_F_EXCL)
            .await
    }

    /// Has the kernel resolve an entry again as if a packet were to be sent.
    /// Never for a fixed entry: since 5.16 this would make it an ordinary one.
    pub async fn refresh(&mut self, interface: u32, address: IpAddr) -> io::Result<()> {
        self.use_neighbour(interface, address, 0).await
    }

    async fn use_neighbour(
        &mut self,
        interface: u32,
        address: IpAddr,
        flags: u16,
    ) -> io::Result<()> {
        let mut message = NeighbourMessage::default();
        message.header.family = match address {
            IpAddr::V4(_) => AddressFamily::Inet,
            IpAddr::V6(_) => AddressFamily::Inet6,
        };
        message.header.ifindex = interface;
        message.header.flags = NeighbourFlags::Use;
        message
            .attributes
            .push(NeighbourAttribute::Destination(address.into()));
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewNeighbour(message));
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        let answers = self.handle.request(request).map_err(io_error)?;
        let answers = answers.map(|message| match message.payload {
            NetlinkPayload::Error(error) => Err(rtnetlink::Error::NetlinkError(error)),
            _ => Ok(()),
        });
        collect(answers).await.map(|_| ())
    }
}

/// Something changed in the kernel.
pub enum Event {
    Link(Box<Interface>),
    /// The interface of this index has left the network namespace.
    Gone(u32),
    /// An entry of the neighbour table of this interface; `None`: deleted.
    Neighbour(u32, IpAddr, Option<Entry>),
    /// Some route, rule or address.
    Routes,
    /// There were more notifications than fit; some are lost.
    Lost,
}

/// The kernel's notifications since this was opened.
pub struct Events {
    messages: Pin<Box<dyn Stream<Item = NetlinkPayload<RouteNetlinkMessage>> + Send + Sync>>,
    /// Moves the messages; ends with this.
    _connection: JoinSet<()>,
}

impl Events {
    /// In the network namespace of the calling thread; within a tokio runtime.
    pub fn open() -> io::Result<Events> {
        let (connection, _, messages) = rtnetlink::new_multicast_connection(&[
            MulticastGroup::Link,
            MulticastGroup::Neigh,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv4Rule,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Route,
            MulticastGroup::Ipv6Rule,
            MulticastGroup::Ipv6Ifaddr,
        ])?;
        let mut tasks = JoinSet::new();
        tasks.spawn(connection);
        Ok(Events {
            messages: Box::pin(messages.map(|(message, _)| message.payload)),
            _connection: tasks,
        })
    }

    /// Waits for the next event; `None`: the connection broke. Cancel-safe.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = event(self.messages.next().await?) {
                return Some(event);
            }
        }
    }
}

fn event(payload: NetlinkPayload<RouteNetlinkMessage>) -> Option<Event> {
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

/// All of an answer.
async fn collect<T>(answer: impl Stream<Item = Result<T, rtnetlink::Error>>) -> io::Result<Vec<T>> {
    tokio::time::timeout(TIMEOUT, answer.map_err(io_error).try_collect()).await?
}

/// The kernel's errno where it is one.
fn io_error(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other),
    }
}

fn interface(link: &LinkMessage) -> Interface {
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
        peer: Peer::None,
        xdp_program: None,
    };
    let (mut lower, mut elsewhere) = (None, false);
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => found.name.clone_from(name),
            LinkAttribute::Address(mac) => {
                found.mac = mac.as_slice().try_into().unwrap_or_default()
            }
            LinkAttribute::Mtu(mtu) => found.mtu = *mtu,
            LinkAttribute::Link(index) => lower = Some(*index),
            LinkAttribute::LinkNetNsId(_) => elsewhere = true,
            LinkAttribute::LinkInfo(infos) => {
                found.kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
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
    if found.kind.as_deref() == Some("veth") {
        found.peer = match lower {
            Some(index) if !elsewhere => Peer::Here(index),
            _ => Peer::Elsewhere,
        };
    }
    found
}

fn alternative_names(link: &LinkMessage) -> Vec<String> {
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

fn route(message: &RouteMessage) -> Route {
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
fn entry(message: &NeighbourMessage) -> Option<(IpAddr, Entry)> {
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
