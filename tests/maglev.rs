// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! What the look-up tables promise: shares, small disruption, the same bytes everywhere.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use xdp_proxy::maglev::{Member, Packing, TABLE_SIZE, table};

/// Members with the weights given, at addresses that follow from the seed and
/// the position; the first has index 1.
fn members(seed: u16, weights: &[u16]) -> Vec<Member> {
    let [high, low] = seed.to_be_bytes();
    let member = |(i, &weight): (usize, &u16)| {
        let host = Ipv4Addr::from_bits(Ipv4Addr::new(10, high, low, 0).to_bits() + i as u32);
        Member {
            identity: SocketAddr::from((host, 80)),
            weight,
            index: i as u16 + 1,
        }
    };
    weights.iter().enumerate().map(member).collect()
}

/// How many entries each index has.
fn entries(table: &[u16]) -> Vec<usize> {
    let mut entries = vec![0; usize::from(*table.iter().max().unwrap()) + 1];
    table
        .iter()
        .for_each(|&index| entries[usize::from(index)] += 1);
    entries
}

/// The part of the other backends' entries that move when the member leaves.
fn disruption(members: &[Member], leaver: usize) -> f64 {
    let gone = members[leaver].index;
    let rest: Vec<Member> = members
        .iter()
        .copied()
        .filter(|m| m.index != gone)
        .collect();
    let before = table(members);
    let after = table(&rest);
    let others = before.iter().filter(|&&index| index != gone).count();
    let moved = before
        .iter()
        .zip(&after)
        .filter(|(old, new)| **old != gone && old != new)
        .count();
    moved as f64 / others as f64
}

/// FNV-1a over the table's entries in network order.
fn digest(table: &[u16]) -> u64 {
    table
        .iter()
        .flat_map(|index| index.to_be_bytes())
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        })
}

#[test]
fn no_member_with_a_weight_leaves_every_entry_zero() {
    assert!(table(&[]).iter().all(|&index| index == 0));
    assert!(table(&members(0, &[0, 0])).iter().all(|&index| index == 0));
    assert_eq!(table(&[]).len(), TABLE_SIZE);
}

#[test]
fn a_single_member_has_every_entry() {
    assert!(table(&members(0, &[3])).iter().all(|&index| index == 1));
}

#[test]
fn a_member_of_weight_zero_has_no_entry_and_changes_no_other() {
    let three = table(&members(0, &[1, 2, 0]));
    assert_eq!(entries(&three).len(), 3);
    assert_eq!(three, table(&members(0, &[1, 2])));
}

#[test]
fn the_port_is_part_of_the_identity() {
    let walk = |port| {
        let identity = SocketAddr::from(([10, 0, 0, 1], port));
        let rival = SocketAddr::from(([10, 0, 0, 2], 80));
        table(&[
            Member {
                identity,
                weight: 1,
                index: 1,
            },
            Member {
                identity: rival,
                weight: 1,
                index: 2,
            },
        ])
    };
    assert_ne!(walk(80), walk(81));
}

#[test]
fn the_tables_are_the_ones_they_have_always_been() {
    assert_eq!(digest(&table(&members(0, &[1, 1]))), 0xf9ce_e35e_bf5d_dff2);
    assert_eq!(
        digest(&table(&members(7, &[1, 2, 3, 256, 5]))),
        0xfb21_da85_0f73_b99b
    );
    let v6 = Member {
        identity: "[2001:db8::5]:443".parse().unwrap(),
        weight: 2,
        index: 9,
    };
    assert_eq!(
        digest(&table(&[members(0, &[1])[0], v6])),
        0xb64f_0fad_2e73_0cc2
    );
}

/// What the program reads of a packed table: the index in a place.
fn unpacked(packing: Packing, value: &[u8], place: usize) -> u16 {
    let bit = place * packing.bits as usize;
    let word = value[bit / 32 * 4..][..4].try_into().unwrap();
    let number = u32::from_ne_bytes(word) >> (bit % 32) & ((1 << packing.bits) - 1);
    if packing.bits == 16 {
        return number as u16;
    }
    let index = &value[packing.places_bytes() + 2 * number as usize..][..2];
    u16::from_ne_bytes(index.try_into().unwrap())
}

