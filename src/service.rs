// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The vocabulary of the load balancer as types: what a service is, who its
//! backends are and how packets reach them. Pure: no I/O, no clap, no libbpf.

mod check;

use std::fmt;
use std::mem::discriminant;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use check::{
    AllDown, Check, CheckKind, Health, HttpCheck, OnFailure, Policy, StatusCodes, Trust, UdpCheck,
};

/// A whole, validated configuration: what one `xdp-proxy run` serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The interface to attach to; `None`: the one that holds the first VIP,
    /// else the one that routes to the first backend.
    pub interface: Option<String>,
    pub mode: Mode,
    /// Packets and bytes are counted for each flow.
    pub flow_counters: bool,
    /// At least one, at most [`SERVICES_MAX`]; no two collide.
    pub services: Vec<Service>,
}

/// Services in one configuration, at most.
pub const SERVICES_MAX: usize = 1024;
/// Backends of all services together, at most; index 0 means "no backend".
pub const BACKENDS_MAX: usize = 65_535;
/// A backend's weight, at most (HAProxy's limit).
pub const WEIGHT_MAX: u16 = 256;
/// Source addresses of all services together, at most.
pub const SOURCES_MAX: usize = 16;

/// Where in the kernel the program is attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Native where the driver supports it and it is known to work; generic on veth.
    #[default]
    Auto,
    /// In the kernel's receive path, on any interface.
    Generic,
    /// In the driver, before the kernel allocates anything.
    Native,
    /// On the network card itself.
    Offload,
}

/// A VIP, its ports and protocol, with the backends that serve it and the policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Unique; the default is what `listen` displays.
    pub name: String,
    pub listen: Listen,
    pub forwarding: Forwarding,
    pub scheduler: Scheduler,
    /// Source addresses of forwarded packets, about equally used; empty: the
    /// address that reaches the backend.
    pub source: Vec<IpAddr>,
    /// Source ports of forwarded packets.
    pub source_ports: PortRanges,
    pub timeouts: Timeouts,
    /// How its backends are checked; `None`: not at all.
    pub health: Option<Check>,
    pub policy: Policy,
    /// At least one, at least one of them with a weight above 0; no address twice.
    pub backends: Vec<Backend>,
}

/// What clients connect to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Listen {
    pub vip: IpAddr,
    pub ports: ListenPorts,
    pub protocol: Protocol,
}

impl Listen {
    /// Whether a packet could be for both, and neither goes before the other.
    pub fn collides_with(&self, other: &Listen) -> bool {
        let (mine, others) = (self.ports.range(), other.ports.range());
        (self.vip, self.protocol) == (other.vip, other.protocol)
            && discriminant(&self.ports) == discriminant(&other.ports)
            && mine.start() <= others.end()
            && others.start() <= mine.end()
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.vip {
            IpAddr::V4(vip) => write!(f, "{vip}"),
            IpAddr::V6(vip) => write!(f, "[{vip}]"),
        }?;
        write!(f, ":{}/{}", self.ports, self.protocol)
    }
}

/// The ports of a service. Those that a packet's port is looked for in first
/// stand first. Port 0 is in none of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ListenPorts {
    One(u16),
    /// From the first to the last: more than one, but not all.
    Range(u16, u16),
    Any,
}

impl ListenPorts {
    /// From the first to the last, neither of them 0.
    pub fn new(first: u16, last: u16) -> ListenPorts {
        match (first, last) {
            (1, u16::MAX) => ListenPorts::Any,
            _ if first == last => ListenPorts::One(first),
            _ => ListenPorts::Range(first, last),
        }
    }

    /// The port, if it is only one. Else backends keep the one that the client
    /// connects to.
    pub fn one(self) -> Option<u16> {
        match self {
            ListenPorts::One(port) => Some(port),
            _ => None,
        }
    }

    pub fn range(self) -> RangeInclusive<u16> {
        match self {
            ListenPorts::One(port) => port..=port,
            ListenPorts::Range(first, last) => first..=last,
            ListenPorts::Any => 1..=u16::MAX,
        }
    }
}

impl fmt::Display for ListenPorts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ListenPorts::One(port) => write!(f, "{port}"),
            ListenPorts::Range(first, last) => write!(f, "{first}-{last}"),
            ListenPorts::Any => f.write_str("*"),
        }
    }
}

#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    #[default]
    Tcp,
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        })
    }
}

/// How a packet gets to the backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Forwarding {
    /// Full NAT: both addresses are rewritten, replies come back through us.
    #[default]
    Nat,
}

