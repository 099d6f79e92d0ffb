// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The datapath against a model of it (judge.rs, play.rs), which knows nothing
//! of its code: random and mutated packets with a live flow table, every
//! byte that comes out compared.
//!
//! A round is some thousand packets. All of it follows from its seed, so that
//! `make fuzz SEED=...` with the seed of a failure fails at once and alike.

#[path = "../common/mod.rs"]
mod common;

mod begin;
mod draft;
mod expect;
mod flow;
mod judge;
mod make;
mod maps;
mod play;
mod rigs;
mod wire;
mod world;

use std::time::{Duration, Instant};

use common::random::at_most;
use common::{LONGEST_TEST, root_or_skip, watch};
use make::Maker;
use nix::time::{ClockId, clock_gettime};
use play::{Checked, ensure};
use world::*;
use xdp_proxy::datapath::knows_several_buffers;
use xdp_proxy::stats::OUTCOMES;

const ROUND: usize = 4096;
/// Counters are read after so many packets, as that takes as long as a few.
const COUNTED: usize = 512;
/// Rounds that a program is loaded for.
const ROUNDS_OF_RIG: u64 = 8;
/// How long the fewest steps are looked for.
const SHRINKING: Duration = Duration::from_secs(20);

struct Failure {
    /// All that was done, the last of which failed.
    steps: Vec<Step>,
    error: String,
}

impl World {
    /// The outcome counters, and at the end those of the backends too.
    fn check_counters(&mut self) -> Checked {
        let now = self.maps.outcomes();
        let moved: Vec<u64> = (now.iter().zip(&self.outcomes_before))
            .map(|(now, before)| now - before)
            .collect();
        ensure!(
            moved == self.outcomes,
            "the counters moved by {moved:?}, not by {:?}",
            self.outcomes
        );
        Ok(())
    }

    fn check_end(&mut self) -> Checked {
        self.check_counters()?;
        let now = self.rig.counters().backends;
        for (index, (now, before)) in now.iter().zip(&self.before).enumerate() {
            let mut wanted = *before;
            wanted.add(&self.backends[index]);
            ensure!(
                *now == wanted,
                "backend {}: {now:?}, not {wanted:?}",
                index + 1
            );
        }
        for source in 0..self.rig.tables.sources.len() {
            let mut ports = self.rig.datapath.free_ports(source).expect("the groups");
            let places = source * PORTS.len()..(source + 1) * PORTS.len();
            let live = self.flows[places].iter().flatten().filter(|f| !f.retired);
            ports.extend(live.map(|flow| flow.source.port()));
            ports.sort_unstable();
            ensure!(
                ports.iter().copied().eq(PORTS),
                "ports that wait and that have a flow: {ports:?}"
            );
        }
        Ok(())
    }

    fn round(&mut self, seed: u64, counted: usize) -> Result<(), Failure> {
        self.reset();
        let mut maker = Maker::new(seed, self);
        let mut steps = Vec::new();
        for number in 1..=at_most(ROUND) {
            let step = maker.step(self);
            let mut result = self.step(&step);
            if result.is_ok() && number % counted == 0 {
                result = self.check_counters();
            }
            if counted == 1 {
                steps.push(step);
            }
            if let Err(error) = result {
                return Err(Failure { steps, error });
            }
        }
        self.check_end().map_err(|error| Failure { steps, error })
    }

    /// The same steps again.
    fn replay(&mut self, steps: &[Step]) -> Checked {
        self.reset();
        for step in steps {
            self.step(step)?;
        }
        self.check_end()
    }

    /// Leaves out what is not needed to fail, as far as the time allows.
    fn shrink(&mut self, failure: &mut Failure) {
        let began = Instant::now();
        let mut size = failure.steps.len() / 2;
        while size > 0 {
            let mut at = 0;
            while at < failure.steps.len() && began.elapsed() < SHRINKING {
                let mut fewer = failure.steps.clone();
                fewer.drain(at..(at + size).min(failure.steps.len()));
                match self.replay(&fewer) {
                    Err(error) => {
                        *failure = Failure {
                            steps: fewer,
                            error,
                        }
                    }
                    Ok(()) => at += size,
                }
            }
            size /= 2;
        }
    }
}

fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text} is no number")),
    )
}

fn report(world: &mut World, seed: u64, error: &str) -> String {
    let again = world.round(seed, 1).err();
    let Some(mut failure) = again else {
        return format!("{error}\nIt did not happen again.");
    };
    world.shrink(&mut failure);
    let mut text = String::from("The fewest steps that fail:\n");
    for step in &failure.steps {
        text += &match step {
            Step::Frame(frame) => format!("    {}\n", play::hex(&frame[..frame.len().min(200)])),
            other => format!("    {other:?}\n"),
        };
    }
    text + &failure.error
}

#[test]
fn the_datapath_does_what_its_model_does() {
    if !root_or_skip("the_datapath_does_what_its_model_does") {
        return;
    }
    let seconds = Duration::from_secs(setting("FUZZ_SECONDS").unwrap_or(30));
    watch(seconds + LONGEST_TEST);
    let first = setting("FUZZ_SEED").unwrap_or(0);
    let is_short = at_most(usize::MAX) < usize::MAX;
    let rounds = if is_short { 1 } else { u64::MAX - first };
    let mut outcomes = vec![0; OUTCOMES.len() + 1];
    let (mut frames, mut running) = (0, Duration::ZERO);
    let mut world: Option<World> = None;
    let began = Instant::now();
    let cpu = || clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).expect("a clock");
    for seed in first..first + rounds {
        if began.elapsed() > seconds {
            break;
        }
        let mut of_seed = match world.take() {
            Some(world) if !seed.is_multiple_of(ROUNDS_OF_RIG) => world,
            _ => World::new((seed / ROUNDS_OF_RIG % RIGS as u64) as usize),
        };
        let start = cpu();
        if let Err(failure) = of_seed.round(seed, COUNTED) {
            let text = report(&mut of_seed, seed, &failure.error);
            panic!("{text}\nTo see it again: make fuzz SEED={seed}");
        }
        running += Duration::from(cpu() - start);
        frames += of_seed.frames;
        for (total, count) in outcomes.iter_mut().zip(&of_seed.outcomes) {
            *total += count;
        }
        world = Some(of_seed);
    }
    println!(
        "from seed {first}: {frames} packets, {:.0} a second of CPU; by the clock, with loading, {:.0}",
        frames as f64 / running.as_secs_f64(),
        frames as f64 / began.elapsed().as_secs_f64(),
    );
    for outcome in OUTCOMES {
        println!("{:>12} {}", outcomes[outcome.code.0 as usize], outcome.name);
    }
    let unmet = OUTCOMES.iter().filter(|outcome| {
        let may_be_met = match outcome.name {
            "race" => false,
            // Of so many clients hardly all ports are busy: tests/packets has it.
            "snat_exhausted" => false,
            "no_room" => knows_several_buffers(),
            _ => true,
        };
        outcomes[outcome.code.0 as usize] == 0 && may_be_met
    });
    let unmet: Vec<_> = unmet.map(|outcome| outcome.name).collect();
    assert!(
        is_short || seconds.as_secs() < 20 || unmet.is_empty(),
        "never met: {unmet:?}"
    );
}
