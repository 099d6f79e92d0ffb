// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Checks of real servers, and what becomes of flows and clients when one fails.

use std::fs;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::Value;
use socket2::{Domain, Socket, Type};

use super::lab;
use super::udp::{ask_for_every_name, serve_names};
use crate::common::http::{self, Connection};
use crate::common::lab::{BINARY, Balancer, HTTP1, HTTP2, LB, Lab, refusal};

/// How often backends are checked here.
const OFTEN: &str = "interval = '100ms', timeout = '100ms', rise = 2, fall = 2";
const PATIENCE: Duration = Duration::from_secs(5);

/// Services on the ports given, each with its keys and with http1 and http2.
pub fn services(services: &[(u16, &str)]) -> String {
    let service = |(port, keys): &(u16, &str)| {
        format!(
            "[[service]]\nlisten = '{LB}:{port}'\n{keys}\n\
             backend = [{{ address = '{HTTP1}:80' }}, {{ address = '{HTTP2}:80' }}]\n"
        )
    };
    services.iter().map(service).collect()
}

/// The load balancer with these services.
pub fn balance<'a>(lab: &'a Lab, text: &str) -> Balancer<'a> {
    let file = lab.write("health.toml", text);
    lab.balance(&format!("-c {file}"))
}

/// A second nginx on a host: it answers on ports 8080 and, by TLS, 8443, with 503 while
/// /run/HOST.down is there. Its certificate is in /run/HOST.pem, for lab.test.
fn serve_switch(lab: &Lab, host: &str) {
    lab.at(
        host,
        &format!(
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 \
             -subj /CN=lab -addext subjectAltName=DNS:lab.test -keyout /run/{host}.key \
             -out /run/{host}.pem"
        ),
    );
    let paths = ["client_body", "proxy", "fastcgi", "scgi", "uwsgi"];
    let paths = paths.map(|path| format!("{path}_temp_path /run/{host}.{path};"));
    let config = format!(
        "user root; worker_processes 1; pid /run/{host}.up.pid; error_log /run/{host}.up.log info;
         events {{}}
         http {{
             access_log /run/{host}.up.access;
             {}
             server {{
                 listen 8080;
                 listen 8443 ssl;
                 ssl_certificate /run/{host}.pem;
                 ssl_certificate_key /run/{host}.key;
                 location / {{ if (-f /run/{host}.down) {{ return 503; }} return 200 up; }}
             }}
         }}",
        paths.join(" ")
    );
    let config = lab.write(&format!("{host}.up.conf"), &config);
    lab.at(host, &format!("nginx -e /run/{host}.up.log -c {config}"));
}

fn turn(lab: &Lab, host: &str, up: bool) {
    let file = lab.path(&format!("/run/{host}.down"));
    match up {
        true => fs::remove_file(file).unwrap(),
        false => fs::write(file, "").unwrap(),
    }
}

fn kill_nginx(lab: &Lab, host: &str) {
    let pid = lab.read(&format!("/run/xdp-proxy-lab/{host}/nginx.pid"));
    let pid = String::from_utf8(pid).unwrap();
    lab.at(host, &format!("kill {}", pid.trim()));
}

fn backend(status: &Value, service: usize, backend: usize) -> &Value {
    &status["services"][service]["backends"][backend]
}

pub fn is(status: &Value, service: usize, number: usize, state: &str) -> bool {
    backend(status, service, number)["state"] == state
}

fn until(balancer: &Balancer, service: usize, number: usize, state: &str) -> Duration {
    let what = format!("backend {number} of service {service} is {state}");
    balancer.until(&what, |status| is(status, service, number, state))
}

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
    let Some(lab) = lab(test) else { return };
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
    let Some(lab) = lab(test) else { return };
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
    assert_eq!(reason, "no answer within 100ms");
    balancer.end();
}

