// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! What a daemon notes for the one after it: all that the datapath's own maps do
//! not tell. From both, the tables are recovered.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::{BackendTable, Condition, Path, ServiceTable, SourceTable, Tables, Tenure};
use crate::abi;
use crate::service::{Backend, Policy};

/// Kept in the map `notes` of a program.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct Notes {
    /// Of all maps (`LAYOUT` in src/bpf/abi.h).
    pub layout: u32,
    /// Of the binary.
    pub version: String,
    pub hash_seed: u64,
    /// Backends' flows are counted in `loads`.
    pub counts_loads: bool,
    vips: Vec<IpAddr>,
    pub(crate) sources: Vec<SourceTable>,
    pub(crate) services: Vec<ServiceNote>,
    /// The backends that are not configured any more, by their indexes.
    leaving: BTreeSet<usize>,
    vacant: BTreeSet<usize>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ServiceNote {
    name: String,
    number: usize,
    tenure: Tenure,
    policy: Policy,
}

impl Tables {
    pub fn notes(&self, layout: u32, hash_seed: u64) -> Notes {
        let of_tenure = |tenure| {
            let backends = (1..).zip(&self.backends);
            let backends = backends.filter(|(_, backend)| backend.tenure == tenure);
            backends.map(|(index, _)| index).collect()
        };
        let services = self.services.iter().map(|service| ServiceNote {
            name: service.name.clone(),
            number: service.number,
            tenure: service.tenure,
            policy: service.policy,
        });
        Notes {
            layout,
            version: env!("CARGO_PKG_VERSION").into(),
            hash_seed,
            counts_loads: self.counts_loads,
            vips: self.vips.clone(),
            sources: self.sources.clone(),
            services: services.collect(),
            leaving: of_tenure(Tenure::Leaving),
            vacant: of_tenure(Tenure::Vacant),
        }
    }

    /// The tables whose records these are: to be followed by those of a
    /// configuration. `addresses` and `listeners` are left out.
    ///
    /// # Errors
    /// The records contradict the notes.
    pub fn recovered(
        notes: &Notes,
        services: &[abi::service],
        backends: &[abi::backend],
    ) -> Result<Tables> {
        let mut tables = Tables {
            vips: notes.vips.clone(),
            sources: notes.sources.clone(),
            ..Tables::default()
        };
        for (note, entry) in notes.services.iter().zip(services) {
            let vip = usize::from(entry.vip).checked_sub(1);
            let vip = vip.and_then(|vip| notes.vips.get(vip)).with_context(|| {
                format!("the service {:?} has no VIP in the running maps", note.name)
            })?;
            tables.services.push(ServiceTable {
                name: note.name.clone(),
                listen: abi::listen_of(entry, *vip),
                scheduler: abi::scheduler_of(entry),
                policy: note.policy,
                tenure: note.tenure,
                number: note.number,
                entry: *entry,
                ignores_health: false,
                fresh: false,
                backends: Vec::new(),
            });
        }
        for (entry, index) in backends.iter().zip(1..) {
            let tenure = match index {
                _ if notes.vacant.contains(&index) => Tenure::Vacant,
                _ if notes.leaving.contains(&index) => Tenure::Leaving,
                _ => Tenure::Configured,
            };
            let service = tables.services.get_mut(usize::from(entry.service));
            let service = service.with_context(|| {
                format!("backend {index} is of no service that the running maps have")
            })?;
            if tenure == Tenure::Configured {
                service.backends.push(index);
            }
            let (address, port) = abi::address_of(entry, service.listen.vip);
            tables.backends.push(BackendTable {
                service: entry.service.into(),
                tenure,
                backend: Backend {
                    address: SocketAddr::new(address, port),
                    weight: entry.weight,
                },
                source: None,
                path: recovered_path(entry, &notes.sources),
                condition: Condition {
                    health: abi::health_of(entry.health),
                    health_since_s: entry.health_since_s,
                    drained: entry.drained != 0,
                    draining_since_s: entry.draining_since_s,
                    drain_is_over: false,
                },
            });
        }
        Ok(tables)
    }

    /// The services that are configured, in the order of the configuration.
    pub fn configured(&self) -> Vec<&ServiceTable> {
        let services = self.services.iter();
        let mut services: Vec<_> = services
            .filter(|service| service.tenure == Tenure::Configured)
            .collect();
        services.sort_by_key(|service| service.number);
        services
    }
}

/// Whether the next hop still answers is for others to say.
fn recovered_path(entry: &abi::backend, sources: &[SourceTable]) -> Path {
    if entry.reachable == 0 {
        return Path::default();
    }
    Path {
        mac: Some(entry.mac),
        tags: entry.tags,
        source: sources.get(usize::from(entry.source)).map(|s| s.address),
        alive: true,
    }
}
