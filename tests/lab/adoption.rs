// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The datapath outlives its daemon, and the next one takes it over.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use libbpf_rs::query::{ProgInfoIter, ProgInfoQueryOptions};
use libbpf_rs::{MapCore as _, MapFlags, MapHandle};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::common::books::adds_up;
use crate::common::echo::Echo;
use crate::common::http;
use crate::common::lab::{BINARY, Balancer, HTTP1, HTTP2, LB, Lab, TWO, refusal, sum};
use crate::common::load::{Downloads, Kept, Load};

/// Ends it without a word.
pub fn kill_9(lb: Balancer<'_>) {
    lb.signal(Signal::SIGKILL);
    lb.wait();
}

/// What tells of a lost packet or a broken connection, of all ends.
pub fn faults(lab: &Lab) -> u64 {
    const NAMES: [&str; 3] = ["TcpExtTCPTimeouts", "TcpEstabResets", "TcpOutRsts"];
    let hosts = ["client", "http1", "http2"].iter();
    hosts
        .flat_map(|host| NAMES.map(|name| lab.counter(host, name)))
        .sum()
}

fn count(status: &Value, pointer: &str) -> u64 {
    status.pointer(pointer).unwrap().as_u64().unwrap()
}

#[test]
fn flows_and_counts_go_on_through_twenty_kills_under_load() {
    let test = "flows_and_counts_go_on_through_twenty_kills_under_load";
    let Some(lab) = crate::lab(test) else { return };
    let mut lb = lab.balance(TWO);
    let mut before = lab.status();
    let lb = Load::during(&lab, 50, |load| {
        for _ in 0..20 {
            kill_9(lb);
            load.goes_on();
            lb = lab.balance(TWO);
            load.goes_on();
            let status = lab.status();
            assert!(lb.log().contains("taking over program"), "{}", lb.log());
            assert_ne!(status["program_id"], before["program_id"]);
            for counter in ["/packets/received", "/services/0/flows_begun"] {
                assert!(count(&status, counter) > count(&before, counter));
            }
            before = status;
        }
        println!("{} requests, 20 kills", load.requests());
        lb
    });
    let status = lab.status();
    adds_up(&status);
    let sent = &status["packets"]["sent"];
    assert_eq!(sent["refused_no_flow"], 0, "{status:#}");
    assert_eq!(sum(&status["packets"]["dropped"]), 0, "{status:#}");
    assert_eq!(
        sent["forwarded"],
        status["services"][0]["forwarded_packets"]
    );
    assert_eq!(sent["returned"], status["services"][0]["returned_packets"]);
    lb.end();
}

#[test]
fn a_thousand_downloads_do_not_notice_a_kill() {
    let Some(lab) = crate::lab_alone("a_thousand_downloads_do_not_notice_a_kill") else {
        return;
    };
    let lb = lab.balance(TWO);
    let lb = lab.within("client", || {
        let before = faults(&lab);
        let mut downloads = Downloads::begin(1000);
        let mut rounds = |count: usize| {
            for _ in 0..count {
                downloads.read_some();
                std::thread::sleep(Duration::from_millis(5));
            }
            downloads.left()
        };
        rounds(5);
        kill_9(lb);
        assert_eq!(rounds(5), 1000, "all are in flight, and no daemon runs");
        let start = Instant::now();
        let lb = lab.balance(TWO);
        assert_eq!(
            rounds(5),
            1000,
            "all are in flight, and another daemon runs"
        );
        while rounds(1) > 0 {
            assert!(start.elapsed() < Duration::from_secs(60));
        }
        println!("1000 downloads took {:.1?}", start.elapsed());
        assert_eq!(faults(&lab), before, "resets and retransmission timeouts");
        lb
    });
    let status = lab.status();
    assert_eq!(count(&status, "/services/0/flows_begun"), 1000);
    lb.end();
}

#[test]
fn what_the_next_daemon_does_not_serve_keeps_its_flows() {
    let Some(lab) = crate::lab("what_the_next_daemon_does_not_serve_keeps_its_flows") else {
        return;
    };
    let lb = lab.balance(TWO);
    lab.within("client", || {
        let mut kept = Kept::open(LB, 20);
        assert!(kept.know("http2"));
        kill_9(lb);
        let file = format!(
            "[[service]]\nlisten = \"{LB}:8080\"\n[[service.backend]]\naddress = \"{HTTP2}:80\"\n\
             [[service]]\nlisten = \"{LB}:80\"\n[[service.backend]]\naddress = \"{HTTP1}\"\n"
        );
        let lb = lab.balance(&format!("-c {}", lab.write("other.toml", &file)));
        kept.go_on();
        for _ in 0..20 {
            assert_eq!(http::host(LB).unwrap(), "http1");
        }
        let status = lab.status();
        let states = |service: usize| -> Vec<_> {
            let backends = status["services"][service]["backends"].as_array().unwrap();
            backends.iter().map(|b| b["state"].clone()).collect()
        };
        assert_eq!(
            (states(0), states(1)),
            (vec!["up".into()], vec!["up".into(), "leaving".into()])
        );
        // The one after it knows which is which.
        kill_9(lb);
        let lb = lab.balance(TWO);
        kept.go_on();
        let hosts = (0..20).map(|_| http::host(LB).unwrap());
        assert!(hosts.collect::<Vec<_>>().contains(&"http2".to_owned()));
        assert_eq!(lab.status()["services"].as_array().unwrap().len(), 1);
        lb.end();
    });
}

