// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The kernel's hooks for XDP: what is attached to an interface, and how it is
//! put there, replaced and taken away.

use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};

use anyhow::{Context as _, Result};
use libbpf_rs::{Program, ProgramHandle, XdpFlags};

use super::words::{explain, take_libbpf_words};
use crate::abi;

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
pub fn attached(interface: u32) -> Result<Option<Attached>> {
    let mut options = libbpf_sys::bpf_xdp_query_opts {
        sz: size_of::<libbpf_sys::bpf_xdp_query_opts>() as libbpf_sys::size_t,
        ..Default::default()
    };
    // SAFETY: the options are ours, and carry their size.
    let error = unsafe { libbpf_sys::bpf_xdp_query(interface as i32, 0, &mut options) };
    if error < 0 {
        let error = std::io::Error::from_raw_os_error(-error);
        return Err(error).context("asking for the interface's XDP program");
    }
    let (id, hook) = match options {
        o if o.skb_prog_id != 0 => (o.skb_prog_id, Hook::Generic),
        o if o.drv_prog_id != 0 => (o.drv_prog_id, Hook::Native),
        o if o.hw_prog_id != 0 => (o.hw_prog_id, Hook::Offload),
        _ => return Ok(None),
    };
    let name = ProgramHandle::from_prog_id(id)
        .ok()
        .map(|program| program.name().to_string_lossy().into_owned());
    Ok(Some(Attached { id, name, hook }))
}

/// Attaches to an interface that has no program.
///
/// # Errors
/// The kernel's word, as text: the driver can't, or a program is there.
pub fn attach_fd(interface: u32, program: BorrowedFd, hook: Hook) -> Result<()> {
    take_libbpf_words();
    libbpf_rs::Xdp::new(program)
        .attach(interface as i32, hook.flags() | XdpFlags::UPDATE_IF_NOEXIST)
        .map_err(|error| explain(&error))
}

/// Detaches a program, if it is still the one that is attached.
pub fn detach_fd(interface: u32, program: BorrowedFd, hook: Hook) -> Result<()> {
    put_in_place(interface, None, program, hook)
}

/// Puts a program in the place of another one in one step.
pub fn replace_fd(interface: u32, new: BorrowedFd, old: BorrowedFd, hook: Hook) -> Result<()> {
    put_in_place(interface, Some(new), old, hook)
}

pub(super) fn open_program(program: &Attached) -> Result<OwnedFd> {
    Program::fd_from_id(program.id)
        .with_context(|| format!("opening the XDP program with id {}", program.id))
}

/// Puts `new` (or nothing) in the place of `old`, or fails if that is not there.
fn put_in_place(
    interface: u32,
    new: Option<BorrowedFd>,
    old: BorrowedFd,
    hook: Hook,
) -> Result<()> {
    let options = libbpf_sys::bpf_xdp_attach_opts {
        sz: size_of::<libbpf_sys::bpf_xdp_attach_opts>() as libbpf_sys::size_t,
        old_prog_fd: old.as_raw_fd(),
        ..Default::default()
    };
    let fd = new.map_or(-1, |new| new.as_raw_fd());
    let flags = (hook.flags() | XdpFlags::REPLACE).bits();
    // SAFETY: both descriptors live across the call; the options carry their size.
    let error = unsafe { libbpf_sys::bpf_xdp_attach(interface as i32, fd, flags, &options) };
    match error {
        0 => Ok(()),
        error => Err(explain(&libbpf_rs::Error::from_raw_os_error(-error))),
    }
}
