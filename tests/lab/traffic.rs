// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! What arrives is what was sent, whoever computes the checksums.

use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use crate::common::beside;
use crate::common::http::{self, Connection};
use crate::common::lab::{HOSTS, LB, Lab, TWO, TWO_UNCHECKED};
use crate::common::load::{self, originals};

const DOWNLOADS: usize = 300;
/// Downloads at a time.
const THREADS: usize = 10;
const WRK: &str = "wrk -t2 -c100 -d3s --latency http://10.0.0.5/";

/// Downloads over keep-alive and over new connections, wrk, uploads: no failure,
/// and no host sees a bad checksum.
fn carries_everything(lab: &Lab, what: &str) {
    let files = originals(lab);

    let start = Instant::now();
    download(lab, LB, &files, DOWNLOADS, true);
    let keep_alive = start.elapsed();
    download(lab, LB, &files, DOWNLOADS, false);
    let new = start.elapsed() - keep_alive;
    let requests = wrk(lab);
    upload(lab, LB);
    println!(
        "{what}: {DOWNLOADS} downloads over keep-alive {keep_alive:.1?}, over new connections \
         {new:.1?}; wrk {requests:.0}/s"
    );
    lab.checksums_were_right(&HOSTS);
}

/// So many downloads, several in turn over one connection if `keep_alive`.
pub fn download(lab: &Lab, server: &str, files: &[Vec<u8>; 2], count: usize, keep_alive: bool) {
    let work = || {
        let mut connection = Connection::open(server).unwrap();
        let mut first = None;
        for _ in 0..count / THREADS {
            let body = connection.get("/1m").unwrap();
            let from = files.iter().position(|file| *file == body);
            assert!(from.is_some(), "a download is damaged");
            if keep_alive {
                assert_eq!(*first.get_or_insert(from), from, "another backend answers");
            } else {
                connection = Connection::open(server).unwrap();
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| lab.within("client", work));
        }
    });
}

/// Requests a second; none may fail.
fn wrk(lab: &Lab) -> f64 {
    let report = lab.at("client", WRK);
    assert!(
        !report.contains("Socket errors") && !report.contains("Non-2xx"),
        "{report}"
    );
    let line = report
        .lines()
        .find(|line| line.starts_with("Requests/sec:"));
    let rate: f64 = line.unwrap()["Requests/sec:".len()..]
        .trim()
        .parse()
        .unwrap();
    assert!(rate > 100.0, "{report}");
    rate
}

pub fn upload(lab: &Lab, server: &str) {
    lab.script("[[ -e /run/10m ]] || head -c 10485760 /dev/urandom >/run/10m");
    for _ in 0..10 {
        let answer = lab.at(
            "client",
            &format!(
                "curl -sS -g --fail --max-time 20 -H Expect: -w %{{size_upload}} \
                 --data-binary @/run/10m http://{server}/upload"
            ),
        );
        assert!(
            answer.starts_with("Hostname: http") && answer.ends_with("10485760"),
            "{answer}"
        );
    }
}

pub fn leave_no_checksum_to_the_card(lab: &Lab, hosts: &[&str]) {
    for host in hosts {
        lab.at(host, "ethtool -K eth0 tx off");
    }
}

#[test]
fn generic_mode_carries_everything_with_default_offloads() {
    let Some(lab) = crate::lab_alone("generic_mode_carries_everything_with_default_offloads")
    else {
        return;
    };
    let lb = lab.balance(TWO);
    assert_eq!(
        lb.ready,
        "ready: eth0 (generic) 10.0.0.5:80/tcp -> 2 backends"
    );
    carries_everything(&lab, "generic, default offloads");
    lb.end();
}

#[test]
fn generic_mode_carries_everything_with_complete_checksums() {
    let Some(lab) = crate::lab_alone("generic_mode_carries_everything_with_complete_checksums")
    else {
        return;
    };
    let lb = lab.balance(TWO);
    leave_no_checksum_to_the_card(&lab, &["http1", "http2"]);
    carries_everything(&lab, "generic, tx off on the backends");
    leave_no_checksum_to_the_card(&lab, &HOSTS);
    carries_everything(&lab, "generic, tx off on all hosts");
    every_checksum_on_the_wire_is_right(&lab);
    lb.end();
}

/// With `tx off` what tcpdump sees is what a wire would carry.
fn every_checksum_on_the_wire_is_right(lab: &Lab) {
    for host in ["client", "http1", "http2"] {
        let capture = lab.capture(host, "tcp");
        lab.within("client", || {
            for _ in 0..30 {
                http::host(LB).unwrap();
            }
            Connection::open(LB).unwrap().get("/1m").unwrap();
        });
        let seen = capture.end();
        let (right, wrong) = (
            seen.matches("(correct)").count(),
            seen.matches("(incorrect").count(),
        );
        println!("{host}: tcpdump saw {right} right checksums and {wrong} wrong ones");
        assert!(right > 50 && wrong == 0, "{host}: {seen}");
        assert!(!seen.contains("bad cksum"), "{host}: {seen}");
    }
}

#[test]
fn native_mode_with_a_prepared_peer_carries_everything() {
    let Some(lab) = crate::lab_alone("native_mode_with_a_prepared_peer_carries_everything") else {
        return;
    };
    lab.script("native");
    let lb = lab.balance(&format!("--mode native {TWO}"));
    assert_eq!(
        lb.ready,
        "ready: eth0 (native) 10.0.0.5:80/tcp -> 2 backends"
    );
    carries_everything(&lab, "native, default offloads");
    leave_no_checksum_to_the_card(&lab, &["http1", "http2"]);
    carries_everything(&lab, "native, tx off on the backends");
    leave_no_checksum_to_the_card(&lab, &HOSTS);
    carries_everything(&lab, "native, tx off on all hosts");
    lb.end();
}

#[test]
fn a_connection_outlives_what_changes_around_it() {
    let Some(lab) = crate::lab("a_connection_outlives_what_changes_around_it") else {
        return;
    };
    // Checks could meet the server three times while it is away.
    let file = lab.write("two.toml", TWO_UNCHECKED);
    let lb = lab.balance(&format!("-c {file}"));
    let (mut busy, mut idle, host) = lab.within("client", || {
        let busy = loop {
            let mut connection = Connection::open(LB).unwrap();
            if connection.host().unwrap() == "http1" {
                break connection;
            }
        };
        let mut idle = Connection::open(LB).unwrap();
        let host = idle.host().unwrap();
        (busy, idle, host)
    });
    let of_http1 = &originals(&lab)[..1];
    let downloads = |over: &AtomicBool| load::download(&mut busy, of_http1, over);
    let (downloads, ()) = beside(downloads, || {
        for round in 0..3 {
            lab.at("http2", "ip link set eth0 down");
            std::thread::sleep(Duration::from_millis(1500));
            lab.at("http2", "ip link set eth0 up");
            let mac = format!("02:00:00:00:01:{round:02x}");
            lab.at("http1", &format!("ip link set eth0 address {mac}"));
            std::thread::sleep(Duration::from_millis(1000));
        }
    });
    println!("{downloads} downloads of 1 MB while backends came, went and changed their MAC");
    assert!(downloads > 10);
    // Replies go to where the flow's last packet came from.
    lab.at("client", "ip link set eth0 address 02:00:00:00:01:10");
    assert_eq!(idle.host().unwrap(), host);
    lb.end();
}