#[test]
fn an_answer_counts_whatever_becomes_of_its_body() {
    let Some(lab) = lab("an_answer_counts_whatever_becomes_of_its_body") else {
        return;
    };
    // Neither says how long its answer is: one never ends, one breaks off.
    let ports = [8090, 8091];
    let listeners = lab.within("http1", || {
        ports.map(|port| std::net::TcpListener::bind(("10.0.0.2", port)).unwrap())
    });
    for (listener, ends) in listeners.into_iter().zip([false, true]) {
        std::thread::spawn(move || {
            let mut open = Vec::new();
            while let Ok((mut stream, _)) = listener.accept() {
                let mut request = [0; 1024];
                let _ = stream.read(&mut request);
                let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello";
                let _ = stream.write_all(chunked);
                if !ends {
                    open.push(stream);
                }
            }
        });
    }
    let keys = ports.map(|port| format!("health = {{ type = 'http', port = {port}, {OFTEN} }}"));
    let balancer = balance(&lab, &services(&[(80, &keys[0]), (81, &keys[1])]));
    std::thread::sleep(Duration::from_secs(1));
    for service in 0..2 {
        let health = backend(&lab.status(), service, 0)["health"].clone();
        assert_eq!(
            (&health["state"], &health["error"]),
            (&"up".into(), &Value::Null)
        );
    }
    balancer.end();
}

#[test]
fn backends_of_ipv6_are_checked_over_ipv6() {
    let Some(lab) = lab("backends_of_ipv6_are_checked_over_ipv6") else {
        return;
    };
    let service = |port: u16, kind: &str| {
        format!(
            "[[service]]\nlisten = '[fd00::5]:{port}'\nhealth = {{ type = '{kind}', {OFTEN} }}\n\
             backend = [{{ address = '[fd00::2]:80' }}, {{ address = '[fd00::3]:80' }}]\n"
        )
    };
    let balancer = balance(&lab, &(service(80, "tcp") + &service(81, "http")));
    let all = |status: &Value, first: &str| {
        (0..2).all(|service| is(status, service, 0, first) && is(status, service, 1, "up"))
    };
    assert!(all(&lab.status(), "up"), "{:#}", lab.status());
    kill_nginx(&lab, "http1");
    balancer.until("http1 is down", |status| all(status, "down"));
    lab.within("client", || {
        for _ in 0..20 {
            assert_eq!(http::host("[fd00::5]").unwrap(), "http2");
        }
    });
    balancer.end();
}

#[test]
fn a_reload_begins_changes_and_ends_checks_and_asks_a_new_backend_first() {
    let test = "a_reload_begins_changes_and_ends_checks_and_asks_a_new_backend_first";
    let Some(lab) = lab(test) else { return };
    serve_switch(&lab, "http1");
    serve_switch(&lab, "http2");
    turn(&lab, "http1", false);
    let none = "health = { type = 'none' }";
    let balancer = balance(&lab, &services(&[(80, none)]));
    let reload = |text: &str| {
        lab.write("health.toml", text);
        lab.at("lb", &format!("{BINARY} reload"));
        lab.status()
    };
    assert!(backend(&lab.status(), 0, 0)["health"].is_null());
    let check = format!("health = {{ type = 'http', port = 8080, {OFTEN} }}");
    let checked = services(&[(80, &check)]);
    let status = reload(&checked);
    assert!(is(&status, 0, 0, "down") && is(&status, 0, 1, "up"));
    let log = balancer.log();
    // The client has no server: it is known to be down before it could get a flow.
    let more = checked.replace("backend = [", "backend = [{ address = '10.0.0.4:80' }, ");
    let status = reload(&more);
    let states: Vec<_> = (0..3)
        .map(|number| backend(&status, 0, number)["state"].clone())
        .collect();
    assert_eq!(states, ["down", "up", "down"], "{status:#}");
    assert_eq!(backend(&status, 0, 2)["address"], "10.0.0.4:80");
    assert_eq!(backend(&status, 0, 2)["flows_begun"], 0);
    lab.within("client", || {
        for _ in 0..30 {
            assert_eq!(http::host(LB).unwrap(), "http2");
        }
    });
    // What is as it was is not asked anew.
    let since = |status: &Value| backend(status, 0, 0)["health"]["for_seconds"].as_u64();
    std::thread::sleep(Duration::from_secs(2));
    assert!(since(&reload(&checked)) >= Some(2));
    assert_eq!(
        balancer.log().matches("of 10.0.0.5:80/tcp is up").count(),
        0,
        "{log}"
    );
    let status = reload(&services(&[(80, none)]));
    assert!(is(&status, 0, 0, "up") && backend(&status, 0, 0)["health"].is_null());
    balancer.end();
}

