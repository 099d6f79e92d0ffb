// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The groups of slots that a source address's ports are in.

use std::collections::{BTreeMap, BTreeSet};

use crate::abi::{self, group};
use crate::service::PortRanges;

/// Of so many slots, one may have a flow that its client has not confirmed.
const UNCONFIRMED_SHARE: u32 = 2;

/// The groups with any of the ports, by their numbers. Which slot is the first one
/// to be taken is random (RFC 6056, section 3.3), as is the group that a secret hash
/// names.
pub fn groups(ports: &PortRanges, mut seed: u64) -> BTreeMap<u16, group> {
    let mut groups = BTreeMap::new();
    for port in ports.iter().map(usize::from) {
        let number = (port / abi::GROUP_SLOTS) as u16;
        let group = groups.entry(number).or_insert_with(|| {
            seed = splitmix64(seed);
            group {
                used: u32::MAX,
                hand: (seed % abi::GROUP_SLOTS as u64) as u8,
                ..group::default()
            }
        });
        group.used &= !(1 << (port % abi::GROUP_SLOTS));
    }
    for group in groups.values_mut() {
        group.share = (group.used.count_zeros() / UNCONFIRMED_SHARE).max(1) as u8;
    }
    groups
}

/// A group of slots that are ours, and that others of them become ours.
pub struct Change {
    pub number: u16,
    /// A bit for each slot.
    pub gained: u32,
    pub lost: u32,
    pub share: u8,
}

/// What changes of the groups where a source has other ports than before.
pub fn changes(old: &PortRanges, new: &PortRanges) -> Vec<Change> {
    let [old, new] = [old, new].map(|ports| groups(ports, 0));
    let ours = |groups: &BTreeMap<u16, group>, number| {
        let group = groups.get(&number);
        group.map_or(0, |group| !group.used)
    };
    let numbers: BTreeSet<u16> = old.keys().chain(new.keys()).copied().collect();
    let changes = numbers.into_iter().map(|number| {
        let (was, is) = (ours(&old, number), ours(&new, number));
        Change {
            number,
            gained: is & !was,
            lost: was & !is,
            share: new.get(&number).map_or(1, |group| group.share),
        }
    });
    changes
        .filter(|change| change.gained | change.lost != 0)
        .collect()
}

/// Whether the program looks into the group of a port for a flow with this hash, whose
/// home in a list of groups has this reach: `group_after` of src/bpf/table.h.
pub fn leads_to(list: &[u16], hash: u32, reach: impl Fn(u16) -> u8, port: u32) -> bool {
    let after = |steps: u32| {
        let random = hash.wrapping_add(steps.wrapping_mul(0x9e37_79b9));
        list[((u64::from(random) * list.len() as u64) >> 32) as usize]
    };
    if list.is_empty() {
        return false;
    }
    let number = (port as usize / abi::GROUP_SLOTS) as u16;
    (0..=u32::from(reach(after(0)))).any(|steps| after(steps) == number)
}

/// One step of the generator (Steele, Lea, Flood, OOPSLA 2014).
fn splitmix64(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
