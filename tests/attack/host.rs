// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The host is a user as well: what it begins from a port that is a service's stays its own.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use crate::common::echo::Echo;
use crate::common::http::Connection;
use crate::common::lab::Lab;
use crate::common::load::originals;

const PATIENCE: Duration = Duration::from_secs(3);
/// Of TCP and of UDP.
const PORTS: [u16; 2] = [50_052, 50_053];
/// Of no service on one port.
const OTHER_PORT: u16 = 50_100;

/// On one port each, which are others at the backends; or on the same several ones.
fn services(ports: Option<&str>) -> String {
    let [tcp, udp] = match ports {
        Some(ports) => [ports.into(), ports.into()],
        None => PORTS.map(|port| port.to_string()),
    };
    let [web, echo] = match ports {
        Some(_) => ["", ""],
        None => [":80", ":7"],
    };
    let service = |vip: &str, backend: &str| {
        format!(
            "[[service]]\nlisten = '{vip}:{tcp}'\nhealth = {{ type = 'none' }}\n\
             backend = [{{ address = '{backend}{web}' }}]\n\
             [[service]]\nlisten = '{vip}:{udp}/udp'\n\
             backend = [{{ address = '{backend}{echo}' }}]\n"
        )
    };
    let v6 = match ports {
        Some(_) => "fd00::3",
        None => "[fd00::3]",
    };
    service("10.0.0.5", "10.0.0.3") + &service("[fd00::5]", v6)
}

/// Once the end of the connection before, if there was one, was acknowledged.
fn connect(from: SocketAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let begun = Instant::now();
    loop {
        match connect_now(from, to) {
            Err(error)
                if error.kind() == ErrorKind::AddrNotAvailable && begun.elapsed() < PATIENCE =>
            {
                std::thread::sleep(Duration::from_millis(10));
            }
            result => return result,
        }
    }
}

fn connect_now(from: SocketAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(from), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&from.into())?;
    socket.connect_timeout(&to.into(), PATIENCE)?;
    Ok(socket.into())
}

fn bind(from: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind(from).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn at(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), port)
}

/// From the host's address to a server beside the services.
fn the_host_connects(lab: &Lab, [own, server]: [&str; 2], files: &[Vec<u8>]) {
    let [tcp, udp] = PORTS;
    let from = at(own, tcp);
    // The same port again: what is left of the connection before stays the host's too.
    for _ in 0..3 {
        lab.within("lb", || {
            let stream = connect(from, at(server, 80)).unwrap();
            let mut connection = Connection::over(stream, PATIENCE).unwrap();
            for _ in 0..3 {
                assert!(connection.get("/1m").unwrap() == files[0]);
            }
        });
    }
    let refused = |result: io::Result<()>| {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    };
    lab.within("lb", || {
        // Nobody listens there: a RST, and an ICMP error.
        refused(connect(from, at(server, 81)).map(drop));
        let socket = bind(at(own, udp));
        socket.connect(at(server, 9)).unwrap();
        socket.send(b"anybody?").unwrap();
        refused(socket.recv(&mut [0; 9]).map(drop));

        // In one piece, and in fragments.
        socket.connect(at(server, 7)).unwrap();
        for bytes in [1, 1400, 8000] {
            socket.send(&vec![7; bytes]).unwrap();
            assert_eq!(socket.recv(&mut [0; 9000]).unwrap(), bytes);
        }
    });
}

/// The services have the clients meanwhile; returns how many flows these began.
fn clients_are_served(lab: &Lab, [vip, client]: [&str; 2], [tcp, udp]: [u16; 2]) -> u64 {
    lab.within("client", || {
        let stream = connect(at(client, 0), at(vip, tcp)).unwrap();
        let mut connection = Connection::over(stream, PATIENCE).unwrap();
        assert_eq!(connection.get("/").unwrap(), b"Hostname: http2\n");
        let socket = bind(at(client, 0));
        socket.send_to(b"word", at(vip, udp)).unwrap();
        assert_eq!(socket.recv(&mut [0; 9]).unwrap(), 4);
    });
    2
}

