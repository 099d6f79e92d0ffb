// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The kernel's hooks for XDP: what is attached to an interface, and how it is
//! put there, replaced and taken away.

use std::fmt::{self, Display, Formatter};
use std::io;
use std::mem::offset_of;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result};
use libbpf_rs::{Program, ProgramHandle, XdpFlags};
use libbpf_sys::{bpf_xdp_attach_opts, bpf_xdp_query_opts, size_t};
use nix::libc::{ENODEV, ENXIO, IF_NAMESIZE, c_char, if_indextoname};

use super::words::{explain, take_libbpf_words};
use crate::abi;

/// How often an interface is asked whether a program is there, where the answer to
/// putting it there was lost, and the time between.
const ASKED_TIMES: usize = 40;
const ASKED_EVERY: Duration = Duration::from_millis(25);
/// Of one program, at most (the kernel's MAX_USED_MAPS).
const MAPS_MAX: usize = 64;

/// How a program is attached: the kernel's three hooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    Generic,
    Native,
    Offload,
}

impl Hook {
    pub fn name(self) -> &'static str {
        match self {
            Hook::Generic => "generic",
            Hook::Native => "native",
            Hook::Offload => "offload",
        }
    }

    pub(super) fn flags(self) -> XdpFlags {
        match self {
            Hook::Generic => XdpFlags::SKB_MODE,
            Hook::Native => XdpFlags::DRV_MODE,
            Hook::Offload => XdpFlags::HW_MODE,
        }
    }
}

/// A program that an interface has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    pub id: u32,
    /// `None` where the kernel does not tell us (CAP_SYS_ADMIN is missing).
    pub name: Option<String>,
    pub hook: Hook,
}

impl Attached {
    /// It is the program of an `xdp-proxy`, this one or another.
    pub fn is_ours(&self) -> bool {
        self.name.as_deref() == Some(abi::PROGRAM_NAME)
    }
}

/// What runs at XDP on an interface; `None`: nothing.
///
/// # Errors
/// The interface is gone ([`is_gone`]), or the kernel could not be asked, which says
/// nothing of it.
pub fn attached(interface: u32) -> Result<Option<Attached>> {
    let there = attached_id(interface)?;
    Ok(there.map(|(id, hook)| Attached {
        id,
        name: ProgramHandle::from_prog_id(id)
            .ok()
            .map(|program| program.name().to_string_lossy().into_owned()),
        hook,
    }))
}

/// The same without the name: the program's id and its hook.
pub fn attached_id(interface: u32) -> Result<Option<(u32, Hook)>> {
    let doing = || format!("asking for the XDP program of interface {interface}");
    let mut options = bpf_xdp_query_opts {
        // What the driver can do is not asked: it takes two sockets more.
        sz: offset_of!(bpf_xdp_query_opts, feature_flags) as size_t,
        ..Default::default()
    };
    // SAFETY: the options are ours, and carry their size.
    let error = unsafe { libbpf_sys::bpf_xdp_query(interface as i32, 0, &mut options) };
    if error < 0 {
        return Err(io::Error::from_raw_os_error(-error)).with_context(doing);
    }
    match options {
        o if o.skb_prog_id != 0 => Ok(Some((o.skb_prog_id, Hook::Generic))),
        o if o.drv_prog_id != 0 => Ok(Some((o.drv_prog_id, Hook::Native))),
        o if o.hw_prog_id != 0 => Ok(Some((o.hw_prog_id, Hook::Offload))),
        // Of all interfaces none was this one, or it has no program.
        _ => is_there(interface).map(|()| None).with_context(doing),
    }
}

