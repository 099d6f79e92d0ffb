// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Interfaces, routes and neighbours of this network namespace, as the kernel
//! knows them: which MAC a packet for an address must carry, followed as it
//! changes. The user types none of it.
//!
//! [`Neighbours`] takes routes from the kernel (a look-up for each address,
//! repeated whenever a route, rule, address or interface changed) and MACs
//! from the kernel's neighbour table. Packets sent at XDP pass the stack by,
//! so that the kernel never notices that a neighbour it has not used changed
//! its MAC. Therefore this asks each next hop, by ARP or by neighbour
//! solicitation, two or three times a second: the MAC that is known first, which troubles nobody else, and a
//! tenth of a second later everyone. The kernel reads the answers too and
//! keeps its own table current by them, but it refuses a MAC for a second after an
//! entry last changed (`locktime`); so the answers are read here as well, and
//! the fresher word counts. Entries that the user made (permanent, noarp) or a
//! routing daemon learned are taken as they are, and never asked about.
//! Nothing is left behind but ordinary dynamic entries, and these only for
//! next hops that answered: the kernel's table is small and shared by all
//! network namespaces of the host. Where it is full, flows go on by what the next hops
//! answer here; only what the host itself sends is lost, which is told.
//!
//! Routes are asked for with the address that packets will come from, since rules may go by it
//! (`ip rule add from`): one that is configured, else the one that the kernel would choose; but
//! of IPv6 one that lasts, if there is any.
//!
//! Routes may lead through VLAN devices that are stacked on the interface; the
//! next hop is asked through these, and the tags that they put on a frame are told.
//!
//! Without CAP_NET_RAW it is the kernel that is told to ask, once a second; it
//! takes up to a minute to notice a changed MAC.

mod arp;
mod astray;
mod clients;
mod decode;
mod fib;
mod follow;
mod hop;
mod ndp;
mod netlink;
mod path;
mod probe;
mod reach;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use rtnetlink::packet_route::route::RouteType;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::service::Towards;
pub use clients::{ClientEntry, Link, Replies, ReplyWay};
pub use fib::Prefix;
use netlink::Netlink;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// An interface of this network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    pub index: u32,
    pub name: String,
    /// All zero on interfaces without Ethernet addresses.
    pub mac: Mac,
    /// Bytes, without the Ethernet header.
    pub mtu: u32,
    /// Switched on, and its link works.
    pub up: bool,
    /// What made it: "veth", "bridge", "tun"...; `None`: mostly hardware.
    pub kind: Option<String>,
    /// Of a VLAN device: what it puts on a frame, and where that goes on.
    pub vlan: Option<Vlan>,
    /// The index of the interface here that its frames leave by: of a VLAN device, a macvlan...
    pub stacked_on: Option<u32>,
    /// The index of the bridge, bond... that it is a port of.
    pub controller: Option<u32>,
    pub peer: Peer,
    /// The id of the XDP program attached to it, if there is exactly one.
    pub xdp_program: Option<u32>,
}

/// What makes an interface a VLAN device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vlan {
    pub tag: Tag,
    /// The index of the interface that it is stacked on, in this network namespace.
    pub below: u32,
}

/// A VLAN tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag {
    /// 0x8100 for 802.1Q, 0x88a8 for 802.1ad.
    pub protocol: u16,
    pub id: u16,
}

/// Where the other end of a veth is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// It is no veth.
    None,
    /// The interface of this index in this network namespace.
    Here(u32),
    /// In another network namespace.
    Elsewhere,
}

/// How packets reach an address through the interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    Resolved {
        /// The next hop's.
        mac: Mac,
        /// Of the VLAN that the next hop is in, outermost first.
        tags: Vec<Tag>,
        /// The address itself, or the router's.
        next_hop: IpAddr,
        /// The address that the kernel would send from.
        source: IpAddr,
    },
    Unresolved {
        /// A clause that names the address: "nobody answers ARP for 10.0.0.9".
        why: String,
        source: Option<IpAddr>,
    },
}

impl Reach {
    /// The address that the kernel would send from, where there is a route.
    pub fn source(&self) -> Option<IpAddr> {
        match self {
            Reach::Resolved { source, .. } => Some(*source),
            Reach::Unresolved { source, .. } => *source,
        }
    }
}

/// Displays `02:00:00:00:00:01`.
pub struct DisplayMac(pub Mac);

impl fmt::Display for DisplayMac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// Displays `VLAN 10`, or `VLAN 100.10` of two tags, or `no VLAN`.
pub struct DisplayTags<'a>(pub &'a [Tag]);

