// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! `make soak`: minutes or hours of what a load balancer meets, in the lab. No request
//! may fail that policy does not explain, no packet may be uncounted, no memory grow.

#[path = "../common/mod.rs"]
mod common;

mod books;
mod events;
mod ledger;
mod memory;
mod traffic;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use books::Books;
use common::beside;
use common::lab::Lab;
use events::{Events, detection};
use ledger::{Kind, Ledger};
use traffic::Traffic;

/// The backends.
pub const HOSTS: [&str; 3] = ["http1", "http2", "http3"];
const HTTP3: &str = "10.0.0.6";
const SECONDS_MIN: u64 = 30;
/// A flow that has closed is kept for 10 s.
const EMPTY_WITHIN: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    let setting = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
    let Some(seconds) = setting("SOAK_SECONDS") else {
        println!("soak: not asked for; `make soak` runs it");
        return ExitCode::SUCCESS;
    };
    if !common::root_or_skip("soak") {
        return ExitCode::SUCCESS;
    }
    let seconds: u64 = seconds.parse().expect("SOAK_SECONDS is a number");
    assert!(seconds >= SECONDS_MIN, "it takes {SECONDS_MIN} seconds");
    common::watch(Duration::from_secs(seconds) + common::LONGEST_TEST);
    let seed = setting("SOAK_SEED").map(|text| text.parse().expect("SOAK_SEED is a number"));
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let seed = seed.unwrap_or(now.expect("it is after 1970").as_secs());
    println!("soak: {seconds} s, SEED={seed}");
    let faults = soak(Duration::from_secs(seconds), seed);
    for fault in &faults {
        println!("FAULT {fault}");
    }
    if faults.is_empty() {
        println!("soak: nothing to complain of");
        return ExitCode::SUCCESS;
    }
    println!("soak: {} faults, SEED={seed}", faults.len());
    ExitCode::FAILURE
}

/// What was not as it must be, in lines.
fn soak(time: Duration, seed: u64) -> Vec<String> {
    let lab = Lab::without_access_log();
    lab.add_web_server("http3", HTTP3);
    let file = |host: &&str| {
        let file = lab.read(&format!("/run/xdp-proxy-lab/{host}/files/1m"));
        ((*host).to_owned(), file)
    };
    let traffic = Traffic::new(BTreeMap::from_iter(HOSTS.iter().map(file)));
    Books::open(&lab);
    let mut events = Events::begin(&lab, &traffic, seed | 1);
    let before = Books::read(&lab);
    let mut faults = Vec::new();

    let began = Instant::now();
    beside(
        |over| traffic.flow(&lab, over),
        || {
            events.until(began + time / 2, true);
            // The same daemon from here on.
            events.warm_up();
            events.until(began + time, false);
            events.settle();
        },
    );
    faults.extend(memory::faults(&events.memory));

    let emptied = Instant::now();
    let flows = || -> u64 {
        let status = lab.status();
        let services = status["services"].as_array().unwrap().iter();
        services
            .map(|service| service["flows"].as_u64().unwrap())
            .sum()
    };
    while flows() > 0 && emptied.elapsed() < EMPTY_WITHIN {
        std::thread::sleep(Duration::from_millis(200));
    }
    match flows() {
        0 => println!(
            "  flows      none {:.0?} after the last connection",
            emptied.elapsed()
        ),
        left => faults.push(format!("{left} flows are left")),
    }
    let ledger = traffic.ledger();
    faults.extend(connections(&ledger, &traffic, began));
    faults.extend(Books::read(&lab).faults(&before));
    lab.checksums_were_right(&["client", "http1", "http2", "http3"]);
    let mut counts = BTreeMap::<_, usize>::new();
    for (_, event) in &events.all {
        *counts.entry(*event).or_default() += 1;
    }
    let counts = counts.iter();
    let counts: Vec<String> = counts
        .map(|(event, count)| format!("{count} {event}"))
        .collect();
    println!("  events     {}", counts.join(", "));
    println!("  starts     ready within {:.0?}", events.slowest_start);
    if !faults.is_empty() {
        for (moment, event) in &events.all {
            let at = moment.saturating_duration_since(began).as_secs_f32();
            println!("  at {at:6.2} s  {event}");
        }
        println!("--- the load balancer's log\n{}---", events.log());
    }
    drop(ledger);
    events.end();
    assert_eq!(lab.attached(), None);
    faults
}

/// Prints how the connections fared; returns what nothing explains.
fn connections(ledger: &Ledger, traffic: &Traffic, began: Instant) -> Vec<String> {
    println!(
        "  {:<10} {:>8} {:>8}  failed, for the death of a server",
        "", "begun", "served"
    );
    let mut all = 0;
    for kind in Kind::ALL {
        let of_kind = ledger
            .failures
            .iter()
            .filter(|failure| failure.kind == kind);
        let mut by_fault = BTreeMap::<_, u64>::new();
        for failure in of_kind.filter(|failure| ledger.explains(failure, detection())) {
            *by_fault.entry(failure.fault.to_string()).or_default() += 1;
        }
        let served = ledger.served.get(&kind).copied().unwrap_or_default();
        let failed = ledger.failures.iter().filter(|f| f.kind == kind).count() as u64;
        all += served + failed;
        let words: Vec<String> = by_fault.iter().map(|(f, n)| format!("{n} {f}")).collect();
        println!(
            "  {:<10} {:>8} {served:>8}  {}",
            kind.name(),
            served + failed,
            words.join(", ")
        );
    }
    let mut faults = Vec::new();
    if all != traffic.begun() {
        faults.push(format!(
            "{} connections began, {all} ended",
            traffic.begun()
        ));
    }
    let unexplained = ledger.failures.iter();
    for failure in unexplained.filter(|failure| !ledger.explains(failure, detection())) {
        let at = |moment: Instant| moment.duration_since(began).as_secs_f32();
        faults.push(format!(
            "a {} connection {} at {:.2} s, begun at {:.2} s, with {}",
            failure.kind.name(),
            failure.fault,
            at(failure.ended),
            at(failure.began),
            failure.backend.as_deref().unwrap_or("nobody yet"),
        ));
    }
    if !faults.is_empty() {
        for outage in &ledger.outages {
            let at = |moment: Instant| moment.duration_since(began).as_secs_f32();
            let until = outage.span.until.map(at).unwrap_or_default();
            println!(
                "  outage     {} from {:.2} s to {until:.2} s",
                outage.backend,
                at(outage.span.from)
            );
        }
    }
    faults
}
