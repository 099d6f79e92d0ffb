// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Several source addresses: as many flows to one backend as all of their ports.

use std::collections::{BTreeMap, HashSet};
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};

use crate::common::beside;
use crate::common::lab::Lab;

/// Addresses of the client, each with a flow from each of the ports.
const CLIENTS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 0, 0, 4), Ipv4Addr::new(10, 0, 0, 44)];
const FIRST_PORT: u16 = 10_000;
const PORTS: u16 = 50_000;
const FLOWS: usize = CLIENTS.len() * PORTS as usize;
/// Sockets that the client has open at a time.
const BATCH: usize = 512;
/// One lost datagram is sent again after this.
const HASTE: Duration = Duration::from_millis(200);
const TRIES: usize = 20;
const BACKEND: &str = "10.0.0.2:9000";
const SERVICE: &str = "10.0.0.5:9000";
const CONFIG: &str = r#"
[[service]]
listen = "10.0.0.5:9000/udp"
source = ["10.0.0.10", "10.0.0.11"]
source_ports = "1024-65535"
timeouts = { unanswered = "1h", established = "1h" }
[[service.backend]]
address = "10.0.0.2"
"#;

/// Answers each datagram with itself until all is over; where each flow, whose number
/// the datagram is, came from.
fn answer_all(socket: &UdpSocket, over: &AtomicBool) -> Vec<Option<SocketAddr>> {
    let mut seen: Vec<Option<SocketAddr>> = vec![None; FLOWS];
    let mut datagram = [0; 4];
    while !over.load(Ordering::Relaxed) {
        let (length, from) = match socket.recv_from(&mut datagram) {
            Ok(received) => received,
            Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
            Err(error) => panic!("receiving: {error}"),
        };
        assert_eq!(length, datagram.len());
        let number = u32::from_be_bytes(datagram) as usize;
        let known = *seen[number].get_or_insert(from);
        assert_eq!(from, known, "flow {number} comes from somewhere else now");
        socket.send_to(&datagram, from).unwrap();
    }
    seen
}

/// The client's end of a flow; another one of the same flow may be closed before.
fn client_end(number: usize) -> UdpSocket {
    let port = FIRST_PORT + (number / CLIENTS.len()) as u16;
    let socket = UdpSocket::bind((CLIENTS[number % CLIENTS.len()], port)).unwrap();
    socket.connect(SERVICE).unwrap();
    socket.set_read_timeout(Some(HASTE)).unwrap();
    socket
}

/// Sends a flow's number by each socket and takes the answers; how many
/// datagrams were sent again.
fn exchange(sockets: &[(usize, UdpSocket)]) -> usize {
    let send = |(number, socket): &(usize, UdpSocket)| {
        socket.send(&(*number as u32).to_be_bytes()).unwrap();
    };
    let mut again = 0;
    sockets.iter().for_each(send);
    for flow in sockets {
        let (number, socket) = flow;
        let mut answer = [0; 4];
        let answered = (0..TRIES).any(|_| match socket.recv(&mut answer) {
            Ok(_) => true,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock, "flow {number}");
                again += 1;
                send(flow);
                false
            }
        });
        assert!(answered, "flow {number} is not answered");
        assert_eq!(u32::from_be_bytes(answer) as usize, *number);
    }
    again
}

/// A datagram of each flow in turn, and its answer.
fn every_flow(lab: &Lab, flows: &[usize]) -> usize {
    let started = Instant::now();
    let again = lab.within("client", || {
        let batches = flows.chunks(BATCH).map(|numbers| {
            let sockets: Vec<_> = numbers.iter().map(|n| (*n, client_end(*n))).collect();
            exchange(&sockets)
        });
        batches.sum()
    });
    println!(
        "{} answers in {:.1?}, {again} datagrams sent again",
        flows.len(),
        started.elapsed()
    );
    again
}

