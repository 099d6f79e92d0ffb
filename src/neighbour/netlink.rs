// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Questions to the kernel about interfaces, addresses, routes and
//! neighbours, and its notifications when they change (rtnetlink(7)).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::time::Duration;

use futures_util::{Stream, StreamExt, TryStreamExt};
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteType};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use tokio::task::JoinSet;

use super::hop::Entry;
use super::{Interface, decode, fib};

/// The kernel answers at once; an answer that is missing for so long was not understood.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A connection to the kernel's rtnetlink, for questions.
pub struct Netlink {
    handle: rtnetlink::Handle,
    /// Moves the messages; ends with this.
    _connection: JoinSet<()>,
}

/// An address that an interface has.
pub struct Held {
    pub address: IpAddr,
    /// The index of the interface.
    pub interface: u32,
    /// It is one of those that IPv6 makes up anew from time to time (RFC 8981).
    pub temporary: bool,
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
            .map(|link| (decode::interface(link), decode::alternative_names(link)))
            .collect())
    }

    /// ENODEV if there is none.
    pub async fn interface(&self, index: u32) -> io::Result<Interface> {
        let links = collect(self.handle.link().get().match_index(index).execute()).await?;
        links
            .first()
            .map(decode::interface)
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Every address of this network namespace.
    pub async fn addresses(&self) -> io::Result<Vec<Held>> {
        let all = collect(self.handle.address().get().execute()).await?;
        Ok(all.iter().filter_map(decode::held).collect())
    }

    /// Every address, and those of all hosts of their networks (broadcast).
    pub async fn held(&self) -> io::Result<BTreeSet<IpAddr>> {
        let all = collect(self.handle.address().get().execute()).await?;
        let of = |message| decode::broadcasts(message).chain(decode::address(message));
        Ok(all.iter().flat_map(of).collect())
    }

    /// ENETUNREACH and its like if the tables say so; `through`: as if only
    /// this interface were there.
    pub async fn route(&self, address: IpAddr, through: Option<u32>) -> io::Result<Route> {
        self.look_up(address, None, through).await
    }

    /// The same for packets from an address of this host.
    pub async fn route_from(&self, address: IpAddr, source: IpAddr) -> io::Result<Route> {
        self.look_up(address, Some(source), None).await
    }

    async fn look_up(
        &self,
        address: IpAddr,
        source: Option<IpAddr>,
        through: Option<u32>,
    ) -> io::Result<Route> {
        let mut message = RouteMessage::default();
        let header = &mut message.header;
        let bits;
        (header.address_family, bits) = match address {
            IpAddr::V4(_) => (AddressFamily::Inet, 32),
            IpAddr::V6(_) => (AddressFamily::Inet6, 128),
        };
        header.destination_prefix_length = bits;
        header.source_prefix_length = if source.is_some() { bits } else { 0 };
        let attributes = &mut message.attributes;
        attributes.push(RouteAttribute::Destination(address.into()));
        attributes.extend(source.map(|source| RouteAttribute::Source(source.into())));
        attributes.extend(through.map(RouteAttribute::Oif));
        let routes = collect(self.handle.route().get(message).execute()).await?;
        routes
            .first()
            .map(decode::route)
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// The routes of all tables of a family; `None`: more than `most`.
    pub async fn routes(&self, is_ipv4: bool, most: usize) -> io::Result<Option<Vec<fib::Route>>> {
        let mut message = RouteMessage::default();
        message.header.address_family = match is_ipv4 {
            true => AddressFamily::Inet,
            false => AddressFamily::Inet6,
        };
        let mut all = pin!(self.handle.route().get(message).execute());
        let mut routes = Vec::new();
        while let Some(message) = tokio::time::timeout(TIMEOUT, all.next()).await? {
            routes.extend(fib::Route::of(&message.map_err(io_error)?));
            if routes.len() > most {
                return Ok(None);
            }
        }
        Ok(Some(routes))
    }

    /// The rules of a family that say which table is asked.
    pub async fn rules(&self, is_ipv4: bool) -> io::Result<Vec<fib::Rule>> {
        let version = match is_ipv4 {
            true => rtnetlink::IpVersion::V4,
            false => rtnetlink::IpVersion::V6,
        };
        let rules = collect(self.handle.rule().get(version).execute()).await?;
        Ok(rules.iter().filter_map(fib::Rule::of).collect())
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
            .filter_map(decode::entry)
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
            if let Some(event) = decode::event(self.messages.next().await?) {
                return Some(event);
            }
        }
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
