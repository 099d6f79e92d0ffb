// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Every connection has one backend, and the backends their shares.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use crate::common::http::Connection;
use crate::common::lab::{LB, Lab};

const CONNECTIONS: usize = 20_000;
/// Connections at a time.
const THREADS: usize = 32;
/// Of a share, from its weight: four standard deviations at 20,000 connections
/// are 0.014.
const TOLERANCE: f64 = 0.03;

/// Opens, uses twice and closes connections; returns how many each host answered.
fn use_connections(lab: &Lab) -> BTreeMap<String, usize> {
    let left = AtomicUsize::new(CONNECTIONS);
    let take = || left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
    let work = || {
        let mut answers: BTreeMap<String, usize> = BTreeMap::new();
        while take().is_ok() {
            let mut connection = Connection::open(LB).unwrap();
            let host = connection.host().unwrap();
            assert_eq!(
                connection.host().unwrap(),
                host,
                "one connection, two backends"
            );
            *answers.entry(host).or_default() += 1;
        }
        answers
    };
    let mut all = BTreeMap::new();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|_| scope.spawn(|| lab.within("client", work)))
            .collect();
        for thread in threads {
            for (host, count) in thread.join().unwrap() {
                *all.entry(host).or_default() += count;
            }
        }
    });
    all
}

fn shares_follow(lab: &Lab, weights: [u32; 2]) {
    let lb = lab.balance(&format!(
        "--listen 10.0.0.5:80 --backend 10.0.0.2,weight={} --backend 10.0.0.3:80,weight={}",
        weights[0], weights[1]
    ));
    // Ports of closed connections rest: with few others left, finding one is slow.
    let range = "net.ipv4.ip_local_port_range=1024 65535";
    let widened = lab
        .command("client", "sysctl")
        .args(["-qw", range])
        .status();
    assert!(widened.unwrap().success());
    let start = Instant::now();
    let answers = use_connections(lab);
    println!(
        "weights {weights:?}: {answers:?} of {CONNECTIONS} connections in {:.1?}",
        start.elapsed()
    );
    assert_eq!(answers.values().sum::<usize>(), CONNECTIONS);
    let sum = f64::from(weights[0] + weights[1]);
    for (host, weight) in ["http1", "http2"].into_iter().zip(weights) {
        let share = answers[host] as f64 / CONNECTIONS as f64;
        let expected = f64::from(weight) / sum;
        assert!((share - expected).abs() < TOLERANCE, "{host}: {share}");
    }
    let status = lab.status();
    let service = &status["services"][0];
    assert_eq!(service["flows_begun"], CONNECTIONS, "{status:#}");
    for (backend, host) in ["http1", "http2"].into_iter().enumerate() {
        assert_eq!(service["backends"][backend]["flows_begun"], answers[host]);
    }
    let nobody = lb.until("without flows", |status| {
        status["services"][0]["flows"] == 0
    });
    println!("no flow was left {nobody:.1?} after the last connection");
    lb.end();
}

#[test]
fn twenty_thousand_connections_with_equal_weights() {
    if let Some(lab) = crate::lab_alone("twenty_thousand_connections_with_equal_weights") {
        shares_follow(&lab, [1, 1]);
    }
}

#[test]
fn twenty_thousand_connections_with_weights_of_three_to_one() {
    if let Some(lab) = crate::lab_alone("twenty_thousand_connections_with_weights_of_three_to_one")
    {
        shares_follow(&lab, [3, 1]);
    }
}