/// How a new flow picks its backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scheduler {
    /// A look-up table by consistent hashing of the client's address and port
    /// (see [`crate::maglev`]).
    #[default]
    Maglev,
    /// The same of the client's address alone: all of its flows on one backend.
    SourceHash,
    /// In turns, each CPU by itself.
    RoundRobin,
    Random,
    /// The one with the fewest flows for its weight.
    LeastConnections,
}

/// One real server of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Port 0: the one that the client connects to.
    pub address: SocketAddr,
    /// Its share of new flows relative to the others', 0 to [`WEIGHT_MAX`];
    /// 0 gives it none.
    pub weight: u16,
}

/// An address that packets go to, and those that they may come from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Towards {
    pub address: IpAddr,
    /// None: the one that the host would choose.
    pub sources: Vec<IpAddr>,
}

impl From<IpAddr> for Towards {
    fn from(address: IpAddr) -> Towards {
        Towards {
            address,
            sources: Vec::new(),
        }
    }
}

impl Service {
    pub fn towards(&self, backend: &Backend) -> Towards {
        Towards {
            address: backend.address.ip(),
            sources: self.source.clone(),
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address.port() {
            0 => write!(f, "{}", self.address.ip()),
            _ => write!(f, "{}", self.address),
        }
    }
}

/// How long a flow without packets is kept, by its state. Whole seconds or
/// finer; at least one millisecond each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP: the client has not yet acknowledged an answer of the backend. UDP:
    /// the backend has not answered.
    pub unanswered: Duration,
    pub established: Duration,
    /// TCP: one side has finished, and the other has not, or not acknowledged it
    /// (RFC 5382, REQ-5: four minutes at least).
    pub half_closed: Duration,
    /// Both sides have finished, or one has reset. UDP flows are never closing.
    pub closing: Duration,
}

/// A keepalive of 2 hours must find its flow (RFC 5382, REQ-5: 2 hours 4 minutes at least), also
/// one whose timer is late: the kernel's may be by up to 262 s after so long a time (its wheel's
/// levels, HZ 1000). Then the next multiple of ten minutes.
const TCP_IDLE_S: u64 = 130 * 60;

impl Timeouts {
    /// The defaults for a protocol's services.
    pub fn of(protocol: Protocol) -> Timeouts {
        let (unanswered, established) = match protocol {
            Protocol::Tcp => (5, TCP_IDLE_S),
            Protocol::Udp => (30, 120),
        };
        Timeouts {
            unanswered: Duration::from_secs(unanswered),
            established: Duration::from_secs(established),
            half_closed: Duration::from_secs(5 * 60),
            closing: Duration::from_secs(10),
        }
    }
}

/// A set of ports: sorted, disjoint, non-adjacent, non-empty ranges within 1 to 65535.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortRanges(Vec<RangeInclusive<u16>>);

impl PortRanges {
    /// Sorts and merges; `None` if nothing is left or port 0 is in it.
    pub fn new(mut ranges: Vec<RangeInclusive<u16>>) -> Option<PortRanges> {
        ranges.retain(|range| !range.is_empty());
        ranges.sort_by_key(|range| *range.start());
        let mut merged: Vec<RangeInclusive<u16>> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match merged.last_mut() {
                Some(last) if u32::from(*range.start()) <= u32::from(*last.end()) + 1 => {
                    *last = *last.start()..=(*last.end()).max(*range.end());
                }
                _ => merged.push(range),
            }
        }
        (!merged.is_empty() && *merged[0].start() != 0).then_some(PortRanges(merged))
    }

    /// The default: 1024 and up, less the ports the host gives to its own
    /// connections (`net.ipv4.ip_local_port_range`). `None` if that leaves nothing.
    pub fn beside(local: RangeInclusive<u16>) -> Option<PortRanges> {
        let mut ranges = Vec::new();
        if *local.start() > 1024 {
            ranges.push(1024..=*local.start() - 1);
        }
        if *local.end() < u16::MAX {
            ranges.push((*local.end() + 1).max(1024)..=u16::MAX);
        }
        PortRanges::new(ranges)
    }

    /// Every port of the set, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        self.0.iter().flat_map(|range| range.clone())
    }

    /// How many ports are in the set.
    pub fn count(&self) -> usize {
        self.0.iter().map(|range| range.len()).sum()
    }

    pub fn ranges(&self) -> &[RangeInclusive<u16>] {
        &self.0
    }
}

impl fmt::Display for PortRanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, range) in self.0.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            write!(f, "{comma}{}-{}", range.start(), range.end())?;
        }
        Ok(())
    }
}