#[test]
fn who_takes_the_answers_to_checks_is_named() {
    let Some(lab) = lab("who_takes_the_answers_to_checks_is_named") else {
        return;
    };
    let all =
        "[[service]]\nname = 'all'\nlisten = '10.0.0.5:*'\nbackend = [{ address = '10.0.0.3' }]\n";
    let balancer = balance(&lab, &(services(&[(80, "name = 'web'")]) + all));
    let log = balancer.log();
    let warning = "service \"web\": its checks leave from 10.0.0.5, where service \"all\" takes the \
                   answers";
    assert!(log.contains(warning), "{log}");
    balancer.end();
    let balancer = balance(&lab, &services(&[(80, "name = 'web'")]));
    assert!(!balancer.log().contains("takes the answers"));
    balancer.end();
}

#[test]
fn a_check_leaves_nothing_behind_on_either_end() {
    let Some(lab) = lab("a_check_leaves_nothing_behind_on_either_end") else {
        return;
    };
    for host in ["http1", "http2"] {
        serve_switch(&lab, host);
    }
    let often = "interval = '20ms', timeout = '20ms'";
    let balancer = balance(
        &lab,
        &services(&[
            (80, &format!("health = {{ type = 'tcp', {often} }}")),
            (
                81,
                &format!("health = {{ type = 'tcp', port = 8080, {often} }}"),
            ),
            (
                82,
                &format!("health = {{ type = 'http', port = 8080, {often} }}"),
            ),
        ]),
    );
    let folder = lab.path(&format!("/proc/{}/fd", lab.status()["pid"]));
    let open = || fs::read_dir(&folder).unwrap().count();
    let at_first = open();
    std::thread::sleep(Duration::from_secs(2));
    let timewait = |host| lab.at(host, "ss -Htan state time-wait").lines().count();
    assert_eq!(["lb", "http1", "http2"].map(timewait), [0; 3]);
    // Who asks for a connection alone is not seen by the server at all.
    let log = |file: &str| String::from_utf8(lab.read(file)).unwrap();
    for file in ["access.log", "error.log"] {
        let text = log(&format!("/run/xdp-proxy-lab/http1/{file}"));
        let mut lines = text.lines().filter(|line| !line.contains("setrlimit"));
        assert_eq!(lines.next(), None);
    }
    let access = log("/run/http1.up.access");
    let checks = access
        .lines()
        .filter(|line| line.contains("\"GET / HTTP/1.1\" 200"));
    assert!(checks.clone().count() > 20, "{access}");
    assert_eq!(checks.count(), access.lines().count(), "{access}");
    assert!(!log("/run/http1.up.log").contains("reset by peer"));
    // One for each of the six checks that may be under way.
    assert!(
        open() <= at_first + 6,
        "{} files, {at_first} at first",
        open()
    );
    balancer.end();
}