#[test]
fn a_packed_table_leads_to_the_same_backends_in_as_few_bits_as_tell_them_apart() {
    for (backends, bits) in [
        (1, 1),
        (2, 1),
        (3, 2),
        (4, 2),
        (5, 4),
        (16, 4),
        (17, 8),
        (256, 8),
        (257, 16),
        (3000, 16),
    ] {
        let mut members = members(0, &vec![1; backends]);
        for (member, index) in members.iter_mut().zip((1..=65_000).rev().step_by(21)) {
            member.index = index;
        }
        let indexes: Vec<u16> = members.iter().map(|member| member.index).collect();
        let packing = Packing::of(backends);
        assert_eq!(packing.bits, bits);
        // Some that get no flows are in no place, but have their numbers.
        for takers in [backends, backends.div_ceil(2), 0] {
            let table = table(&members[backends - takers..]);
            let value = packing.pack(&table, &indexes);
            assert_eq!(value.len(), packing.value_bytes());
            for (place, index) in table.iter().enumerate() {
                assert_eq!(unpacked(packing, &value, place), *index, "place {place}");
            }
        }
    }
}

#[test]
fn at_most_one_entry_in_a_hundred_of_the_others_moves_when_one_of_n_leaves() {
    let mut worst = 0f64;
    for n in [2, 3, 4, 5, 7, 10, 16, 25, 50, 75, 100] {
        let weightings: [fn(usize) -> u16; 4] = [
            |_| 1,
            |i| i as u16 % 5 + 1,
            |i| if i % 3 == 0 { 100 } else { 1 },
            |i| (i * 97 % 256) as u16 + 1,
        ];
        for weight in weightings {
            let members = members(n as u16, &(0..n).map(weight).collect::<Vec<u16>>());
            for leaver in (0..n).step_by(n.div_ceil(8)) {
                let moved = disruption(&members, leaver);
                assert!(
                    moved <= 0.01,
                    "{:.3} % moved: {leaver} of {n} left",
                    100.0 * moved
                );
                worst = worst.max(moved);
            }
        }
    }
    println!("worst: {:.3} %", 100.0 * worst);
}

/// Generous, so that a busy machine does not fail it: expected are below 1 ms and 10 ms.
#[test]
fn tables_are_made_fast() {
    for (n, limit) in [
        (2, Duration::from_millis(20)),
        (1000, Duration::from_millis(300)),
    ] {
        let members = members(0, &vec![1; n]);
        let best = (0..10)
            .map(|_| {
                let start = Instant::now();
                std::hint::black_box(table(&members));
                start.elapsed()
            })
            .min()
            .unwrap();
        println!("{n} backends: {best:?}");
        assert!(best < limit, "{n} backends: {best:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn shares_follow_the_weights(seed: u16, weights in prop::collection::vec(1u16..=256, 1..100)) {
        let table = table(&members(seed, &weights));
        let total: f64 = weights.iter().map(|&weight| f64::from(weight)).sum();
        let entries = entries(&table);
        for (i, &weight) in weights.iter().enumerate() {
            let quota = TABLE_SIZE as f64 * f64::from(weight) / total;
            let error = (entries[i + 1] as f64 - quota).abs();
            prop_assert!(error <= 2.0, "weight {weight}: {} entries for {quota}", entries[i + 1]);
        }
    }

    #[test]
    fn shares_of_few_backends_with_small_weights_are_within_one_percent(
        seed: u16, weights in prop::collection::vec(1u16..=10, 1..=32),
    ) {
        let table = table(&members(seed, &weights));
        let total: f64 = weights.iter().map(|&weight| f64::from(weight)).sum();
        for (i, &weight) in weights.iter().enumerate() {
            let quota = TABLE_SIZE as f64 * f64::from(weight) / total;
            prop_assert!((entries(&table)[i + 1] as f64 / quota - 1.0).abs() <= 0.01);
        }
    }

    #[test]
    fn others_keep_their_entries_when_one_leaves(
        seed: u16, weights in prop::collection::vec(1u16..=256, 2..=100), leaver: prop::sample::Index,
    ) {
        let moved = disruption(&members(seed, &weights), leaver.index(weights.len()));
        prop_assert!(moved <= 0.01, "{:.3} % moved", 100.0 * moved);
    }

    #[test]
    fn the_order_of_the_members_does_not_matter(
        (ordered, shuffled) in prop::collection::vec(0u16..=256, 1..100)
            .prop_map(|weights| members(0, &weights))
            .prop_flat_map(|members| (Just(members.clone()), Just(members).prop_shuffle())),
    ) {
        prop_assert_eq!(table(&ordered), table(&shuffled));
    }
}
