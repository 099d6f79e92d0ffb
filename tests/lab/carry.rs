// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The source addresses change while connections are open: by a reload, by a daemon
//! after a dead one, by one that takes over.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::adoption::{faults, kill_9};
use crate::common::books::{adds_up, still_moment};
use crate::common::http::Connection;
use crate::common::lab::{BINARY, HTTP1, HTTP2, LB, Lab, sum};
use crate::common::load::{Downloads, Kept, Load};

const TEN: &str = "10.0.0.10";
const ELEVEN: &str = "10.0.0.11";
/// What is configured in turns.
const TURNS: [&[&str]; 6] = [
    &[TEN],
    &[TEN, ELEVEN],
    &[ELEVEN],
    &[],
    &[LB, TEN, ELEVEN],
    &[TEN],
];

/// Writes the file; returns its path.
fn serve(lab: &Lab, sources: &[&str]) -> String {
    let text = format!(
        "[[service]]\nname = \"web\"\nlisten = \"{LB}:80\"\nsource = {sources:?}\n\
         [[service.backend]]\naddress = \"{HTTP1}\"\n[[service.backend]]\naddress = \"{HTTP2}\"\n"
    );
    lab.write("web.toml", &text)
}

fn begin(test: &str) -> Option<Lab> {
    let lab = crate::lab_alone(test)?;
    for source in [TEN, ELEVEN] {
        lab.at("lb", &format!("ip addr add {source}/32 dev eth0"));
    }
    Some(lab)
}

fn reload(lab: &Lab) -> String {
    lab.at("lb", &format!("{BINARY} reload"))
}

/// Open flows, by their source addresses.
fn flows_by_source(lab: &Lab) -> BTreeMap<String, usize> {
    let flows: Value =
        serde_json::from_str(&lab.at("lb", &format!("{BINARY} flows --json"))).unwrap();
    let mut shares = BTreeMap::new();
    for flow in flows["flows"].as_array().unwrap() {
        let source = flow["source"].as_str().unwrap().rsplit_once(':').unwrap().0;
        if flow["state"] == "established" {
            *shares.entry(source.to_owned()).or_default() += 1;
        }
    }
    shares
}

/// Packets that the kernel counted and the program did not: those of before it was there.
fn uncounted(lab: &Lab) -> u64 {
    let (received, status) = still_moment(lab);
    adds_up(&status);
    received - status["packets"]["received"].as_u64().unwrap()
}

/// Load and downloads while `change` goes from each of the turns to the next, without
/// one failed request, reset or retransmission timeout.
fn nobody_notices(lab: &Lab, mut change: impl FnMut(&[&str])) {
    let before = (faults(lab), uncounted(lab));
    let mut seen = Vec::new();
    Load::during(lab, 50, |load| {
        let mut downloads = lab.within("client", || Downloads::begin(200));
        // Of every source that there was.
        let mut kept = Vec::new();
        for sources in TURNS.iter().cycle().take(12) {
            change(sources);
            load.goes_on();
            kept.push(lab.within("client", || Kept::open(LB, 6)));
            for kept in &mut kept {
                kept.go_on();
            }
            (0..3).for_each(|_| downloads.read_some());
            // Some of them after the sweeps of the second that follows.
            if seen.len() % 3 == 0 {
                std::thread::sleep(Duration::from_millis(2500));
            }
            seen.push(flows_by_source(lab).len());
        }
        assert_eq!(downloads.left(), 200, "all are in flight");
        let start = Instant::now();
        while downloads.left() > 0 {
            downloads.read_some();
            assert!(start.elapsed() < Duration::from_secs(60));
        }
        println!(
            "{} requests, 12 changes, from so many sources: {seen:?}",
            load.requests()
        );
    });
    assert!(seen.contains(&3), "{seen:?}");
    assert_eq!(faults(lab), before.0, "resets and retransmission timeouts");
    assert_eq!(uncounted(lab), before.1);
    let packets = &lab.status()["packets"];
    assert_eq!(packets["sent"]["refused_no_flow"], 0, "{packets:#}");
    assert_eq!(sum(&packets["dropped"]), 0, "{packets:#}");
}

#[test]
fn nobody_notices_that_sources_come_and_go_by_a_reload() {
    let test = "nobody_notices_that_sources_come_and_go_by_a_reload";
    let Some(lab) = begin(test) else { return };
    let lb = lab.balance(&format!("-c {}", serve(&lab, &[LB])));
    nobody_notices(&lab, |sources| {
        serve(&lab, sources);
        println!("{sources:?}: {}", reload(&lab).trim());
    });
    lb.until("no flow is left", |status| {
        status["services"][0]["flows"] == 0
    });
    lb.end();
}

