// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! What the daemon holds, and that it does not come to hold more.

use crate::common::lab::Lab;

/// Growth of the resident memory, at most.
const GROWTH_MAX: f64 = 0.01;

#[derive(Clone, Copy)]
pub struct Memory {
    resident_bytes: u64,
    descriptors: usize,
}

impl Memory {
    /// Of the daemon on `lb`.
    pub fn of(lab: &Lab) -> Memory {
        let pid = &lab.status()["pid"];
        let rollup = lab.at("lb", &format!("cat /proc/{pid}/smaps_rollup"));
        let line = rollup.lines().find_map(|line| line.strip_prefix("Rss:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
        let descriptors = lab.at("lb", &format!("ls /proc/{pid}/fd"));
        Memory {
            resident_bytes: kib.unwrap().parse::<u64>().unwrap() << 10,
            descriptors: descriptors.lines().count(),
        }
    }
}

/// What is wrong with these of one daemon, in their order: the later half beside the
/// earlier one.
pub fn faults(all: &[Memory]) -> Vec<String> {
    let (early, late) = all.split_at(all.len() / 2);
    if early.is_empty() {
        return vec!["too few reloads to tell whether memory grows".into()];
    }
    let bytes = |half| median(half, |memory| memory.resident_bytes);
    let descriptors = |half| median(half, |memory| memory.descriptors as u64);
    let growth = bytes(late) as f64 / bytes(early) as f64 - 1.0;
    let held = [descriptors(early), descriptors(late)];
    println!(
        "  memory     {:.2} MB, then {:.2} MB ({:+.2} %); {} descriptors, then {}",
        bytes(early) as f64 / 1e6,
        bytes(late) as f64 / 1e6,
        growth * 100.0,
        held[0],
        held[1]
    );
    let mut faults = Vec::new();
    if growth > GROWTH_MAX {
        faults.push(format!("memory grew by {:.2} %", growth * 100.0));
    }
    if held[1] > held[0] {
        faults.push(format!("{} descriptors became {}", held[0], held[1]));
    }
    faults
}

fn median(all: &[Memory], value: impl Fn(&Memory) -> u64) -> u64 {
    let mut values: Vec<u64> = all.iter().map(value).collect();
    values.sort_unstable();
    values[values.len() / 2]
}