impl fmt::Display for DisplayTags<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            [] => f.write_str("no VLAN"),
            [tag] => write!(f, "VLAN {}", tag.id),
            [outer @ .., tag] => write!(f, "{}.{}", DisplayTags(outer), tag.id),
        }
    }
}

/// The interface of this name or alternative name. The error lists those that are there.
pub async fn interface(name: &str) -> Result<Interface> {
    let netlink = open()?;
    let all = netlink
        .interfaces()
        .await
        .context("listing the interfaces")?;
    let here = all
        .iter()
        .map(|(interface, _)| interface.name.as_str())
        .collect::<Vec<_>>()
        .join(", ");
    all.into_iter()
        .find(|(interface, others)| {
            interface.name == name || others.iter().any(|other| other == name)
        })
        .map(|(interface, _)| interface)
        .ok_or_else(|| anyhow!("no interface {name:?}: the interfaces here are {here}"))
}

/// Every interface of this network namespace.
pub async fn interfaces() -> Result<Vec<Interface>> {
    let all = open()?
        .interfaces()
        .await
        .context("listing the interfaces")?;
    Ok(all.into_iter().map(|(interface, _)| interface).collect())
}

/// The interface of this index: the other end of a veth, [`Peer::Here`].
pub async fn interface_with_index(index: u32) -> Result<Interface> {
    open()?
        .interface(index)
        .await
        .with_context(|| format!("reading interface {index}"))
}

/// The interface that has the address and can receive packets for it: the
/// loopback and dummies never count.
pub async fn interface_with_address(address: IpAddr) -> Result<Option<Interface>> {
    let netlink = open()?;
    let doing = || format!("looking for the interface that has {address}");
    let all = netlink.addresses().await.with_context(doing)?;
    for held in all.into_iter().filter(|held| held.address == address) {
        let interface = netlink
            .interface(held.interface)
            .await
            .with_context(doing)?;
        if interface.name != "lo" && interface.kind.as_deref() != Some("dummy") {
            return Ok(Some(interface));
        }
    }
    Ok(None)
}

/// Whether any interface has the address, be it the loopback.
pub async fn is_held(address: IpAddr) -> Result<bool> {
    let all = open()?.addresses().await;
    let all = all.with_context(|| format!("looking for the interface that has {address}"))?;
    Ok(all.iter().any(|held| held.address == address))
}

/// Those of the addresses that any interface has, be it the loopback.
pub async fn held(addresses: &BTreeSet<IpAddr>) -> Result<BTreeSet<IpAddr>> {
    let all = open()?.addresses().await;
    let all = all.context("looking for addresses of this host")?;
    let held = all.into_iter().map(|held| held.address);
    Ok(held.filter(|held| addresses.contains(held)).collect())
}

/// Those of the addresses that are none of one host here: a network's broadcast address.
pub async fn of_no_host(addresses: &BTreeSet<IpAddr>) -> Result<BTreeSet<IpAddr>> {
    use RouteType::{Anycast, Broadcast, Multicast};
    let netlink = open()?;
    let mut found = BTreeSet::new();
    for address in addresses {
        match netlink.route(*address, None).await {
            Ok(route) if matches!(route.kind, Anycast | Broadcast | Multicast) => {
                found.insert(*address);
            }
            Ok(_) => {}
            Err(error) if refused(&error) => {}
            Err(error) => {
                return Err(error).with_context(|| format!("looking for the route to {address}"));
            }
        }
    }
    Ok(found)
}

/// The interface that packets for the address leave by; `None` without a route,
/// and for addresses of this host.
pub async fn interface_towards(address: IpAddr) -> Result<Option<Interface>> {
    let netlink = open()?;
    let doing = || format!("looking for the interface towards {address}");
    match netlink.route(address, None).await {
        Ok(route) if route.kind == RouteType::Unicast => netlink
            .interface(route.interface)
            .await
            .map(Some)
            .with_context(doing),
        Ok(_) => Ok(None),
        Err(error) if refused(&error) => Ok(None),
        Err(error) => Err(error).with_context(doing),
    }
}

/// The tags of what `device` sends by way of the interface, outermost first:
/// none if it is the interface itself. `None`: it is not stacked on it.
pub async fn tags_on(interface: &Interface, device: &Interface) -> Result<Option<Vec<Tag>>> {
    path::tags(&open()?, device, interface.index)
        .await
        .with_context(|| format!("looking for what {} is stacked on", device.name))
}

fn open() -> Result<Netlink> {
    Netlink::open().context("opening a netlink socket")
}

/// The routing tables gave an answer, and it is no.
fn refused(error: &io::Error) -> bool {
    use nix::libc::{EACCES, EHOSTUNREACH, EINVAL, ENETUNREACH};
    matches!(
        error.raw_os_error(),
        Some(ENETUNREACH | EHOSTUNREACH | EACCES | EINVAL)
    )
}

