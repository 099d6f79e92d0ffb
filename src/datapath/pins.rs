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
//! believed.

use std::fs;
use std::io::ErrorKind;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use libbpf_rs::Program;
use nix::net::if_::if_nameindex;
use nix::sys::statfs::{FsType, statfs};

use super::Datapath;
use super::map::{Map, pin, pinned};
use super::maps::Maps;

const BPFFS: &str = "/sys/fs/bpf";
const BPFFS_MAGIC: i64 = 0xcafe_4a11;
const FOLDER: &str = "xdp-proxy";
const PROGRAM: &str = "program";

/// The pins of one interface.
pub struct Pins {
    /// `None`: there is no bpffs.
    folder: Option<PathBuf>,
}

impl Pins {
    pub fn of(interface: u32) -> Result<Pins> {
        let Some(place) = place() else {
            return Ok(Pins { folder: None });
        };
        let folder = place.join(format!("{}-{interface}", namespace()?));
        Ok(Pins {
            folder: Some(folder),
        })
    }

    /// Pins a program that is about to be attached. Without it all works but for the
    /// next daemon's needs.
    pub fn add(&self, datapath: &Datapath) {
        let Some(folder) = &self.folder else { return };
        let pinned = datapath.program_id().and_then(|id| {
            let folder = folder.join(id.to_string());
            pin_all(datapath, &folder).inspect_err(|_| drop(fs::remove_dir_all(&folder)))
        });
        if let Err(error) = pinned {
            tracing::warn!(
                "no pins, so that the next daemon needs CAP_SYS_ADMIN to go on with the flows of \
                 this one: {error:#}"
            );
        }
    }

    /// The maps and the program of this number, if they are pinned.
    pub(super) fn open(&self, id: u32) -> Result<Option<(OwnedFd, Maps)>> {
        let Some(folder) = &self.folder else {
            return Ok(None);
        };
        let folder = folder.join(id.to_string());
        let doing = || format!("opening the pins in {}", folder.display());
        let files = match fs::read_dir(&folder) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            files => files.with_context(doing)?,
        };
        let mut program = None;
        let mut maps = Vec::new();
        for file in files {
            let path = file.with_context(doing)?.path();
            let fd = pinned(&path).with_context(doing)?;
            if path.ends_with(PROGRAM) {
                program = Some(fd);
            } else {
                maps.push(Map::new(fd).with_context(doing)?);
            }
        }
        let program = program.context("no program").with_context(doing)?;
        let is = Program::id_from_fd(program.as_fd()).with_context(doing)?;
        ensure!(is == id, "{}: it is program {is}", folder.display());
        Ok(Some((program, Maps::new(maps))))
    }

    /// Removes all pins but those of one program.
    pub fn keep(&self, id: Option<u32>) {
        let Some(folder) = &self.folder else { return };
        let Some(id) = id else {
            return if folder.exists() {
                remove(folder)
            };
        };
        let kept = folder.join(id.to_string());
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.path() != kept {
                remove(&entry.path());
            }
        }
    }
}

/// Removes the pins of interfaces of this network namespace that are not there any
/// more. Returns how many had some.
///
/// No other daemon's are touched: an interface is there before it has pins, and the kernel
/// gives its number to no later one.
pub fn remove_pins_of_gone() -> Result<usize> {
    let Some(place) = place() else { return Ok(0) };
    let prefix = format!("{}-", namespace()?);
    let folders = fs::read_dir(place).into_iter().flatten().flatten();
    let folders = folders.filter_map(|entry| {
        let name = entry.file_name();
        let index = name.to_str()?.strip_prefix(&prefix)?.parse::<u32>().ok()?;
        Some((index, entry.path()))
    });
    // Before the interfaces are: what is made in between is not seen.
    let folders: Vec<_> = folders.collect();
    let here = if_nameindex().context("listing the interfaces")?;
    let here: Vec<u32> = here.iter().map(|interface| interface.index()).collect();
    let gone = folders.iter().filter(|(index, _)| !here.contains(index));
    Ok(gone.map(|(_, folder)| remove(folder)).count())
}

fn pin_all(datapath: &Datapath, folder: &Path) -> Result<()> {
    // The kernel gives a number to another program one day.
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("removing {}", folder.display()))?;
    }
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .with_context(|| format!("making {}", folder.display()))?;
    pin(datapath.program().as_fd(), &folder.join(PROGRAM))?;
    for map in datapath.all() {
        // A bpffs has no names with dots: of what is compiled in.
        if !map.name().contains('.') {
            pin(map.as_fd(), &folder.join(map.name()))?;
        }
    }
    Ok(())
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_dir_all(path) {
        tracing::warn!("removing the pins in {}: {error}", path.display());
    }
}

/// Where pins go, if a bpffs is there.
fn place() -> Option<PathBuf> {
    let kind = statfs(BPFFS).ok()?.filesystem_type();
    let is_bpffs = kind == FsType(BPFFS_MAGIC as _);
    is_bpffs.then(|| Path::new(BPFFS).join(FOLDER))
}

/// The number of this network namespace, while it lives.
fn namespace() -> Result<u64> {
    let namespace = fs::metadata("/proc/thread-self/ns/net");
    Ok(namespace
        .context("looking for the network namespace")?
        .ino())
}
