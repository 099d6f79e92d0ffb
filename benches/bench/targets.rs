// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! What is aimed at, beside what was measured. Missing one is no failure: the
//! bounds that are one stand in benches/bounds.toml.

use xdp_proxy::status::counted;

use crate::cases::{COUNTED, MANY_FLOWS};
use crate::requests::{Contender, KEPT, OPENED};
use crate::results::{Results, median};

#[derive(Clone, Copy)]
enum Goal {
    AtMost(f64),
    AtLeast(f64),
}

use Goal::*;

/// Multiples of an empty program, by the case's name; with per-flow counters alike.
const PACKETS: [(&str, f64); 7] = [
    ("established, 1 flow", 2.0),
    ("established, 32768 flows", 5.0),
    ("new flow, table 50 % full", 7.0),
    ("new flow, table 90 % full", 7.0),
    ("not ours: another address", 1.4),
    ("not ours: another port of the VIP", 1.4),
    ("not ours: ARP", 1.4),
];

pub fn of_packets(case: &str) -> Option<f64> {
    let case = case.strip_suffix(COUNTED).unwrap_or(case);
    let goal = PACKETS.iter().find(|(name, _)| *name == case)?;
    Some(goal.1)
}

struct Row {
    what: String,
    goal: Goal,
    measured: f64,
    /// What the direct path has, with no load balancer at all.
    direct: Option<f64>,
}

/// What was measured of what is aimed at.
fn rows(results: &Results) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut add = |what: String, goal: Goal, measured: Option<f64>, direct: Option<f64>| {
        if let Some(measured) = measured.filter(|measured| !measured.is_nan()) {
            rows.push(Row {
                what,
                goal,
                measured,
                direct,
            });
        }
    };
    for (load, other, goal) in [
        (KEPT, Contender::Direct, 0.85),
        (KEPT, Contender::Nftables, 1.2),
        (KEPT, Contender::Haproxy, 2.0),
        (KEPT, Contender::NginxStream, 2.0),
        (KEPT, Contender::NginxKept, 2.0),
        (OPENED, Contender::Direct, 0.75),
    ] {
        let of = |contender: Contender| results.request_ratio(load, contender.name(), other.name());
        let generic = Contender::Generic;
        let what = format!("{load}, {}, of {}", generic.name(), other.name());
        let direct = of(Contender::Direct).filter(|_| other.name() != Contender::Direct.name());
        add(what, AtLeast(goal), of(generic), direct);
    }
    let mut row = |what, goal, measured| add(what, goal, measured, None);
    for (case, goal) in PACKETS {
        for case in [case.to_owned(), format!("{case}{COUNTED}")] {
            let measured = results.multiple(&case);
            row(
                format!("{case}, of an empty program"),
                AtMost(goal),
                measured,
            );
        }
    }
    for point in &results.live {
        if point.mode == "native" && [1, MANY_FLOWS].contains(&point.flows) && point.backends == 2 {
            let flows = counted(point.flows.into(), "flow");
            let what = format!("live frames, native, {flows}, of swapping MACs");
            row(what, AtLeast(0.85), Some(point.ratio()));
        }
    }
    for (what, times, goal) in [
        ("start, ms", &results.start_ms, 300.0),
        ("reload of 1,000 services, ms", &results.reload_ms, 200.0),
    ] {
        let measured = (!times.is_empty()).then(|| median(times.iter().copied()));
        row(what.to_owned(), AtMost(goal), measured);
    }
    let idle = results
        .memory
        .iter()
        .find(|m| m.contender == Contender::Generic.name() && m.connections == 0);
    let mb = idle.map(|m| m.process_bytes as f64 / 1e6);
    row(
        "memory of the process, idle, MB".to_owned(),
        AtMost(15.0),
        mb,
    );
    rows
}

pub fn print(results: &Results) {
    let rows = rows(results);
    if rows.is_empty() {
        return;
    }
    println!("\n{:64} {:>9} {:>9}  ", "goals", "goal", "measured");
    for row in rows {
        let measured = row.measured;
        let (sign, wanted, reached) = match row.goal {
            AtMost(wanted) => ("<=", wanted, measured <= wanted),
            AtLeast(wanted) => (">=", wanted, measured >= wanted),
        };
        let far = (measured / wanted - 1.0) * 100.0;
        let word = if reached { "reached" } else { "short" };
        let direct = row
            .direct
            .map_or(String::new(), |direct| format!(", direct has {direct:.2}"));
        println!(
            "{:64} {sign} {wanted:>6.2} {measured:>9.2}  {word} ({far:+.0} %){direct}",
            row.what
        );
    }
}