/// There is no such interface (any more).
fn gone(error: &io::Error) -> bool {
    error.raw_os_error() == Some(nix::libc::ENODEV)
}

/// There is no room for one more entry in the kernel's neighbour table.
fn no_room(error: &io::Error) -> bool {
    error.raw_os_error() == Some(nix::libc::ENOBUFS)
}

fn is_of_one_host(mac: Mac) -> bool {
    mac[0] & 1 == 0 && mac != [0; 6]
}

/// How addresses are reached through an interface, followed by a task of its
/// own until this is dropped.
pub struct Neighbours {
    state: watch::Receiver<State>,
    _follower: JoinSet<()>,
}

/// What the follower publishes.
#[derive(Debug)]
struct State {
    interface: Interface,
    reach: BTreeMap<Towards, Reach>,
    /// The addresses that interfaces of this network namespace have, and those of all
    /// hosts of their networks (broadcast).
    held: BTreeSet<IpAddr>,
    /// Those whose packets the program does not take, and why.
    astray: BTreeMap<IpAddr, String>,
    replies: Arc<Replies>,
    /// Addresses that the kernel has no room for in its neighbour table.
    starved: BTreeSet<IpAddr>,
    /// How many of them may still turn out either way.
    undecided: usize,
    /// Why nothing is followed any more.
    ended: Option<String>,
}

impl Neighbours {
    /// Begins to follow how the addresses are reached through the interface, and
    /// which VIPs the host has, in the network namespace of the calling thread.
    /// When it returns, all that the kernel knows already is known here.
    pub async fn follow(
        interface: &Interface,
        addresses: impl IntoIterator<Item = impl Into<Towards>>,
        vips: impl IntoIterator<Item = IpAddr>,
    ) -> Result<Neighbours> {
        let addresses = addresses.into_iter().map(Into::into).collect();
        let (follower, state) =
            follow::Follower::start(interface, addresses, vips.into_iter().collect())
                .await
                .with_context(|| format!("following the neighbours on {}", interface.name))?;
        let mut task = JoinSet::new();
        task.spawn(follower.run());
        Ok(Neighbours {
            state,
            _follower: task,
        })
    }

    /// Returns as soon as every address is resolved or known not to be, at the
    /// latest after `deadline`. Where nobody answers this takes a little more
    /// than a second.
    pub async fn settle(&mut self, deadline: Duration) {
        let settled = self
            .state
            .wait_for(|state| state.undecided == 0 || state.ended.is_some());
        // Neither the deadline nor the follower's end is an error here: the state tells.
        let _ = tokio::time::timeout(deadline, settled).await;
    }

    /// How the address is reached now; `None` if it is not followed.
    pub fn reach(&self, address: impl Into<Towards>) -> Option<Reach> {
        self.state.borrow().reach.get(&address.into()).cloned()
    }

    /// How every address is reached now.
    pub fn snapshot(&self) -> BTreeMap<Towards, Reach> {
        self.state.borrow().reach.clone()
    }

    /// The addresses that interfaces of this network namespace have now, and those of all
    /// hosts of their networks (broadcast).
    pub fn held(&self) -> BTreeSet<IpAddr> {
        self.state.borrow().held.clone()
    }

    /// Those of the VIPs that clients can't reach by way of the interface: the reason, which
    /// names the VIP, and the mend.
    pub fn astray(&self) -> BTreeMap<IpAddr, String> {
        self.state.borrow().astray.clone()
    }

    /// How replies from the VIPs reach clients now.
    pub fn replies(&self) -> Arc<Replies> {
        self.state.borrow().replies.clone()
    }

    /// Those of the addresses whose next hop the kernel's neighbour table has no room for:
    /// what this host itself sends there is lost.
    pub fn starved(&self) -> BTreeSet<IpAddr> {
        self.state.borrow().starved.clone()
    }

    /// Waits for the next change of any reach, of the addresses held, of the replies, or of the
    /// interface: its
    /// MAC, MTU, state, name, XDP program. Cancel-safe. An error means that nothing will change any
    /// more: because the interface was deleted or moved away, and then no address is resolved;
    /// or because the kernel's notifications broke off, and then all is as it was known last.
    pub async fn changed(&mut self) -> Result<()> {
        let alive = self.state.changed().await;
        if let Some(why) = &self.state.borrow().ended {
            bail!("{why}");
        }
        alive.context("following the neighbours")
    }

    /// The interface as it is now.
    pub fn interface(&self) -> Interface {
        self.state.borrow().interface.clone()
    }
}
