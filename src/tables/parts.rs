// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Services and backends as the datapath knows them, and the path to one.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::Condition;
use crate::abi;
use crate::service::{Backend, Listen, Policy, PortRanges, Scheduler};

/// Whether an index stands for something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tenure {
    Configured,
    /// No longer configured, but flows of it were left at the last reload.
    Leaving,
    /// The next that is configured may have the index.
    Vacant,
}

/// A service as the datapath knows it.
#[derive(Clone, Debug)]
pub struct ServiceTable {
    pub name: String,
    pub listen: Listen,
    pub scheduler: Scheduler,
    pub policy: Policy,
    pub tenure: Tenure,
    /// Its place in the configuration.
    pub number: usize,
    pub entry: abi::service,
    /// New flows go to backends that are down as well ([`Tables::conclude`]).
    pub ignores_health: bool,
    /// Its look-up table is not written yet.
    pub fresh: bool,
    /// The indexes of its backends that are configured.
    pub backends: Vec<usize>,
}

/// A backend as the datapath knows it.
#[derive(Clone, Debug)]
pub struct BackendTable {
    /// The index of its service.
    pub service: usize,
    pub tenure: Tenure,
    pub backend: Backend,
    /// The source address that the configuration gives it, whatever the routes say.
    pub source: Option<IpAddr>,
    pub path: Path,
    pub condition: Condition,
}

impl ServiceTable {
    /// The source addresses that the configuration names, by their indexes.
    pub fn sources(&self) -> impl Iterator<Item = usize> {
        let sources = self.entry.source.iter();
        let sources = sources.take(self.entry.source_count.into());
        sources.map(|index| usize::from(*index))
    }
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

/// A source address as the datapath knows it, with a table of flows of its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SourceTable {
    pub address: IpAddr,
    pub ports: PortRanges,
    /// Those of them that no new flow gets, as services of this address have them.
    #[serde(default)]
    pub withheld: Option<PortRanges>,
    /// Those that it had before, which some flows were found by.
    pub earlier: Option<PortRanges>,
    pub tenure: Tenure,
    /// Its table is not there yet.
    #[serde(skip)]
    pub fresh: bool,
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
