// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! What checks of real servers say, and what they leave behind.

use std::fs;
use std::io::{Read as _, Write as _};
use std::time::Duration;

use serde_json::Value;

use super::switch::{OFTEN, backend, balance, is, kill_nginx, serve_switch, services, turn};
use super::{lab, lab_alone};
use crate::common::http;
use crate::common::lab::{BINARY, LB, refusal};

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
fn a_check_leaves_nothing_behind_on_either_end() {
    let Some(lab) = lab_alone("a_check_leaves_nothing_behind_on_either_end") else {
        return;
    };
    // A check that ends in time leaves nothing; the machine may be slow.
    const KEYS: &str = "interval = '400ms', timeout = '400ms', rise = 2, fall = 3";
    for host in ["http1", "http2"] {
        serve_switch(&lab, host);
    }
    let balancer = balance(
        &lab,
        &services(&[
            (80, &format!("health = {{ type = 'tcp', {KEYS} }}")),
            (
                81,
                &format!("health = {{ type = 'tcp', port = 8080, {KEYS} }}"),
            ),
            (
                82,
                &format!("health = {{ type = 'http', port = 8080, {KEYS} }}"),
            ),
        ]),
    );
    let folder = lab.path(&format!("/proc/{}/fd", lab.status()["pid"]));
    let open = || fs::read_dir(&folder).unwrap().count();
    let at_first = open();
    let capture = lab.capture("http1", "src host 10.0.0.5 and tcp[13] == 2");
    std::thread::sleep(Duration::from_secs(6));
    // They leave from ports that no flow can have.
    let seen = capture.end();
    let froms = seen.split("10.0.0.5.").skip(1);
    let ports = froms.map(|rest| rest.split(' ').next().unwrap().parse().unwrap());
    let ports: Vec<u16> = ports.collect();
    assert!(ports.len() > 30, "{seen}");
    assert!(
        ports.iter().all(|port| (32_768..61_000).contains(port)),
        "{ports:?}"
    );
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
    assert!(checks.clone().count() > 10, "{access}");
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
    // A reload reads the authorities again.
    fs::copy(lab.path("/run/both.pem"), lab.path("/run/http1.pem")).unwrap();
    lab.at("lb", &format!("{BINARY} reload"));
    balancer.until("both are trusted", |s| {
        states(s).concat() == "uudduuuuuudddd"
    });
    balancer.end();

    let missing = services(&[(80, "health = { type = 'https', ca = '/run/none.pem' }")]);
    let file = lab.write("missing.toml", &missing);
    for verb in ["run", "check"] {
        let error = refusal(&lab.proxy(&format!("{verb} -c {file}")), 2);
        assert!(
            error.contains("reading the authorities in /run/none.pem"),
            "{error}"
        );
    }
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
    let names = format!("cat /proc/{}/task/*/comm", lab.status()["pid"]);
    let names = lab
        .command("lb", "sh")
        .args(["-c", &names])
        .output()
        .unwrap();
    let names = String::from_utf8(names.stdout).unwrap();
    assert_eq!(names.matches("checks").count(), 1, "{names}");
    assert!(field("VmRSS:") < 48 << 10);
    balancer.end();
}
