// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Somebody on the network who makes a backend's MAC flap, and a backend whose checks do: the
//! log stays short, and tells how often it was.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::beside;
use crate::common::lab::TWO;
use crate::common::wire::{Wire, mac};

const ANSWERS: usize = 60_000;
/// Frames of one system call.
const BATCH: usize = 100;
/// The log's window, and some more.
const PATIENCE: Duration = Duration::from_secs(15);
/// Lines about the address: ten, and how often it was, in each of two windows, and those of
/// the start.
const LINES_MAX: usize = 25;

/// An answer of ARP to `to`: 10.0.0.2 is at `mac`.
fn claim(to: [u8; 6], mac: [u8; 6]) -> Vec<u8> {
    let ethernet_ipv4_reply = [8, 6, 0, 1, 8, 0, 6, 4, 0, 2];
    [
        &to[..],
        &mac,
        &ethernet_ipv4_reply,
        &mac,
        &[10, 0, 0, 2],
        &to,
        &[10, 0, 0, 5],
    ]
    .concat()
}

#[test]
fn a_mac_that_flaps_fills_no_log() {
    let Some(lab) = crate::lab("a_mac_that_flaps_fills_no_log") else {
        return;
    };
    lab.script("ADDRESS[mallory]=10.0.0.66; add_host mallory");
    let lb = lab.balance(TWO);
    let to = mac(&lab, "lb");
    let claims: Vec<_> = (0..BATCH as u8)
        .map(|i| claim(to, [2, 0, 0, 0, 66, i]))
        .collect();
    let begun = Instant::now();
    lab.within("mallory", || {
        let wire = Wire::open();
        for _ in 0..ANSWERS / BATCH {
            wire.send(&claims);
            thread::sleep(Duration::from_millis(4));
        }
    });
    let flapped = begun.elapsed();
    let about = |log: &str| {
        log.lines()
            .filter(|line| line.contains("10.0.0.2 "))
            .count()
    };
    let counted = |log: &str| log.contains("how 10.0.0.2 is reached changed ");
    while !counted(&lb.log()) {
        assert!(begun.elapsed() < flapped + PATIENCE, "nobody counted");
        thread::sleep(Duration::from_millis(100));
    }
    let log = lb.log();
    println!(
        "{ANSWERS} answers in {flapped:?}: {} lines, {} bytes of log",
        about(&log),
        log.len()
    );
    let windows = 1 + flapped.as_secs() as usize / 10;
    assert!(about(&log) <= LINES_MAX * windows, "{log}");
    // What is true is told in the end.
    let told = log.lines().rev().find(|line| counted(line)).unwrap();
    assert!(
        told.contains(" more times within 10 s: 10.0.0.2 is reached at "),
        "{told}"
    );
    lb.until("up", |status| {
        let backends = status["services"][0]["backends"].as_array().unwrap();
        backends.iter().all(|backend| backend["state"] == "up")
    });
    lb.end();
}

/// It is up and down by turns, as often as it is asked.
#[test]
fn a_backend_whose_checks_flap_fills_no_log() {
    let Some(lab) = crate::lab("a_backend_whose_checks_flap_fills_no_log") else {
        return;
    };
    let file = lab.write(
        "flaps.toml",
        "[[service]]\nlisten = '10.0.0.5:80'\nbackend = [{ address = '10.0.0.2:9000' }]\n\
         health = { type = 'http', interval = '20ms', timeout = '20ms', rise = 1, fall = 1 }\n",
    );
    let listener = lab.within("http1", || TcpListener::bind("10.0.0.2:9000").unwrap());
    listener.set_nonblocking(true).unwrap();
    let answer = |over: &AtomicBool| {
        let mut statuses = ["200 OK", "503 No"].into_iter().cycle();
        while !over.load(Ordering::Relaxed) {
            let Ok((mut stream, _)) = listener.accept() else {
                thread::sleep(Duration::from_millis(1));
                continue;
            };
            let answer = format!("HTTP/1.1 {}\r\n\r\n", statuses.next().unwrap());
            let asked = stream.set_nonblocking(false).and_then(|()| {
                stream.set_read_timeout(Some(Duration::from_secs(1)))?;
                stream.read(&mut [0; 1024])
            });
            let _ = asked.and_then(|_| stream.write_all(answer.as_bytes()));
        }
    };
    let flap = || {
        let lb = lab.balance(&format!("-c {file}"));
        let words = [
            "backend 10.0.0.2:9000 changed ",
            "whether 10.0.0.5:80/tcp has a backend for new flows changed ",
        ];
        let begun = Instant::now();
        while !words.iter().all(|words| lb.log().contains(words)) {
            assert!(begun.elapsed() < PATIENCE, "nobody counted: {}", lb.log());
            thread::sleep(Duration::from_millis(100));
        }
        let log = lb.log();
        let lines = log.lines().count();
        println!(
            "{lines} lines, the last ones: {}",
            log.lines().last().unwrap()
        );
        assert!(lines <= 4 * LINES_MAX, "{log}");
        lb.end();
    };
    beside(answer, flap);
}
