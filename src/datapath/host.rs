// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! What the host and its kernel allow and how they count.

use std::os::fd::{FromRawFd as _, OwnedFd};
use std::time::Duration;

use anyhow::{Context as _, Result};
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

/// The oldest kernel that takes the program: BPF's compare-and-swap came with it.
const OLDEST: (u32, u32) = (5, 12);

/// Why this kernel can't take the program, if it is too old; distributions have carried
/// much of BPF back, so this is asked once one has refused it.
pub(super) fn too_old() -> Option<String> {
    let name = uname().ok()?;
    let release = name.release().to_str()?;
    let mut numbers = release.split('.').map_while(|part| part.parse().ok());
    let version: (u32, u32) = (numbers.next()?, numbers.next()?);
    let (major, minor) = OLDEST;
    (version < OLDEST).then(|| {
        format!("this is Linux {release}, and the program needs {major}.{minor} or a later one")
    })
}
