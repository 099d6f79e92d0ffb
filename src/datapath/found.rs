// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! A datapath that is in the kernel already: another process loaded it.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use anyhow::{Context as _, Result, ensure};
use libbpf_rs::Program;

use super::hook::{Attached, Hook, open_program};
use super::maps::Maps;
use super::pins::Pins;
use crate::abi;

/// The program on an interface, and its maps.
pub struct Found {
    pub id: u32,
    pub hook: Hook,
    program: OwnedFd,
    maps: Maps,
}

impl Found {
    /// Opens what is attached to an interface, by its pins or by the kernel's numbers;
    /// `None`: it is not ours, as far as this process may know.
    ///
    /// # Errors
    /// It is ours, but can't be opened.
    pub fn open(interface: u32, attached: &Attached) -> Result<Option<Found>> {
        let (program, maps) = match Pins::of(interface)?.open(attached.id) {
            Ok(Some(pinned)) => pinned,
            _ if attached.is_ours() => (open_program(attached)?, Maps::of_program(attached.id)?),
            Ok(None) => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok(Some(Found {
            id: attached.id,
            hook: attached.hook,
            program,
            maps,
        }))
    }

    /// The same by descriptors that its daemon has handed over.
    ///
    /// # Errors
    /// It is not what is attached.
    pub fn of(attached: &Attached, program: OwnedFd, maps: Vec<OwnedFd>) -> Result<Found> {
        let id = Program::id_from_fd(program.as_fd()).context("asking for a program's id")?;
        ensure!(
            id == attached.id,
            "program {} is attached, and not {id}",
            attached.id
        );
        Ok(Found {
            id,
            hook: attached.hook,
            program,
            maps: Maps::of_descriptors(maps)?,
        })
    }

    pub fn program(&self) -> BorrowedFd<'_> {
        self.program.as_fd()
    }

    /// The maps.
    ///
    /// # Errors
    /// Another version laid them out, so that nothing in them may be believed.
    pub fn maps(&self) -> Result<&Maps> {
        self.maps.check_layout(abi::LAYOUT)?;
        Ok(&self.maps)
    }

    /// What is left of it when another one has its place: its counts.
    pub fn into_maps(self) -> Maps {
        self.maps
    }
}
