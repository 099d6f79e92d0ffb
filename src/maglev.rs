// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Maglev hashing: backends and weights -> the table that a new flow's hash
//! is looked up in. Pure.
//!
//! Source: Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load
//! Balancer", NSDI 2016, section 3.4. Every backend walks the table in an order
//! of its own, which follows from its identity alone, and the backends take
//! turns at claiming the next free entry of their walk. For weights, the paper
//! alters "the relative frequency of the backends' turns". Here a backend of
//! weight w has its k-th turn at the time (k - 1/2) / w, the first one at 0: its
//! turns do not depend on who else is there, its entries are its quota within
//! one or two, and none with a weight goes without (up to `TABLE_SIZE` backends).
//!
//! The paper's walk, equal steps from a start on, is not kept. Two backends
//! whose steps are equal or in a small ratio run after each other: of 30,000
//! random sets of 2 to 4 backends, 1 in 700 had more than 1 % of the other
//! backends' entries move when one left, one of them 43 %. With the cubic [`Walk`]
//! at most 0.8 % moved in 45,000 sets of 2 to 100 backends with unequal weights.
//! Neither are turns that lapse on a claimed entry, with a cap at the quota: they
//! halve what moves with equal weights, but up to 3 % moves with unequal ones.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::iter::Cycle;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

/// Entries of a table: the paper's "small" size, a prime, as [`Walk`] needs.
pub const TABLE_SIZE: usize = 65537;

/// A backend as the table sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Alone decides the order in which the backend claims entries.
    pub identity: SocketAddr,
    /// Its share of the entries relative to the others'; 0: none.
    pub weight: u16,
    /// What its entries hold.
    pub index: u16,
}

/// The table: [`TABLE_SIZE`] entries, each the `index` of a member.
///
/// Identical for the same members on any host and in any order. The identities
/// must differ from each other. Without a member of weight above 0, all entries are 0.
pub fn table(members: &[Member]) -> Box<[u16]> {
    let members = weighted(members);
    let mut walks: Vec<Walk> = members
        .iter()
        .map(|member| Walk::of(member.identity))
        .collect();
    let mut table = vec![0; TABLE_SIZE].into_boxed_slice();
    let mut claimed = Claimed::none();
    for rank in Turns::of(&members).take(TABLE_SIZE) {
        let walk = &mut walks[rank];
        while !claimed.claim(walk.position) {
            walk.advance();
        }
        table[walk.position] = members[rank].index;
    }
    table
}

/// The table of a scheduler that takes one entry after the other: the members'
/// turns as they come.
pub fn turns(members: &[Member]) -> Box<[u16]> {
    let members = weighted(members);
    let mut table = vec![0; TABLE_SIZE].into_boxed_slice();
    for (entry, rank) in table.iter_mut().zip(Turns::of(&members)) {
        *entry = members[rank].index;
    }
    table
}

/// The table of a scheduler that looks at each member: each once, in the first
/// entries.
pub fn roll(members: &[Member]) -> Box<[u16]> {
    let members = weighted(members);
    let mut table = vec![0; TABLE_SIZE].into_boxed_slice();
    for (entry, member) in table.iter_mut().zip(&members) {
        *entry = member.index;
    }
    table
}

/// How the program has the tables (`maglevs` in maps.h): each entry is the number
/// of a backend within its service, in as few bits as the largest service needs, and
/// behind the entries are the backends' indexes by these numbers. With more
/// than 256 backends the entries are the indexes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packing {
    /// Of an entry: 1, 2, 4, 8 or 16.
    pub bits: u32,
}

impl Packing {
    /// For services with so many backends at most.
    pub fn of(backends: usize) -> Packing {
        let narrow = [1, 2, 4, 8].into_iter();
        let bits = narrow.into_iter().find(|bits| backends <= 1 << bits);
        Packing {
            bits: bits.unwrap_or(u16::BITS),
        }
    }

    /// What all entries take.
    pub fn places_bytes(self) -> usize {
        (TABLE_SIZE * self.bits as usize).div_ceil(32) * size_of::<u32>()
    }

    /// The same with the indexes behind them.
    pub fn value_bytes(self) -> usize {
        let numbers = if self.has_list() { 1 << self.bits } else { 0 };
        self.places_bytes() + numbers * size_of::<u16>()
    }

    fn has_list(self) -> bool {
        self.bits < u16::BITS
    }

    /// The table of a service that has these backends, by their indexes. As long as
    /// it has them, the list stays as it is, so that the program may read it meanwhile.
    pub fn pack(self, table: &[u16], backends: &[u16]) -> Vec<u8> {
        let last = table.iter().max().copied().unwrap_or_default();
        let mut value = Vec::with_capacity(self.value_bytes());
        // Without a backend in it, all of it is 0, which is nobody's index.
        if last > 0 {
            let mut numbers: Vec<u16> = (0..=last).collect();
            if self.has_list() {
                for (index, number) in backends.iter().zip(0..) {
                    if let Some(place) = numbers.get_mut(usize::from(*index)) {
                        *place = number;
                    }
                }
            }
            for entries in table.chunks((u32::BITS / self.bits) as usize) {
                let word = entries.iter().rev().fold(0u32, |word, index| {
                    word << self.bits | u32::from(numbers[usize::from(*index)])
                });
                value.extend(word.to_ne_bytes());
            }
            if self.has_list() {
                value.extend(backends.iter().flat_map(|index| index.to_ne_bytes()));
            }
        }
        value.resize(self.value_bytes(), 0);
        value
    }
}

