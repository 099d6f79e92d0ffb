// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Which of the kernel's hooks the program goes to, what it must know there,
//! and that it never takes another program's place.

use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};

use anyhow::{Context as _, Result, bail};

use crate::datapath::{self, Attached, Datapath, Hook, Settings};
use crate::neighbour::{self, Interface, Peer};
use crate::service::{Config, Mode};
use crate::tables::{self, Tables};
use crate::vlan::Trunk;

/// Drivers of hardware-like interfaces whose packets can come from a local
/// stack with a checksum still to be completed.
const PARTIAL_CHECKSUM_DRIVERS: [&str; 5] =
    ["virtio_net", "xen_netfront", "hv_netvsc", "vmxnet3", "ena"];

/// The program on the interface; detached when dropped, at the latest.
pub struct Attachment {
    interface: Interface,
    program: Option<Held>,
    hook: Hook,
}

struct Held {
    id: u32,
    fd: OwnedFd,
}

impl Attachment {
    pub fn hook(&self) -> Hook {
        self.hook
    }

    /// Puts another datapath in the place of the one that is attached, in one step:
    /// no packet meets neither.
    pub fn replace(&mut self, datapath: &Datapath) -> Result<()> {
        let old = self.program.as_ref().context("nothing is attached")?;
        let new = Held {
            id: datapath.program_id()?,
            fd: datapath.program_fd()?,
        };
        datapath::replace_fd(
            self.interface.index,
            new.fd.as_fd(),
            old.fd.as_fd(),
            self.hook,
        )
        .with_context(|| format!("replacing the program on {}", self.interface.name))?;
        self.program = Some(new);
        Ok(())
    }

    /// Whether the interface still has the program.
    pub fn holds(&self) -> Result<bool> {
        let id = self.program.as_ref().map(|program| program.id);
        let now = datapath::attached(self.interface.index)?;
        Ok(now.map(|now| now.id) == id)
    }

    /// Detaches, unless somebody else already did.
    pub fn detach(&mut self) -> Result<()> {
        let Some(program) = self.program.take() else {
            return Ok(());
        };
        match datapath::attached(self.interface.index) {
            Ok(Some(now)) if now.id == program.id => {
                datapath::detach_fd(self.interface.index, program.fd.as_fd(), self.hook)
                    .with_context(|| format!("detaching from {}", self.interface.name))
            }
            _ => {
                tracing::warn!(
                    "{} no longer has our program (id {})",
                    self.interface.name,
                    program.id
                );
                Ok(())
            }
        }
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        if let Err(error) = self.detach() {
            tracing::error!("{error:#}");
        }
    }
}

/// Loads the program for the first hook that takes it, and attaches it.
///
/// # Errors
/// A program that is not ours is there; the mode can't work on this interface.
pub async fn load_and_attach(
    config: &Config,
    tables: &Tables,
    interface: &Interface,
    trunk: &Trunk,
) -> Result<(Datapath, Attachment)> {
    own_program(interface)?;
    check_interface(config.mode, interface).await?;
    let hooks = hooks(config.mode, interface);
    let seed = tables::random_seed();
    for (index, hook) in hooks.iter().enumerate() {
        let settings = Settings {
            hash_seed: seed,
            partial_checksums: may_carry_partial_checksums(interface),
            complete_checksums: *hook == Hook::Native,
            handles_vlan: trunk.has_vlans,
            tags_may_hide: trunk.tags_may_hide(*hook),
            offload_to: (*hook == Hook::Offload).then_some(interface.index),
        };
        let attempt = Datapath::load(tables, &settings).and_then(|mut datapath| {
            datapath.write_interface(interface.mac, interface.mtu)?;
            // Asked again: an earlier attempt may have removed it.
            put_on(
                &datapath,
                interface,
                *hook,
                own_program(interface)?.as_ref(),
            )?;
            Ok(datapath)
        });
        match attempt {
            Ok(datapath) => {
                let program = Held {
                    id: datapath.program_id()?,
                    fd: datapath.program_fd()?,
                };
                let interface = interface.clone();
                return Ok((
                    datapath,
                    Attachment {
                        interface,
                        program: Some(program),
                        hook: *hook,
                    },
                ));
            }
            Err(error) if index + 1 < hooks.len() => {
                tracing::info!(
                    "{}: {} mode is not to be had ({error:#}): taking {} mode",
                    interface.name,
                    hook.name(),
                    hooks[index + 1].name()
                );
            }
            Err(error) => return Err(error.context(refusal(interface, *hook))),
        }
    }
    bail!("no mode to attach to {} in", interface.name)
}

/// What a dead `xdp-proxy` left on the interface.
///
/// # Errors
/// A program that is not ours is there.
fn own_program(interface: &Interface) -> Result<Option<Attached>> {
    let there = datapath::attached(interface.index)?;
    match there.as_ref().filter(|there| !there.is_ours()) {
        Some(other) => bail!("{}", foreign(interface, other)),
        None => Ok(there),
    }
}

/// Attaches, in the place of a program that a dead `xdp-proxy` left, if any.
fn put_on(
    datapath: &Datapath,
    interface: &Interface,
    hook: Hook,
    left: Option<&Attached>,
) -> Result<()> {
    match left {
        Some(left) if left.hook == hook => {
            tracing::info!(
                "taking the place of program {}, which an earlier run left",
                left.id
            );
            datapath.replace(interface.index, left)
        }
        Some(left) => {
            tracing::info!("removing program {}, which an earlier run left", left.id);
            datapath::detach(interface.index, left)?;
            datapath.attach(interface.index, hook)
        }
        None => datapath.attach(interface.index, hook),
    }
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
    let driver = format!("/sys/class/net/{}/device/driver", interface.name);
    match fs::read_link(driver) {
        _ if interface.kind.is_some() => true,
        Err(_) => true,
        Ok(driver) => driver
            .file_name()
            .is_some_and(|name| PARTIAL_CHECKSUM_DRIVERS.iter().any(|known| *known == name)),
    }
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
        Hook::Generic => "is it up, and an Ethernet interface?",
        Hook::Native => "does its driver know XDP? --mode generic works on any",
        Hook::Offload => "few cards can: --mode native or generic works without",
    };
    format!(
        "attaching to {} in {} mode ({mend})",
        interface.name,
        hook.name()
    )
}