#[test]
fn nobody_notices_that_the_next_daemon_has_other_sources() {
    let test = "nobody_notices_that_the_next_daemon_has_other_sources";
    let Some(lab) = begin(test) else { return };
    let mut lb = Some(lab.balance(&format!("-c {}", serve(&lab, &[LB]))));
    let mut takes_over = false;
    nobody_notices(&lab, |sources| {
        let file = serve(&lab, sources);
        let old = lb.take().unwrap();
        takes_over = !takes_over;
        lb = Some(if takes_over {
            let next = lab.balance(&format!("--take-over -c {file}"));
            assert_eq!(old.wait().code(), Some(0));
            next
        } else {
            kill_9(old);
            lab.balance(&format!("-c {file}"))
        });
    });
    let lb = lb.unwrap();
    lb.until("no flow is left", |status| {
        status["services"][0]["flows"] == 0
    });
    lb.end();
}

#[test]
fn flows_keep_their_ports_where_those_of_the_source_change() {
    let test = "flows_keep_their_ports_where_those_of_the_source_change";
    let Some(lab) = begin(test) else { return };
    let with = |ports: &str| {
        let text = format!(
            "[[service]]\nlisten = \"{LB}:80\"\nsource_ports = \"{ports}\"\n\
             [[service.backend]]\naddress = \"{HTTP1}\"\n"
        );
        lab.write("ports.toml", &text)
    };
    let lb = lab.balance(&format!("-c {}", with("10000-11999")));
    lab.within("client", || {
        let ports = || -> BTreeSet<u16> {
            let flows: Value =
                serde_json::from_str(&lab.at("lb", &format!("{BINARY} flows --json"))).unwrap();
            let flows = flows["flows"].as_array().unwrap().iter();
            let open = flows.filter(|flow| flow["state"] == "established");
            let ports =
                open.map(|flow| flow["source"].as_str().unwrap().rsplit_once(':').unwrap().1);
            ports.map(|port| port.parse().unwrap()).collect()
        };
        let mut first = Kept::open(LB, 40);
        let before = ports();
        assert_eq!(before.len(), 40);
        // Others beside those that flows have; by a reload, and by the next daemon.
        with("10000-11999,20000-24999");
        let line = reload(&lab);
        assert!(!line.contains("ended"), "{line}");
        first.go_on();
        let mut more = Kept::open(LB, 40);
        kill_9(lb);
        let lb = lab.balance(&format!("-c {}", with("10000-11999,20000-24999")));
        std::thread::sleep(Duration::from_millis(2500));
        first.go_on();
        more.go_on();
        assert!(ports().is_superset(&before));
        assert!(ports().iter().any(|port| *port >= 20_000));
        drop((first, more));
        lb.until("they have ended", |status| {
            status["services"][0]["flows"] == 0
        });
        // Fewer: who has one that is gone is told.
        let mut kept: Vec<_> = (0..40).map(|_| Connection::open(LB).unwrap()).collect();
        kept.iter_mut().for_each(|c| drop(c.host().unwrap()));
        let end = ports().iter().filter(|port| **port >= 12_000).count();
        assert!((1..40).contains(&end), "{end}");
        with("10000-11999");
        let line = reload(&lab);
        println!("{line}");
        let word = format!(" from {LB} ended, whose ports are its no more");
        assert!(
            line.contains(&format!("{end} flow")) && line.contains(&word),
            "{line}"
        );
        let left = kept.iter_mut().filter_map(|c| c.host().ok()).count();
        assert_eq!(left, 40 - end);
        let status = lab.status();
        assert_eq!(status["packets"]["sent"]["refused_no_flow"], end);
        assert_eq!(status["services"][0]["flows"], left, "{status:#}");
        lb.end();
    });
}

#[test]
fn flows_from_a_source_that_the_host_has_no_more_end_with_a_reset() {
    let test = "flows_from_a_source_that_the_host_has_no_more_end_with_a_reset";
    let Some(lab) = begin(test) else { return };
    let lb = lab.balance(&format!("-c {}", serve(&lab, &[TEN, ELEVEN])));
    lab.within("client", || {
        let mut kept: Vec<_> = (0..60).map(|_| Connection::open(LB).unwrap()).collect();
        kept.iter_mut().for_each(|c| drop(c.host().unwrap()));
        let shares = flows_by_source(&lab);
        let (stay, end) = (shares[TEN], shares[ELEVEN]);
        assert!(stay + end == 60 && end > 5, "{shares:?}");
        lab.at("lb", &format!("ip addr del {ELEVEN}/32 dev eth0"));
        serve(&lab, &[TEN]);
        let line = reload(&lab);
        println!("{line}");
        let word = format!("{end} flows from {ELEVEN} ended, as the host has it no more");
        assert!(line.contains(&word), "{line}");
        // By a reset, not by silence.
        let start = Instant::now();
        let left = kept.iter_mut().filter_map(|c| c.host().ok()).count();
        assert_eq!(left, stay);
        assert!(
            start.elapsed() < Duration::from_secs(3),
            "{:?}",
            start.elapsed()
        );
        let status = lab.status();
        assert_eq!(status["packets"]["sent"]["refused_no_flow"], end);
        assert_eq!(status["services"][0]["flows"], stay, "{status:#}");
    });
    lb.end();
}
