// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! `flows` and `status`, whether a daemon runs or not.

use std::net::UdpSocket;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use xdp_proxy::control::Control;

use crate::common::echo::Echo;
use crate::common::http::Connection;
use crate::common::lab::{BINARY, HTTP1, HTTP2, LB, Lab, TWO, TWO_UNCHECKED, refusal};

fn flows(lab: &Lab, filter: &str) -> Vec<Value> {
    let text = lab.at("lb", &format!("{BINARY} flows --json {filter}"));
    let all: Value = serde_json::from_str(&text).unwrap();
    all["flows"].as_array().unwrap().clone()
}

fn serve_both(lab: &Lab) -> String {
    lab.write(
        "both.toml",
        &format!(
            "[[service]]\nname = \"web\"\nlisten = \"{LB}:80\"\n\
             timeouts = {{ closing = \"2m\" }}\n\
             [[service.backend]]\naddress = \"{HTTP1}\"\n\
             [[service.backend]]\naddress = \"{HTTP2}\"\n\
             [[service]]\nlisten = \"{LB}:7/udp\"\n\
             [[service.backend]]\naddress = \"{HTTP1}\"\n"
        ),
    )
}

#[test]
fn one_flow_is_told_in_the_singular() {
    let Some(lab) = crate::lab("one_flow_is_told_in_the_singular") else {
        return;
    };
    let file = lab.write("one.toml", TWO_UNCHECKED);
    let lb = lab.balance(&format!("-c {file}"));
    let told = |command: &str| lab.at("lb", &format!("{BINARY} {command}"));
    assert!(told("flows").starts_with("eth0: 0 flows\n"));
    lab.within("client", || {
        let mut kept = Connection::open(LB).unwrap();
        let host = kept.host().unwrap();
        assert!(told("flows").starts_with("eth0: 1 flow\n"));
        assert!(
            told("status").contains("  maglev  1 flow\n"),
            "{}",
            told("status")
        );
        let backend = if host == "http1" { HTTP1 } else { HTTP2 };
        let drained = told(&format!("drain {backend}"));
        assert!(drained.ends_with(" drains: 1 flow left\n"), "{drained}");
    });
    lb.end();
}

#[test]
fn flows_tells_each_flow_and_filters_with_and_without_a_daemon() {
    let test = "flows_tells_each_flow_and_filters_with_and_without_a_daemon";
    let Some(lab) = crate::lab(test) else { return };
    let echo = Echo::start(&lab, "http1", &format!("{HTTP1}:7"));
    let lb = lab.balance(&format!("-c {}", serve_both(&lab)));
    lab.within("client", || {
        let mut kept: Vec<_> = (0..20).map(|_| Connection::open(LB).unwrap()).collect();
        let owners: Vec<String> = kept.iter_mut().map(|c| c.host().unwrap()).collect();
        let at_http1 = owners.iter().filter(|owner| *owner == "http1").count();
        kept[0].get("/1m").unwrap();
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect((LB, 7)).unwrap();
        socket.send(b"1").unwrap();
        socket.recv(&mut [0; 9]).unwrap();
        // One that its client does not go on with.
        let dumb = UdpSocket::bind("0.0.0.0:0").unwrap();
        dumb.connect((LB, 7)).unwrap();
        dumb.send(b"1").unwrap();
        dumb.recv(&mut [0; 9]).unwrap();
        drop(Connection::open(LB).unwrap());
        thread::sleep(Duration::from_millis(1200));
        let first = format!("10.0.0.4:{}", kept[0].local_port());
        let check = || {
            for (filter, count) in [
                ("", 23),
                ("--service web", 21),
                ("--service 10.0.0.5:7/udp", 2),
                ("--state established", 20),
                ("--state unconfirmed", 2),
                ("--state closing", 1),
                ("--client 10.0.0.4", 23),
                ("--client 10.0.0.2", 0),
                (&format!("--client {first}"), 1),
                (
                    &format!("--backend {HTTP2} --state established"),
                    20 - at_http1,
                ),
                (
                    &format!("--backend {HTTP1}:80 --state established"),
                    at_http1,
                ),
                ("--backend 10.0.0.2:81", 0),
                ("--service web --limit 4", 4),
            ] {
                assert_eq!(flows(&lab, filter).len(), count, "{filter}");
            }
            let text = lab.at("lb", &format!("{BINARY} flows --service web --limit 4"));
            assert!(
                text.starts_with("eth0: 21 flows, 4 of them shown\n"),
                "{text}"
            );
            assert_eq!(text.lines().count(), 6, "{text}");
            let error = refusal(&lab.proxy("flows --service mail"), 1);
            assert!(error.contains("there are web, 10.0.0.5:7/udp"), "{error}");

            let flow = &flows(&lab, &format!("--client {first}"))[0];
            assert_eq!(flow["service"], "web");
            assert_eq!(
                (&flow["client"], &flow["vip"]),
                (&first.clone().into(), &"10.0.0.5:80".into())
            );
            let owner = if owners[0] == "http1" { HTTP1 } else { HTTP2 };
            assert_eq!(flow["backend"], format!("{owner}:80"));
            assert!(
                flow["source"].as_str().unwrap().starts_with("10.0.0.5:"),
                "{flow}"
            );
            let counter = |name: &str| flow["counters"][name].as_u64().unwrap();
            assert!(counter("returned_bytes") > 1 << 20 && counter("forwarded_bytes") > 200);
            assert!(counter("returned_packets") >= 4 && counter("forwarded_packets") >= 4);
            assert!((1..=90).contains(&counter("age_seconds")), "{flow}");
            let idle = flow["idle_seconds"].as_u64().unwrap();
            assert!(
                (1..=20).contains(&idle) && idle <= counter("age_seconds") + 1,
                "{flow}"
            );
        };
        check();
        lb.signal(Signal::SIGKILL);
        lb.wait();
        check();
    });
    drop(echo);
}