#[test]
fn http_and_https_go_by_status_and_certificate() {
    let Some(lab) = lab("http_and_https_go_by_status_and_certificate") else {
        return;
    };
    for host in ["http1", "http2"] {
        serve_switch(&lab, host);
    }
    let both = [lab.read("/run/http1.pem"), lab.read("/run/http2.pem")].concat();
    fs::write(lab.path("/run/both.pem"), both).unwrap();
    let https = |keys: &str| format!("health = {{ type = 'https', port = 8443, {keys}, {OFTEN} }}");
    let balancer = balance(
        &lab,
        &services(&[
            (
                80,
                &format!("health = {{ type = 'http', port = 8080, {OFTEN} }}"),
            ),
            (
                81,
                &format!("health = {{ type = 'http', port = 8080, status = 503, {OFTEN} }}"),
            ),
            (82, &https("verify = false")),
            (83, &https("ca = '/run/both.pem', host = 'lab.test'")),
            (84, &https("ca = '/run/http1.pem', host = 'lab.test'")),
            (85, &https("ca = '/run/both.pem', host = 'other.test'")),
            (
                86,
                &format!("health = {{ type = 'https', port = 8080, {OFTEN} }}"),
            ),
        ]),
    );
    let states = |status: &Value| -> Vec<String> {
        let services = status["services"].as_array().unwrap().iter();
        let backends = services.flat_map(|s| s["backends"].as_array().unwrap());
        let state = |backend: &Value| backend["state"].as_str().unwrap()[..1].to_owned();
        backends.map(state).collect()
    };
    balancer.until("as configured", |s| states(s).concat() == "uudduuuuuddddd");
    let status = lab.status();
    let reason = |service, number| {
        backend(&status, service, number)["reason"]
            .as_str()
            .unwrap()
    };
    assert_eq!(reason(1, 0), "status 200 is not 503");
    assert_eq!(
        reason(4, 1),
        "invalid peer certificate: it signs itself, and is not in ca"
    );
    assert!(
        reason(5, 0).contains("not valid for name \"other.test\""),
        "{}",
        reason(5, 0)
    );
    assert!(
        reason(6, 0).contains("received corrupt message"),
        "{}",
        reason(6, 0)
    );

    turn(&lab, "http1", false);
    balancer.until("503", |s| states(s).concat() == "duuddududddddd");
    let status = lab.status();
    assert_eq!(
        backend(&status, 0, 0)["reason"],
        "status 503 is not 200-399"
    );
    turn(&lab, "http1", true);
    balancer.until("200", |s| states(s).concat() == "uudduuuuuddddd");
    balancer.end();

    let missing = services(&[(80, "health = { type = 'https', ca = '/run/none.pem' }")]);
    let file = lab.write("missing.toml", &missing);
    for verb in ["run", "check"] {
        let error = refusal(&lab.proxy(&format!("{verb} -c {file}")), 1);
        assert!(
            error.contains("reading the authorities in /run/none.pem"),
            "{error}"
        );
    }
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
    let Some(lab) = lab(test) else { return };
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
    let ends = std::sync::atomic::AtomicBool::new(false);
    let served = std::thread::scope(|scope| {
        let requests = scope.spawn(|| {
            lab.within("client", || {
                let mut served = 0;
                while !ends.load(std::sync::atomic::Ordering::Relaxed) {
                    http::host(LB).unwrap();
                    served += 1;
                }
                served
            })
        });
        for _ in 0..5 {
            for (up, state) in [(false, "down"), (true, "up")] {
                turn(&lab, "http1", up);
                until(&balancer, 0, 0, state);
            }
        }
        ends.store(true, std::sync::atomic::Ordering::Relaxed);
        requests.join().unwrap()
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

#[test]
fn a_thousand_backends_are_checked_at_once_by_one_thread() {
    let Some(lab) = lab("a_thousand_backends_are_checked_at_once_by_one_thread") else {
        return;
    };
    const BACKENDS: usize = 1500;
    // All of 10.9/16 is http1; 10.10/16 answers nothing.
    lab.at("http1", "ip route add local 10.9.0.0/16 dev lo");
    lab.at("http1", "ip route add blackhole 10.10.0.0/16");
    lab.at("lb", "ip route add 10.9.0.0/16 via 10.0.0.2");
    lab.at("lb", "ip route add 10.10.0.0/16 via 10.0.0.2");
    let mut text = format!(
        "[[service]]\nlisten = '{LB}:80'\n\
         health = {{ type = 'http', interval = '2s', timeout = '1s' }}\n"
    );
    for number in 0..BACKENDS {
        // Every hundredth is lost.
        let network = if number % 100 == 99 { 10 } else { 9 };
        let (high, low) = (number / 250, number % 250 + 1);
        text += &format!("[[service.backend]]\naddress = '10.{network}.{high}.{low}'\n");
    }
    let balancer = balance(&lab, &text);
    println!("ready after {:?}: {}", balancer.ready_after, balancer.ready);
    let lost = BACKENDS / 100;
    let took = balancer.until("all are known", |status| {
        let backends = status["services"][0]["backends"].as_array().unwrap();
        let count = |state: &str| backends.iter().filter(|b| b["state"] == state).count();
        (count("up"), count("down")) == (BACKENDS - lost, lost)
    });
    println!("all known {took:?} later");
    assert!(took < Duration::from_secs(4));
    let process = format!("/proc/{}/status", lab.status()["pid"]);
    let field = |name: &str| -> u64 {
        let text = String::from_utf8(lab.read(&process)).unwrap();
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    // Five rounds: nobody falls that answers.
    std::thread::sleep(Duration::from_secs(10));
    assert!(!balancer.log().contains("is up"), "{}", balancer.log());
    let downs = balancer.log().matches("is down").count();
    assert!(downs <= lost, "{downs}");
    println!("{} KiB, {} threads", field("VmRSS:"), field("Threads:"));
    assert_eq!(field("Threads:"), 1);
    assert!(field("VmRSS:") < 48 << 10);
    balancer.end();
}
