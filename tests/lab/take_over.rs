// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! A daemon takes the place of one that runs; a datapath is told to stay.

use std::net::UdpSocket;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::beside;
use crate::common::books::adds_up;
use crate::common::echo::{Echo, make_room};
use crate::common::http::{self, Connection};
use crate::common::lab::{BINARY, HTTP1, LB, TWO, only_child, refusal, sum};
use crate::common::load::Load;

/// Sends numbered datagrams to port 7 of the VIP until told to end, and counts what
/// comes back: as many as were sent, each once.
fn exchange(over: &AtomicBool) -> u64 {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    make_room(&socket);
    socket.connect((LB, 7)).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(1)))
        .unwrap();
    let mut sent = 0u64;
    let mut seen = Vec::new();
    let read = |seen: &mut Vec<bool>| {
        let mut number = [0; 8];
        if socket.recv(&mut number).is_ok() {
            let number = u64::from_be_bytes(number) as usize;
            seen.resize(seen.len().max(number + 1), false);
            assert!(!seen[number], "{number} came twice");
            seen[number] = true;
        }
    };
    while !over.load(Ordering::Relaxed) {
        for _ in 0..8 {
            socket.send(&sent.to_be_bytes()).unwrap();
            sent += 1;
        }
        (0..8).for_each(|_| read(&mut seen));
    }
    let lost = sent as usize - seen.iter().filter(|seen| **seen).count();
    assert_eq!(lost, 0, "of {sent} datagrams");
    sent
}

#[test]
fn no_packet_is_lost_when_another_daemon_takes_over() {
    let Some(lab) = crate::lab_alone("no_packet_is_lost_when_another_daemon_takes_over") else {
        return;
    };
    let echo = Echo::start(&lab, "http1", &format!("{HTTP1}:7"));
    let services = format!(
        "[[service]]\nlisten = \"{LB}:80\"\n[[service.backend]]\naddress = \"{HTTP1}\"\n\
         [[service.backend]]\naddress = \"10.0.0.3\"\n\
         [[service]]\nlisten = \"{LB}:7/udp\"\n[[service.backend]]\naddress = \"{HTTP1}\"\n"
    );
    let file = lab.write("both.toml", &services);
    let received = |host: &str| lab.counter(host, "UdpInDatagrams");
    let before = [received("http1"), received("client")];
    let mut lb = lab.balance(&format!("-c {file}"));
    let take_overs = || {
        Load::during(&lab, 50, |load| {
            for _ in 0..10 {
                let next = lab.balance(&format!("--take-over -c {file}"));
                let (log, status) = lb.outcome();
                assert_eq!(status.code(), Some(0), "{log}");
                assert!(log.contains("another xdp-proxy has taken over"), "{log}");
                load.goes_on();
                lb = next;
            }
            println!("{} requests, 10 take-overs", load.requests());
            lb
        })
    };
    let client = |over: &AtomicBool| lab.within("client", || exchange(over));
    let (sent, lb) = beside(client, take_overs);
    println!("{sent} datagrams there and back");
    assert_eq!(received("http1") - before[0], sent, "at the backend");
    assert_eq!(received("client") - before[1], sent, "at the client");
    let status = lab.status();
    adds_up(&status);
    assert_eq!(status["services"][1]["forwarded_packets"], sent);
    assert_eq!(status["services"][1]["returned_packets"], sent);
    assert_eq!(
        status["packets"]["sent"]["refused_no_flow"], 0,
        "{status:#}"
    );
    assert_eq!(sum(&status["packets"]["dropped"]), 0, "{status:#}");
    drop(echo);
    lb.end();
    assert_eq!(lab.attached(), None);
}

