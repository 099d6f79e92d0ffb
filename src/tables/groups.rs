// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The groups of slots that a source address's ports are in.

use std::collections::BTreeMap;

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

/// One step of the generator (Steele, Lea, Flood, OOPSLA 2014).
fn splitmix64(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
