// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The capabilities of this process: which it needs, and that it keeps no others.

use anyhow::{Context as _, Result, bail};
use caps::Capability::{
    CAP_BPF, CAP_NET_ADMIN, CAP_NET_RAW, CAP_PERFMON, CAP_SETPCAP, CAP_SYS_ADMIN,
};
use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::prctl::set_no_new_privs;

/// What loading a program, writing its maps and attaching it take. The verifier
/// compares and subtracts pointers for those alone who have CAP_PERFMON.
const NEEDED: [Capability; 3] = [CAP_NET_ADMIN, CAP_BPF, CAP_PERFMON];

/// Looks whether this process may load and attach programs at all.
///
/// # Errors
/// Names what is missing and the mend.
pub fn check() -> Result<()> {
    let held = read(CapSet::Effective)?;
    let missing: Vec<&str> = NEEDED
        .iter()
        .filter(|needed| !is_met(&held, **needed))
        .map(|needed| short_name(*needed))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    bail!(
        "loading an XDP program takes the capabilities NET_ADMIN, BPF and PERFMON (or SYS_ADMIN for \
         the last two), and this process does not have {}: run it as root, with \
         `setpriv --ambient-caps`, or in a container with \
         `--cap-add NET_ADMIN --cap-add BPF --cap-add PERFMON`",
        missing.join(", ")
    )
}

/// Gives up for good all that serving, reloading and detaching do not need.
///
/// Only for the calling thread and those that it starts from now on.
pub fn limit() -> Result<()> {
    let held = read(CapSet::Permitted)?;
    let kept = kept(&held);
    bound(&kept)?;
    for (set, wanted) in [
        (CapSet::Ambient, &CapsHashSet::new()),
        (CapSet::Inheritable, &CapsHashSet::new()),
        (CapSet::Effective, &kept),
        (CapSet::Permitted, &kept),
    ] {
        caps::set(None, set, wanted)
            .with_context(|| format!("giving up capabilities ({set:?})"))?;
    }
    set_no_new_privs().context("giving up privileges of other programs")
}

/// No program that this thread starts gets others. That is what CAP_SETPCAP is for; without it
/// `no_new_privs` makes the rest worthless too.
fn bound(kept: &CapsHashSet) -> Result<()> {
    if caps::has_cap(None, CapSet::Effective, CAP_SETPCAP).unwrap_or(false) {
        for capability in read(CapSet::Bounding)?.difference(kept) {
            caps::drop(None, CapSet::Bounding, *capability)
                .with_context(|| format!("giving up {capability}"))?;
        }
    }
    Ok(())
}

/// Gives up for good all that the calling thread may do; other threads are not concerned.
pub fn give_up_all() -> Result<()> {
    bound(&CapsHashSet::new())?;
    let sets = [
        CapSet::Ambient,
        CapSet::Inheritable,
        CapSet::Effective,
        CapSet::Permitted,
    ];
    for set in sets {
        caps::clear(None, set).with_context(|| format!("giving up capabilities ({set:?})"))?;
    }
    set_no_new_privs().context("giving up privileges of other programs")
}

/// Of what is held, what is needed from now on. CAP_SYS_ADMIN only where it stands
/// for others, CAP_NET_RAW to ask next hops.
fn kept(held: &CapsHashSet) -> CapsHashSet {
    let mut wanted = CapsHashSet::from(NEEDED);
    wanted.insert(CAP_NET_RAW);
    if !NEEDED.iter().all(|needed| held.contains(needed)) {
        wanted.insert(CAP_SYS_ADMIN);
    }
    held.intersection(&wanted).copied().collect()
}

fn is_met(held: &CapsHashSet, needed: Capability) -> bool {
    held.contains(&needed) || needed != CAP_NET_ADMIN && held.contains(&CAP_SYS_ADMIN)
}

/// As container engines write it: NET_ADMIN.
fn short_name(capability: Capability) -> &'static str {
    match capability {
        CAP_NET_ADMIN => "NET_ADMIN",
        CAP_BPF => "BPF",
        _ => "PERFMON",
    }
}

fn read(set: CapSet) -> Result<CapsHashSet> {
    caps::read(None, set).with_context(|| format!("reading this process's capabilities ({set:?})"))
}

#[cfg(test)]
mod tests {
    use caps::Capability::{CAP_DAC_OVERRIDE, CAP_SYS_PTRACE};

    use super::*;

    #[test]
    fn sys_admin_stands_for_bpf_and_perfmon_but_not_for_net_admin() {
        let held = CapsHashSet::from([CAP_SYS_ADMIN]);
        let met: Vec<bool> = NEEDED.map(|needed| is_met(&held, needed)).to_vec();
        assert_eq!(met, [false, true, true]);
    }

    #[test]
    fn of_all_capabilities_four_are_kept() {
        let kept = kept(&caps::all());
        let four = [CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF, CAP_PERFMON];
        assert_eq!(kept, CapsHashSet::from(four));
    }

    #[test]
    fn sys_admin_is_kept_where_nothing_finer_is_there() {
        let old = [CAP_NET_ADMIN, CAP_SYS_ADMIN];
        let held = CapsHashSet::from([old[0], old[1], CAP_DAC_OVERRIDE, CAP_SYS_PTRACE]);
        assert_eq!(kept(&held), CapsHashSet::from(old));
    }
}
