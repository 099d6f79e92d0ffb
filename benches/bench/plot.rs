// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The plots of README, drawn from the results.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::cases::{COUNTED, MANY_FLOWS};
use crate::requests::{CONTENDERS, Contender, KEPT, LOADS, OPENED};
use crate::results::{RequestCase, Results};
use crate::svg::Svg;
use crate::targets;

const WIDTH: f64 = 860.0;
const ROW: f64 = 24.0;
const LEFT: f64 = 20.0;
const DIRECT: &str = Contender::Direct.name();

/// Draws what the results hold into a folder.
pub fn draw(results: &Results, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    let write = |name: &str, svg: Svg| {
        let path = folder.join(name);
        fs::write(&path, svg.finish()).with_context(|| format!("writing {}", path.display()))
    };
    if !results.packets.is_empty() {
        write("packets.svg", packets(results))?;
        write("flows.svg", flows(results))?;
    }
    if !results.requests.is_empty() {
        write("requests.svg", requests(results))?;
        write("processor.svg", processor(results))?;
        write("latency.svg", latency(results))?;
    }
    Ok(())
}

struct Bar {
    label: String,
    value: f64,
    text: String,
    ours: bool,
    goal: Option<f64>,
}

/// Bars beside each other, with their labels, from `top` on; returns where they end.
fn bars(svg: &mut Svg, bars: &[Bar], (left, top): (f64, f64), (labels, width): (f64, f64)) -> f64 {
    let goals = bars.iter().filter_map(|bar| bar.goal);
    let most = bars
        .iter()
        .map(|bar| bar.value)
        .chain(goals)
        .fold(0.0, f64::max);
    let scale = (width - labels - 100.0) / most;
    let zero = left + labels;
    for (bar, row) in bars.iter().zip(0..) {
        let y = top + f64::from(row) * ROW;
        svg.text("end", zero - 8.0, y + 15.0, &bar.label);
        let class = if bar.ours { "ours" } else { "other" };
        svg.rect(class, (zero, y + 3.0), (bar.value * scale, ROW - 7.0));
        let past = bar.goal.map_or(bar.value, |goal| goal.max(bar.value));
        svg.text("", zero + past * scale + 8.0, y + 15.0, &bar.text);
        if let Some(goal) = bar.goal {
            let x = zero + goal * scale;
            svg.line("goal", (x, y + 1.0), (x, y + ROW - 2.0));
        }
    }
    top + bars.len() as f64 * ROW
}

fn footer(svg: &mut Svg, y: f64, results: &Results) {
    let machine = &results.machine;
    let note = format!(
        "{}, {} CPUs, {}; medians; {}",
        machine.processor,
        machine.cpus,
        machine.kernel,
        &results.date[..results.date.len().min(10)]
    );
    svg.text("note", LEFT, y, note);
}

/// Every case but the points of the curve.
fn packets(results: &Results) -> Svg {
    let shown = results.packets.iter().filter(|case| {
        !["10 flows", "100 flows", "4096 flows", "16384 flows"]
            .iter()
            .any(|points| case.name.ends_with(&format!(", {points}")))
    });
    let rows: Vec<Bar> = shown
        .map(|case| Bar {
            label: case.name.clone(),
            value: case.multiple(),
            text: format!("{:.1}  ({:.0} ns)", case.multiple(), case.ns()),
            ours: true,
            goal: targets::of_packets(&case.name),
        })
        .collect();
    let mut svg = Svg::new(WIDTH, 110.0 + rows.len() as f64 * ROW);
    svg.text(
        "title",
        LEFT,
        28.0,
        "The cost of a packet, as a multiple of an empty XDP program",
    );
    svg.text("goal-text", LEFT, 48.0, "| the goal");
    let end = bars(
        &mut svg,
        &rows,
        (LEFT, 62.0),
        (300.0, WIDTH - 2.0 * LEFT - 50.0),
    );
    footer(&mut svg, end + 28.0, results);
    svg
}

