// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Pins: where a bpffs is mounted, the program and its maps have names there, so that
//! the next daemon needs no CAP_SYS_ADMIN to open them.
//!
//! ```text
//! /sys/fs/bpf/xdp-proxy/NAMESPACE-INTERFACE/PROGRAM/MAP
//! ```
//!
//! Both first names are numbers, of the network namespace and of the interface. The
//! third is the program's, and only what is of the program that is attached is ever
//! believed. Where others could have put something there, there are no pins, and the
//! datapath serves without (`folder.rs`).
//!
//! Each folder of a program has one map more, from which the kernel itself takes the
//! interface when that goes, also with all of its network namespace: a map of devices. So
//! everybody who may open it sees what is of no use any more, whatever namespace it was of.

mod folder;

use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::{fs, io};

use anyhow::{Context as _, Result, ensure};
use libbpf_rs::{MapCore as _, MapFlags, MapHandle, MapType, Program};

use super::Datapath;
use super::hook::maps_of;
use super::map::Map;
use super::maps::Maps;
use folder::Folder;

const FOLDER: &str = "xdp-proxy";
const PROGRAM: &str = "program";
/// The map of devices with the interface alone.
const INTERFACE: &str = "interface";

/// The pins of one interface.
pub struct Pins {
    interface: u32,
    /// The folder's name.
    name: String,
}

impl Pins {
    pub fn of(interface: u32) -> Result<Pins> {
        Ok(Pins {
            interface,
            name: format!("{}-{interface}", namespace()?),
        })
    }

    /// Pins a program that is about to be attached. Without it all works but for the
    /// next daemon's needs.
    pub fn add(&self, datapath: &Datapath) {
        if let Err(error) = self.try_add(datapath) {
            tracing::warn!(
                "no pins, so that the next daemon needs CAP_SYS_ADMIN to go on with the flows of \
                 this one: {error:#}"
            );
        }
    }

    fn try_add(&self, datapath: &Datapath) -> Result<()> {
        let Some(bpffs) = Folder::bpffs()? else {
            return Ok(());
        };
        let folder = bpffs.folder_made(FOLDER)?.folder_made(&self.name)?;
        let id = datapath.program_id()?.to_string();
        // The kernel gives a number to another program one day.
        folder.remove(&id)?;
        let pinned = self.pin_all(datapath, &folder.folder_made(&id)?);
        pinned.inspect_err(|_| drop(folder.remove(&id)))
    }

    fn pin_all(&self, datapath: &Datapath, folder: &Folder) -> Result<()> {
        folder.pin(device_map(self.interface)?.as_fd(), INTERFACE)?;
        folder.pin(datapath.program().as_fd(), PROGRAM)?;
        for map in datapath.all() {
            // A bpffs has no names with dots: of what is compiled in.
            if !map.name().contains('.') {
                folder.pin(map.as_fd(), map.name())?;
            }
        }
        Ok(())
    }

    /// The maps and the program of this number, if they are pinned.
    pub(super) fn open(&self, id: u32) -> Result<Option<(OwnedFd, Maps)>> {
        let Some(all) = place()? else { return Ok(None) };
        let Some(folder) = all.folder(&self.name)? else {
            return Ok(None);
        };
        let Some(folder) = folder.folder(&id.to_string())? else {
            return Ok(None);
        };
        let program = folder.pinned(PROGRAM)?;
        let is = Program::id_from_fd(program.as_fd()).with_context(|| folder.to_string())?;
        ensure!(is == id, "{folder}: it is program {is}");
        let its = maps_of(program.as_fd()).with_context(|| folder.to_string())?;
        let mut maps = Vec::new();
        for name in folder.names()? {
            if [PROGRAM, INTERFACE].contains(&&*name) {
                continue;
            }
            let map = Map::new(folder.pinned(&name)?).with_context(|| folder.to_string())?;
            ensure!(
                its.contains(&map.id),
                "{folder}/{name}: it is no map of program {id}"
            );
            maps.push(map);
        }
        Ok(Some((program, Maps::new(maps))))
    }

    /// Removes all pins but those of one program.
    pub fn keep(&self, id: Option<u32>) {
        // Why there are none was told when they were to be made.
        let Ok(Some(all)) = place() else { return };
        let Ok(Some(folder)) = all.folder(&self.name) else {
            return;
        };
        let kept = id.map(|id| id.to_string());
        let names = folder.names().unwrap_or_default();
        for name in names.iter().filter(|name| Some(*name) != kept.as_ref()) {
            if let Err(error) = folder.remove(name) {
                tracing::warn!("removing pins: {error:#}");
            }
        }
        if kept.is_none() {
            // Unless something is left, which was told.
            let _ = all.remove_empty(&self.name);
        }
    }
}

/// Removes the pins of interfaces that are not there any more, of this and of other network
/// namespaces, as far as this process may. Returns how many interfaces had some.
pub fn remove_pins_of_gone() -> usize {
    let Ok(Some(all)) = place() else { return 0 };
    let names = all.names().unwrap_or_default();
    let is_gone = |name: &&String| remove_gone(&all, name).unwrap_or(false);
    names.iter().filter(is_gone).count()
}

/// Returns whether the interface of the folder is gone, and it with it.
fn remove_gone(all: &Folder, name: &str) -> Result<bool> {
    let Some(folder) = all.folder(name)? else {
        return Ok(false);
    };
    let programs = folder.names()?;
    let mut gone = 0;
    for program in &programs {
        let Some(pins) = folder.folder(program)? else {
            continue;
        };
        match Map::new(pins.pinned(INTERFACE)?)?.lookup(0) {
            Err(error) if is_not_found(&error) => {
                folder.remove(program)?;
                gone += 1;
            }
            other => drop(other?),
        }
    }
    if gone == 0 || gone < programs.len() {
        return Ok(false);
    }
    // Unless somebody pins another program at this moment.
    Ok(all.remove_empty(name).is_ok())
}

fn is_not_found(error: &anyhow::Error) -> bool {
    let error: Option<&io::Error> = error.downcast_ref();
    error.is_some_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// A map of devices with this one alone.
fn device_map(interface: u32) -> Result<MapHandle> {
    let options = libbpf_sys::bpf_map_create_opts {
        sz: size_of::<libbpf_sys::bpf_map_create_opts>() as libbpf_sys::size_t,
        ..Default::default()
    };
    let bytes = size_of::<u32>() as u32;
    let map = MapHandle::create(MapType::Devmap, Some(INTERFACE), bytes, bytes, 1, &options);
    let map = map.context("making a map of devices")?;
    map.update(&0u32.to_ne_bytes(), &interface.to_ne_bytes(), MapFlags::ANY)
        .context("noting the interface in a map of devices")?;
    Ok(map)
}

/// Where pins are, if there are any.
fn place() -> Result<Option<Folder>> {
    match Folder::bpffs()? {
        Some(bpffs) => bpffs.folder(FOLDER),
        None => Ok(None),
    }
}

/// The number of this network namespace, while it lives.
fn namespace() -> Result<u64> {
    let namespace = fs::metadata("/proc/thread-self/ns/net");
    Ok(namespace
        .context("looking for the network namespace")?
        .ino())
}
