// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The configuration changes while it is served.

use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::Signal;

use crate::common::beside;
use crate::common::http;
use crate::common::lab::{BINARY, HTTP1, HTTP2, LB, Lab, refusal};
use crate::common::load::{Kept, Load};
use crate::common::root_or_skip;

fn service(ports: &str, backends: &[&str]) -> String {
    let backends: String = backends
        .iter()
        .map(|address| format!("[[service.backend]]\naddress = \"{address}\"\n"))
        .collect();
    format!("[[service]]\nlisten = \"{LB}:{ports}\"\n{backends}")
}

fn reload(lab: &Lab) -> String {
    lab.at("lb", &format!("{BINARY} reload"))
}

#[test]
fn what_did_not_change_notices_nothing_of_a_reload() {
    if !root_or_skip("what_did_not_change_notices_nothing_of_a_reload") {
        return;
    }
    let lab = Lab::start();
    let file = lab.write("web.toml", &service("80", &[HTTP1, HTTP2]));
    let balancer = lab.balance(&format!("-c {file}"));
    Load::during(&lab, 50, |load| {
        let texts = [
            // Another service, with a backend of its own index.
            service("80", &[HTTP1, HTTP2]) + &service("81", &[&format!("{HTTP1}:80")]),
            // The first one is on top now, and a range beside it.
            service("8000-8099", &[HTTP2]) + &service("80", &[HTTP2, HTTP1]),
            service("80", &[HTTP1, HTTP2]),
        ];
        for round in 0..12 {
            lab.write("web.toml", &texts[round % texts.len()]);
            assert!(reload(&lab).starts_with("reloaded: eth0: services: "));
            load.goes_on();
        }
        println!("{} requests, 12 reloads", load.requests());
    });
    let status = lab.status();
    assert_eq!(
        status["packets"]["sent"]["refused_no_flow"], 0,
        "{status:#}"
    );
    let counted = status["services"][0]["forwarded_packets"].as_u64().unwrap();
    let sent = status["packets"]["sent"]["forwarded"].as_u64().unwrap();
    assert_eq!(counted, sent, "counts go on");
    balancer.end();
}

#[test]
fn a_backend_that_was_removed_keeps_its_flows_and_gets_no_new_ones() {
    if !root_or_skip("a_backend_that_was_removed_keeps_its_flows_and_gets_no_new_ones") {
        return;
    }
    let lab = Lab::start();
    let file = lab.write("web.toml", &service("80", &[HTTP1, HTTP2]));
    let balancer = lab.balance(&format!("-c {file}"));
    lab.within("client", || {
        let mut kept = Kept::open(LB, 20);
        assert!(kept.know("http2"));

        lab.write("web.toml", &service("80", &[HTTP1]));
        balancer.signal(Signal::SIGHUP);
        balancer.until("reloaded", |status| {
            status["services"][0]["backends"][1]["state"] == "leaving"
        });
        for _ in 0..20 {
            assert_eq!(http::host(LB).unwrap(), "http1");
        }
        kept.go_on();
    });
    // When its flows have ended, the next reload forgets it.
    balancer.until("its flows have ended", |status| {
        status["services"][0]["backends"][1]["flows"] == 0
    });
    reload(&lab);
    let status = lab.status();
    let backends = status["services"][0]["backends"].as_array().unwrap();
    assert_eq!(backends.len(), 1, "{status:#}");
    // Back again: with counts of its own.
    lab.write("web.toml", &service("80", &[HTTP1, HTTP2]));
    reload(&lab);
    reload(&lab);
    let again = &lab.status()["services"][0]["backends"][1];
    assert_eq!(
        (&again["state"], &again["flows_begun"]),
        (&"up".into(), &0.into())
    );
    balancer.end();
}

