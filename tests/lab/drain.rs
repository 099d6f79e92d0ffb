// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Drain: a backend keeps its flows and gets no new ones.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::lab;
use super::switch::{balance, is, services};
use crate::common::http::{self, Connection};
use crate::common::lab::{BINARY, HTTP1, HTTP2, LB, Lab, refusal};

fn xdp_proxy(lab: &Lab, arguments: &str) -> String {
    lab.at("lb", &format!("{BINARY} {arguments}"))
}

fn flows(lab: &Lab, backend: usize) -> u64 {
    let status = lab.status();
    status["services"][0]["backends"][backend]["flows"]
        .as_u64()
        .unwrap()
}

/// Connections to both backends; of http1 alone.
fn opened_to_http1(count: usize) -> Vec<Connection> {
    let mut connections = Vec::new();
    while connections.len() < count {
        let mut connection = Connection::open(LB).unwrap();
        if connection.host().unwrap() == "http1" {
            connections.push(connection);
        }
    }
    connections
}

#[test]
fn a_backend_drains_under_load_and_no_request_fails() {
    let Some(lab) = lab("a_backend_drains_under_load_and_no_request_fails") else {
        return;
    };
    let balancer = balance(&lab, &services(&[(80, "name = 'web'")]));
    let wrk = lab
        .command("client", "wrk")
        .args(["-t", "1", "-c", "40", "-d", "5s", "http://10.0.0.5/"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_secs(1));
    let told = xdp_proxy(&lab, "drain 10.0.0.2");
    assert!(told.starts_with("10.0.0.2:80 of web drains: "), "{told}");
    let left = flows(&lab, 0);
    assert!(left > 0, "it has flows");
    assert!(is(&lab.status(), 0, 0, "draining"));
    lab.within("client", || {
        for _ in 0..30 {
            assert_eq!(http::host(LB).unwrap(), "http2");
        }
    });
    assert_eq!(flows(&lab, 0), left, "they live on");
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(
        xdp_proxy(&lab, "undrain 10.0.0.2:80 --service web"),
        "10.0.0.2:80 of web gets flows\n"
    );
    lab.within("client", || drop(opened_to_http1(3)));
    let output = wrk.wait_with_output().unwrap();
    let output = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.contains("Requests/sec"), "{output}");
    for word in ["Socket errors", "Non-2xx"] {
        assert!(!output.contains(word), "{output}");
    }
    balancer.end();
}

