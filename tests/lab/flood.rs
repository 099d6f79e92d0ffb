// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! A flood of SYNs from forged addresses, and those who were there before it.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use xdp_proxy::service::Protocol;

use crate::common::beside;
use crate::common::frame::{Frame, Sum};
use crate::common::http::Connection;
use crate::common::lab::{LB, Lab, TWO};
use crate::common::random::Random;
use crate::common::wire::{Wire, mac};

const FLOWS: usize = 10_000;
const SYNS: usize = 1_000_000;
/// SYNs of one system call.
const BATCH: usize = 256;
const THREADS: usize = 8;
/// A client that comes after the flood is served within this.
const WELCOME: Duration = Duration::from_secs(5);
const NEW_CLIENTS: usize = 50;

/// Connections of which each was answered once.
fn open_flows(lab: &Lab) -> Vec<Connection> {
    let open = || {
        let connection = |_| {
            let mut connection = Connection::open(LB).unwrap();
            connection.host().unwrap();
            connection
        };
        (0..FLOWS / THREADS).map(connection).collect::<Vec<_>>()
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|_| scope.spawn(|| lab.within("client", open)))
            .collect();
        let opened = threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap());
        opened.collect()
    })
}

/// An address that is no host's here.
fn forged(random: &mut Random) -> SocketAddr {
    loop {
        let word = random.word();
        let address = Ipv4Addr::from(word as u32);
        let port = (word >> 32) as u16;
        if !matches!(address.octets()[0], 0 | 10 | 127 | 224..) && port != 0 {
            return SocketAddr::new(address.into(), port);
        }
    }
}

/// Sends all the SYNs; returns how long that took.
fn flood(lab: &Lab) -> Duration {
    let (from, to) = (mac(lab, "client"), mac(lab, "lb"));
    let wire = lab.within("client", Wire::open);
    let vip: SocketAddr = "10.0.0.5:80".parse().unwrap();
    let mut random = Random(3);
    let mut syn = Frame::new(Protocol::Tcp, (from, to), vip, vip);
    syn.tcp().syn = true;
    syn.tcp().window_size = 64_240;
    let start = Instant::now();
    for _ in 0..SYNS / BATCH {
        let frames: Vec<_> = (0..BATCH)
            .map(|_| {
                syn.set_ends(forged(&mut random), vip);
                syn.tcp().sequence_number = random.word() as u32;
                syn.bytes(Sum::Complete)
            })
            .collect();
        wire.send(&frames);
    }
    start.elapsed()
}

/// A new client's whole visit; how long it took to be served.
fn visit(patience: Duration) -> Option<Duration> {
    let start = Instant::now();
    let mut connection = Connection::open_within(LB, patience).ok()?;
    connection.host().ok()?;
    Some(start.elapsed())
}

#[test]
fn a_flood_of_forged_syns_ends_no_connection_and_keeps_nobody_out_for_long() {
    let test = "a_flood_of_forged_syns_ends_no_connection_and_keeps_nobody_out_for_long";
    let Some(lab) = crate::lab_alone(test) else {
        return;
    };
    let enough = FLOWS as u64 + 1000;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    if soft < enough {
        setrlimit(Resource::RLIMIT_NOFILE, enough, hard.max(enough)).unwrap();
    }
    let lb = lab.balance(TWO);
    let range = "net.ipv4.ip_local_port_range=1024 65535";
    let widened = lab
        .command("client", "sysctl")
        .args(["-qw", range])
        .status();
    assert!(widened.unwrap().success());
    let start = Instant::now();
    let mut flows = open_flows(&lab);
    println!("{FLOWS} flows opened in {:.1?}", start.elapsed());

    let (busy, idle) = flows.split_at_mut(FLOWS / 2);
    let served = |connection: &mut Connection| connection.host().is_ok();
    let use_busy_ones = |over: &AtomicBool| {
        let (mut dead, mut requests) = (vec![false; busy.len()], 0);
        while !over.load(Ordering::Relaxed) {
            let next = requests % busy.len();
            dead[next] |= !served(&mut busy[next]);
            requests += 1;
        }
        // Each once more, now that it is quiet.
        let live = busy.iter_mut().zip(dead).filter(|(_, dead)| !dead);
        let left = live
            .map(|(flow, _)| served(flow))
            .filter(|served| *served)
            .count();
        (requests, busy.len() - left)
    };
    let visit_anew = |over: &AtomicBool| {
        let (mut visits, mut welcomes) = (0, 0);
        lab.within("client", || {
            while !over.load(Ordering::Relaxed) {
                visits += 1;
                welcomes += usize::from(visit(Duration::from_secs(1)).is_some());
            }
        });
        (visits, welcomes)
    };
    let ((requests, lost_busy), ((visits, welcomes), took)) =
        beside(use_busy_ones, || beside(visit_anew, || flood(&lab)));
    let after: Vec<_> = lab.within("client", || {
        (0..NEW_CLIENTS).map(|_| visit(WELCOME)).collect()
    });
    let idle_left = idle.iter_mut().map(served).filter(|served| *served).count();
    let lost_idle = idle.len() - idle_left;
    println!(
        "{SYNS} SYNs in {took:.1?}: of {FLOWS} flows {lost_busy} busy ones and {lost_idle} idle ones \
         were lost; {requests} requests meanwhile; {welcomes} of {visits} new clients were served \
         meanwhile"
    );
    println!(
        "after it the slowest of {NEW_CLIENTS} new clients was served after {:?}",
        after.iter().max()
    );
    println!("{}", lab.at("lb", "/run/xdp-proxy status"));
    let begun = lab.status()["services"][0]["flows_begun"].as_u64().unwrap();
    assert!(
        begun as usize > SYNS * 9 / 10,
        "the flood came to {begun} flows"
    );
    assert!((lost_busy + lost_idle) * 1000 <= FLOWS);
    assert!(after.iter().all(Option::is_some), "{after:?}");
    lb.end();
}