#[test]
fn two_sources_hold_100000_flows_to_one_backend_and_no_two_alike() {
    let test = "two_sources_hold_100000_flows_to_one_backend_and_no_two_alike";
    let Some(lab) = crate::lab_alone(test) else {
        return;
    };
    lab.at("client", "ip addr add 10.0.0.44/24 dev eth0");
    lab.at("lb", "ip addr add 10.0.0.10/32 dev eth0");
    lab.at("lb", "ip addr add 10.0.0.11/32 dev eth0");
    lab.at(
        "lb",
        "sysctl -qw net.ipv4.ip_local_reserved_ports=1024-65535",
    );
    let config = lab.write("sources.toml", CONFIG);
    let lb = lab.balance(&format!("-c {config}"));
    assert!(!lb.log().contains("no interface has it"), "{}", lb.log());

    let sink = lab.within("http1", || UdpSocket::bind(BACKEND).unwrap());
    sink.set_read_timeout(Some(HASTE)).unwrap();
    setsockopt(&sink, sockopt::RcvBufForce, &(8 << 20)).unwrap();
    let answers = |over: &AtomicBool| answer_all(&sink, over);
    let (seen, ()) = beside(answers, || {
        // The second datagram of each, a second after the first, establishes its flow: a
        // quarter of them at a time, as half may be unconfirmed. Later all of them are there
        // still, and each comes from where it came from.
        let flows = Vec::from_iter(0..FLOWS);
        for quarter in flows.chunks(FLOWS / 4) {
            every_flow(&lab, quarter);
            std::thread::sleep(Duration::from_secs(1));
            every_flow(&lab, quarter);
        }
        every_flow(&lab, &flows);
    });

    let distinct: HashSet<SocketAddr> = seen.iter().map(|from| from.unwrap()).collect();
    let mut shares: BTreeMap<IpAddr, usize> = BTreeMap::new();
    for from in &distinct {
        *shares.entry(from.ip()).or_default() += 1;
    }
    println!(
        "{} flows as the backend sees them: {shares:?}",
        distinct.len()
    );
    assert_eq!(distinct.len(), FLOWS);
    let sources: [IpAddr; 2] = ["10.0.0.10", "10.0.0.11"].map(|source| source.parse().unwrap());
    assert_eq!(Vec::from_iter(shares.keys().copied()), sources);
    // A standard deviation is 158 flows.
    assert!(
        shares
            .values()
            .all(|share| share.abs_diff(FLOWS / 2) < 1000)
    );

    let status = lab.status();
    assert_eq!(status["flows_capacity"], 129_024);
    let service = &status["services"][0];
    assert_eq!(service["flows"], FLOWS);
    assert_eq!(service["flows_begun"], FLOWS);
    let backend = &service["backends"][0];
    assert_eq!(
        backend["sources"],
        serde_json::json!(["10.0.0.10", "10.0.0.11"])
    );
    lb.end();
}

#[test]
fn a_source_that_no_interface_has_is_reported_with_the_mend() {
    let Some(lab) = crate::lab("a_source_that_no_interface_has_is_reported_with_the_mend") else {
        return;
    };
    let config = CONFIG.replace("1024-65535", "1024-2047");
    let config = lab.write("foreign.toml", &config);
    let arguments = format!("-c {config}");
    lab.at("lb", "ip addr add 10.0.0.10/32 dev eth0");
    let lb = lab.balance(&arguments);
    let warning = "source 10.0.0.11: no interface has it, so that the backends' replies do not \
                   arrive: ip addr add 10.0.0.11/32 dev eth0\n";
    let log = lb.log();
    assert!(log.contains(warning), "{log}");
    assert!(!log.contains("source 10.0.0.10: "), "{log}");
    lb.end();
    // The mend, as it is written; and one that works as well.
    let (_, mend) = warning.trim().rsplit_once(": ").unwrap();
    for mend in [mend, "ip addr add 10.0.0.11/32 dev lo"] {
        lab.at("lb", mend);
        let lb = lab.balance(&arguments);
        assert!(!lb.log().contains("no interface has it"), "{}", lb.log());
        let sink = lab.within("http1", || UdpSocket::bind(BACKEND).unwrap());
        sink.set_read_timeout(Some(HASTE)).unwrap();
        let answers = |over: &AtomicBool| answer_all(&sink, over);
        let flows = || {
            for number in (0..200).step_by(CLIENTS.len()) {
                exchange(&[(number, client_end(number))]);
            }
        };
        let (seen, ()) = beside(answers, || lab.within("client", flows));
        let sources: HashSet<IpAddr> = seen.iter().flatten().map(SocketAddr::ip).collect();
        assert_eq!(sources.len(), 2, "{sources:?}");
        lb.end();
        lab.at("lb", "ip addr flush to 10.0.0.11/32 dev eth0");
    }
}
