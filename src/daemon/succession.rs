// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The one place where a program and its tables follow others: at the start, by a reload,
//! when source addresses change, and when the program comes back to its interface.
//!
//! There is one point of no return, which is one call: the program is put in its place.
//! All that can fail comes before. What comes after can't fail, but for what is owed: the
//! counts of before and a sweep. That is tried until it is done, and warned of; nothing
//! makes the daemon believe, or say, that the program before still serves.
//!
//! Where the kernel's answer is lost, the interface tells which program it has. Where not
//! even that can be asked, both are kept until it can.

use std::net::IpAddr;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use super::routes::take_routes;
use super::world::{Before, Informants, Surroundings};
use super::{Daemon, world};
use crate::attach::{self, Held, Look};
use crate::config::Input;
use crate::datapath::{Datapath, Found, Maps, Undecided};
use crate::neighbour::{Interface, Neighbours};
use crate::service::Config;
use crate::tables::{Plan, Tables};
use crate::vlan::Trunk;

/// What is ready to take the place of what serves.
pub(super) struct Successor {
    config: Config,
    tables: Tables,
    datapath: Datapath,
    program: Held,
    /// `None`: they stay.
    surroundings: Option<Surroundings>,
}

/// Counts of a program that is replaced, which are to go on in the one that serves.
pub(super) struct Counts {
    of: Maps,
    /// The backends whose indexes stood for others there.
    recycled: Vec<usize>,
}

impl Daemon {
    /// The daemon of a program that is put on an interface: in the place of what was found
    /// there, if anything was. `go` is asked right before.
    ///
    /// # Errors
    /// All is as it was before.
    pub(super) async fn begin(
        input: Input,
        config: Config,
        tables: Tables,
        surroundings: Surroundings,
        found: Option<Found>,
        go: impl Fn() -> Result<()>,
    ) -> Result<Daemon> {
        let Surroundings {
            interface,
            trunk,
            neighbours,
            checks,
        } = surroundings;
        let (datapath, attachment) =
            attach::load_and_attach(&config, &tables, &interface, &trunk, found.as_ref(), go)
                .await?;
        let owed = found.map(|found| Counts {
            of: found.into_maps(),
            recycled: tables.recycled.clone(),
        });
        let mut daemon = Daemon {
            started: Instant::now(),
            input,
            config,
            tables,
            datapath,
            interface,
            trunk,
            neighbours,
            replies: Default::default(),
            checks,
            attachment,
            owed,
            undecided: None,
            unwritten: Default::default(),
            troubles: Default::default(),
            repeats: Default::default(),
            absent: false,
            deaf: false,
            handed_over: false,
            taken_over: false,
            lost_sources: Default::default(),
            kept_sources: Default::default(),
        };
        daemon.pay();
        Ok(daemon)
    }