fn flows_begun(lab: &Lab) -> u64 {
    let status = lab.status();
    let services = status["services"].as_array().unwrap();
    let begun = services.iter().map(|service| &service["flows_begun"]);
    begun.map(|begun| begun.as_u64().unwrap()).sum()
}

fn the_host_is_a_client(lab: &Lab, mode: &str) {
    let files = originals(lab);
    let _echoes = ["http1", "http2"].map(|host| Echo::start(lab, host, "[::]:7"));
    for ports in [None, Some("*"), Some("2-50200")] {
        let served = if ports.is_some() { [80, 7] } else { PORTS };
        // It was there before the load balancer.
        let mut early = lab.within("lb", || {
            let stream = connect(at("10.0.0.5", 50_052), at("10.0.0.2", 80)).unwrap();
            Connection::over(stream, PATIENCE).unwrap()
        });
        let config = lab.write("host.toml", &services(ports));
        let lb = lab.balance(&format!("-i eth0 --mode {mode} -c {config}"));
        assert!(early.get("/1m").unwrap() == files[0]);
        drop(early);
        let mut begun = 0;
        for [own, server, client] in [
            ["10.0.0.5", "10.0.0.2", "10.0.0.4"],
            ["fd00::5", "fd00::2", "fd00::4"],
        ] {
            begun += clients_are_served(lab, [own, client], served);
            the_host_connects(lab, [own, server], &files);
            begun += clients_are_served(lab, [own, client], served);
            if ports.is_some() {
                // A socket that is bound, and connected to nobody.
                lab.within("lb", || {
                    let any = if own.contains(':') { "::" } else { "0.0.0.0" };
                    for from in [own, any] {
                        let socket = bind(at(from, OTHER_PORT));
                        socket.send_to(&[7; 4000], at(server, 7)).unwrap();
                        assert_eq!(socket.recv(&mut [0; 9000]).unwrap(), 4000);
                    }
                });
            } else {
                // The service's port is the service's.
                let _socket = lab.within("lb", || bind(at(own, PORTS[1])));
                begun += clients_are_served(lab, [own, client], served);
            }
        }
        assert_eq!(flows_begun(lab), begun, "{ports:?}: {:#}", lab.status());
        lb.end();
    }
}

#[test]
fn what_the_host_begins_is_its_own_in_generic_mode() {
    let Some(lab) = crate::lab("what_the_host_begins_is_its_own_in_generic_mode") else {
        return;
    };
    the_host_is_a_client(&lab, "generic");
}

#[test]
fn what_the_host_begins_is_its_own_in_native_mode() {
    let Some(lab) = crate::lab("what_the_host_begins_is_its_own_in_native_mode") else {
        return;
    };
    lab.script("native");
    the_host_is_a_client(&lab, "native");
}

/// Checks leave from a VIP whose every port is a service's.
#[test]
fn checks_hear_their_answers_beside_a_service_on_any_port() {
    let Some(lab) = crate::lab("checks_hear_their_answers_beside_a_service_on_any_port") else {
        return;
    };
    let _echo = Echo::start(&lab, "http1", "10.0.0.2:7");
    let service = |listen: &str, check: &str| {
        format!(
            "[[service]]\nlisten = '{listen}'\nhealth = {{ {check} }}\n\
             backend = [{{ address = '10.0.0.2' }}]\n"
        )
    };
    let config = [
        service("10.0.0.5:80", "type = 'http'"),
        service("10.0.0.5:7/udp", "type = 'udp', payload = 'x'"),
        service("10.0.0.5:*", "type = 'tcp', port = 80"),
        service("10.0.0.5:*/udp", "type = 'none'"),
    ];
    let config = lab.write("checks.toml", &config.concat());
    let lb = lab.balance(&format!("-c {config}"));
    std::thread::sleep(PATIENCE);
    let status = lab.status();
    for service in 0..3 {
        let backend = &status["services"][service]["backends"][0];
        assert_eq!(backend["health"]["state"], "up", "{status:#}");
    }
    assert_eq!(flows_begun(&lab), 0, "{status:#}");
    lb.end();
}
