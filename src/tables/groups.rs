// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The groups of slots that a source address's ports are in.

use std::collections::{BTreeMap, BTreeSet};

use super::SourceTable;
use crate::abi::{self, group};
use crate::service::PortRanges;

/// Of so many slots, one may have a flow that its client has not confirmed.
const UNCONFIRMED_SHARE: u32 = 2;

/// The groups with any of the ports, by their numbers; those that are withheld are in use.
/// Which slot is the first one to be taken is random (RFC 6056, section 3.3), as is the
/// group that a secret hash names.
pub fn groups(
    ports: &PortRanges,
    withheld: Option<&PortRanges>,
    mut seed: u64,
) -> BTreeMap<u16, group> {
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
    for port in withheld.into_iter().flat_map(PortRanges::iter) {
        let port = usize::from(port);
        if let Some(group) = groups.get_mut(&((port / abi::GROUP_SLOTS) as u16)) {
            group.used |= 1 << (port % abi::GROUP_SLOTS);
        }
    }
    for group in groups.values_mut() {
        group.share = (group.used.count_zeros() / UNCONFIRMED_SHARE).max(1) as u8;
    }
    groups
}

/// A group of slots of which others become ours, or are withheld.
pub struct Change {
    pub number: u16,
    /// A bit for each slot that comes free.
    pub gained: u32,
    /// The same of those whose flows end,
    pub lost: u32,
    /// and of those that come free no more.
    pub withheld: u32,
    pub share: u8,
}

impl Change {
    pub fn is_none(&self) -> bool {
        self.gained | self.lost | self.withheld == 0
    }
}

/// What changes of the groups where a source has other ports than before, or others are
/// withheld.
pub fn changes(old: &SourceTable, new: &SourceTable) -> Vec<Change> {
    let of = |source: &SourceTable, withheld| groups(&source.ports, withheld, 0);
    let slots = |groups: &BTreeMap<u16, group>, number| {
        let group = groups.get(&number);
        group.map_or(0, |group| !group.used)
    };
    let [ours_before, ours] = [old, new].map(|source| of(source, None));
    let [open_before, open] = [old, new].map(|source| of(source, source.withheld.as_ref()));
    let numbers: BTreeSet<u16> = ours_before.keys().chain(ours.keys()).copied().collect();
    let changes = numbers.into_iter().map(|number| {
        let (had, has) = (slots(&ours_before, number), slots(&ours, number));
        let (gave, gives) = (slots(&open_before, number), slots(&open, number));
        Change {
            number,
            gained: gives & !gave,
            lost: had & !has,
            withheld: has & !gives & gave,
            share: open.get(&number).map_or(1, |group| group.share),
        }
    });
    changes.filter(|change| !change.is_none()).collect()
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
