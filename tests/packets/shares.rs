// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Who gets how many of the flows.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};

use xdp_proxy::service::Service;

use crate::common::exchange::*;
use crate::common::random::{Random, at_most};
use crate::common::rig::*;
use crate::common::root_or_skip;

const CLIENTS: usize = 20_000;

fn weighted(weights: &[u16]) -> Service {
    let names: Vec<String> = (2..)
        .map(|n| format!("10.0.0.{n}:80"))
        .take(weights.len())
        .collect();
    let backends: Vec<(&str, u16)> = names
        .iter()
        .map(String::as_str)
        .zip(weights.iter().copied())
        .collect();
    service("10.0.0.5:80", &backends)
}

#[test]
fn shares_of_20000_random_clients_are_within_3_percent_of_the_weights() {
    if !root_or_skip("shares_of_20000_random_clients_are_within_3_percent_of_the_weights") {
        return;
    }
    let clients = at_most(CLIENTS);
    // Of fewer clients, chance takes a larger part: by the root.
    let tolerance = 0.03 * (CLIENTS as f64 / clients as f64).sqrt();
    for weights in [&[1, 1][..], &[1, 2, 3], &[5, 0, 5]] {
        let rig = Rig::new(&config(vec![weighted(weights)]), WHOLE);
        let mut random = Random(3);
        for _ in 0..clients {
            // A host's address: none of 0/8, 127/8 and 224/3.
            let ip = 1 << 24 | random.word() as u32 & 0x3fff_ffff;
            let mut connection = Exchange::new(&rig, WEB, 0);
            connection.client = (Ipv4Addr::from(ip), random.word() as u16 | 1).into();
            assert!(connection.try_syn());
        }
        let total: u16 = weights.iter().sum();
        for (backend, weight) in rig.counters().backends.iter().zip(weights) {
            let wanted = clients as f64 * f64::from(*weight) / f64::from(total);
            let got = backend.flows_begun as f64;
            println!("weights {weights:?}: {got} flows, {wanted:.0} by weight");
            assert!(
                (got - wanted).abs() <= tolerance * wanted,
                "{got} is not {wanted}"
            );
        }
    }
}

#[test]
fn the_same_client_gets_the_same_backend_on_every_load_balancer() {
    if !root_or_skip("the_same_client_gets_the_same_backend_on_every_load_balancer") {
        return;
    }
    let mut chosen: BTreeMap<u32, SocketAddr> = BTreeMap::new();
    for hash_seed in [1, 2, u64::MAX] {
        let settings = xdp_proxy::datapath::Settings { hash_seed, ..WHOLE };
        let rig = Rig::new(&config(vec![weighted(&[1, 2, 3])]), settings);
        for number in 0..500 {
            let mut connection = Exchange::new(&rig, WEB, number);
            connection.open();
            let backend = connection.path().backend;
            assert_eq!(*chosen.entry(number).or_insert(backend), backend);
        }
    }
}

/// Needs no program, and so no root.
#[test]
fn the_same_configuration_gives_the_same_look_up_table_on_any_host() {
    let bytes = || -> Vec<u8> {
        let table = tables(&config(vec![weighted(&[1, 2, 3])])).maglev(0);
        table.iter().flat_map(|entry| entry.to_le_bytes()).collect()
    };
    assert_eq!(bytes(), bytes());
    // FNV-1a, as it was computed on the first host.
    let sum = bytes().iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    assert_eq!(sum, 0x7d89_b696_9f5c_f68c, "{sum:#x}");
}
