// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! What the figures were measured on and with.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::results::{Machine, Versions};

/// The first line that a command prints, to stdout or else to stderr; empty
/// where it is not there.
fn first_line(program: &str, arguments: &[&str]) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = Command::new(program)
        .args(arguments)
        .current_dir(root)
        .output();
    let Ok(output) = output else {
        return String::new();
    };
    let out = if output.stdout.is_empty() {
        output.stderr
    } else {
        output.stdout
    };
    let text = String::from_utf8_lossy(&out).into_owned();
    text.lines().next().unwrap_or_default().trim().to_owned()
}

/// Average over the last minute.
pub fn load() -> Result<f64> {
    let text = fs::read_to_string("/proc/loadavg").context("reading /proc/loadavg")?;
    let first = text.split(' ').next().unwrap_or_default();
    first.parse().context("reading /proc/loadavg")
}

fn field(text: &str, name: &str) -> Option<String> {
    let line = text
        .lines()
        .find(|line| line.trim_start().starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

pub fn describe() -> Result<Machine> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").context("reading /proc/cpuinfo")?;
    let meminfo = fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
    let lscpu = Command::new("lscpu").env("LC_ALL", "C").output();
    let lscpu = lscpu.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let lscpu = lscpu.unwrap_or_default();
    let memory_kib = field(&meminfo, "MemTotal");
    let memory_kib = memory_kib.and_then(|text| text.split(' ').next()?.parse::<u64>().ok());
    let caches = ["L1d", "L2", "L3"].into_iter();
    Ok(Machine {
        processor: field(&cpuinfo, "model name").unwrap_or_else(|| "unknown processor".into()),
        cpus: std::thread::available_parallelism()?.get(),
        memory_mib: memory_kib.unwrap_or_default() / 1024,
        kernel: first_line("uname", &["-sr"]),
        hypervisor: field(&lscpu, "Hypervisor vendor").unwrap_or_else(|| "none".into()),
        caches: caches
            .filter_map(|name| Some(format!("{name} {}", field(&lscpu, name)?)))
            .collect(),
        load_before: load()?,
        load_after: f64::NAN,
    })
}

pub fn versions() -> Versions {
    Versions {
        xdp_proxy: first_line("git", &["describe", "--always", "--dirty"]),
        clang: first_line("clang", &["--version"]),
        wrk: first_line("wrk", &["-v"]),
        nginx: first_line("nginx", &["-v"]),
        haproxy: first_line("haproxy", &["-v"]),
        nftables: first_line("nft", &["-v"]),
    }
}
