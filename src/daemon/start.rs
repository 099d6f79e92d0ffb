// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! From nothing, from what a dead daemon left, or from what a running one hands
//! over, to the program attached; and the end.

use anyhow::{Result, bail};

use super::routes::{
    addresses_with_flows, backend_addresses, choose_interface, held_vip, refuse_vips, vips,
};
use super::world::{Before, Surroundings};
use super::{CHECKS_DEADLINE, Daemon, End, SETTLE_DEADLINE, Signals, succession};
use crate::attach;
use crate::config::Input;
use crate::control::{Control, Handover, Predecessor, Response};
use crate::datapath::Found;
use crate::health::{self, Checks};
use crate::manager;
use crate::neighbour::{Interface, Neighbours};
use crate::privilege;
use crate::service::Config;
use crate::stats::BackendCounters;
use crate::status::counted;
use crate::tables::{Plan, Tables};
use crate::vlan::Trunk;

/// How the daemon begins and ends.
#[derive(Clone, Copy, Debug, Default)]
pub struct Manner {
    /// In the place of a running one.
    pub takes_over: bool,
    /// Signals end it, and not the datapath.
    pub persists: bool,
}

/// Serves the configuration, which `input` describes, until SIGINT, SIGTERM or `stop`.
///
/// # Errors
/// What kept it from serving: what was attached before is as it was, and nothing else is.
/// Or its program could not be detached at the end.
pub async fn run(input: Input, config: Config, manner: Manner) -> Result<()> {
    privilege::check()?;
    let interface = choose_interface(&config).await?;
    let signals = Signals::new()?;
    let plan = health::Plan::new(&config)?;
    let Place {
        control,
        found,
        predecessor,
    } = Place::take(&interface, manner.takes_over)?;
    let old = match &found {
        Some(found) => recover(found, &interface)?,
        None => Tables::default(),
    };
    let before = Before {
        tables: &old,
        maps: found.as_ref().map(Found::maps).transpose()?,
    };
    let busy = before.backends_with_flows()?;
    let mut addresses = backend_addresses(&config);
    addresses.extend(addresses_with_flows(&old, |index| busy.contains(&index)));
    let mut neighbours = Neighbours::follow(&interface, addresses, vips(&config, &old)).await?;
    let known = old.health();
    let checks = Checks::begin(plan, |target| {
        known.get(target).copied().unwrap_or_default()
    })?;
    checks.note_link(interface.up);
    tokio::join!(
        neighbours.settle(SETTLE_DEADLINE),
        checks.settle(CHECKS_DEADLINE)
    );

    let trunk = Trunk::look(&interface).await?;
    let default_source = held_vip(&config, &interface).await?;
    let surroundings = Surroundings {
        interface,
        trunk,
        neighbours,
        checks,
    };
    refuse_vips(&config, &surroundings.interface, &surroundings.neighbours).await?;
    let informants = surroundings.informants();
    let Plan { tables, notices } =
        succession::plan(&config, informants, before, default_source).await?;
    privilege::limit()?;
    let name = surroundings.interface.name.clone();
    let go = || match &predecessor {
        Some(other) if !other.waits() => bail!("the daemon on {name} has gone on by itself"),
        _ => Ok(()),
    };
    let mut daemon = Daemon::begin(input, config, tables, surroundings, found, go).await?;
    // Who waits for this goes now.
    drop(predecessor);
    attach::tidy_pins();
    for line in notices {
        tracing::warn!("{name}: {line}");
    }
    daemon.report().await;
    daemon.report_unreadable();
    daemon.announce();
    let end = daemon.serve(control, signals).await;
    daemon.end(end, manner.persists).await
}

/// The place on the interface that the daemon takes.
struct Place {
    control: Control,
    /// A program that is there, with its flows.
    found: Option<Found>,
    /// The daemon that waits for this one.
    predecessor: Option<Predecessor>,
}

impl Place {
    /// # Errors
    /// A daemon has it, or a program that is not ours.
    fn take(interface: &Interface, takes_over: bool) -> Result<Place> {
        let handover = match takes_over {
            true => Handover::ask(&interface.name)?,
            false => None,
        };
        let Some(handover) = handover else {
            return Ok(Place {
                control: Control::bind(&interface.name)?,
                found: attach::find(interface)?,
                predecessor: None,
            });
        };
        let Handover {
            listener,
            program,
            maps,
            predecessor,
        } = handover;
        Ok(Place {
            control: Control::on(&interface.name, listener)?,
            found: Some(attach::receive(interface, program, maps)?),
            predecessor: Some(predecessor),
        })
    }
}

/// What the program that was there serves, as far as the configuration does not say
/// otherwise.
fn recover(found: &Found, interface: &Interface) -> Result<Tables> {
    let maps = found.maps()?;
    let tables = maps.tables()?;
    let counters = maps.counters(tables.backends.len())?;
    let flows: u64 = counters.backends.iter().map(BackendCounters::flows).sum();
    tracing::info!(
        "{}: taking over program {} of version {}, with {}",
        interface.name,
        found.id,
        maps.notes()?.version,
        counted(flows, "flow"),
    );
    Ok(tables)
}

impl Daemon {
    async fn end(mut self, end: End, persists: bool) -> Result<()> {
        manager::stopping();
        // What is undecided may turn out yet, and what is owed be paid.
        self.look();
        self.pay();
        self.write();
        let Daemon {
            attachment,
            interface,
            ..
        } = &self;
        match end {
            End::TakenOver => {
                tracing::info!("{}: another xdp-proxy has taken over", interface.name);
                Ok(())
            }
            End::Signal if persists => {
                tracing::info!(
                    "{0}: program {1} serves on: `xdp-proxy run` goes on with it, `xdp-proxy stop \
                     -i {0}` removes it",
                    interface.name,
                    attachment.program_id()
                );
                Ok(())
            }
            End::Signal => self.attachment.detach(),
            End::Stop(caller) => {
                let detached = self.attachment.detach();
                let response = match &detached {
                    Ok(()) => Response::Stopped,
                    Err(error) => Response::Error(format!("{error:#}")),
                };
                drop((self.datapath, self.owed));
                caller.answer_and_wait(response).await;
                detached
            }
        }
    }
}
