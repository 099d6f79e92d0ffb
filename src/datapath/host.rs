// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! What the host and its kernel allow and how they count.

use std::os::fd::{FromRawFd as _, OwnedFd};
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::utsname::uname;
use nix::time::{ClockId, clock_getres, clock_gettime};

/// Length of a jiffy: the resolution of the clock that the kernel's tick moves
/// (clock_getres(2), CLOCK_MONOTONIC_COARSE).
pub fn tick() -> Result<Duration> {
    let resolution = clock_getres(ClockId::CLOCK_MONOTONIC_COARSE)
        .context("asking for the length of the kernel's tick")?;
    Ok(resolution.into())
}

/// The kernel's clock as the datapath reads it, to within about a second: its low 32
/// bits, which begin five minutes before they overflow (`INITIAL_JIFFIES`).
pub fn jiffies_now() -> Result<u32> {
    const BEFORE_OVERFLOW: Duration = Duration::from_secs(300);
    let now =
        clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).context("reading the kernel's clock")?;
    let tick = tick()?.as_nanos().max(1);
    let ticks = Duration::from(now).as_nanos() / tick;
    Ok((ticks as u32).wrapping_sub((BEFORE_OVERFLOW.as_nanos() / tick) as u32))
}

/// CPUs that per-CPU maps have copies for.
pub fn cpus() -> usize {
    libbpf_rs::num_possible_cpus().unwrap_or(1)
}

/// The kernel gives a program frames in several buffers, if that asks for them (XDP
/// multi-buffer, since 5.18): it takes one that does. Also `false` where this process may
/// load no program at all.
pub fn knows_several_buffers() -> bool {
    raise_memlock_limit();
    // XDP_PASS, exit.
    let program = [(0xb7, 2), (0x95, 0)].map(|(code, imm)| libbpf_sys::bpf_insn {
        code,
        imm,
        ..Default::default()
    });
    let mut options = libbpf_sys::bpf_prog_load_opts {
        sz: size_of::<libbpf_sys::bpf_prog_load_opts>() as libbpf_sys::size_t,
        prog_flags: libbpf_sys::BPF_F_XDP_HAS_FRAGS,
        ..Default::default()
    };
    // SAFETY: name, licence and instructions live across the call, which is told how many
    // those are; the options carry their size.
    let fd = unsafe {
        libbpf_sys::bpf_prog_load(
            libbpf_sys::BPF_PROG_TYPE_XDP,
            c"frags".as_ptr(),
            c"Dual BSD/GPL".as_ptr(),
            program.as_ptr(),
            program.len() as libbpf_sys::size_t,
            &mut options,
        )
    };
    if fd >= 0 {
        // SAFETY: the kernel just gave us this descriptor, and nobody else has it.
        drop(unsafe { OwnedFd::from_raw_fd(fd) });
    }
    fd >= 0
}

/// The limit of locked memory, where the kernel counts maps against it: before 5.11.
pub(super) fn memlock_limit() -> Option<u64> {
    let name = uname().ok()?;
    let release = name.release().to_str()?;
    let mut numbers = release.split('.').map_while(|part| part.parse().ok());
    let version: (u32, u32) = (numbers.next()?, numbers.next()?);
    let (limit, _) = getrlimit(Resource::RLIMIT_MEMLOCK).ok()?;
    (version < (5, 11)).then_some(limit)
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
