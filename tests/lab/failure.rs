// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! What becomes of flows and clients when a server fails.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use socket2::{Domain, SockRef, Socket, Type};

use super::switch::{OFTEN, backend, balance, is, kill_nginx, serve_switch, services, turn, until};
use super::udp::{ask_for_every_name, serve_names};
use super::{lab, lab_alone};
use crate::common::beside;
use crate::common::http::{self, Connection};
use crate::common::lab::{BINARY, HTTP1, HTTP2, LB, Lab};

const PATIENCE: Duration = Duration::from_secs(5);

/// Who serves the client's port; the connection is reset at the end, so that the port
/// can be used again at once.
fn host_from(port: u16) -> io::Result<String> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_linger(Some(Duration::ZERO))?;
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
    socket.connect(&format!("{LB}:80").parse::<SocketAddr>().unwrap().into())?;
    Connection::over(socket.into(), PATIENCE)?.host()
}

fn hosts(lab: &Lab) -> Vec<String> {
    let ports = 20_000..20_060;
    lab.within("client", || {
        ports.map(|port| host_from(port).unwrap()).collect()
    })
}

#[test]
fn a_dead_backend_gets_no_new_flow_after_the_time_that_is_promised_and_gets_its_old_ones_back() {
    let test = "a_dead_backend_gets_no_new_flow_after_the_time_that_is_promised_and_gets_its_old_\
                ones_back";
    let Some(lab) = lab_alone(test) else { return };
    const PROMISED: Duration = Duration::from_millis(3 * 300 + 200);
    let keys = "health = { type = 'tcp', interval = '300ms', timeout = '200ms', fall = 3 }";
    let balancer = balance(&lab, &services(&[(80, keys)]));
    assert!(
        balancer.ready.ends_with("-> 2 backends"),
        "{}",
        balancer.ready
    );
    let before = hosts(&lab);
    assert!(before.iter().any(|host| host == "http1"));

    kill_nginx(&lab, "http1");
    let died = Instant::now();
    let last_failure = lab.within("client", || {
        let mut last = Duration::ZERO;
        while died.elapsed() < 2 * PROMISED {
            let begun = died.elapsed();
            if http::host(LB).is_err() {
                last = begun;
            }
        }
        last
    });
    println!("the last flow to the dead backend began after {last_failure:?}");
    assert!(last_failure > Duration::ZERO, "nobody noticed");
    // Who began before it was written may take as long as the machine's other work.
    assert!(last_failure < PROMISED + Duration::from_millis(100));
    let status = lab.status();
    let dead = backend(&status, 0, 0);
    assert_eq!(dead["state"], "down");
    assert_eq!(dead["reason"], "connection refused");
    assert_eq!(dead["health"]["check"], "tcp");
    assert_eq!(dead["health"]["state"], "down");
    assert_eq!(dead["health"]["error"], "connection refused");
    assert!(hosts(&lab).iter().all(|host| host == "http2"));
    let text = lab.at("lb", &format!("{BINARY} status"));
    assert!(text.contains("connection refused, for "), "{text}");

    lab.script("serve http1");
    until(&balancer, 0, 0, "up");
    assert_eq!(hosts(&lab), before);
    let log = balancer.log();
    for line in ["is down, its check fails: connection refused", "is up"] {
        assert!(
            log.contains(&format!("backend 10.0.0.2:80 of 10.0.0.5:80/tcp {line}")),
            "{log}"
        );
    }
    balancer.end();
}

#[test]
fn a_backend_that_falls_silent_costs_its_clients_a_second_and_no_connection() {
    let test = "a_backend_that_falls_silent_costs_its_clients_a_second_and_no_connection";
    let Some(lab) = lab_alone(test) else { return };
    let keys = format!("health = {{ type = 'tcp', {OFTEN} }}");
    let balancer = balance(&lab, &services(&[(80, &keys)]));
    // It answers ARP still, and nothing else.
    lab.at("http1", "ip route add blackhole 10.0.0.5");
    let hosts = lab.within("client", || {
        std::thread::scope(|scope| {
            let clients: Vec<_> = (0..40)
                .map(|_| {
                    scope.spawn(|| {
                        let begun = Instant::now();
                        (http::host(LB).unwrap(), begun.elapsed())
                    })
                })
                .collect();
            let joined = clients.into_iter().map(|client| client.join().unwrap());
            joined.collect::<Vec<_>>()
        })
    });
    // A SYN that is sent again after a second goes to the other one.
    let longest = hosts.iter().map(|(_, took)| *took).max().unwrap();
    println!("the longest took {longest:?}");
    assert!(longest > Duration::from_millis(900) && longest < Duration::from_secs(2));
    assert!(hosts.iter().all(|(host, _)| host == "http2"));
    let reason = backend(&lab.status(), 0, 0)["reason"].clone();
    assert_eq!(reason, "no answer within 200ms");
    balancer.end();
}

