// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! What the host and its kernel allow and how they count.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::time::{ClockId, clock_getres};

/// Looks whether this process may load and attach programs at all.
///
/// # Errors
/// Names what is missing and the mend.
pub fn check_privilege() -> Result<()> {
    const NET_ADMIN: u32 = 12;
    const SYS_ADMIN: u32 = 21;
    const BPF: u32 = 39;
    let status =
        std::fs::read_to_string("/proc/self/status").context("reading /proc/self/status")?;
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .context("finding CapEff in /proc/self/status")?;
    let has = |capability: u32| effective >> capability & 1 == 1;
    if has(NET_ADMIN) && (has(BPF) || has(SYS_ADMIN)) {
        return Ok(());
    }
    bail!(
        "loading an XDP program takes the capabilities NET_ADMIN and BPF (or SYS_ADMIN), which \
         this process does not have: run it as root, or in a container with \
         `--cap-add NET_ADMIN --cap-add BPF --cap-add PERFMON`"
    )
}

/// Length of a jiffy: the resolution of the clock that the kernel's tick moves
/// (clock_getres(2), CLOCK_MONOTONIC_COARSE).
pub fn tick() -> Result<Duration> {
    let resolution = clock_getres(ClockId::CLOCK_MONOTONIC_COARSE)
        .context("asking for the length of the kernel's tick")?;
    Ok(resolution.into())
}

/// CPUs that per-CPU maps have copies for.
pub fn cpus() -> usize {
    libbpf_rs::num_possible_cpus().unwrap_or(1)
}

/// Kernels before 5.11 count maps against the limit of locked memory. Being
/// refused is no error: later ones don't look at it.
pub(super) fn raise_memlock_limit() {
    let raised = setrlimit(Resource::RLIMIT_MEMLOCK, u64::MAX, u64::MAX).or_else(|_| {
        let (_, hard) = getrlimit(Resource::RLIMIT_MEMLOCK)?;
        setrlimit(Resource::RLIMIT_MEMLOCK, hard, hard)
    });
    if let Err(error) = raised {
        tracing::debug!("the limit of locked memory stays as it is: {error}");
    }
}
