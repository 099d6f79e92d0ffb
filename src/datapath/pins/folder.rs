// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Folders of a bpffs, each of them held by a descriptor, and looked at before anything in it
//! is believed or touched.
//!
//! A bpffs that is mounted without `mode=` is everybody's to write to, so that another user
//! may have made what has our name: a folder with links in it, which lead to somebody else's
//! files. No link is ever followed here; and what others may write to, or have made where
//! they may write, is left alone.

use std::ffi::{CString, OsStr};
use std::fmt::Display;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;

use anyhow::{Context as _, Result, ensure};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, mkdirat};
use nix::sys::statfs::{FsType, fstatfs};
use nix::unistd::{UnlinkatFlags, geteuid, unlinkat};

use crate::datapath::map::{pin, pinned};

pub(super) const BPFFS: &str = "/sys/fs/bpf";
const BPFFS_MAGIC: i64 = 0xcafe_4a11;
const MEND: &str = "mount the bpffs with mode=0700, or remove what is not ours";
const OURS: Mode = Mode::S_IRWXU;

/// A folder that nobody writes to who is not trusted.
pub(super) struct Folder {
    fd: OwnedFd,
    /// For words alone.
    path: String,
    /// Whoever owns what is in it was given that by somebody trusted.
    is_closed: bool,
}

impl Folder {
    /// The bpffs itself, which may be everybody's as long as they can't take away what is
    /// another's; `None`: there is none.
    ///
    /// # Errors
    /// It can't be trusted.
    pub fn bpffs() -> Result<Option<Folder>> {
        let Ok(fd) = open(BPFFS, flags(), Mode::empty()) else {
            return Ok(None);
        };
        let kind = fstatfs(&fd).map(|fs| fs.filesystem_type());
        if kind != Ok(FsType(BPFFS_MAGIC as _)) {
            return Ok(None);
        }
        let stat = fstat(&fd).context(BPFFS)?;
        let (is_closed, mode) = (is_closed(&stat), Mode::from_bits_truncate(stat.st_mode));
        ensure!(
            is_trusted(&stat) && (is_closed || mode.contains(Mode::S_ISVTX)),
            "{BPFFS}: user {} owns it, with mode {:o}, so that others could exchange what is in \
             it: {MEND}",
            stat.st_uid,
            stat.st_mode & 0o7777
        );
        Ok(Some(Folder {
            fd,
            path: BPFFS.into(),
            is_closed,
        }))
    }

    /// A folder in this one; `None`: there is none.
    ///
    /// # Errors
    /// It is no folder, or it can't be trusted.
    pub fn folder(&self, name: &str) -> Result<Option<Folder>> {
        let path = format!("{}/{name}", self.path);
        let fd = match openat(&self.fd, name, flags(), Mode::empty()) {
            Err(Errno::ENOENT) => return Ok(None),
            Err(error @ (Errno::ENOTDIR | Errno::ELOOP)) => {
                return Err(error).with_context(|| format!("{path} is no folder: {MEND}"));
            }
            opened => opened.with_context(|| format!("opening {path}"))?,
        };
        let (stat, own) = (fstat(&fd).context(path.clone())?, self.stat()?);
        ensure!(
            stat.st_dev == own.st_dev,
            "{path}: another file system is mounted there: {MEND}"
        );
        // In a folder of a user's he may make what he likes; but of nobody else's.
        let is_given = self.is_closed || is_trusted(&stat);
        ensure!(
            is_given && is_closed(&stat),
            "{path}: user {} owns it, with mode {:o}: {MEND}",
            stat.st_uid,
            stat.st_mode & 0o7777
        );
        Ok(Some(Folder {
            fd,
            path,
            is_closed: self.is_closed || is_trusted(&stat),
        }))
    }

    /// The same, which is made where there is none.
    ///
    /// # Errors
    /// It can't be made or trusted.
    pub fn folder_made(&self, name: &str) -> Result<Folder> {
        let doing = || format!("making {}/{name}", self.path);
        match mkdirat(&self.fd, name, OURS) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => return Err(error).with_context(doing),
        }
        self.folder(name)?.context("it is gone").with_context(doing)
    }

    /// What is in it, by name.
    ///
    /// # Errors
    /// It can't be read.
    pub fn names(&self) -> Result<Vec<String>> {
        let doing = || format!("reading {}", self.path);
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut dir = Dir::openat(&self.fd, ".", flags, Mode::empty()).with_context(doing)?;
        let mut names = Vec::new();
        for entry in dir.iter() {
            let entry = entry.with_context(doing)?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            // Nothing of ours is written in anything but ASCII.
            let name = name.to_str().filter(|name| ![".", ".."].contains(name));
            names.extend(name.map(str::to_owned));
        }
        Ok(names)
    }

    pub fn pin(&self, object: BorrowedFd, name: &str) -> Result<()> {
        let doing = || format!("pinning {}/{name}", self.path);
        let path = by_descriptor(&self.fd, Some(name)).with_context(doing)?;
        pin(object, &path).with_context(doing)
    }

    /// A program or map that is pinned here; nothing that a link leads to.
    ///
    /// # Errors
    /// It is none.
    pub fn pinned(&self, name: &str) -> Result<OwnedFd> {
        let doing = || format!("opening {}/{name}", self.path);
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = openat(&self.fd, name, flags, Mode::empty()).with_context(doing)?;
        let kind = SFlag::from_bits_truncate(fstat(&file).with_context(doing)?.st_mode);
        ensure!(
            kind & SFlag::S_IFMT == SFlag::S_IFREG,
            "{}: it is no pin",
            doing()
        );
        pinned(&by_descriptor(&file, None)?).with_context(doing)
    }

    /// Removes a folder in this one, with the pins in it and nothing deeper.
    ///
    /// # Errors
    /// It can't be trusted, or there are folders in it.
    pub fn remove(&self, name: &str) -> Result<()> {
        let Some(folder) = self.folder(name)? else {
            return Ok(());
        };
        for file in folder.names()? {
            unlinkat(&folder.fd, &*file, UnlinkatFlags::NoRemoveDir)
                .with_context(|| format!("removing {}/{file}", folder.path))?;
        }
        self.remove_empty(name)
    }

    /// Removes a folder in this one if it is empty.
    pub fn remove_empty(&self, name: &str) -> Result<()> {
        unlinkat(&self.fd, name, UnlinkatFlags::RemoveDir)
            .with_context(|| format!("removing {}/{name}", self.path))
    }

    fn stat(&self) -> Result<FileStat> {
        fstat(&self.fd).with_context(|| self.path.clone())
    }
}

impl Display for Folder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.path)
    }
}

/// To go through a folder it need not be readable.
fn flags() -> OFlag {
    OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC
}

/// It is this user's or root's.
fn is_trusted(stat: &FileStat) -> bool {
    stat.st_uid == 0 || stat.st_uid == geteuid().as_raw()
}

/// Its owner alone writes to it.
fn is_closed(stat: &FileStat) -> bool {
    stat.st_mode & (Mode::S_IWGRP | Mode::S_IWOTH).bits() == 0
}

/// A path that leads to a descriptor, or to a name in its folder, for calls that know paths
/// alone (`BPF_F_PATH_FD` came with Linux 6.5).
fn by_descriptor(fd: impl AsFd, name: Option<&str>) -> Result<CString> {
    let folder = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
    let path = match name {
        Some(name) => format!("{folder}/{name}"),
        None => folder,
    };
    CString::new(path).context("a name with a NUL")
}