/// Two panels: ns/packet and live frames, each over flows and over backends.
fn flows(results: &Results) -> Svg {
    let mut svg = Svg::new(WIDTH, 380.0);
    svg.text(
        "title",
        LEFT,
        28.0,
        "The cost over the number of flows and of backends",
    );
    svg.rect("ours", (LEFT, 40.0), (18.0, 4.0));
    svg.text("note", LEFT + 26.0, 48.0, "flows in turn, 2 backends");
    svg.line("line-other", (230.0, 42.0), (248.0, 42.0));
    svg.text("note", 256.0, 48.0, "backends, 32768 flows in turn");

    let established = |name: &str| {
        !name.ends_with(COUNTED)
            && (name.starts_with("established") || name.contains(" backends, 3"))
    };
    let cases = || {
        results
            .packets
            .iter()
            .filter(|case| established(&case.name))
    };
    let of_flows = cases().filter(|case| case.backends == 2);
    let of_flows: Vec<_> = of_flows.map(|case| (case.flows, case.multiple())).collect();
    let many = cases().filter(|case| case.flows == MANY_FLOWS);
    let of_backends: Vec<_> = many.map(|case| (case.backends, case.multiple())).collect();
    let head = "ns/packet, as a multiple of an empty program";
    curve(&mut svg, LEFT, head, &of_flows, &of_backends);

    let points = || results.live.iter().filter(|point| point.mode == "native");
    let of_flows = points().filter(|point| point.backends == 2);
    let of_flows: Vec<_> = of_flows.map(|point| (point.flows, point.ratio())).collect();
    let many = points().filter(|point| point.flows == MANY_FLOWS);
    let of_backends: Vec<_> = many.map(|point| (point.backends, point.ratio())).collect();
    let head = "packets/s in native mode, as a share of swapping MACs";
    curve(&mut svg, WIDTH / 2.0 + 10.0, head, &of_flows, &of_backends);
    footer(&mut svg, 366.0, results);
    svg
}

/// One panel over a logarithmic axis of counts.
fn curve(svg: &mut Svg, left: f64, head: &str, ours: &[(u32, f64)], other: &[(u32, f64)]) {
    const DECADES: f64 = 5.0;
    let (x0, y0, width, height) = (left + 34.0, 310.0, 350.0, 210.0);
    svg.text("head", left, 82.0, head);
    let most = ours
        .iter()
        .chain(other)
        .map(|point| point.1)
        .fold(0.0, f64::max);
    let step = [0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0]
        .into_iter()
        .find(|step| most / step <= 5.0);
    let step = step.unwrap_or(50.0);
    let top = (most / step).ceil().max(1.0) * step;
    let lines = (top / step).round() as u32;
    for line in 0..=lines {
        let value = f64::from(line) * step;
        let y = y0 - value / top * height;
        svg.line("grid", (x0, y), (x0 + width, y));
        let digits = if step < 1.0 { 2 } else { 0 };
        svg.text("note end", x0 - 6.0, y + 4.0, format!("{value:.digits$}"));
    }
    for (power, label) in ["1", "10", "100", "1,000", "10,000", "100,000"]
        .iter()
        .enumerate()
    {
        let x = x0 + power as f64 / DECADES * width;
        svg.text("note middle", x, y0 + 18.0, label);
    }
    let place = |(count, value): &(u32, f64)| {
        let x = x0 + f64::from(*count).log10() / DECADES * width;
        (x, y0 - value / top * height)
    };
    for (points, line, dot) in [
        (other, "line-other", "dot-other"),
        (ours, "line-ours", "ours"),
    ] {
        let mut points: Vec<_> = points.to_vec();
        points.sort_by_key(|point| point.0);
        let places: Vec<_> = points.iter().map(place).collect();
        svg.path(line, &places);
        for place in places {
            svg.dot(dot, place);
        }
    }
}

fn cases_of<'a>(results: &'a Results, load: &str) -> Vec<&'a RequestCase> {
    let load = load.to_owned();
    let cases = results.requests.iter();
    cases.filter(|case| case.load == load).collect()
}

