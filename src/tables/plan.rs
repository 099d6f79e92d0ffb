// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! From a configuration, the world and what was before to what a program is to work with:
//! pure, and the same for a start, a reload and a change of source addresses.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::time::Duration;

use anyhow::Result;

use super::{Path, Tables, Tenure};
use crate::health::Target;
use crate::service::{Config, Health, Towards};
use crate::status::counted;

/// What is known of the world at one moment: of the host, of the backends, and of the
/// flows that are in the maps of before.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// Seconds since boot.
    pub now_s: u32,
    /// Length of a jiffy.
    pub tick: Duration,
    /// How packets reach the backends.
    pub paths: HashMap<Towards, Path>,
    /// The addresses that interfaces of the host have, and those of all hosts of their
    /// networks (broadcast).
    pub held: BTreeSet<IpAddr>,
    /// Those of the source addresses of before that some interface has.
    pub held_sources: BTreeSet<IpAddr>,
    /// What checks say of the backends that are checked.
    pub health: HashMap<Target, Health>,
    /// The indexes of backends that flows are with.
    pub backends_with_flows: HashSet<usize>,
    /// The ports that flows have of each source address of before, by its index.
    pub ports_with_flows: BTreeMap<usize, Vec<u16>>,
    /// The source addresses with flows that are found only by the ports that these had
    /// earlier.
    pub needs_earlier: BTreeSet<usize>,
}

/// What a program is to work with.
pub struct Plan {
    pub tables: Tables,
    /// What becomes of flows, in words.
    pub notices: Vec<String>,
}

impl Plan {
    /// # Errors
    /// What is configured can't follow on what was before ([`Tables::followed_by`]).
    pub fn new(config: &Config, world: &World, old: &Tables) -> Result<Plan> {
        let mut old = old.clone();
        old.forget_earlier(|source| Ok(world.needs_earlier.contains(&source)))?;
        let path_of = |towards: &Towards| world.paths.get(towards).copied().unwrap_or_default();
        let has_flows = |index| world.backends_with_flows.contains(&index);
        let mut tables = old.followed_by(config, world.tick, path_of, has_flows)?;
        let notices = leave_sources(&mut tables, &old, world)?;
        tables.set_held(&world.held);
        tables.take_health(world.now_s, |target| world.health.get(target).copied());
        tables.drain(world.now_s);
        tables.place_services(&old, config, world.tick);
        Ok(Plan { tables, notices })
    }
}

/// Gives up the sources that are configured no more, but for those that the host still
/// has and flows come from. Returns what becomes of flows, in words.
fn leave_sources(tables: &mut Tables, old: &Tables, world: &World) -> Result<Vec<String>> {
    let (mut given_up, mut notices) = (Vec::new(), Vec::new());
    let ports = |index| {
        world
            .ports_with_flows
            .get(&index)
            .map_or(&[][..], |all| all)
    };
    let of =
        |flows: usize, address: IpAddr| format!("{} from {address}", counted(flows as u64, "flow"));
    for (index, address) in tables.leaving_sources() {
        let flows = ports(index).len();
        if flows > 0 && world.held_sources.contains(&address) {
            if old.sources[index].tenure == Tenure::Configured {
                notices.push(of(flows, address) + " kept, no new ones begin there");
            }
            continue;
        }
        given_up.push(index);
        if flows > 0 {
            notices.push(of(flows, address) + " ended, as the host has it no more");
        }
    }
    for (index, source) in tables.sources_in_use().filter(|(_, source)| !source.fresh) {
        if old.sources[index].ports != source.ports {
            let stay: HashSet<u16> = source.ports.iter().collect();
            let ports = ports(index).iter();
            let flows = ports.filter(|port| !stay.contains(port)).count();
            if flows > 0 {
                notices.push(of(flows, source.address) + " ended, whose ports are its no more");
            }
        }
    }
    tables.give_up(&given_up)?;
    Ok(notices)
}