#[test]
fn what_flows_had_adds_up_to_what_their_backends_had() {
    let Some(lab) = crate::lab("what_flows_had_adds_up_to_what_their_backends_had") else {
        return;
    };
    let lb = lab.balance(TWO);
    lab.within("client", || {
        let mut kept: Vec<_> = (0..50).map(|_| Connection::open(LB).unwrap()).collect();
        for connection in &mut kept {
            connection.get("/small").unwrap();
        }
        thread::sleep(Duration::from_millis(200));
        let service = &lab.status()["services"][0];
        let flows = flows(&lab, "");
        assert_eq!(flows.len(), 50);
        for counter in [
            "forwarded_packets",
            "forwarded_bytes",
            "returned_packets",
            "returned_bytes",
        ] {
            let sum: u64 = flows
                .iter()
                .map(|flow| flow["counters"][counter].as_u64().unwrap())
                .sum();
            assert_eq!(service[counter], sum, "{counter}");
        }
    });
    lb.end();
}

#[test]
fn flows_that_nobody_counts_have_no_counters() {
    let Some(lab) = crate::lab("flows_that_nobody_counts_have_no_counters") else {
        return;
    };
    let service =
        format!("[[service]]\nlisten = \"{LB}:80\"\n[[service.backend]]\naddress = \"{HTTP1}\"\n");
    let with = |counted: bool| format!("flow_counters = {counted}\n{service}");
    let file = lab.write("web.toml", &with(false));
    let lb = lab.balance(&format!("-c {file}"));
    let open = || lab.within("client", || Connection::open(LB).unwrap());
    let counted = || {
        let all = flows(&lab, "--state established");
        all.iter()
            .filter(|flow| flow["counters"].is_object())
            .count()
    };
    let first = open();
    assert_eq!(counted(), 0);
    let mut kept = vec![first];
    // From a reload on new ones are counted, and old ones as they were.
    for (switched_on, wanted) in [(true, 1), (false, 0), (true, 1)] {
        lab.write("web.toml", &with(switched_on));
        let reloaded = lab.at("lb", &format!("{BINARY} reload"));
        let word = format!("flow_counters {}; ", if switched_on { "on" } else { "off" });
        assert!(reloaded.contains(&word), "{reloaded}");
        kept.push(open());
        kept[0].get("/small").unwrap();
        assert_eq!(counted(), wanted, "{switched_on}");
    }
    lb.end();
}

