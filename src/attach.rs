// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Which of the kernel's hooks the program goes to, what it must know there,
//! and that it never takes another program's place.

mod attachment;

use std::fs;
use std::os::fd::OwnedFd;

use anyhow::{Context as _, Result, bail};

use crate::datapath::{self, Attached, Datapath, Found, Hook, Pins, Settings};
use crate::neighbour::{self, Interface, Peer};
use crate::service::{Config, Mode};
use crate::tables::{self, Tables};
use crate::vlan::Trunk;
pub use attachment::{Attachment, Held, Look};

/// Drivers of hardware-like interfaces whose packets can come from a local
/// stack with a checksum still to be completed.
const PARTIAL_CHECKSUM_DRIVERS: [&str; 5] =
    ["virtio_net", "xen_netfront", "hv_netvsc", "vmxnet3", "ena"];

/// Drivers that may leave the first buffer of a jumbo frame empty in native mode, so that
/// the program sees no header. They refuse it for an MTU of several buffers.
const EMPTY_HEAD_DRIVERS: [&str; 1] = ["mlx5_core"];

/// Loads the program for the first hook that takes it, and attaches it: in the
/// place of what was found there, whose flows go on. All that can fail comes before it is
/// there; `go` is asked as the last thing before.
///
/// # Errors
/// The mode can't work on this interface, or it is no go. What was found is as it was, and
/// where nothing was, nothing is.
pub async fn load_and_attach(
    config: &Config,
    tables: &Tables,
    interface: &Interface,
    trunk: &Trunk,
    found: Option<&Found>,
    go: impl Fn() -> Result<()>,
) -> Result<(Datapath, Attachment)> {
    check_interface(config.mode, interface).await?;
    let hooks = match (hooks(config.mode, interface), found) {
        (hooks, Some(found)) if hooks.contains(&found.hook) => vec![found.hook],
        (hooks, _) => hooks,
    };
    let old = found.map(Found::maps).transpose()?;
    let pins = Pins::of(interface.index)?;
    let seed = match old {
        Some(old) => old.notes()?.hash_seed,
        None => tables::random_seed(),
    };
    for (index, hook) in hooks.iter().enumerate() {
        let settings = Settings {
            hash_seed: seed,
            partial_checksums: may_carry_partial_checksums(interface),
            complete_checksums: *hook == Hook::Native,
            handles_vlan: trunk.has_vlans,
            tags_may_hide: trunk.tags_may_hide(*hook),
            one_buffer: *hook == Hook::Native && leaves_first_buffer_empty(interface),
            offload_to: (*hook == Hook::Offload).then_some(interface.index),
        };
        // A program for a card is loaded onto it.
        let mut at_interface = *hook == Hook::Offload;
        let attempt = Datapath::load_after(old, tables, &settings).and_then(|mut datapath| {
            datapath.write_interface(interface.mac, interface.mtu)?;
            if old.is_some() {
                write_tables_of_before(&datapath, tables)?;
            }
            let program = Held::of(&datapath)?;
            go()?;
            at_interface = true;
            pins.add(&datapath);
            put_on(&program, interface, *hook, found)
                .inspect_err(|_| pins.keep(found.map(|found| found.id)))?;
            Ok((datapath, program))
        });
        match attempt {
            Ok((datapath, program)) => {
                pins.keep(Some(program.id()));
                let attachment = Attachment::new(interface, program, *hook, pins);
                return Ok((datapath, attachment));
            }
            Err(error) if index + 1 < hooks.len() => {
                tracing::info!(
                    "{}: {} mode is not to be had ({error:#}): taking {} mode",
                    interface.name,
                    hook.name(),
                    hooks[index + 1].name()
                );
            }
            Err(error) if at_interface => return Err(error.context(refusal(interface, *hook))),
            Err(error) => return Err(error),
        }
    }
    bail!("no mode to attach to {} in", interface.name)
}

/// Pins of interfaces that are gone are of no use to anybody.
pub fn tidy_pins() {
    match datapath::remove_pins_of_gone() {
        0 => {}
        count => tracing::info!("removed pins of interfaces that are gone: {count}"),
    }
}

/// A dead daemon may have left a look-up table that is kept behind its backends' state.
fn write_tables_of_before(datapath: &Datapath, tables: &Tables) -> Result<()> {
    let all = 0..tables.services.len();
    let kept = all.filter(|index| !tables.services[*index].fresh);
    datapath.write_maglevs(tables, &Vec::from_iter(kept))
}

/// What a running daemon has handed over.
///
/// # Errors
/// Its flows can't be taken over.
pub fn receive(interface: &Interface, program: OwnedFd, maps: Vec<OwnedFd>) -> Result<Found> {
    let doing = || {
        format!(
            "taking over from the daemon on {0}, which goes on (`xdp-proxy stop -i {0}` ends it \
             and its flows)",
            interface.name
        )
    };
    let there = datapath::attached(interface.index)?;
    let there = there
        .context("its program is not attached")
        .with_context(doing)?;
    let found = Found::of(&there, program, maps).with_context(doing)?;
    found.maps().with_context(doing)?;
    Ok(found)
}

