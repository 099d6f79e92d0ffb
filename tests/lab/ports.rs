// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The port table when it is full.

use std::collections::BTreeSet;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::common::http::Connection;
use crate::common::lab::{LB, Lab};

const PORTS: usize = 400;
const CONFIG: &str = r#"
[[service]]
listen = "10.0.0.5:80"
source_ports = "20000-20399"
[[service.backend]]
address = "10.0.0.2"
[[service.backend]]
address = "10.0.0.3"
"#;

/// Opens connections, each used once, until one is refused; how long that took.
fn fill() -> (Vec<Connection>, Duration) {
    let mut held = Vec::new();
    loop {
        let start = Instant::now();
        match Connection::open(LB) {
            Ok(mut connection) => {
                connection.host().unwrap();
                held.push(connection);
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
                return (held, start.elapsed());
            }
        }
        assert!(held.len() <= PORTS, "more connections than ports");
    }
}

fn exhausted(lab: &Lab) -> u64 {
    lab.status()["packets"]["sent"]["snat_exhausted"]
        .as_u64()
        .unwrap()
}

/// The client ports that a backend sees.
fn ports_at(lab: &Lab, host: &str) -> Vec<u16> {
    let table = lab.at(host, "ss -Htn state established src :80");
    let ports = table.lines().map(|line| line.rsplit_once(':').unwrap().1);
    ports.map(|port| port.trim().parse().unwrap()).collect()
}

#[test]
fn every_port_is_used_before_a_client_is_refused_at_once() {
    let Some(lab) = crate::lab("every_port_is_used_before_a_client_is_refused_at_once") else {
        return;
    };
    let config = lab.write("few-ports.toml", CONFIG);
    let lb = lab.balance(&format!("-c {config}"));
    assert_eq!(lab.status()["flows_capacity"], PORTS);

    let (mut held, refused_after) = lab.within("client", fill);
    println!(
        "{} of {PORTS} ports in use before the first refusal, which took {refused_after:?}",
        held.len()
    );
    assert!(held.len() * 100 >= PORTS * 95);
    assert!(refused_after < Duration::from_secs(1));
    let refusals = exhausted(&lab);
    assert_eq!(refusals, 1, "one SYN was refused");
    assert_eq!(lab.status()["services"][0]["flows"], held.len());

    // No two share a port to one backend, and each still is who it was.
    let mut seen = BTreeSet::new();
    for host in ["http1", "http2"] {
        let ports = ports_at(&lab, host);
        assert!(
            ports.iter().all(|port| (20000..20400).contains(port)),
            "{ports:?}"
        );
        seen.extend(ports.into_iter().map(|port| (host, port)));
    }
    assert_eq!(seen.len(), held.len());
    held.iter_mut()
        .for_each(|connection| drop(connection.host().unwrap()));

    let mut slowest = Duration::ZERO;
    lab.within("client", || {
        for _ in 0..20 {
            let start = Instant::now();
            let error = Connection::open(LB).err().expect("there is no port");
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
            slowest = slowest.max(start.elapsed());
        }
    });
    println!("the slowest of 20 more refusals took {slowest:?}");
    assert!(slowest < Duration::from_secs(1));
    assert_eq!(exhausted(&lab), refusals + 20);

    // The ports of one connection are the next one's.
    let local_ports: BTreeSet<u16> = held.iter().map(Connection::local_port).collect();
    assert_eq!(local_ports.len(), held.len());
    drop(held);
    lb.until("free of flows", |status| {
        status["services"][0]["flows"] == 0
    });
    let (again, _) = lab.within("client", fill);
    println!("{} connections after all were closed", again.len());
    assert!(again.len() * 100 >= PORTS * 95);
    lb.end();
}

/// A request after which the server closes, and so has the connection in TIME_WAIT.
fn fetch() -> io::Result<()> {
    let mut stream = TcpStream::connect((LB, 80))?;
    stream.set_read_timeout(Some(Duration::from_secs(8)))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    assert!(answer.starts_with(b"HTTP/1.1 200 "));
    Ok(())
}

/// Where the port's last connection had later timestamps, as a half of them have, the
/// backend answers the SYN by an ACK.
#[test]
fn ports_that_backends_have_in_time_wait_keep_no_client_waiting() {
    let test = "ports_that_backends_have_in_time_wait_keep_no_client_waiting";
    let Some(lab) = crate::lab_alone(test) else {
        return;
    };
    let config = lab.write("few-ports.toml", CONFIG);
    let lb = lab.balance(&format!("-c {config}"));
    let times: Vec<Duration> = lab.within("client", || {
        let time = || {
            let start = Instant::now();
            fetch().unwrap();
            start.elapsed()
        };
        (0..5 * PORTS).map(|_| time()).collect()
    });
    let waits = ["http1", "http2"].map(|host| {
        let waiting = lab.at(host, "ss -Htn state time-wait src :80");
        waiting.lines().count()
    });
    println!("{waits:?} in TIME_WAIT at the backends");
    assert!(waits.iter().all(|count| count * 100 >= PORTS * 95));
    // A SYN that is lost, or met by two ports in turn, comes again after a second.
    let late = times.iter().filter(|time| time.as_millis() >= 900).count();
    assert_eq!(late, 0, "of {}", times.len());
    lb.end();
}