/// # Errors
/// ENXIO: there is no such interface.
fn is_there(interface: u32) -> io::Result<()> {
    let mut name: [c_char; IF_NAMESIZE] = [0; IF_NAMESIZE];
    // SAFETY: the name has the room that the function may fill. (That of nix takes the
    // null pointer of an error for a name.)
    let there = unsafe { if_indextoname(interface, name.as_mut_ptr()) };
    if there.is_null() {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The interface is not there any more; all other errors say nothing of it.
pub fn is_gone(error: &anyhow::Error) -> bool {
    let mut causes = error.chain().filter_map(|cause| cause.downcast_ref());
    causes.any(|cause: &io::Error| matches!(cause.raw_os_error(), Some(ENODEV | ENXIO)))
}

/// Whether a program is where it was put could not be found out.
#[derive(Debug)]
pub struct Undecided;

impl Display for Undecided {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("the kernel's answer was lost, and what is attached can't be asked for now")
    }
}

impl std::error::Error for Undecided {}

/// Attaches to an interface that has no program.
///
/// # Errors
/// The kernel's word, as text: the driver can't, or a program is there. Or [`Undecided`].
pub fn attach_fd(interface: u32, program: BorrowedFd, hook: Hook) -> Result<()> {
    take_libbpf_words();
    libbpf_rs::Xdp::new(program)
        .attach(interface as i32, hook.flags() | XdpFlags::UPDATE_IF_NOEXIST)
        .map_err(|error| explain(&error))
        .or_else(|error| decide(interface, Some(program), error))
}

/// Detaches a program, if it is still the one that is attached.
///
/// # Errors
/// The kernel's word. Or [`Undecided`].
pub fn detach_fd(interface: u32, program: BorrowedFd, hook: Hook) -> Result<()> {
    put_in_place(interface, None, program, hook)
}

/// Puts a program in the place of another one in one step.
///
/// # Errors
/// The kernel's word: the other one is there as before. Or [`Undecided`].
pub fn replace_fd(interface: u32, new: BorrowedFd, old: BorrowedFd, hook: Hook) -> Result<()> {
    put_in_place(interface, Some(new), old, hook)
}

pub(super) fn open_program(program: &Attached) -> Result<OwnedFd> {
    Program::fd_from_id(program.id)
        .with_context(|| format!("opening the XDP program with id {}", program.id))
}

/// The numbers of the maps that a program uses.
pub(super) fn maps_of(program: BorrowedFd) -> Result<Vec<u32>> {
    let mut ids = vec![0u32; MAPS_MAX];
    let mut info = libbpf_sys::bpf_prog_info {
        nr_map_ids: MAPS_MAX as u32,
        map_ids: ids.as_mut_ptr() as u64,
        ..Default::default()
    };
    let mut bytes = size_of_val(&info) as u32;
    // SAFETY: the kernel writes no more than the record, and as many numbers as it has room for.
    let error = unsafe {
        libbpf_sys::bpf_prog_get_info_by_fd(program.as_raw_fd(), &raw mut info, &raw mut bytes)
    };
    if error != 0 {
        return Err(std::io::Error::from_raw_os_error(-error)).context("asking for its maps");
    }
    ids.truncate(info.nr_map_ids as usize);
    Ok(ids)
}

/// Puts `new` (or nothing) in the place of `old`, or fails if that is not there.
fn put_in_place(
    interface: u32,
    new: Option<BorrowedFd>,
    old: BorrowedFd,
    hook: Hook,
) -> Result<()> {
    let options = bpf_xdp_attach_opts {
        sz: size_of::<bpf_xdp_attach_opts>() as size_t,
        old_prog_fd: old.as_raw_fd(),
        ..Default::default()
    };
    take_libbpf_words();
    let fd = new.map_or(-1, |new| new.as_raw_fd());
    let flags = (hook.flags() | XdpFlags::REPLACE).bits();
    // SAFETY: both descriptors live across the call; the options carry their size.
    let error = unsafe { libbpf_sys::bpf_xdp_attach(interface as i32, fd, flags, &options) };
    match error {
        0 => Ok(()),
        error => {
            let error = explain(&libbpf_rs::Error::from_raw_os_error(-error));
            decide(interface, new, error)
        }
    }
}

/// After an error: the kernel may have done what was asked, and only its answer been lost.
/// What is attached tells.
fn decide(interface: u32, wanted: Option<BorrowedFd>, error: anyhow::Error) -> Result<()> {
    for _ in 0..ASKED_TIMES {
        let wanted = wanted.map(Program::id_from_fd).transpose();
        match (attached_id(interface), wanted) {
            (Ok(there), Ok(wanted)) if there.map(|(id, _)| id) == wanted => return Ok(()),
            (Ok(_), Ok(_)) => return Err(error),
            (Err(gone), _) if is_gone(&gone) => return Err(error),
            (Err(_), _) | (_, Err(_)) => sleep(ASKED_EVERY),
        }
    }
    Err(error.context(Undecided))
}