    pub(super) fn before(&self) -> Before<'_> {
        Before {
            tables: &self.tables,
            maps: Some(&self.datapath),
        }
    }

    pub(super) fn informants(&self) -> Informants<'_> {
        Informants {
            trunk: &self.trunk,
            neighbours: &self.neighbours,
            checks: &self.checks,
        }
    }

    /// Puts a program with these tables in the place of the one that serves.
    ///
    /// # Errors
    /// Nothing was changed; or, where [`Undecided`] is among the causes, that will turn out.
    pub(super) fn follow(
        &mut self,
        config: Config,
        tables: Tables,
        surroundings: Option<Surroundings>,
    ) -> Result<()> {
        // All that can fail.
        if self.undecided.is_some() {
            bail!("what became of the last change can't be asked for yet: try again");
        }
        self.try_to_pay()?;
        let trunk = surroundings.as_ref().map_or(&self.trunk, |all| &all.trunk);
        let mut datapath = self.datapath.successor(&tables, trunk.has_vlans)?;
        let interface = match &surroundings {
            Some(all) => all.neighbours.interface(),
            None => self.neighbours.interface(),
        };
        datapath.write_interface(interface.mac, interface.mtu)?;
        let program = Held::of(&datapath)?;
        let successor = Successor {
            config,
            tables,
            program,
            surroundings,
            datapath,
        };
        // The point of no return.
        match (self.attachment).replace(&successor.datapath, &successor.program) {
            Ok(()) => {
                self.commit(successor);
                Ok(())
            }
            Err(error) => {
                if error.is::<Undecided>() {
                    self.undecided = Some(Box::new(successor));
                }
                Err(error)
            }
        }
    }

    /// The successor's program is in its place: believes it, and pays what is owed.
    fn commit(&mut self, successor: Successor) {
        let Successor {
            config,
            tables,
            datapath,
            program,
            surroundings,
        } = successor;
        let recycled = tables.recycled.clone();
        let old = std::mem::replace(&mut self.datapath, datapath);
        self.owed = Some(Counts {
            of: old.into_maps(),
            recycled,
        });
        (self.config, self.tables) = (config, tables);
        if let Some(surroundings) = surroundings {
            self.trunk = surroundings.trunk;
            self.neighbours = surroundings.neighbours;
            self.checks = surroundings.checks;
            self.deaf = false;
        }
        self.attachment.goes_on_with(program);
        self.unwritten.follows(&self.tables);
        self.replies = Default::default();
        self.tell_interface(&self.neighbours.interface());
        self.pay();
        self.apply(|_| ());
        self.sweep();
    }

    /// Goes on with the counts of before, at once or later.
    pub(super) fn pay(&mut self) {
        let paid = self.try_to_pay();
        self.troubles.note("taking over the counts", paid);
    }

    /// The same where nothing goes on without them.
    pub(super) fn try_to_pay(&mut self) -> Result<()> {
        if let Some(owed) = &self.owed {
            let counts = self.datapath.count_on(&owed.of, &owed.recycled);
            counts.context("taking over the counts of the last change")?;
            self.owed = None;
        }
        Ok(())
    }

    /// What is attached, where a successor's program that may have been put there is ours.
    pub(super) fn look(&mut self) -> Look {
        let look = self.attachment.look();
        let Some(successor) = &self.undecided else {
            return look;
        };
        match &look {
            Look::Other(other) if other.id() == successor.program.id() => {
                if let Some(successor) = self.undecided.take() {
                    tracing::warn!(
                        "{}: the change that was undecided is in its place",
                        self.interface.name
                    );
                    self.commit(*successor);
                }
                Look::Ours
            }
            Look::Unknown(_) => look,
            _ => {
                self.undecided = None;
                look
            }
        }
    }

    /// Puts the program where it was taken off.
    pub(super) fn come_back(&mut self) -> Result<()> {
        self.attachment.attach_again(&self.datapath)
    }

    /// Goes with the program to the interface that has the place of the one that is gone.
    pub(super) fn come_to(
        &mut self,
        interface: Interface,
        trunk: Trunk,
        neighbours: Neighbours,
    ) -> Result<()> {
        // All that can fail.
        self.datapath
            .write_interface(interface.mac, interface.mtu)?;
        // The point of no return.
        self.attachment.move_to(&interface, &self.datapath)?;
        (self.interface, self.trunk, self.neighbours) = (interface, trunk, neighbours);
        (self.absent, self.deaf) = (false, false);
        Ok(())
    }
}

/// The plan for a configuration, after what there was before.
///
/// # Errors
/// The host can't be asked, or the configuration can't follow.
pub(super) async fn plan(
    config: &Config,
    informants: Informants<'_>,
    before: Before<'_>,
    default_source: Option<IpAddr>,
) -> Result<Plan> {
    let world = world::look(config, informants, before, default_source).await?;
    let mut plan = Plan::new(config, &world, before.tables)?;
    let replies = informants.neighbours.replies();
    take_routes(&mut plan.tables, &replies, informants.trunk, None);
    Ok(plan)
}