#[test]
fn status_tells_what_a_dead_daemon_has_left() {
    let Some(lab) = crate::lab("status_tells_what_a_dead_daemon_has_left") else {
        return;
    };
    let lb = lab.balance(&format!("-c {}", serve_both(&lab)));
    let mut connection = lab.within("client", || Connection::open(LB).unwrap());
    connection.host().unwrap();
    let mut alive = lab.status();
    lb.signal(Signal::SIGKILL);
    lb.wait();
    let mut left = lab.status();
    assert_eq!(
        (&left["pid"], &left["uptime_seconds"]),
        (&Value::Null, &Value::Null)
    );
    let text = lab.at("lb", &format!("{BINARY} status"));
    assert!(text.contains(", no daemon runs, "), "{text}");
    // What only a daemon knows.
    for status in [&mut alive, &mut left] {
        status.as_object_mut().unwrap().remove("pid");
        status.as_object_mut().unwrap().remove("uptime_seconds");
        for service in status["services"].as_array_mut().unwrap() {
            for backend in service["backends"].as_array_mut().unwrap() {
                backend.as_object_mut().unwrap().remove("next_hop");
                backend.as_object_mut().unwrap().remove("health");
            }
        }
        // ARP goes on.
        status["packets"]["received"] = Value::Null;
        status["packets"]["passed"] = Value::Null;
    }
    assert_eq!(alive, left);
    lab.at("lb", &format!("{BINARY} stop"));
    for command in ["status", "flows"] {
        let error = refusal(&lab.proxy(command), 1);
        assert!(error.contains("no xdp-proxy runs"), "{error}");
    }
}

#[test]
fn status_and_flows_of_a_daemon_that_hangs_are_what_is_in_the_kernel() {
    let test = "status_and_flows_of_a_daemon_that_hangs_are_what_is_in_the_kernel";
    let Some(lab) = crate::lab(test) else { return };
    let lb = lab.balance(TWO);
    let kept = lab.within("client", || Connection::open(LB).unwrap());
    lb.signal(Signal::SIGKILL);
    lb.wait();
    // It has the daemon's place, proves that it may, and says nothing.
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = runtime.unwrap();
    let silent = lab.within("lb", || {
        let _entered = runtime.enter();
        Control::bind("eth0").unwrap()
    });
    let [status, flows, stop] = thread::scope(|scope| {
        ["status --json", "flows --json", "stop"]
            .map(|command| scope.spawn(|| lab.proxy(command)))
            .map(|thread| thread.join().unwrap())
    });
    let word = "the daemon on eth0 does not answer within 10 s: end it by SIGKILL";
    for output in [&status, &flows] {
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.starts_with(&format!("warning: {word}")), "{stderr}");
    }
    assert!(refusal(&stop, 1).contains(word));
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(status["pid"], Value::Null, "{status:#}");
    assert_eq!(status["services"][0]["flows"], 1, "{status:#}");
    let flows: Value = serde_json::from_slice(&flows.stdout).unwrap();
    assert_eq!(flows["count"], 1, "{flows:#}");

    drop((silent, kept));
    let stopped = lab.at("lb", &format!("{BINARY} stop"));
    assert!(stopped.starts_with("detached: eth0"), "{stopped}");
}

#[test]
fn what_a_daemon_attached_that_is_stopped_is_shown_and_left_as_it_is() {
    let test = "what_a_daemon_attached_that_is_stopped_is_shown_and_left_as_it_is";
    let Some(lab) = crate::lab(test) else { return };
    let lb = lab.balance(TWO);
    let there = lab.attached();
    lb.signal(Signal::SIGSTOP);
    for command in ["status", "flows"] {
        let output = lab.proxy(command);
        assert!(output.status.success(), "{output:?}");
        let words = String::from_utf8(output.stderr).unwrap();
        let word = "of user 0 has the name @xdp-proxy/eth0 and does not prove";
        assert!(words.contains(word), "{words}");
    }
    let error = refusal(&lab.proxy("stop"), 1);
    assert!(error.contains("its daemon may be alive"), "{error}");
    let error = refusal(&lab.proxy(&format!("run {TWO}")), 1);
    assert!(error.contains("has the name @xdp-proxy/eth0"), "{error}");
    assert_eq!(lab.attached(), there);
    lb.go_on();
    lb.until("going on", |status| status["pid"].is_u64());
    lb.end();
}