#[test]
fn a_link_of_the_load_balancers_that_is_down_says_nothing_of_backends() {
    let test = "a_link_of_the_load_balancers_that_is_down_says_nothing_of_backends";
    let Some(lab) = lab(test) else { return };
    let keys = format!("health = {{ type = 'tcp', {OFTEN} }}");
    let balancer = balance(&lab, &services(&[(80, &keys)]));
    let mut connection = lab.within("client", || Connection::open(LB).unwrap());
    let host = connection.host().unwrap();
    let links = ["lb eth0", "switch lb"].map(|link| {
        let (namespace, name) = link.split_once(' ').unwrap();
        ["down", "up"].map(|state| format!("ip -n {namespace} link set {name} {state}"))
    });
    for [down, up] in links {
        lab.script(&down);
        std::thread::sleep(Duration::from_secs(1));
        assert!(is(&lab.status(), 0, 0, "unreachable"));
        let health = backend(&lab.status(), 0, 0)["health"].clone();
        assert_eq!(health["state"], "up", "{health}");
        lab.script(&up);
        until(&balancer, 0, 0, "up");
        until(&balancer, 0, 1, "up");
        assert_eq!(connection.host().unwrap(), host);
    }
    assert!(
        !balancer.log().contains("its check fails"),
        "{}",
        balancer.log()
    );
    balancer.end();
}

#[test]
fn flows_of_udp_move_at_once_when_their_server_is_down() {
    let Some(lab) = lab("flows_of_udp_move_at_once_when_their_server_is_down") else {
        return;
    };
    serve_names(&lab);
    // The address of n0.lab, which is 192.0.2.0.
    let question = "000001000001000000000000026e30036c61620000010001";
    let text = format!(
        "[[service]]\nlisten = '{LB}:53/udp'\n\
         health = {{ type = 'udp', payload = 'hex:{question}', reply = 'hex:c0000200', {OFTEN} }}\n\
         backend = [{{ address = '{HTTP1}' }}, {{ address = '{HTTP2}' }}]\n\
         [[service]]\nlisten = '{LB}:54/udp'\n\
         health = {{ type = 'udp', port = 53, payload = 'hex:{question}', reply = 'no', {OFTEN} }}\n\
         backend = [{{ address = '{HTTP1}' }}]\n"
    );
    let balancer = balance(&lab, &text);
    until(&balancer, 1, 0, "down");
    let status = lab.status();
    assert_eq!(
        backend(&status, 1, 0)["reason"],
        "the reply has other bytes in it"
    );
    assert!(is(&status, 0, 0, "up") && is(&status, 0, 1, "up"));
    let server: SocketAddr = format!("{LB}:53").parse().unwrap();
    let payload = (0..question.len()).step_by(2);
    let payload: Vec<u8> = payload
        .map(|at| u8::from_str_radix(&question[at..at + 2], 16).unwrap())
        .collect();
    let sockets = lab.within("client", || {
        let sockets: Vec<_> = (0..40)
            .map(|_| {
                let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
                socket.connect(server).unwrap();
                socket
                    .set_read_timeout(Some(Duration::from_secs(1)))
                    .unwrap();
                socket
            })
            .collect();
        sockets
    });
    let ask = || {
        for socket in &sockets {
            socket.send(&payload).unwrap();
            let mut answer = [0; 512];
            socket.recv(&mut answer).unwrap();
        }
    };
    ask();
    ask();
    let flows = |number| backend(&lab.status(), 0, number)["flows"].as_u64().unwrap();
    assert!(flows(0) > 0 && flows(1) > 0);
    let pid = String::from_utf8(lab.read("/run/http1.dns")).unwrap();
    lab.at("http1", &format!("kill {}", pid.trim()));
    until(&balancer, 0, 0, "down");
    let status = lab.status();
    assert_eq!(backend(&status, 0, 0)["reason"], "port unreachable");
    ask();
    assert_eq!((flows(0), flows(1)), (0, 40));
    lab.within("client", || ask_for_every_name(server));
    balancer.end();
}