#[test]
fn flows_that_outlast_the_drain_timeout_are_reset() {
    let Some(lab) = lab("flows_that_outlast_the_drain_timeout_are_reset") else {
        return;
    };
    let balancer = balance(&lab, &services(&[(80, "drain_timeout = '2s'")]));
    lab.within("client", || {
        let mut connections = opened_to_http1(3);
        xdp_proxy(&lab, "drain 10.0.0.2:80");
        let drained = Instant::now();
        let mut failed = Vec::new();
        while failed.len() < connections.len() && drained.elapsed() < Duration::from_secs(6) {
            for (number, connection) in connections.iter_mut().enumerate() {
                if failed.iter().any(|(known, _)| *known == number) {
                    continue;
                }
                if let Err(error) = connection.host() {
                    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
                    failed.push((number, drained.elapsed()));
                }
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        println!("reset after {failed:?}");
        assert_eq!(failed.len(), connections.len());
        // Seconds are counted whole, and looked at once a second.
        for (_, after) in failed {
            assert!(after > Duration::from_secs(1) && after < Duration::from_secs(4));
        }
        assert_eq!(http::host(LB).unwrap(), "http2");
    });
    assert_eq!(flows(&lab, 0), 0);
    assert!(is(&lab.status(), 0, 0, "draining"));
    balancer.end();
}

#[test]
fn weight_0_drains_and_a_drain_by_command_outlives_a_reload() {
    let Some(lab) = lab("weight_0_drains_and_a_drain_by_command_outlives_a_reload") else {
        return;
    };
    let both = services(&[(80, "name = 'web'")]);
    let balancer = balance(&lab, &both);
    lab.within("client", || {
        let mut connections = opened_to_http1(3);
        let first = format!("address = '{HTTP1}:80'");
        lab.write(
            "health.toml",
            &both.replace(&first, &format!("{first}, weight = 0")),
        );
        xdp_proxy(&lab, "reload");
        let drains = is(&lab.status(), 0, 0, "draining");
        assert!(drains);
        let left = flows(&lab, 0);
        assert_eq!(left, 3);
        for connection in &mut connections {
            assert_eq!(connection.host().unwrap(), "http1");
        }
        assert_eq!(http::host(LB).unwrap(), "http2");
        let told = xdp_proxy(&lab, "undrain 10.0.0.2");
        assert!(told.contains("still drains, as its weight is 0"), "{told}");

        xdp_proxy(&lab, "drain 10.0.0.2");
        lab.write("health.toml", &both);
        xdp_proxy(&lab, "reload");
        let status = lab.status();
        assert!(is(&status, 0, 0, "draining"));
        assert_eq!(status["services"][0]["backends"][0]["drained"], true);
        let text = xdp_proxy(&lab, "status");
        assert!(
            text.contains("draining") && text.contains("  for "),
            "{text}"
        );
        xdp_proxy(&lab, "undrain 10.0.0.2");
        assert!(is(&lab.status(), 0, 0, "up"));
        drop(opened_to_http1(1));
    });
    balancer.end();
}

#[test]
fn health_and_drain_outlive_the_daemon() {
    let Some(lab) = lab("health_and_drain_outlive_the_daemon") else {
        return;
    };
    let text = services(&[(80, "drain_timeout = '6s'")])
        + "[[service]]\nlisten = '10.0.0.5:81'\nhealth = { type = 'tcp', port = 9, rise = 100 }\n\
           backend = [{ address = '10.0.0.3:80' }]\n";
    let balancer = balance(&lab, &text);
    lab.within("client", || {
        let mut connection = opened_to_http1(1).remove(0);
        xdp_proxy(&lab, "drain 10.0.0.2");
        let drained = Instant::now();
        std::thread::sleep(Duration::from_secs(2));
        balancer.signal(Signal::SIGKILL);
        balancer.wait();
        let balancer = balance(&lab, &text);
        assert!(
            balancer.ready.contains("-> 1 of 2 backends"),
            "{}",
            balancer.ready
        );
        let status = lab.status();
        assert!(is(&status, 0, 0, "draining"));
        let since = &status["services"][0]["backends"][0]["draining_for_seconds"];
        assert!(since.as_u64().unwrap() >= 2, "{status:#}");
        let health = &status["services"][1]["backends"][0]["health"];
        assert_eq!(health["state"], "down");
        assert!(health["for_seconds"].as_u64().unwrap() >= 2, "{status:#}");
        assert_eq!(connection.host().unwrap(), "http1");
        // Its time goes on, too.
        let error = loop {
            std::thread::sleep(Duration::from_millis(50));
            if let Err(error) = connection.host() {
                break error;
            }
        };
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        assert!(drained.elapsed() < Duration::from_secs(9));
        balancer.end();
    });
}

#[test]
fn who_drains_what_is_not_there_is_told_what_is_and_who_drains_the_last_is_warned() {
    let test = "who_drains_what_is_not_there_is_told_what_is_and_who_drains_the_last_is_warned";
    let Some(lab) = lab(test) else { return };
    let refused = |arguments: &str| refusal(&lab.proxy(arguments), 1);
    assert!(refused("drain 10.0.0.2").contains("no xdp-proxy runs"));
    let balancer = balance(
        &lab,
        &services(&[(80, "name = 'web'"), (81, "name = 'alt'")]),
    );
    for backend in ["10.0.0.9", "10.0.0.2:81", "http1"] {
        assert_eq!(
            refused(&format!("drain {backend}")),
            format!(
                "xdp-proxy: the daemon on eth0: there is no backend {backend:?}, but \
                 {HTTP1}:80, {HTTP2}:80"
            )
        );
    }
    assert_eq!(
        refused("drain 10.0.0.2 --service www"),
        "xdp-proxy: the daemon on eth0: there is no service \"www\", but web, alt"
    );
    assert_eq!(
        xdp_proxy(&lab, "drain 10.0.0.2"),
        "10.0.0.2:80 of web drains: 0 flows left\n10.0.0.2:80 of alt drains: 0 flows left\n"
    );
    let warned = xdp_proxy(&lab, "drain 10.0.0.3 --service alt");
    assert!(
        warned.contains("warning: alt has no backend for new flows: clients are refused"),
        "{warned}"
    );
    lab.within("client", || {
        let error = std::net::TcpStream::connect((LB, 81)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        assert_eq!(http::host(LB).unwrap(), "http2");
    });
    assert!(is(&lab.status(), 0, 1, "up"));
    balancer.end();
}
