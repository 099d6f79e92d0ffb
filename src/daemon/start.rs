// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! From nothing, from what a dead daemon left, or from what a running one hands
//! over, to the program attached; and the end.

use std::collections::BTreeSet;
use std::os::unix::net::UnixListener;
use std::time::Instant;

use anyhow::{Result, bail};

use super::routes::{
    addresses_with_flows, backend_addresses, choose_interface, held_vip, path_of, reach_of, vips,
};
use super::sources::leave_sources;
use super::update::now_s;
use super::{CHECKS_DEADLINE, Daemon, End, SETTLE_DEADLINE, Signals};
use crate::attach;
use crate::config::Input;
use crate::control::{Control, Handover, Predecessor, Response};
use crate::datapath::{self, Found};
use crate::health::{Checks, Plan};
use crate::manager;
use crate::neighbour::{Interface, Neighbours};
use crate::privilege;
use crate::service::Config;
use crate::stats::{BackendCounters, Counters};
use crate::status::counted;
use crate::tables::{Path, Tables};
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
/// What kept it from serving; nothing is left attached then.
pub async fn run(input: Input, config: Config, manner: Manner) -> Result<()> {
    privilege::check()?;
    let interface = choose_interface(&config).await?;
    let signals = Signals::new()?;
    let plan = Plan::new(&config)?;
    let Place {
        listener,
        found,
        predecessor,
    } = Place::take(&interface, manner.takes_over)?;
    let (old, counters) = match &found {
        Some(found) => recover(found, &interface)?,
        None => Default::default(),
    };
    let has_flows = |index: usize| counters.backends[index - 1].flows() > 0;
    let mut addresses = backend_addresses(&config);
    addresses.extend(addresses_with_flows(&old, has_flows));
    let mut neighbours = Neighbours::follow(&interface, addresses, vips(&config)).await?;
    let known = old.health();
    let checks = Checks::begin(plan, |target| {
        known.get(target).copied().unwrap_or_default()
    });
    checks.note_link(interface.up);
    tokio::join!(
        neighbours.settle(SETTLE_DEADLINE),
        checks.settle(CHECKS_DEADLINE)
    );

    let trunk = Trunk::look(&interface).await?;
    let default_source = held_vip(&config, &interface).await?;
    let path_of = |address| {
        let path = path_of(reach_of(&neighbours, &trunk, address));
        Path {
            source: path.source.or(default_source),
            ..path
        }
    };
    let mut tables = old.followed_by(&config, datapath::tick()?, path_of, has_flows)?;
    let mut ended = Vec::new();
    if let Some(found) = &found {
        ended = leave_sources(&mut tables, &old, found.maps()?).await?;
    }
    tables.set_held(&neighbours.held());
    tables.take_health(now_s()?, |target| checks.health(target));
    tables.drain(now_s()?);
    tables.place_services(&old, &config, datapath::tick()?);
    if predecessor.as_ref().is_some_and(|other| !other.waits()) {
        bail!("the daemon on {} has gone on by itself", interface.name);
    }
    let (datapath, attachment) =
        attach::load_and_attach(&config, &tables, &interface, &trunk, found.as_ref()).await?;
    let mut daemon = Daemon {
        started: Instant::now(),
        program_id: datapath.program_id()?,
        input,
        config,
        tables,
        datapath,
        interface,
        trunk,
        neighbours,
        checks,
        attachment,
        absent: false,
        stranded: false,
        kept_sources: BTreeSet::new(),
        trouble: None,
    };
    if let Err(error) = daemon.get_ready().await {
        if let Some(found) = &found {
            daemon.attachment.give_back(found)?;
        }
        return Err(error);
    }
    daemon.attachment.settle();
    attach::tidy_pins();
    for line in ended {
        tracing::warn!("{}: {line}", daemon.interface.name);
    }
    drop(found);
    // Who waits for this goes now.
    drop(predecessor);
    let control = Control::on(&daemon.interface.name, listener)?;
    let end = daemon.serve(control, signals).await?;
    daemon.end(end, manner.persists).await
}

/// The place on the interface that the daemon takes.
struct Place {
    listener: UnixListener,
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
                listener: Control::bind(&interface.name)?,
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
            listener,
            found: Some(attach::receive(interface, program, maps)?),
            predecessor: Some(predecessor),
        })
    }
}

/// What the program that was there serves, as far as the configuration does not say
/// otherwise.
fn recover(found: &Found, interface: &Interface) -> Result<(Tables, Counters)> {
    let maps = found.maps()?;
    let mut tables = maps.tables()?;
    tables.forget_earlier(|source| maps.needs_earlier(source))?;
    let counters = maps.counters(tables.backends.len())?;
    let flows: u64 = counters.backends.iter().map(BackendCounters::flows).sum();
    tracing::info!(
        "{}: taking over program {} of version {}, with {}",
        interface.name,
        found.id,
        maps.notes()?.version,
        counted(flows, "flow"),
    );
    Ok((tables, counters))
}

impl Daemon {
    /// All that can fail before traffic is served for good.
    async fn get_ready(&mut self) -> Result<()> {
        self.report_foreign_sources().await?;
        self.report_deaf_checks()?;
        self.report_unreachable();
        self.report_vlan_faults().await?;
        privilege::limit()?;
        self.report_unreadable();
        self.announce()
    }

    async fn end(mut self, end: End, persists: bool) -> Result<()> {
        manager::stopping();
        match end {
            End::TakenOver => {
                self.attachment.stay();
                tracing::info!("{}: another xdp-proxy has taken over", self.interface.name);
                Ok(())
            }
            End::Signal if persists && !self.absent => {
                self.attachment.stay();
                tracing::info!(
                    "{0}: program {1} serves on: `xdp-proxy run` goes on with it, `xdp-proxy stop \
                     -i {0}` removes it",
                    self.interface.name,
                    self.program_id
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
                drop(self);
                caller.answer_and_wait(response).await;
                detached
            }
        }
    }
}