#[test]
fn one_that_fails_to_take_over_leaves_the_other_as_it_was() {
    let test = "one_that_fails_to_take_over_leaves_the_other_as_it_was";
    let Some(lab) = crate::lab(test) else { return };
    let lb = lab.balance(TWO);
    let there = lab.attached();
    let mut connection = lab.within("client", || Connection::open(LB).unwrap());
    let owner = connection.host().unwrap();
    // By what it is to do.
    let error = refusal(
        &lab.proxy(&format!("run --take-over --mode offload {TWO}")),
        1,
    );
    assert!(error.contains("no card to offload to"), "{error}");
    // By its death.
    let mut dying = lab
        .command("lb", BINARY)
        .args(["run", "--take-over", "--listen", "10.0.0.5:80"])
        .args(["--backend", "10.0.0.99"])
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(300));
    kill(
        Pid::from_raw(only_child(dying.id()) as i32),
        Signal::SIGKILL,
    )
    .unwrap();
    dying.wait().unwrap();
    assert_eq!(lab.attached(), there);
    assert_eq!(connection.host().unwrap(), owner);
    lab.within("client", || http::host(LB).unwrap());
    lb.until("it goes on", |status| {
        status["services"][0]["backends"].as_array().unwrap().len() == 2
    });
    lb.end();
}

#[test]
fn one_that_has_taken_over_serves_even_if_it_can_t_say_so() {
    let test = "one_that_has_taken_over_serves_even_if_it_can_t_say_so";
    let Some(lab) = crate::lab(test) else { return };
    let first = lab.balance(TWO);
    let mut connection = lab.within("client", || Connection::open(LB).unwrap());
    let owner = connection.host().unwrap();
    let log = "/run/second.log";
    let line = format!("exec {BINARY} run --take-over {TWO} >/dev/full 2>{log}");
    let script = lab.write("full.sh", &line);
    let mut second = lab.command("lb", "sh").arg(&script).spawn().unwrap();
    let (log_of_first, status) = first.outcome();
    assert_eq!(status.code(), Some(0), "{log_of_first}");
    assert_eq!(connection.host().unwrap(), owner);
    lab.within("client", || http::host(LB).unwrap());
    assert_eq!(lab.at("lb", &format!("{BINARY} stop")), "stopped: eth0\n");
    assert_eq!(second.wait().unwrap().code(), Some(0));
    let log = String::from_utf8(lab.read(log)).unwrap();
    assert!(
        log.contains("WARN writing to stdout that it is ready: "),
        "{log}"
    );
}

#[test]
fn where_no_daemon_runs_taking_over_is_starting() {
    let Some(lab) = crate::lab("where_no_daemon_runs_taking_over_is_starting") else {
        return;
    };
    let lb = lab.balance(&format!("--take-over {TWO}"));
    lb.signal(Signal::SIGKILL);
    lb.wait();
    let lb = lab.balance(&format!("--take-over {TWO}"));
    assert!(lb.log().contains("taking over program"), "{}", lb.log());
    lb.end();
}

#[test]
fn a_datapath_that_persists_serves_until_the_next_run_or_stop() {
    let test = "a_datapath_that_persists_serves_until_the_next_run_or_stop";
    let Some(lab) = crate::lab(test) else { return };
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let lb = lab.balance(&format!("--persist {TWO}"));
        Load::during(&lab, 20, |load| {
            lb.signal(signal);
            let (log, status) = lb.outcome();
            assert_eq!(status.code(), Some(0), "{log}");
            assert!(
                log.contains("serves on") && log.contains("xdp-proxy stop -i eth0"),
                "{log}"
            );
            assert!(lab.attached().is_some());
            load.goes_on();
            let lb = lab.balance(&format!("--persist {TWO}"));
            load.goes_on();
            lb.signal(signal);
            assert_eq!(lb.outcome().1.code(), Some(0));
        });
        let done = lab.at("lb", &format!("{BINARY} stop"));
        assert!(done.starts_with("detached: eth0"), "{done}");
        assert_eq!(lab.attached(), None);
    }
    // `stop` is to clean up whatever it meets.
    let lb = lab.balance(&format!("--persist {TWO}"));
    assert_eq!(lab.at("lb", &format!("{BINARY} stop")), "stopped: eth0\n");
    assert_eq!(lb.outcome().1.code(), Some(0));
    assert_eq!(lab.attached(), None);
}