/// Reads on slowly; whether it comes to the end, and when it began to fail.
fn download(mut stream: TcpStream, bytes: usize) -> (usize, Option<(ErrorKind, Instant)>) {
    let mut read = 0;
    let mut buffer = vec![0; 64 << 10];
    while read < bytes {
        match stream.read(&mut buffer) {
            Ok(0) => return (read, Some((ErrorKind::UnexpectedEof, Instant::now()))),
            Ok(some) => read += some,
            Err(error) => return (read, Some((error.kind(), Instant::now()))),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    (read, None)
}

#[test]
fn a_download_from_a_backend_that_is_down_is_reset_at_once_or_kept_as_configured() {
    let test = "a_download_from_a_backend_that_is_down_is_reset_at_once_or_kept_as_configured";
    let Some(lab) = lab_alone(test) else { return };
    const BYTES: usize = 24 << 20;
    for host in ["http1", "http2"] {
        serve_switch(&lab, host);
        lab.script(&format!(
            "head -c {BYTES} /dev/zero >\"$STATE/{host}/files/10m\""
        ));
    }
    for keeps in [false, true] {
        let on_failure = if keeps { "keep" } else { "reset" };
        let keys = format!(
            "health = {{ type = 'http', port = 8080, {OFTEN} }}\non_failure = '{on_failure}'"
        );
        let balancer = balance(&lab, &services(&[(80, &keys)]));
        until(&balancer, 0, 0, "up");
        until(&balancer, 0, 1, "up");
        let stream = lab.within("client", || {
            let mut stream = TcpStream::connect((LB, 80)).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            // What was received is read before the reset is noticed.
            let socket = SockRef::from(&stream);
            socket.set_recv_buffer_size(128 << 10).unwrap();
            stream
                .write_all(b"GET /10m HTTP/1.1\r\nHost: lab\r\n\r\n")
                .unwrap();
            stream
        });
        let status = lab.status();
        let number = usize::from(backend(&status, 0, 0)["flows"] == 0);
        let host = ["http1", "http2"][number];
        let reads = std::thread::spawn(move || download(stream, BYTES));
        std::thread::sleep(Duration::from_millis(200));
        turn(&lab, host, false);
        until(&balancer, 0, number, "down");
        let down = Instant::now();
        let (read, failed) = reads.join().unwrap();
        match failed {
            None => assert!(keeps && read >= BYTES),
            Some((kind, at)) => {
                println!(
                    "reset {:?} after status told",
                    at.saturating_duration_since(down)
                );
                assert_eq!((keeps, kind), (false, ErrorKind::ConnectionReset), "{read}");
                assert!(at < down + Duration::from_millis(300));
                // The server is told as well, as soon as it says something.
                let to = format!("ss -Htn state established dst {LB}");
                let start = Instant::now();
                while lab.at(host, &to).lines().any(|line| line.contains(":80 ")) {
                    assert!(start.elapsed() < PATIENCE, "{}", lab.at(host, &to));
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
        }
        assert_eq!(failed.is_none(), keeps);
        turn(&lab, host, true);
        balancer.end();
    }
}

#[test]
fn when_all_are_down_clients_are_refused_or_health_is_ignored_as_configured() {
    let test = "when_all_are_down_clients_are_refused_or_health_is_ignored_as_configured";
    let Some(lab) = lab(test) else { return };
    for host in ["http1", "http2"] {
        serve_switch(&lab, host);
        turn(&lab, host, false);
    }
    let check = format!("health = {{ type = 'http', port = 8080, {OFTEN} }}");
    let keys = [
        format!("{check}\nall_down = 'reject'"),
        format!("{check}\nall_down = 'ignore-health'"),
    ];
    for (keys, serves) in keys.iter().zip([false, true]) {
        let balancer = balance(&lab, &services(&[(80, keys)]));
        let count = if serves { "2" } else { "0 of 2" };
        assert!(
            balancer.ready.ends_with(&format!("-> {count} backends")),
            "{}",
            balancer.ready
        );
        assert!(is(&lab.status(), 0, 0, "down") && is(&lab.status(), 0, 1, "down"));
        let hosts = lab.within("client", || {
            let hosts = (0..40).map(|_| http::host(LB));
            hosts.collect::<Vec<io::Result<String>>>()
        });
        for host in &hosts {
            match host {
                Ok(_) => assert!(serves),
                Err(error) => {
                    assert_eq!(
                        (serves, error.kind()),
                        (false, ErrorKind::ConnectionRefused)
                    );
                }
            }
        }
        if serves {
            for name in ["http1", "http2"] {
                assert!(hosts.iter().flatten().any(|host| host == name));
            }
        }
        // One comes up: it serves alone.
        turn(&lab, "http2", true);
        until(&balancer, 0, 1, "up");
        lab.within("client", || {
            for _ in 0..20 {
                assert_eq!(http::host(LB).unwrap(), "http2");
            }
        });
        turn(&lab, "http2", false);
        until(&balancer, 0, 1, "down");
        let word = match serves {
            true => "all backends of 10.0.0.5:80/tcp are down: their health is ignored",
            false => "10.0.0.5:80/tcp has no backend for new flows: clients are refused",
        };
        assert!(balancer.log().contains(word), "{}", balancer.log());
        balancer.end();
    }
}

#[test]
fn a_backend_that_comes_and_goes_costs_no_request() {
    let Some(lab) = lab("a_backend_that_comes_and_goes_costs_no_request") else {
        return;
    };
    serve_switch(&lab, "http1");
    serve_switch(&lab, "http2");
    let keys = format!("health = {{ type = 'http', port = 8080, {OFTEN} }}\non_failure = 'keep'");
    let balancer = balance(&lab, &services(&[(80, &keys)]));
    let requests = |over: &AtomicBool| {
        lab.within("client", || {
            let mut served = 0;
            while !over.load(Ordering::Relaxed) {
                http::host(LB).unwrap();
                served += 1;
            }
            served
        })
    };
    let (served, ()) = beside(requests, || {
        for _ in 0..5 {
            for (up, state) in [(false, "down"), (true, "up")] {
                turn(&lab, "http1", up);
                until(&balancer, 0, 0, state);
            }
        }
    });
    println!("{served} requests over 5 failures");
    assert!(served > 50);
    let log = balancer.log();
    let told = |word: &str| log.matches(word).count();
    assert_eq!(
        (told("is down, its check"), told("tcp is up")),
        (5, 5),
        "{log}"
    );
    balancer.end();
}
