// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Several CPUs on the same few flows and ports. What each packet meets is up
//! to chance; what the tables hold in the end is not.

use std::collections::HashSet;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::thread;
use std::time::{Duration, Instant};

use xdp_proxy::abi::{OutcomeCode, flow};
use xdp_proxy::service::PortRanges;

use crate::common::exchange::*;
use crate::common::frame::*;
use crate::common::random::Random;
use crate::common::rig::*;
use crate::common::{cpus, pin, root_or_skip};

const FIRST_PORT: u16 = 2000;
const TIME: Duration = Duration::from_secs(2);
const THREADS: u64 = 4;
const CLIENTS_MAX: u32 = 100;
const BACKENDS: &[(&str, u16)] = &[("10.0.0.2:80", 1), ("10.0.0.3:80", 1)];

fn rig(ports: u16) -> Rig {
    let mut service = service("10.0.0.5:80", BACKENDS);
    service.source_ports = PortRanges::new(vec![FIRST_PORT..=FIRST_PORT + ports - 1]).unwrap();
    // Short, so that expiry takes its part.
    service.timeouts.unanswered = Duration::from_millis(20);
    service.timeouts.established = Duration::from_millis(40);
    service.timeouts.half_closed = Duration::from_millis(40);
    service.timeouts.closing = Duration::from_millis(10);
    Rig::new(&config(vec![service]), WHOLE)
}

/// What the clients and the backends of these flows may send, in any order.
fn frames(rig: &Rig, clients: u32, ports: u16) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for number in 0..clients {
        let connection = Exchange::new(rig, WEB, number);
        for flags in [SYN, SYN, SYN, ACK, PSH | ACK, FIN | ACK, RST] {
            frames.push(connection.client_frame(flags).bytes(Sum::Complete));
        }
    }
    for port in FIRST_PORT..FIRST_PORT + ports {
        for (backend, _) in BACKENDS {
            let path = Path {
                source: (SOURCE, port).into(),
                backend: backend.parse().unwrap(),
            };
            let connection = Exchange::new(rig, WEB, 0).with_path(path);
            for flags in [SYN | ACK, ACK, FIN | ACK, RST] {
                frames.push(connection.backend_frame(flags).bytes(Sum::Complete));
            }
        }
    }
    frames
}

/// Runs a packet; the harness's own way can't be shared by threads.
fn run(program: BorrowedFd<'_>, frame: &[u8], out: &mut [u8; 256]) -> (u32, usize) {
    let mut options = libbpf_sys::bpf_test_run_opts {
        sz: size_of::<libbpf_sys::bpf_test_run_opts>() as libbpf_sys::size_t,
        data_in: frame.as_ptr().cast(),
        data_size_in: frame.len() as u32,
        data_out: out.as_mut_ptr().cast(),
        data_size_out: out.len() as u32,
        ..Default::default()
    };
    // SAFETY: both buffers live across the call; the options carry their size.
    let error = unsafe { libbpf_sys::bpf_prog_test_run_opts(program.as_raw_fd(), &mut options) };
    assert_eq!(error, 0, "running a packet");
    (options.retval, options.data_size_out as usize)
}

/// Sends at random from all CPUs at a time, and sweeps, then looks at every table.
fn hammer(clients: u32, ports: u16) {
    let mut rig = rig(ports);
    let frames = frames(&rig, clients, ports);
    let program = rig.datapath.program_fd().unwrap();
    let cpus = cpus();
    let ran: u64 = thread::scope(|scope| {
        let work = |seed| {
            let (frames, program) = (&frames, program.as_fd());
            let cpu = cpus[seed as usize % cpus.len()];
            scope.spawn(move || {
                pin(cpu);
                let mut random = Random(seed + 1);
                let end = Instant::now() + TIME;
                let mut ran = 0;
                let mut out = [0; 256];
                while Instant::now() < end {
                    for _ in 0..100 {
                        let frame = &frames[random.below(frames.len())];
                        let (verdict, bytes) = run(program, frame, &mut out);
                        assert!((XDP_DROP..=XDP_TX).contains(&verdict));
                        // What was made of two records has no right sum.
                        let out = &out[..bytes];
                        if verdict == XDP_TX {
                            let wanted = segment_of(out).bytes(Sum::Complete);
                            assert_eq!(out, wanted, "of {frame:02x?}");
                        }
                    }
                    ran += 100;
                }
                ran
            })
        };
        let threads: Vec<_> = (0..THREADS).map(work).collect();
        while threads.iter().any(|thread| !thread.is_finished()) {
            rig.datapath.sweep().unwrap();
        }
        threads.into_iter().map(|t| t.join().unwrap()).sum()
    });
    rig.ran.set(ran);
    let counters = rig.counters();
    println!(
        "{ran} packets, {} dropped as races",
        counters.of(OutcomeCode::OUTCOME_DROPPED_RACE)
    );
    check_tables(&rig, ports);

    // And with everybody gone, every port is there again.
    thread::sleep(Duration::from_millis(100));
    rig.datapath.sweep().unwrap();
    assert_eq!(check_tables(&rig, ports), 0);
}

/// The flow's client gets through to its backend.
fn is_found(rig: &Rig, flow: &flow, port: u16) {
    let is_its = |number: &u32| {
        let client = Exchange::new(rig, WEB, *number).client;
        let IpAddr::V4(ip) = client.ip() else {
            return false;
        };
        flow.client[0] == u32::from(ip).to_be() && flow.client_port == client.port().to_be()
    };
    let number = (0..CLIENTS_MAX).find(is_its).expect("a client");
    let backend = rig.tables.backends[usize::from(flow.backend) - 1].backend;
    let path = Path {
        source: (SOURCE, port).into(),
        backend: backend.address,
    };
    Exchange::new(rig, WEB, number).with_path(path).forward(ACK);
}

/// How many flows there are, if every table agrees with every other.
fn check_tables(rig: &Rig, ports: u16) -> u64 {
    let waiting = rig.datapath.free_ports(0).unwrap();
    let distinct: HashSet<u16> = waiting.iter().copied().collect();
    assert_eq!(distinct.len(), waiting.len(), "a port waits twice");
    let mut alive = 0;
    let mut tuples = HashSet::new();
    for port in FIRST_PORT..FIRST_PORT + ports {
        let flow = rig.datapath.flow(0, port).unwrap();
        let waits = distinct.contains(&port);
        let lives = flow.family != 0 && flow.retired == 0;
        assert_ne!(waits, lives, "port {port}: waits or lives: {flow:?}");
        if lives {
            alive += 1;
            is_found(rig, &flow, port);
            assert!(
                tuples.insert((flow.client[0], flow.client_port)),
                "{flow:?}"
            );
        }
    }
    rig.unconfirmed();
    let counters = rig.counters();
    let flows: u64 = counters.backends.iter().map(|b| b.flows()).sum();
    assert_eq!(flows, alive, "flows begun less flows ended");
    alive
}

#[test]
fn cpus_that_share_few_clients_and_fewer_ports_agree_in_the_end() {
    if !root_or_skip("cpus_that_share_few_clients_and_fewer_ports_agree_in_the_end") {
        return;
    }
    hammer(4, 3);
}

#[test]
fn cpus_that_share_many_clients_and_ports_agree_in_the_end() {
    if !root_or_skip("cpus_that_share_many_clients_and_ports_agree_in_the_end") {
        return;
    }
    hammer(CLIENTS_MAX, 40);
}