/// Those that get anything, in an order of their own.
fn weighted(members: &[Member]) -> Vec<Member> {
    let mut members: Vec<Member> = members
        .iter()
        .copied()
        .filter(|member| member.weight > 0)
        .collect();
    members.sort_unstable_by_key(|member| member.identity);
    members
}

/// The order in which a backend claims entries:
/// `scale * (j + shift)^3 + offset` modulo the table's size, for j = 0, 1, 2...
///
/// As the size is prime and 3 does not divide the size less 1, no two cubes
/// are equal, so that the walk visits every entry once. The third difference of
/// a cubic is constant, so that a step takes three additions.
struct Walk {
    position: usize,
    /// The first, second and third difference at `position`.
    differences: [usize; 3],
}

impl Walk {
    fn of(identity: SocketAddr) -> Walk {
        const SIZE: u64 = TABLE_SIZE as u64;
        let seed = hash(identity);
        let shift = mix(seed) % SIZE;
        let scale = mix(mix(seed)) % (SIZE - 1) + 1;
        let offset = mix(mix(mix(seed))) % SIZE;
        let mut values = [0, 1, 2, 3].map(|j| {
            let x = (j + shift) % SIZE;
            ((scale * (x * x % SIZE * x % SIZE) + offset) % SIZE) as usize
        });
        for order in 1..values.len() {
            for i in (order..values.len()).rev() {
                values[i] = sum(values[i], TABLE_SIZE - values[i - 1]);
            }
        }
        let [position, differences @ ..] = values;
        Walk {
            position,
            differences,
        }
    }

    fn advance(&mut self) {
        let [first, second, third] = &mut self.differences;
        self.position = sum(self.position, *first);
        *first = sum(*first, *second);
        *second = sum(*second, *third);
    }
}

/// The sum modulo [`TABLE_SIZE`] of two numbers of which one is below it, the other not above.
fn sum(a: usize, b: usize) -> usize {
    let sum = a + b;
    if sum >= TABLE_SIZE {
        sum - TABLE_SIZE
    } else {
        sum
    }
}

/// FNV-1a, 64 bits (draft-eastlake-fnv), over the address as 16 bytes (IPv4 as
/// `::ffff:a.b.c.d`, RFC 4291 section 2.5.5.2) and the port as 2, in network order.
fn hash(identity: SocketAddr) -> u64 {
    let address = match identity.ip() {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    let bytes = address
        .octets()
        .into_iter()
        .chain(identity.port().to_be_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// A step of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), for what FNV-1a
/// lacks: every bit of the result depends on every bit of the input.
fn mix(hash: u64) -> u64 {
    let z = hash.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A backend's next turn, at the time `halves / (2 * weight)`; of two at the
/// same time the lower rank comes first.
struct Turn {
    /// 0 for the first turn, 2k - 1 for the k-th.
    halves: u32,
    weight: u16,
    rank: usize,
}

/// The ranks of the members in the order of their turns, without end if there
/// is any.
enum Turns {
    /// One after the other, as equal weights have it: without a heap a table takes a sixth
    /// less time.
    Equal(Cycle<Range<usize>>),
    Unequal(BinaryHeap<Reverse<Turn>>),
}

impl Turns {
    fn of(members: &[Member]) -> Turns {
        if members.windows(2).all(|two| two[0].weight == two[1].weight) {
            return Turns::Equal((0..members.len()).cycle());
        }
        let first = members.iter().enumerate().map(|(rank, member)| {
            Reverse(Turn {
                halves: 0,
                weight: member.weight,
                rank,
            })
        });
        Turns::Unequal(first.collect())
    }
}

impl Iterator for Turns {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let turns = match self {
            Turns::Equal(ranks) => return ranks.next(),
            Turns::Unequal(turns) => turns,
        };
        let mut next = turns.peek_mut()?;
        let turn = &mut next.0;
        turn.halves = turn.halves.max(1) + 2;
        Some(turn.rank)
    }
}

impl Ord for Turn {
    fn cmp(&self, other: &Turn) -> Ordering {
        let ours = u64::from(self.halves) * u64::from(other.weight);
        let theirs = u64::from(other.halves) * u64::from(self.weight);
        ours.cmp(&theirs).then(self.rank.cmp(&other.rank))
    }
}

impl PartialOrd for Turn {
    fn partial_cmp(&self, other: &Turn) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Turn {
    fn eq(&self, other: &Turn) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Turn {}

/// One bit an entry: 8 KiB that stay in the first-level cache, where the
/// table itself would not.
struct Claimed(Box<[u64]>);

impl Claimed {
    fn none() -> Claimed {
        Claimed(vec![0; TABLE_SIZE.div_ceil(64)].into_boxed_slice())
    }

    /// Claims the entry; false if it was claimed before.
    fn claim(&mut self, position: usize) -> bool {
        let word = &mut self.0[position / 64];
        let bit = 1 << (position % 64);
        if *word & bit != 0 {
            return false;
        }
        *word |= bit;
        true
    }
}
