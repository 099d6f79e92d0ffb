// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The program on its interface, from the moment that it is there.

use std::os::fd::{AsFd as _, OwnedFd};

use anyhow::{Context as _, Result, bail};

use super::foreign;
use crate::datapath::{self, Datapath, Found, Hook, Pins};
use crate::neighbour::Interface;

/// The program on the interface; detached when dropped, at the latest, unless it
/// shall stay.
pub struct Attachment {
    interface: Interface,
    program: Option<Held>,
    hook: Hook,
    pins: Pins,
    stays: bool,
}

/// What is where the program should be.
pub enum Look {
    Ours,
    Nothing,
    /// Another program, which is named and not ours to replace.
    Other(String),
    /// The interface is not there any more.
    Gone,
}

struct Held {
    id: u32,
    fd: OwnedFd,
}

impl Held {
    fn of(datapath: &Datapath) -> Result<Held> {
        Ok(Held {
            id: datapath.program_id()?,
            fd: datapath.program_fd()?,
        })
    }
}

impl Attachment {
    /// Of a program that was just attached.
    pub(super) fn new(
        interface: &Interface,
        datapath: &Datapath,
        hook: Hook,
        pins: Pins,
        stays: bool,
    ) -> Result<Attachment> {
        Ok(Attachment {
            program: Some(Held::of(datapath)?),
            interface: interface.clone(),
            hook,
            pins,
            stays,
        })
    }

    /// The interface has another name.
    pub fn rename(&mut self, name: &str) {
        self.interface.name = name.to_owned();
    }

    pub fn hook(&self) -> Hook {
        self.hook
    }

    /// The program stays attached when the daemon ends.
    pub fn stay(&mut self) {
        self.stays = true;
    }

    /// There is no way back to what was found.
    pub fn settle(&mut self) {
        self.pins
            .keep(self.program.as_ref().map(|program| program.id));
        self.stays = false;
    }

    /// Puts another datapath in the place of the one that is attached, in one step:
    /// no packet meets neither.
    pub fn replace(&mut self, datapath: &Datapath) -> Result<()> {
        let old = self.program.as_ref().context("nothing is attached")?;
        let new = Held::of(datapath)?;
        self.pins.add(datapath);
        datapath::replace_fd(
            self.interface.index,
            new.fd.as_fd(),
            old.fd.as_fd(),
            self.hook,
        )
        .inspect_err(|_| self.pins.keep(Some(old.id)))
        .with_context(|| format!("replacing the program on {}", self.interface.name))?;
        self.pins.keep(Some(new.id));
        self.program = Some(new);
        Ok(())
    }

    /// Puts back what was found, in one step if it was at the same hook.
    pub fn give_back(&mut self, found: &Found) -> Result<()> {
        let (index, hook) = (self.interface.index, self.hook);
        let Some(program) = self.program.take() else {
            return Ok(());
        };
        self.pins.keep(Some(found.id));
        if hook == found.hook {
            return datapath::replace_fd(index, found.program(), program.fd.as_fd(), hook);
        }
        datapath::detach_fd(index, program.fd.as_fd(), hook)?;
        datapath::attach_fd(index, found.program(), found.hook)
    }

    /// What is where the program should be.
    pub fn look(&self) -> Look {
        let id = self.program.as_ref().map(|program| program.id);
        match datapath::attached(self.interface.index) {
            Ok(Some(now)) if Some(now.id) == id => Look::Ours,
            Ok(Some(other)) => Look::Other(foreign(&self.interface, &other)),
            Ok(None) => Look::Nothing,
            Err(_) => Look::Gone,
        }
    }

    /// Puts the program where nothing is.
    pub fn attach_again(&mut self, datapath: &Datapath) -> Result<()> {
        let program = Held::of(datapath)?;
        self.pins.add(datapath);
        datapath.attach(self.interface.index, self.hook)?;
        self.program = Some(program);
        Ok(())
    }

    /// Goes with the program to another interface, as the one it was on is gone.
    pub fn move_to(&mut self, interface: &Interface, datapath: &Datapath) -> Result<()> {
        if let Some(there) = datapath::attached(interface.index)? {
            bail!("{}", foreign(interface, &there));
        }
        self.pins.keep(None);
        (self.interface, self.pins) = (interface.clone(), Pins::of(interface.index)?);
        self.attach_again(datapath)
    }

    /// Detaches, unless somebody else already did.
    pub fn detach(&mut self) -> Result<()> {
        let Some(program) = self.program.take() else {
            return Ok(());
        };
        self.pins.keep(None);
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
        if self.stays {
            return;
        }
        if let Err(error) = self.detach() {
            tracing::error!("{error:#}");
        }
    }
}
