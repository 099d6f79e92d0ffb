// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Floods from forged addresses, and those who were there before them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use xdp_proxy::service::Protocol;

use crate::common::beside;
use crate::common::echo::make_room;
use crate::common::frame::{ACK, Frame, SYN, Sum, set_flags};
use crate::common::http::Connection;
use crate::common::lab::{LB, Lab, TWO};
use crate::common::random::Random;
use crate::common::wire::{Wire, mac};

const FLOWS: usize = 10_000;
/// Clients that come while it lasts, and after it.
const VISITS: usize = 100;
/// What the flood is made of, at most so much in a second.
const FRAMES: usize = 800_000;
const FRAMES_A_SECOND: f64 = 100_000.0;
/// Frames of one system call.
const BATCH: usize = 256;
const THREADS: usize = 8;
/// A client that comes after the flood is served within this.
const WELCOME: Duration = Duration::from_secs(5);

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

/// Sends pairs of frames, each pair from an address of its own, no faster than agreed;
/// returns how long that took.
fn flood(lab: &Lab, pair: impl Fn(SocketAddr, u64) -> [Frame; 2]) -> Duration {
    let wire = lab.within("client", Wire::open);
    let mut random = Random(3);
    let start = Instant::now();
    for batch in 0..FRAMES / BATCH {
        let pairs = (0..BATCH / 2).map(|_| pair(forged(&mut random), random.word()));
        let frames: Vec<Vec<u8>> = pairs.flatten().map(|f| f.bytes(Sum::Complete)).collect();
        wire.send(&frames);
        let due = Duration::from_secs_f64((batch * BATCH) as f64 / FRAMES_A_SECOND);
        std::thread::sleep(due.saturating_sub(start.elapsed()));
    }
    start.elapsed()
}

/// A SYN, and an ACK of any number, blindly.
fn syn_and_ack(macs: ([u8; 6], [u8; 6]), from: SocketAddr, random: u64) -> [Frame; 2] {
    let vip = SocketAddr::new(LB.parse().unwrap(), 80);
    [SYN, ACK].map(|flags| {
        let mut frame = Frame::new(Protocol::Tcp, macs, from, vip);
        set_flags(frame.tcp(), flags);
        frame.tcp().window_size = 64_240;
        frame.tcp().sequence_number = random as u32;
        if flags == ACK {
            frame.tcp().sequence_number = (random as u32).wrapping_add(1);
            frame.tcp().acknowledgment_number = (random >> 32) as u32;
        }
        frame
    })
}

/// A new client's whole visit; how long it took to be served.
fn visit(patience: Duration) -> Option<Duration> {
    let start = Instant::now();
    let mut connection = Connection::open_within(LB, patience).ok()?;
    connection.host().ok()?;
    Some(start.elapsed())
}

/// A process may open many files.
fn open_many_files() {
    let enough = FLOWS as u64 + 1000;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    if soft < enough {
        setrlimit(Resource::RLIMIT_NOFILE, enough, hard.max(enough)).unwrap();
    }
}

/// A client has this many ports.
fn widen_ports(lab: &Lab) {
    let range = "net.ipv4.ip_local_port_range=1024 65535";
    let widened = lab
        .command("client", "sysctl")
        .args(["-qw", range])
        .status();
    assert!(widened.unwrap().success());
}

/// New clients, one after the other, some while it lasts; how many were served of how many.
fn visits(over: &AtomicBool, visit: impl Fn() -> bool) -> (usize, usize) {
    let (mut visits, mut served) = (0, 0);
    while !over.load(Ordering::Relaxed) {
        visits += 1;
        served += usize::from(visit());
    }
    (visits, served)
}

#[test]
fn a_blind_flood_of_handshakes_ends_no_connection_and_keeps_nobody_out() {
    let test = "a_blind_flood_of_handshakes_ends_no_connection_and_keeps_nobody_out";
    let Some(lab) = crate::lab_alone(test) else {
        return;
    };
    open_many_files();
    let lb = lab.balance(TWO);
    widen_ports(&lab);
    let mut flows = open_flows(&lab);
    let macs = (mac(&lab, "client"), mac(&lab, "lb"));

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
        lab.within("client", || {
            visits(over, || visit(Duration::from_secs(3)).is_some())
        })
    };
    let ((requests, lost_busy), ((visits, welcomes), took)) = beside(use_busy_ones, || {
        beside(visit_anew, || {
            flood(&lab, |from, random| syn_and_ack(macs, from, random))
        })
    });
    let after: Vec<_> = lab.within("client", || (0..VISITS).map(|_| visit(WELCOME)).collect());
    let idle_left = idle.iter_mut().map(served).filter(|served| *served).count();
    let lost_idle = idle.len() - idle_left;
    println!(
        "{FRAMES} frames in {took:.1?}: of {FLOWS} flows {lost_busy} busy ones and {lost_idle} idle ones \
         were lost; {requests} requests meanwhile; {welcomes} of {visits} new clients were served \
         meanwhile"
    );
    println!(
        "after it the slowest of {VISITS} new clients was served after {:?}",
        after.iter().max()
    );
    println!("{}", lab.at("lb", "/run/xdp-proxy status"));
    let begun = lab.status()["services"][0]["flows_begun"].as_u64().unwrap();
    assert!(
        begun as usize > FRAMES / 2 * 9 / 10,
        "the flood came to {begun} flows"
    );
    assert_eq!(lost_busy + lost_idle, 0);
    assert!(welcomes * 100 >= visits * 95, "{welcomes} of {visits}");
    assert!(after.iter().all(Option::is_some), "{after:?}");
    lb.end();
}

const UDP: &str = "
[[service]]
listen = '10.0.0.5:53/udp'
health = { type = 'none' }
backend = [{ address = '10.0.0.2' }, { address = '10.0.0.3' }]
";