/// A panel for each kind of load.
fn panels(
    results: &Results,
    title: &str,
    loads: &[&str],
    bar: impl Fn(&RequestCase) -> (f64, String),
) -> Svg {
    const PANEL: f64 = 420.0;
    let rows = CONTENDERS.len() as f64;
    let (panel_height, lines) = (rows * ROW + 44.0, loads.len().div_ceil(2) as f64);
    let mut svg = Svg::new(WIDTH, 60.0 + lines * panel_height + 20.0);
    svg.text("title", LEFT, 28.0, title);
    for (load, number) in loads.iter().zip(0u32..) {
        let left = LEFT + f64::from(number % 2) * PANEL;
        let top = 62.0 + f64::from(number / 2) * panel_height;
        svg.text("head", left, top, load);
        let rows: Vec<Bar> = cases_of(results, load)
            .iter()
            .map(|case| {
                let (value, text) = bar(case);
                let ours = case.contender.starts_with("xdp-proxy");
                Bar {
                    label: case.contender.clone(),
                    value,
                    text,
                    ours,
                    goal: None,
                }
            })
            .collect();
        bars(&mut svg, &rows, (left, top + 10.0), (155.0, 400.0));
    }
    footer(&mut svg, 60.0 + lines * panel_height + 8.0, results);
    svg
}

fn measured_loads(results: &Results) -> Vec<&'static str> {
    let loads = LOADS.iter().map(|(load, ..)| *load);
    loads
        .filter(|load| !cases_of(results, load).is_empty())
        .collect()
}

fn requests(results: &Results) -> Svg {
    let title = "Requests per second, as a share of the direct path";
    panels(results, title, &measured_loads(results), |case| {
        let share = results.request_ratio(&case.load, &case.contender, DIRECT);
        let share = share.unwrap_or(f64::NAN);
        (share, format!("{share:.2}"))
    })
}

fn processor(results: &Results) -> Svg {
    let title = "Processor time per request, client and servers included (beyond the direct path)";
    panels(results, title, &measured_loads(results), |case| {
        let us = case.median(|round| round.cpu_us_per_request);
        let added = results.added_us(&case.load, &case.contender, DIRECT);
        let added = added.filter(|_| case.contender != DIRECT);
        let digits = |us: f64| usize::from(us.abs() < 100.0);
        let added = added.map_or(String::new(), |added| {
            format!(" ({added:+.0$})", digits(added))
        });
        (us, format!("{us:.0} us{added}"))
    })
}

/// p50, p99 and p99.9 of each contender over a logarithmic axis.
fn latency(results: &Results) -> Svg {
    let loads = [KEPT, OPENED];
    let (labels, width) = (155.0, 640.0);
    let height = CONTENDERS.len() as f64 * ROW + 60.0;
    let mut svg = Svg::new(WIDTH, 70.0 + loads.len() as f64 * height);
    svg.text(
        "title",
        LEFT,
        28.0,
        "Latency with 100 connections: p50, p99 and p99.9",
    );
    let all: Vec<f64> = loads
        .iter()
        .flat_map(|load| cases_of(results, load))
        .flat_map(|case| [case.median(|r| r.p50_us), case.median(|r| r.p999_us)])
        .collect();
    let low = all.iter().copied().fold(f64::MAX, f64::min).log10().floor();
    let high = all
        .iter()
        .copied()
        .fold(1.0, f64::max)
        .log10()
        .ceil()
        .max(low + 1.0);
    let zero = LEFT + labels;
    let x = |us: f64| zero + (us.max(1.0).log10() - low) / (high - low) * width;
    for (load, number) in loads.iter().zip(0u32..) {
        let top = 62.0 + f64::from(number) * height;
        svg.text("head", LEFT, top, load);
        let bottom = top + 14.0 + CONTENDERS.len() as f64 * ROW;
        for power in low as i32..=high as i32 {
            let us = 10f64.powi(power);
            svg.line("grid", (x(us), top + 8.0), (x(us), bottom));
            let label = if us < 1000.0 {
                format!("{us:.0} us")
            } else {
                format!("{:.0} ms", us / 1000.0)
            };
            svg.text("note middle", x(us), bottom + 16.0, label);
        }
        for (case, row) in cases_of(results, load).iter().zip(0..) {
            let y = top + 24.0 + f64::from(row) * ROW;
            svg.text("end", zero - 8.0, y + 4.0, &case.contender);
            let ours = case.contender.starts_with("xdp-proxy");
            let (line, dot) = if ours {
                ("line-ours", "ours")
            } else {
                ("grid", "other")
            };
            let places = [
                (x(case.median(|round| round.p50_us)), y),
                (x(case.median(|round| round.p99_us)), y),
                (x(case.median(|round| round.p999_us)), y),
            ];
            svg.path(line, &places);
            for place in places {
                svg.dot(dot, place);
            }
        }
    }
    footer(&mut svg, 58.0 + loads.len() as f64 * height, results);
    svg
}
