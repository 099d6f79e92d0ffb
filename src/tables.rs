// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! What the datapath's maps hold for a configuration: pure, so that the same
//! configuration gives the same bytes on every host (but for the seed).

mod services;

use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::abi;
use crate::maglev::{self, Member};
use crate::service::{Backend, Config, PortRanges, Protocol, SOURCES_MAX, Service};
pub use services::Services;

/// A backend as the datapath knows it.
#[derive(Clone, Debug)]
pub struct BackendTable {
    pub service: usize,
    pub backend: Backend,
    /// The source address that the configuration gives it, whatever the routes say.
    pub source: Option<IpAddr>,
    pub path: Path,
}

impl BackendTable {
    /// The path after news of it.
    pub fn path_after(&self, news: Path) -> Path {
        let path = self.path.followed_by(news);
        Path {
            source: self.source.or(path.source),
            ..path
        }
    }
}

/// How packets reach a backend, as far as it is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Path {
    /// The next hop's MAC: the last one known, for the flows that are there.
    pub mac: Option<[u8; 6]>,
    /// Tags of the VLAN it is in, as [`abi::vlan_tag`] makes them, outermost
    /// first; 0: none.
    pub tags: [u32; abi::VLAN_TAGS],
    /// The address that packets to it come from.
    pub source: Option<IpAddr>,
    /// The next hop answers: new flows may go there.
    pub alive: bool,
}

impl Path {
    /// The path after news of it. What the news does not tell stays as it was:
    /// a backend that stops answering keeps its MAC for the flows it has.
    pub fn followed_by(self, news: Path) -> Path {
        Path {
            mac: news.mac.or(self.mac),
            tags: if news.mac.is_some() {
                news.tags
            } else {
                self.tags
            },
            source: news.source.or(self.source),
            alive: news.alive,
        }
    }
}

/// The contents of the maps. Indexes follow the configuration's order;
/// backends count from 1.
pub struct Tables {
    pub vips: Vec<IpAddr>,
    pub sources: Vec<IpAddr>,
    pub addresses: Vec<abi::address>,
    pub services: Services,
    pub backends: Vec<BackendTable>,
    /// Some service is of IPv6.
    pub serves_ipv6: bool,
    /// Some service is of UDP.
    pub serves_udp: bool,
    /// The source ports of each of `sources`; the first entry is there even
    /// where no source is known yet.
    pub source_ports: Vec<PortRanges>,
}

impl Tables {
    /// `path_of` tells the path to a backend's address; `tick` is the length of
    /// a jiffy.
    ///
    /// # Errors
    /// More than [`SOURCES_MAX`] source addresses, two services that send from
    /// one address with different ports, or hashes that collide too much.
    pub fn new(
        config: &Config,
        tick: Duration,
        path_of: impl Fn(IpAddr) -> Path,
    ) -> Result<Tables> {
        let mut vips = Vec::new();
        let mut backends = Vec::new();
        // Each source address, with the service that fixed its ports.
        let mut sources: Vec<(IpAddr, &Service)> = Vec::new();
        for (index, service) in config.services.iter().enumerate() {
            if !vips.contains(&service.listen.vip) {
                vips.push(service.listen.vip);
            }
            let first = backends.len();
            for backend in &service.backends {
                let mut table = BackendTable {
                    service: index,
                    backend: *backend,
                    source: service.source.first().copied(),
                    path: Path::default(),
                };
                table.path = table.path_after(path_of(backend.address.ip()));
                backends.push(table);
            }
            let reached_from = backends[first..].iter().filter_map(|b| b.path.source);
            for address in service.source.iter().copied().chain(reached_from) {
                match sources.iter().find(|(known, _)| *known == address) {
                    None => sources.push((address, service)),
                    Some((_, other)) => ensure!(
                        other.source_ports == service.source_ports,
                        "the services {:?} and {:?} both send from {address}: give them the same \
                         `source_ports`",
                        other.name,
                        service.name
                    ),
                }
            }
        }
        ensure!(
            sources.len() <= SOURCES_MAX,
            "{} source addresses are needed, {SOURCES_MAX} are the most: set `source` in the services",
            sources.len()
        );
        let first_ports = &config.services[0].source_ports;
        let mut source_ports: Vec<_> = sources
            .iter()
            .map(|(_, service)| service.source_ports.clone())
            .collect();
        if source_ports.is_empty() {
            source_ports.push(first_ports.clone());
        }
        let sources: Vec<IpAddr> = sources.into_iter().map(|(address, _)| address).collect();
        let mut tables = Tables {
            addresses: Vec::new(),
            services: Services::new(config, tick, &vips, &sources)?,
            vips,
            sources,
            backends,
            serves_ipv6: config.services.iter().any(|s| s.listen.vip.is_ipv6()),
            serves_udp: config
                .services
                .iter()
                .any(|s| s.listen.protocol == Protocol::Udp),
            source_ports,
        };
        tables.addresses = tables.place_addresses()?;
        Ok(tables)
    }