#[test]
fn another_mode_keeps_the_flows_and_says_what_it_costs() {
    let Some(lab) = crate::lab("another_mode_keeps_the_flows_and_says_what_it_costs") else {
        return;
    };
    lab.script("clang -O2 -g -target bpf -c \"$LAB_DIR/pass.bpf.c\" -o /run/pass.o");
    lab.script("ip -n switch link set dev lb xdpdrv obj /run/pass.o sec xdp");
    let lb = lab.balance(&format!("--mode generic {TWO}"));
    lab.within("client", || {
        let mut kept = Kept::open(LB, 20);
        kill_9(lb);
        let lb = lab.balance(&format!("--mode native {TWO}"));
        assert!(lb.ready.contains("eth0 (native)"), "{}", lb.ready);
        let word = "eth0: from generic to native mode: flows are kept";
        assert!(lb.log().contains(word), "{}", lb.log());
        kept.go_on();
        // Both will do for `auto`, which leaves it as it is.
        lb.end();
    });
}

#[test]
fn flows_whose_time_is_over_make_room_without_a_daemon() {
    let Some(lab) = crate::lab("flows_whose_time_is_over_make_room_without_a_daemon") else {
        return;
    };
    let echo = Echo::start(&lab, "http1", &format!("{HTTP1}:7"));
    let file = format!(
        "[[service]]\nlisten = \"{LB}:7/udp\"\nsource_ports = \"2000-2099\"\n\
         timeouts = {{ unanswered = \"1s\", established = \"1s\" }}\n\
         [[service.backend]]\naddress = \"{HTTP1}\"\n"
    );
    kill_9(lab.balance(&format!("-c {}", lab.write("few.toml", &file))));
    let open = || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect((LB, 7)).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        for _ in 0..2 {
            socket.send(b"1").unwrap();
            socket.recv(&mut [0; 9]).unwrap();
        }
        socket
    };
    lab.within("client", || {
        let silent: Vec<_> = (0..90).map(|_| open()).collect();
        std::thread::sleep(Duration::from_millis(1500));
        // Each of them needs a port, and only ten were never used.
        let more: Vec<_> = (0..80).map(|_| open()).collect();
        drop((silent, more));
    });
    drop(echo);
    let status = lab.status();
    assert_eq!(status["pid"], Value::Null);
    assert_eq!(status["packets"]["sent"]["snat_exhausted"], 0, "{status:#}");
    assert_eq!(count(&status, "/services/0/flows_begun"), 170);
}

/// The map of this name that the attached program has.
fn map_of_attached(lab: &Lab, name: &str) -> MapHandle {
    let id = lab.attached().unwrap()["prog"]["id"].as_u64().unwrap();
    let options = ProgInfoQueryOptions::default().include_map_ids(true);
    let program = ProgInfoIter::with_query_opts(options).find(|info| u64::from(info.id) == id);
    let maps = program.unwrap().map_ids.into_iter();
    let mut maps = maps.map(|id| MapHandle::from_map_id(id).unwrap());
    maps.find(|map| map.name() == name).unwrap()
}

#[test]
fn maps_of_another_layout_are_left_alone() {
    let Some(lab) = crate::lab("maps_of_another_layout_are_left_alone") else {
        return;
    };
    kill_9(lab.balance(TWO));
    let there = lab.attached();
    let notes = map_of_attached(&lab, "notes");
    let key = 0u32.to_ne_bytes();
    let text = String::from_utf8(notes.lookup(&key, MapFlags::ANY).unwrap().unwrap()).unwrap();
    let layout: Value = serde_json::from_str(&text).unwrap();
    let layout = format!("\"layout\":{}", layout["layout"]);
    let other = text.replacen(&layout, &"\"layout\":9999999"[..layout.len()], 1);
    assert_ne!(text, other);
    notes.update(&key, other.as_bytes(), MapFlags::ANY).unwrap();
    let error = refusal(&lab.proxy(&format!("run {TWO}")), 1);
    println!("{error}");
    assert!(
        error.contains("layout 9") && error.contains("xdp-proxy stop -i eth0"),
        "{error}"
    );
    assert_eq!(lab.attached(), there);
    lab.within("client", || http::host(LB).unwrap());
    // The mend that was named works.
    lab.at("lb", &format!("{BINARY} stop -i eth0"));
    assert_eq!(lab.attached(), None);
    lab.balance(TWO).end();
}
