// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The program on its interface, from the moment that it is there.

use std::fmt::{self, Display, Formatter};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::foreign;
use crate::datapath::{self, Attached, Datapath, Hook, Pins};
use crate::neighbour::Interface;

/// How often the program is taken off before its end says that it can't be, and the time
/// between.
const DETACHED_TIMES: usize = 10;
const DETACHED_EVERY: Duration = Duration::from_millis(100);

/// The program on the interface. It stays there unless it is detached.
pub struct Attachment {
    interface: Interface,
    program: Held,
    hook: Hook,
    pins: Pins,
}

/// What is where the program should be.
pub enum Look {
    Ours,
    Nothing,
    Other(Other),
    /// The interface is not there any more.
    Gone,
    /// The kernel could not be asked, which says nothing of the program.
    Unknown(anyhow::Error),
}

/// Another program, which is not ours to replace. Displays as a sentence with the mend.
pub struct Other {
    program: Attached,
    interface: Interface,
}

impl Other {
    pub fn id(&self) -> u32 {
        self.program.id
    }

    /// It may be of another `xdp-proxy`, as far as this process may know.
    pub fn may_be_ours(&self) -> bool {
        self.program.name.is_none() || self.program.is_ours()
    }
}

impl Display for Other {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&foreign(&self.interface, &self.program))
    }
}

/// A program, held so that it can be attached and detached without opening anything.
pub struct Held {
    id: u32,
    fd: OwnedFd,
}

impl Held {
    pub fn of(datapath: &Datapath) -> Result<Held> {
        Ok(Held {
            id: datapath.program_id()?,
            fd: datapath.program_fd()?,
        })
    }

    /// The number the kernel gave the program.
    pub fn id(&self) -> u32 {
        self.id
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Attachment {
    /// Of a program that was just attached.
    pub(super) fn new(interface: &Interface, program: Held, hook: Hook, pins: Pins) -> Attachment {
        Attachment {
            interface: interface.clone(),
            program,
            hook,
            pins,
        }
    }

    /// The interface has another name.
    pub fn rename(&mut self, name: &str) {
        self.interface.name = name.to_owned();
    }

    pub fn hook(&self) -> Hook {
        self.hook
    }

    pub fn program_id(&self) -> u32 {
        self.program.id
    }

    /// Puts another program in the place of the one that is attached, in one step: no
    /// packet meets neither. It is this attachment's from [`Attachment::goes_on_with`] on.
    ///
    /// # Errors
    /// The one before is there as it was; or, where [`datapath::Undecided`] is among the
    /// causes, either may be.
    pub fn replace(&mut self, datapath: &Datapath, program: &Held) -> Result<()> {
        self.pins.add(datapath);
        datapath::replace_fd(
            self.interface.index,
            program.fd(),
            self.program.fd(),
            self.hook,
        )
        .inspect_err(|error| {
            if !error.is::<datapath::Undecided>() {
                self.pins.keep(Some(self.program.id));
            }
        })
        .with_context(|| format!("replacing the program on {}", self.interface.name))
    }

    /// The program in its place is this one.
    pub fn goes_on_with(&mut self, program: Held) {
        self.pins.keep(Some(program.id));
        self.program = program;
    }

    /// What is where the program should be.
    pub fn look(&self) -> Look {
        let index = self.interface.index;
        let there = match datapath::attached_id(index) {
            Ok(Some((id, _))) if id == self.program.id => return Look::Ours,
            Ok(Some(_)) => datapath::attached(index),
            Ok(None) => return Look::Nothing,
            Err(error) => Err(error),
        };
        match there {
            Ok(Some(there)) if there.id == self.program.id => Look::Ours,
            Ok(Some(program)) => Look::Other(Other {
                program,
                interface: self.interface.clone(),
            }),
            Ok(None) => Look::Nothing,
            Err(error) if datapath::is_gone(&error) => Look::Gone,
            Err(error) => Look::Unknown(error),
        }
    }

    /// Puts the program where nothing is.
    pub fn attach_again(&mut self, datapath: &Datapath) -> Result<()> {
        self.pins.add(datapath);
        datapath::attach_fd(self.interface.index, self.program.fd(), self.hook)
    }

    /// Goes with the program to another interface, as the one it was on is gone; or stays,
    /// if that was not so.
    pub fn move_to(&mut self, interface: &Interface, datapath: &Datapath) -> Result<()> {
        let there = datapath::attached(interface.index)?;
        if there
            .as_ref()
            .is_some_and(|there| there.id != self.program.id)
        {
            bail!(
                "{}",
                Other {
                    program: there.context("nothing is attached")?,
                    interface: interface.clone()
                }
            );
        }
        if interface.index != self.interface.index {
            let pins = Pins::of(interface.index)?;
            self.pins.keep(None);
            self.pins = pins;
        }
        self.interface = interface.clone();
        match there {
            Some(_) => Ok(()),
            None => self.attach_again(datapath),
        }
    }

    /// Detaches, unless somebody else already did.
    ///
    /// # Errors
    /// It is still attached, though that was tried for a second.
    pub fn detach(self) -> Result<()> {
        let (index, id) = (self.interface.index, self.program.id);
        for time in 1.. {
            let Err(error) = datapath::detach_fd(index, self.program.fd(), self.hook) else {
                break;
            };
            match self.look() {
                Look::Ours | Look::Unknown(_) if time < DETACHED_TIMES => sleep(DETACHED_EVERY),
                Look::Ours | Look::Unknown(_) => {
                    let doing = || format!("detaching from {}", self.interface.name);
                    return Err(error).with_context(doing);
                }
                Look::Nothing | Look::Other(_) | Look::Gone => {
                    tracing::warn!(
                        "{} no longer has our program (id {id})",
                        self.interface.name
                    );
                    break;
                }
            }
        }
        self.pins.keep(None);
        Ok(())
    }
}