/// What a dead `xdp-proxy` left on the interface.
///
/// # Errors
/// A program that is not ours is there; or one whose flows can't be taken over.
pub fn find(interface: &Interface) -> Result<Option<Found>> {
    let Some(there) = datapath::attached(interface.index)? else {
        return Ok(None);
    };
    let doing = || {
        format!(
            "taking over program {} on {1}, which an earlier run left (`xdp-proxy stop -i {1}` \
             removes it and ends its flows)",
            there.id, interface.name
        )
    };
    let found = Found::open(interface.index, &there).with_context(doing)?;
    let Some(found) = found else {
        bail!("{}", foreign(interface, &there));
    };
    found.maps().with_context(doing)?;
    Ok(Some(found))
}

/// Attaches, in the place of what was found there, if anything.
fn put_on(program: &Held, interface: &Interface, hook: Hook, found: Option<&Found>) -> Result<()> {
    let index = interface.index;
    let Some(found) = found else {
        return datapath::attach_fd(index, program.fd(), hook);
    };
    if found.hook == hook {
        return datapath::replace_fd(index, program.fd(), found.program(), hook);
    }
    tracing::warn!(
        "{}: from {} to {} mode: flows are kept, but packets that come in between go to the host, \
         which may reset them",
        interface.name,
        found.hook.name(),
        hook.name()
    );
    datapath::detach_fd(index, found.program(), found.hook)?;
    datapath::attach_fd(index, program.fd(), hook).inspect_err(|_| {
        if let Err(error) = datapath::attach_fd(index, found.program(), found.hook) {
            tracing::error!("putting program {} back: {error:#}", found.id);
        }
    })
}

/// The hooks to try, in order.
fn hooks(mode: Mode, interface: &Interface) -> Vec<Hook> {
    match mode {
        Mode::Generic => vec![Hook::Generic],
        Mode::Native => vec![Hook::Native],
        Mode::Offload => vec![Hook::Offload],
        Mode::Auto => match interface.kind.as_deref() {
            Some("veth") => {
                tracing::info!(
                    "{} is a veth: generic mode, since native needs a program on its peer too",
                    interface.name
                );
                vec![Hook::Generic]
            }
            Some(kind) => {
                tracing::info!("{} is a {kind}: generic mode", interface.name);
                vec![Hook::Generic]
            }
            None => vec![Hook::Native, Hook::Generic],
        },
    }
}

/// What is known to fail without a word from the kernel, said beforehand.
async fn check_interface(mode: Mode, interface: &Interface) -> Result<()> {
    let name = &interface.name;
    if interface.mac == [0; 6] {
        bail!("{name} has no Ethernet address: name an Ethernet interface with -i");
    }
    if let (Mode::Offload, Some(kind)) = (mode, &interface.kind) {
        bail!("{name} is a {kind}, with no card to offload to: use --mode generic or native");
    }
    if mode != Mode::Native || interface.kind.as_deref() != Some("veth") {
        return Ok(());
    }
    match interface.peer {
        Peer::Here(index) => {
            let peer = neighbour::interface_with_index(index).await?;
            if peer.xdp_program.is_none() {
                bail!(
                    "native mode on the veth {name} needs an XDP program on its peer {0} too, or no \
                     frame arrives: attach one that passes everything (`ip link set dev {0} xdpdrv \
                     obj FILE`), or use --mode generic",
                    peer.name
                );
            }
        }
        _ => tracing::warn!(
            "native mode on the veth {name} needs an XDP program on its peer, which is in another \
             network namespace and can't be seen from here; without it no frame arrives"
        ),
    }
    Ok(())
}

/// Veths, taps, virtio and their like hand on what a local stack left to the
/// hardware; a physical card never receives such packets.
fn may_carry_partial_checksums(interface: &Interface) -> bool {
    interface.kind.is_some()
        || driver(interface)
            .is_none_or(|driver| PARTIAL_CHECKSUM_DRIVERS.contains(&driver.as_str()))
}

fn leaves_first_buffer_empty(interface: &Interface) -> bool {
    driver(interface).is_some_and(|driver| EMPTY_HEAD_DRIVERS.contains(&driver.as_str()))
}

/// Of the device; an interface without one has none.
fn driver(interface: &Interface) -> Option<String> {
    let link = fs::read_link(format!("/sys/class/net/{}/device/driver", interface.name));
    Some(link.ok()?.file_name()?.to_str()?.to_owned())
}

fn foreign(interface: &Interface, other: &Attached) -> String {
    let name = &interface.name;
    let program = match &other.name {
        Some(program) => format!("the XDP program {program:?} (id {})", other.id),
        None => format!(
            "an XDP program (id {}) whose name this process may not read",
            other.id
        ),
    };
    let off = match other.hook {
        Hook::Generic => "xdpgeneric",
        Hook::Native => "xdpdrv",
        Hook::Offload => "xdpoffload",
    };
    format!(
        "{name} already has {program}, which is not ours to replace: remove it with \
         `ip link set dev {name} {off} off`, or name another interface with -i"
    )
}

fn refusal(interface: &Interface, hook: Hook) -> String {
    let mend = match hook {
        Hook::Generic => "is it up, and an Ethernet interface?".to_owned(),
        Hook::Native => format!(
            "does its driver know XDP, with an MTU of {}? --mode generic works on any",
            interface.mtu
        ),
        Hook::Offload => "few cards can: --mode native or generic works without".to_owned(),
    };
    format!(
        "attaching to {} in {} mode ({mend})",
        interface.name,
        hook.name()
    )
}