#[test]
fn a_file_with_an_error_changes_nothing_and_says_why() {
    if !root_or_skip("a_file_with_an_error_changes_nothing_and_says_why") {
        return;
    }
    let lab = Lab::start();
    let file = lab.write("web.toml", &service("80", &[HTTP1, HTTP2]));
    let balancer = lab.balance(&format!("-c {file}"));
    let program = lab.status()["program_id"].clone();
    let bad = [
        ("listen = 1", "web.toml:1:"),
        (
            "mode = \"native\"\n",
            "mode can't be changed while it runs: start again",
        ),
        (
            "interface = \"lo\"\n",
            "interface can't be changed while it runs: start again",
        ),
    ];
    for (text, word) in bad {
        lab.write("web.toml", &(text.to_owned() + &service("80", &[HTTP1])));
        let error = refusal(&lab.proxy("reload"), 1);
        assert!(error.contains(word), "{error}");
    }
    std::fs::remove_file(lab.path(&file)).unwrap();
    let error = refusal(&lab.proxy("reload"), 1);
    assert!(error.contains("there is no such file"), "{error}");
    assert_eq!(lab.status()["program_id"], program);
    lab.within("client", || {
        http::Connection::open(LB).unwrap().host().unwrap();
    });
    assert!(
        balancer.log().contains("not reloaded, nothing was changed"),
        "{}",
        balancer.log()
    );
    balancer.end();

    let balancer = lab.balance(&format!("--listen {LB}:80 --backend {HTTP1}"));
    let error = refusal(&lab.proxy("reload"), 1);
    assert!(error.contains("there is no file to read again"), "{error}");
    balancer.end();
    let error = refusal(&lab.proxy("reload"), 1);
    assert!(error.contains("no xdp-proxy runs"), "{error}");
}

/// What a service leaves behind is nobody's to write to: its look-up table may be another's.
#[test]
fn new_connections_are_served_throughout_after_a_service_has_gone() {
    let test = "new_connections_are_served_throughout_after_a_service_has_gone";
    if !root_or_skip(test) {
        return;
    }
    let lab = Lab::start();
    let web = |weight: usize| service("80", &[HTTP1, HTTP2]) + &format!("weight = {weight}\n");
    let file = lab.write("web.toml", &(service("81", &[HTTP1]) + &web(1)));
    let mut old = lab.balance(&format!("-c {file}"));
    // The first service goes; the next table of the other one is where its own was.
    for weight in [1, 2] {
        lab.write("web.toml", &web(weight));
        reload(&lab);
    }
    let connect = |over: &AtomicBool| {
        lab.within("client", || {
            let mut connections = 0;
            while !over.load(Ordering::Relaxed) {
                let stream = std::net::TcpStream::connect((LB, 80)).unwrap();
                // No port waits for what may still come.
                nix::sys::socket::setsockopt(
                    &stream,
                    nix::sys::socket::sockopt::Linger,
                    &nix::libc::linger {
                        l_onoff: 1,
                        l_linger: 0,
                    },
                )
                .unwrap();
                connections += 1;
            }
            connections
        })
    };
    let (connections, last) = beside(connect, || {
        for weight in [3, 2, 3, 2] {
            lab.write("web.toml", &web(weight));
            reload(&lab);
            let next = lab.balance(&format!("--take-over -c {file}"));
            assert_eq!(old.wait().code(), Some(0));
            old = next;
        }
        old
    });
    let status = lab.status();
    assert_eq!(
        status["packets"]["sent"]["refused_no_backend"], 0,
        "{status:#}"
    );
    println!("{connections} connections");
    last.end();
}

/// A pipe says nothing until somebody writes to it, and a device may go on for ever.
#[test]
fn a_file_that_became_a_pipe_is_refused_and_the_daemon_goes_on() {
    let test = "a_file_that_became_a_pipe_is_refused_and_the_daemon_goes_on";
    let Some(lab) = crate::lab(test) else { return };
    let text = service("80", &[HTTP1]);
    let file = lab.write("web.toml", &text);
    let balancer = lab.balance(&format!("-c {file}"));
    for other in [format!("mkfifo {file}"), format!("ln -s /dev/zero {file}")] {
        lab.at("lb", &format!("rm {file}"));
        lab.at("lb", &other);
        let error = refusal(&lab.proxy("reload"), 1);
        assert!(error.contains("web.toml: is no regular file"), "{error}");
    }
    lab.at("lb", &format!("rm {file}"));
    let pipe = "/run/authorities";
    lab.at("lb", &format!("mkfifo {pipe}"));
    let health = format!("health = {{ type = \"https\", verify = true, ca = \"{pipe}\" }}");
    lab.write(
        "web.toml",
        &text.replace("[[service.b", &format!("{health}\n[[service.b")),
    );
    let error = refusal(&lab.proxy("reload"), 1);
    assert!(
        error.contains("/run/authorities: it is no regular file"),
        "{error}"
    );

    lab.write("web.toml", &text);
    assert_eq!(reload(&lab), "reloaded: eth0: nothing differs\n");
    balancer.end();
}
