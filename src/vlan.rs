// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! VLANs on a trunk: whether the program sees the tags of the frames, and what
//! is to be switched where it does not.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::AsRawFd as _;

use anyhow::{Context as _, Result};
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::datapath::Hook;
use crate::neighbour::{self, DisplayTags, Interface, Reach, Tag};

/// The interface as a trunk.
pub struct Trunk {
    interface: Interface,
    /// VLAN devices are stacked on it: tagged frames may be ours.
    pub has_vlans: bool,
    hiding: Option<Hiding>,
}

/// The outermost tag may be beside the frame, where no program sees it.
struct Hiding {
    /// A clause.
    why: String,
    mend: String,
}

impl Trunk {
    /// The interface as it is set up now.
    pub async fn look(interface: &Interface) -> Result<Trunk> {
        let on_it = |other: &Interface| other.vlan.map(|vlan| vlan.below) == Some(interface.index);
        Ok(Trunk {
            interface: interface.clone(),
            has_vlans: neighbour::interfaces().await?.iter().any(on_it),
            hiding: hiding(interface)?,
        })
    }

    /// The interface has another name.
    pub fn rename(&mut self, name: &str) {
        self.interface.name = name.to_owned();
    }

    /// In generic mode the kernel keeps a hidden tag, and puts it on again when the
    /// frame is sent. In native mode it is lost.
    pub fn tags_may_hide(&self, hook: Hook) -> bool {
        hook == Hook::Generic && self.hiding.is_some()
    }

    /// The reach of an address, less what the program was not loaded for.
    pub fn limit(&self, address: IpAddr, reach: Reach) -> Reach {
        match reach {
            Reach::Resolved { tags, source, .. } if !tags.is_empty() && !self.has_vlans => {
                Reach::Unresolved {
                    why: format!(
                        "{address} is in {}, and {} had no VLAN devices at the start; start again",
                        DisplayTags(&tags),
                        self.interface.name
                    ),
                    source: Some(source),
                }
            }
            reach => reach,
        }
    }

    /// Whether answers to clients get to a VLAN with these tags. `hook`: if that is decided.
    pub fn takes(&self, hook: Option<Hook>, vips: &BTreeSet<Vec<Tag>>, tags: &[Tag]) -> bool {
        let hides = self.hiding.is_some() && hook.is_none_or(|hook| hook == Hook::Generic);
        if !self.has_vlans || !hides {
            return self.has_vlans || tags.is_empty();
        }
        // A tag out of sight stays with its frame.
        vips.iter().all(|vip| vip == tags)
    }

    /// The tags of the VLAN that a VIP is in: of the device that has it, if that is
    /// stacked on the interface.
    pub async fn tags_of_vip(&self, vip: IpAddr) -> Result<Vec<Tag>> {
        let Some(holder) = neighbour::interface_with_address(vip).await? else {
            return Ok(Vec::new());
        };
        let tags = neighbour::tags_on(&self.interface, &holder).await?;
        Ok(tags.unwrap_or_default())
    }

    /// What goes astray between a VIP and a backend with these tags, and the mend.
    pub fn fault(&self, hook: Hook, vip: &[Tag], backend: &[Tag]) -> Option<String> {
        let Hiding { why, mend } = self.hiding.as_ref().filter(|_| self.has_vlans)?;
        let strays = match hook {
            // Of two tags, the program would take the inner one for the outer.
            Hook::Generic => vip != backend || backend.len() > 1,
            // A backend's tags are in its record; a client's are nowhere else.
            Hook::Native | Hook::Offload => !vip.is_empty(),
        };
        let place = if vip == backend {
            format!("within {}", DisplayTags(vip))
        } else {
            format!("between {} and {}", DisplayTags(vip), DisplayTags(backend))
        };
        strays.then(|| {
            format!(
                "{place} frames get lost in {} mode, {why}: {mend}",
                hook.name()
            )
        })
    }
}

fn hiding(interface: &Interface) -> Result<Option<Hiding>> {
    let name = &interface.name;
    Ok(match interface.kind.as_deref() {
        Some("veth") => Some(Hiding {
            why: format!("if the other end of the veth {name} leaves VLAN tags beside them"),
            mend: "switch that off there (`ethtool -K PEER txvlan off`, of 802.1ad \
                   `tx-vlan-stag-hw-insert off`), and between a VLAN and none use --mode native"
                .to_owned(),
        }),
        None | Some("tun" | "vlan") => strips_tags(name)?.then(|| Hiding {
            why: format!("as {name} takes VLAN tags off them"),
            mend: format!("`ethtool -K {name} rxvlan off`"),
        }),
        Some(kind) => Some(Hiding {
            why: format!("as a {kind} has VLAN tags beside them"),
            mend: "keep to one VLAN, and name its device with -i".to_owned(),
        }),
    })
}

nix::ioctl_readwrite_bad!(ethtool, libc::SIOCETHTOOL, libc::ifreq);

/// Whether the card takes the outermost tag off the frames that it receives.
pub fn strips_tags(name: &str) -> Result<bool> {
    const ETHTOOL_GFLAGS: u32 = 0x25;
    const ETH_FLAG_RXVLAN: u32 = 1 << 8;
    // struct ethtool_value: the command, and its answer.
    let mut value = [ETHTOOL_GFLAGS, 0];
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_data: value.as_mut_ptr().cast(),
        },
    };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    let doing = || format!("asking whether {name} takes VLAN tags off");
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket =
        socket(AddressFamily::Unix, SockType::Datagram, flags, None).with_context(doing)?;
    // SAFETY: the request names an ethtool_value that lives across the call.
    unsafe { ethtool(socket.as_raw_fd(), &mut request) }.with_context(doing)?;
    Ok(value[1] & ETH_FLAG_RXVLAN != 0)
}
