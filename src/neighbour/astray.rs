// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! VIPs whose packets the program does not take: the host answers for an address with the MAC
//! of the device that has it, and that may be another one than the interface's.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use super::netlink::{Held, Netlink};
use super::{DisplayMac, Interface, gone};

/// Devices on each other, at most: the kernel's limit.
const NESTING: usize = 8;
/// What answers ARP for those that it controls.
const CONTROLLERS: [&str; 3] = ["bond", "bridge", "team"];

/// Those of the VIPs, with the reason and the mend.
pub async fn astray(
    netlink: &Netlink,
    here: &Interface,
    own: &[Held],
    vips: &BTreeSet<IpAddr>,
) -> io::Result<BTreeMap<IpAddr, String>> {
    let is_vip = |held: &&Held| vips.contains(&held.address);
    let (on_it, elsewhere): (Vec<_>, Vec<_>) =
        (own.iter().filter(is_vip)).partition(|held| held.interface == here.index);
    let mut devices = BTreeMap::new();
    let mut astray = BTreeMap::new();
    for held in elsewhere {
        if on_it.iter().any(|other| other.address == held.address) {
            continue;
        }
        let words = match devices.entry(held.interface) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(wrong(netlink, here, held.interface).await?),
        };
        if let Some(words) = words {
            astray.insert(held.address, format!("VIP {} {words}", held.address));
        }
    }
    Ok(astray)
}

/// What is wrong with a VIP on a device, if it is.
async fn wrong(netlink: &Netlink, here: &Interface, device: u32) -> io::Result<Option<String>> {
    let device = match netlink.interface(device).await {
        Err(error) if gone(&error) => return Ok(None),
        device => device?,
    };
    let kind = device.kind.as_deref().unwrap_or("device");
    let controls = here.controller == Some(device.index) && CONTROLLERS.contains(&kind);
    let has_own_mac = device.mac != here.mac && device.mac != [0; 6];
    if !has_own_mac || !(controls || is_stacked(netlink, &device, here.index).await?) {
        return Ok(None);
    }
    let mend = match kind {
        "vlan" => format!(
            "give it that one (`ip link set dev {} address {}`)",
            device.name,
            DisplayMac(here.mac)
        ),
        _ if controls => format!("name it with -i {}", device.name),
        _ => format!(
            "put the address on {} itself (keepalived: without `use_vmac`)",
            here.name
        ),
    };
    Ok(Some(format!(
        "is on {}, a {kind} with a MAC of its own, {}, so that clients send there and the host \
         refuses them: {} takes what comes to {}: {mend}",
        device.name,
        DisplayMac(device.mac),
        here.name,
        DisplayMac(here.mac)
    )))
}

/// Whether what the device sends leaves by the interface of this index.
async fn is_stacked(netlink: &Netlink, device: &Interface, below: u32) -> io::Result<bool> {
    let mut next = device.stacked_on;
    for _ in 0..NESTING {
        let Some(index) = next else { return Ok(false) };
        if index == below {
            return Ok(true);
        }
        next = match netlink.interface(index).await {
            Err(error) if gone(&error) => return Ok(false),
            device => device?.stacked_on,
        };
    }
    Ok(false)
}
