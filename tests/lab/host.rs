// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! What is not ours goes on as if nothing were attached.

use std::io::{Read as _, Write as _};
use std::net::{TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use crate::common::http;
use crate::common::lab::{LB, Lab, TWO};
use crate::common::listen;

const PATIENCE: Duration = Duration::from_secs(5);

/// Everything that a host does beside the balanced service.
fn the_host_works(lab: &Lab) {
    a_service_of_its_own_answers(lab);
    udp_is_echoed(lab);
    lab.at("client", "ping -c 3 -i 0.1 -W 2 10.0.0.5");
    lab.at("client", "ping -c 3 -i 0.1 -W 2 -s 4000 10.0.0.5");
    lab.at("lb", "ping -c 2 -i 0.1 -W 2 10.0.0.2");
    ping_by_ipv6(lab);
    // Its own connections, to the very port and host that it balances over too.
    for _ in 0..20 {
        let answer = lab.at("lb", "curl -sS --max-time 5 http://10.0.0.2/");
        assert_eq!(answer, "Hostname: http1\n");
    }
    lab.within("client", || http::host(LB).unwrap());
}

fn a_service_of_its_own_answers(lab: &Lab) {
    let listener = lab.within("lb", || listen(([10, 0, 0, 5], 8080), PATIENCE));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..10 {
                let (mut stream, _) = listener.accept().unwrap();
                let mut word = [0; 5];
                stream.read_exact(&mut word).unwrap();
                stream.write_all(&word.repeat(20_000)).unwrap();
            }
        });
        lab.within("client", || {
            for _ in 0..10 {
                let mut stream = TcpStream::connect("10.0.0.5:8080").unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                stream.write_all(b"hello").unwrap();
                let mut answer = Vec::new();
                stream.read_to_end(&mut answer).unwrap();
                assert!(answer == b"hello".repeat(20_000));
            }
        });
    });
}

/// To a port of its own and to the number of the balanced TCP port; datagrams of
/// one frame and of several fragments.
fn udp_is_echoed(lab: &Lab) {
    for port in [9000, 80] {
        let server = lab.within("lb", || UdpSocket::bind(("10.0.0.5", port)).unwrap());
        server.set_read_timeout(Some(PATIENCE)).unwrap();
        let client = lab.within("client", || UdpSocket::bind("10.0.0.4:0").unwrap());
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut buffer = [0; 9000];
        for bytes in [1, 1400, 8000] {
            client.send_to(&vec![7; bytes], ("10.0.0.5", port)).unwrap();
            let (length, from) = server.recv_from(&mut buffer).unwrap();
            server.send_to(&buffer[..length], from).unwrap();
            assert_eq!(client.recv(&mut buffer).unwrap(), bytes);
        }
    }
}

fn ping_by_ipv6(lab: &Lab) {
    let start = Instant::now();
    let address = loop {
        let table = lab.at("lb", "ip -6 -o addr show dev eth0 scope link -tentative");
        let mut words = table.split_whitespace();
        if let Some(address) = words.find(|word| word.starts_with("fe80:")) {
            break address.split('/').next().unwrap().to_owned();
        }
        assert!(start.elapsed() < PATIENCE, "no link-local address: {table}");
        std::thread::sleep(Duration::from_millis(100));
    };
    // The client's own address may still be under detection.
    while !lab
        .try_at(
            "client",
            &format!("ping -6 -c 2 -i 0.1 -W 1 {address}%eth0"),
        )
        .status
        .success()
    {
        assert!(start.elapsed() < PATIENCE * 2, "{address} does not answer");
    }
}

#[test]
fn the_host_is_not_disturbed_in_generic_mode() {
    let Some(lab) = crate::lab("the_host_is_not_disturbed_in_generic_mode") else {
        return;
    };
    let lb = lab.balance(TWO);
    the_host_works(&lab);
    assert_eq!(lab.status()["packets"]["dropped"]["malformed"], 0);
    lb.end();
}

#[test]
fn the_host_is_not_disturbed_in_native_mode() {
    let Some(lab) = crate::lab("the_host_is_not_disturbed_in_native_mode") else {
        return;
    };
    lab.script("native");
    let lb = lab.balance(&format!("--mode native {TWO}"));
    the_host_works(&lab);
    lb.end();
}