    /// The hash table over VIPs and source addresses.
    fn place_addresses(&self) -> Result<Vec<abi::address>> {
        let mut roles: BTreeMap<IpAddr, (Option<usize>, Option<usize>)> = BTreeMap::new();
        for (index, vip) in self.vips.iter().enumerate() {
            roles.entry(*vip).or_default().0 = Some(index);
        }
        for (index, source) in self.sources.iter().enumerate() {
            roles.entry(*source).or_default().1 = Some(index);
        }
        let entries: Vec<_> = roles
            .into_iter()
            .map(|(address, (vip, source))| abi::address_entry(address, vip, source, false))
            .collect();
        services::place(&entries, abi::address_place)
    }

    /// The record of backend `index` (from 1).
    pub fn backend_entry(&self, index: usize) -> abi::backend {
        let table = &self.backends[index - 1];
        let source = self
            .sources
            .iter()
            .position(|source| Some(*source) == table.path.source);
        let path = table
            .path
            .mac
            .zip(source)
            .map(|(mac, source)| (mac, table.path.tags, source));
        abi::backend_entry(
            table.backend.address.ip(),
            table.backend.address.port(),
            path,
            table.path.alive,
        )
    }

    /// The look-up table of service `index`, over the backends that are alive.
    pub fn maglev(&self, index: usize) -> Box<[u16]> {
        // Backends stand in the order of their services.
        let first = self.backends.partition_point(|table| table.service < index);
        let alive: Vec<Member> = (first + 1..)
            .zip(&self.backends[first..])
            .take_while(|(_, table)| table.service == index)
            .filter(|(number, table)| {
                table.path.alive && self.backend_entry(*number).reachable != 0
            })
            .map(|(number, table)| Member {
                identity: table.backend.address,
                weight: table.backend.weight,
                index: number as u16,
            })
            .collect();
        maglev::table(&alive)
    }

    /// The ports of one source address in the order in which they are first
    /// taken: shuffled by the seed (RFC 6056, section 3.3.1).
    pub fn shuffled_ports(&self, source: usize, mut seed: u64) -> Vec<u16> {
        let mut ports: Vec<u16> = self.source_ports[source].iter().collect();
        for i in (1..ports.len()).rev() {
            seed = splitmix64(seed);
            ports.swap(i, (seed % (i as u64 + 1)) as usize);
        }
        ports
    }

    /// How many flows there can be at a time.
    pub fn capacity(&self) -> usize {
        self.source_ports.iter().map(PortRanges::count).sum()
    }

    /// Buckets over clients' tuples: a power of two with about three flows each
    /// when every port is in use, so that 14 places are never too few.
    pub fn buckets(&self) -> usize {
        (self.capacity() / 3).next_power_of_two()
    }

    /// Bytes of kernel memory that the maps take, with `cpus` per-CPU copies.
    pub fn memory_bytes(&self, cpus: usize) -> usize {
        let sources = self.source_ports.len();
        let backends = self.backends.len() + 1;
        sources * (abi::PORTS * size_of::<abi::flow>() + size_of::<abi::ports>())
            + self.buckets() * size_of::<abi::types::bucket>()
            + self.services.entries.len() * size_of::<abi::service>()
            + self.services.port_maps.len().max(1) * size_of::<abi::port_map>()
            + self.addresses.len() * size_of::<abi::address>()
            + self.services.count() * size_of::<abi::maglev>()
            + backends * (size_of::<abi::backend>() + cpus * size_of::<abi::backend_counters>())
    }
}

/// One step of the generator (Steele, Lea, Flood, OOPSLA 2014).
fn splitmix64(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A number nobody can foresee: the standard library keys its hash maps with
/// the kernel's randomness.
pub fn random_seed() -> u64 {
    RandomState::new().build_hasher().finish()
}
