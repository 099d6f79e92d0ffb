// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The benchmark: lab/bench.sh runs it as root, docs/benchmark.md explains it.

mod bpf;
mod cases;
#[path = "../../tests/common/mod.rs"]
mod common;
mod guard;
mod host;
mod live;
mod machine;
mod packets;
mod plot;
mod report;
mod requests;
mod results;
mod stream;
mod svg;
mod targets;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context as _, Result, bail};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use results::Results;

const USAGE: &str = "usage: lab/bench.sh [packets | live | requests | host]...
       lab/bench.sh guard | report FILE
What is named is measured, else everything.";

const SUITES: [&str; 4] = ["packets", "live", "requests", "host"];

/// How long and how often is measured.
pub struct Effort {
    pub quick: bool,
    /// Through each case, in a round.
    pub packets: u32,
    pub packet_rounds: u32,
    /// Only cases of ns/packet with this in their names.
    pub cases: String,
    pub frames: u32,
    pub live_rounds: u32,
    pub wrk_rounds: u32,
    pub wrk_seconds: u32,
    pub connections: u32,
    /// Connections one after the other, for the time to the first byte.
    pub first_bytes: u32,
    /// Connections that are open when the memory is full.
    pub open: u32,
    pub starts: u32,
}

impl Effort {
    fn whole() -> Effort {
        Effort {
            quick: false,
            packets: 300_000,
            packet_rounds: 15,
            cases: String::new(),
            frames: 1_000_000,
            live_rounds: 11,
            wrk_rounds: 5,
            wrk_seconds: 3,
            connections: 100,
            first_bytes: 200,
            open: 5000,
            starts: 7,
        }
    }

    fn quick() -> Effort {
        Effort {
            quick: true,
            packets: 30_000,
            packet_rounds: 5,
            frames: 50_000,
            live_rounds: 3,
            wrk_rounds: 1,
            wrk_seconds: 1,
            first_bytes: 20,
            open: 500,
            starts: 3,
            ..Effort::whole()
        }
    }

    /// By QUICK=1, CASES, ROUNDS, ROUND_SECONDS and CONNECTIONS, the last three of wrk.
    fn from_environment() -> Result<Effort> {
        let mut effort = match number("QUICK")? {
            None | Some(0) => Effort::whole(),
            Some(_) => Effort::quick(),
        };
        effort.cases = std::env::var("CASES").unwrap_or_default();
        effort.wrk_rounds = number("ROUNDS")?.unwrap_or(effort.wrk_rounds);
        effort.wrk_seconds = number("ROUND_SECONDS")?.unwrap_or(effort.wrk_seconds);
        effort.connections = number("CONNECTIONS")?.unwrap_or(effort.connections);
        Ok(effort)
    }

    pub fn progress(&self, what: &str, round: u32, rounds: u32) {
        eprintln!("{what}: round {round} of {rounds}");
    }
}

/// A number from the environment; nothing where it is not set or empty.
fn number<T: FromStr>(name: &str) -> Result<Option<T>> {
    match std::env::var(name) {
        Ok(text) if !text.is_empty() => match text.parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => bail!("{name}={text}: give it a number"),
        },
        _ => Ok(None),
    }
}

/// The last CPU: the first one has most of the interrupts.
pub fn pin_to_a_cpu() -> Result<()> {
    let mut cpus = CpuSet::new();
    let last = std::thread::available_parallelism()?.get() - 1;
    cpus.set(last)?;
    sched_setaffinity(Pid::from_raw(0), &cpus).with_context(|| format!("pinning to CPU {last}"))
}

/// `work` on a thread of its own that is pinned: what comes later is not.
fn pinned<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        scope
            .spawn(|| pin_to_a_cpu().and_then(|()| work()))
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn measure(suites: &[&str], effort: &Effort) -> Result<Results> {
    let wants = |suite: &str| suites.contains(&suite);
    let mut results = Results {
        shape: results::SHAPE,
        date: date("%Y-%m-%dT%H:%M:%SZ")?,
        quick: effort.quick,
        machine: machine::describe()?,
        versions: machine::versions(),
        program: packets::program()?,
        ..Default::default()
    };
    if wants("packets") {
        results.packets = pinned(|| packets::measure(effort))?;
    }
    if wants("live") {
        results.live = live::measure(effort)?;
    }
    if wants("requests") || wants("host") {
        let lab = requests::lab()?;
        if wants("requests") {
            results.requests = requests::measure(&lab, effort)?;
        }
        if wants("host") {
            results.memory = host::memories(&lab, effort)?;
            results.start_ms = host::starts(&lab, effort)?;
            results.reload_ms = host::reloads(&lab, effort)?;
        }
    }
    results.machine.load_after = machine::load()?;
    Ok(results)
}

fn date(format: &str) -> Result<String> {
    let output = Command::new("date")
        .args(["-u", &format!("+{format}")])
        .output();
    let output = output.context("starting date")?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Whole results are kept beside the sources, others in build/.
fn places(results: &Results, is_whole: bool) -> Result<(PathBuf, PathBuf)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let kernel = results
        .machine
        .kernel
        .split([' ', '-'])
        .nth(1)
        .unwrap_or("unknown");
    let file = format!("{}-{kernel}.json", date("%Y-%m-%d")?);
    Ok(if is_whole {
        (
            root.join("bench/results").join(file),
            root.join("bench/plots"),
        )
    } else {
        let folder = root.join("build/bench");
        (folder.join(file), folder)
    })
}

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| word != "--bench")
        .collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["guard"] => {
            return pinned(|| guard::check(&Effort::quick()));
        }
        ["report", file] => {
            let results = Results::read(Path::new(file))?;
            report::print(&results);
            let folder = Path::new(file).with_extension("");
            plot::draw(&results, &folder)?;
            eprintln!("plots in {}", folder.display());
            return Ok(());
        }
        _ => (),
    }
    let suites = if words.is_empty() {
        &SUITES[..]
    } else {
        &words[..]
    };
    if let Some(unknown) = suites.iter().find(|word| !SUITES.contains(word)) {
        bail!("there is no {unknown:?}\n{USAGE}");
    }
    let effort = Effort::from_environment()?;
    let is_whole = !effort.quick && effort.cases.is_empty() && suites == SUITES;
    let results = measure(suites, &effort)?;
    let (file, plots) = places(&results, is_whole)?;
    results.write(&file)?;
    report::print(&results);
    plot::draw(&results, &plots)?;
    eprintln!(
        "\nwritten to {}, plots to {}",
        file.display(),
        plots.display()
    );
    Ok(())
}