/// A socket that has sent to the service; each datagram is answered by its source, as the
/// backend sees it.
struct Caller {
    socket: UdpSocket,
    seen_as: Option<SocketAddr>,
}

impl Caller {
    fn new() -> Caller {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect((LB, 53)).unwrap();
        let patience = Duration::from_secs(1);
        socket.set_read_timeout(Some(patience)).unwrap();
        Caller {
            socket,
            seen_as: None,
        }
    }

    /// As whom the backend sees it, asked up to three times, as a resolver does.
    fn ask(&self) -> Option<SocketAddr> {
        let mut answer = [0; 64];
        (0..3).find_map(|_| {
            self.socket.send(b"who").unwrap();
            let length = self.socket.recv(&mut answer).ok()?;
            std::str::from_utf8(&answer[..length]).ok()?.parse().ok()
        })
    }

    /// One datagram; whatever was answered to earlier ones is thrown away.
    fn call(&self) {
        self.socket.send(b"who").unwrap();
        self.socket.set_nonblocking(true).unwrap();
        while self.socket.recv(&mut [0; 64]).is_ok() {}
        self.socket.set_nonblocking(false).unwrap();
    }
}

/// Tells each who asks as whom it sees him; on threads of its own, until it is over.
fn tell_sources(socket: &UdpSocket, over: &AtomicBool) {
    let mut datagram = [0; 64];
    while !over.load(Ordering::Relaxed) {
        if let Ok((_, from)) = socket.recv_from(&mut datagram) {
            let _ = socket.send_to(from.to_string().as_bytes(), from);
        }
    }
}

/// Flows that send every two seconds, until it is over.
fn keep_calling(callers: &[Caller], over: &AtomicBool) {
    let start = Instant::now();
    for number in 0.. {
        if over.load(Ordering::Relaxed) {
            return;
        }
        callers[number % callers.len()].call();
        let due = Duration::from_secs(2) * number as u32 / callers.len() as u32;
        std::thread::sleep(due.saturating_sub(start.elapsed()));
    }
}

#[test]
fn a_blind_flood_of_datagrams_ends_no_flow_and_keeps_nobody_out() {
    let test = "a_blind_flood_of_datagrams_ends_no_flow_and_keeps_nobody_out";
    let Some(lab) = crate::lab_alone(test) else {
        return;
    };
    open_many_files();
    let config = lab.write("udp.toml", UDP);
    let lb = lab.balance(&format!("-c {config}"));
    widen_ports(&lab);
    let servers = ["http1", "http2"].map(|host| {
        let bind = || UdpSocket::bind("0.0.0.0:53").unwrap();
        let socket = lab.within(host, bind);
        make_room(&socket);
        let patience = Some(Duration::from_millis(50));
        socket.set_read_timeout(patience).unwrap();
        socket
    });
    let macs = (mac(&lab, "client"), mac(&lab, "lb"));
    let vip: SocketAddr = (LB.parse::<IpAddr>().unwrap(), 53).into();
    let twice = |from: SocketAddr, _: u64| {
        let mut frame = Frame::new(Protocol::Udp, macs, from, vip);
        frame.payload = b"who".to_vec();
        [frame.clone(), frame]
    };

    let serve = |over: &AtomicBool| {
        std::thread::scope(|scope| {
            for socket in &servers {
                scope.spawn(|| tell_sources(socket, over));
            }
        });
    };
    let attack = || {
        let mut callers = lab.within("client", || {
            (0..FLOWS).map(|_| Caller::new()).collect::<Vec<_>>()
        });
        let whole = callers.len();
        for caller in &mut callers {
            caller.seen_as = caller.ask();
        }
        // What comes a second and more after the first confirms the flow.
        std::thread::sleep(Duration::from_millis(1100));
        for caller in &mut callers {
            caller.seen_as = caller.ask();
        }
        callers.retain(|caller| caller.seen_as.is_some());
        assert_eq!(callers.len(), whole, "all are served while it is quiet");
        let go_on = |over: &AtomicBool| {
            std::thread::scope(|scope| {
                for part in callers.chunks(whole / 2) {
                    scope.spawn(|| keep_calling(part, over));
                }
            });
        };
        let visit_anew = |over: &AtomicBool| {
            lab.within("client", || visits(over, || Caller::new().ask().is_some()))
        };
        let ((), ((visits, welcomes), took)) =
            beside(go_on, || beside(visit_anew, || flood(&lab, twice)));
        std::thread::sleep(Duration::from_secs(1));
        let is_lost = |caller: &&Caller| {
            caller.socket.set_nonblocking(true).unwrap();
            while caller.socket.recv(&mut [0; 64]).is_ok() {}
            caller.socket.set_nonblocking(false).unwrap();
            caller.ask() != caller.seen_as
        };
        let lost = callers.iter().filter(is_lost).count();
        let after = lab.within("client", || {
            (0..VISITS)
                .filter(|_| Caller::new().ask().is_some())
                .count()
        });
        println!(
            "{FRAMES} datagrams in {took:.1?}: of {FLOWS} flows {lost} were lost; {welcomes} of \
             {visits} new clients were served meanwhile, {after} of {VISITS} after it"
        );
        println!("{}", lab.at("lb", "/run/xdp-proxy status"));
        let begun = lab.status()["services"][0]["flows_begun"].as_u64().unwrap();
        assert!(
            begun as usize > FRAMES / 2 * 9 / 10,
            "the flood came to {begun} flows"
        );
        assert_eq!((lost, after), (0, VISITS));
        assert!(welcomes * 100 >= visits * 95, "{welcomes} of {visits}");
    };
    beside(serve, attack);
    lb.end();
}
