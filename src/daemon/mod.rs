// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! What `run` does: configuration x neighbours -> the datapath's maps, until
//! it is told to end.

mod drain;
mod presence;
mod reload;
mod report;
mod routes;
mod sources;
mod start;
mod update;

pub use start::{Manner, run};
pub use update::now_s;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::attach::{Attachment, Look};
use crate::config::Input;
use crate::control::{Caller, Control, Request, Response};
use crate::datapath::Datapath;
use crate::health::Checks;
use crate::manager::{self, Watchdog};
use crate::neighbour::{Interface, Neighbours};
use crate::service::Config;
use crate::tables::{ServiceTable, Tables, Tenure};
use crate::vlan::Trunk;

/// How long a start or a reload waits for neighbours to answer.
const SETTLE_DEADLINE: Duration = Duration::from_millis(1300);
/// How long it waits for what checks say of backends first.
const CHECKS_DEADLINE: Duration = Duration::from_millis(500);
/// How long another daemon may take to take over.
const HAND_OVER_DEADLINE: Duration = Duration::from_secs(8);
/// How often flows whose time is over are ended in silence.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> Result<Signals> {
        let on = |kind| signal(kind).context("listening for signals");
        Ok(Signals {
            interrupt: on(SignalKind::interrupt())?,
            terminate: on(SignalKind::terminate())?,
            hangup: on(SignalKind::hangup())?,
        })
    }
}

/// Why the daemon ends.
enum End {
    Signal,
    Stop(Caller),
    /// Another one has its program in the place of ours.
    TakenOver,
}

struct Daemon {
    started: Instant,
    program_id: u32,
    input: Input,
    config: Config,
    tables: Tables,
    // Detached before the maps go.
    attachment: Attachment,
    datapath: Datapath,
    interface: Interface,
    trunk: Trunk,
    neighbours: Neighbours,
    checks: Checks,
    /// The interface is gone.
    absent: bool,
    /// The host has none of the flows' sources any more.
    stranded: bool,
    /// Sources that the routes name no more, but that the host still has.
    kept_sources: BTreeSet<IpAddr>,
    /// What keeps the program from its place, as it was told.
    trouble: Option<String>,
}

impl Daemon {
    async fn serve(&mut self, mut control: Control, mut signals: Signals) -> Result<End> {
        let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
        sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut watchdog = Watchdog::as_asked();
        loop {
            if let Err(error) = control.follow(&self.interface.name) {
                tracing::warn!("{error:#}");
            }
            tokio::select! {
                _ = signals.interrupt.recv() => return Ok(End::Signal),
                _ = signals.terminate.recv() => return Ok(End::Signal),
                _ = signals.hangup.recv() => drop(self.reload().await),
                changed = self.neighbours.changed(), if !self.absent => {
                    match changed {
                        Ok(()) => {
                            self.look_after().await?;
                            self.look_at_sources().await?;
                        }
                        Err(error) => self.leave(&error.to_string()),
                    }
                    self.apply(|_| ())?;
                }
                () = self.checks.changed() => self.apply(|_| ())?,
                Some((request, caller)) = control.call() => match request {
                    Request::Stop => return Ok(End::Stop(caller)),
                    Request::Maps => {
                        let descriptors = self.datapath.descriptors()?;
                        caller.answer_with(descriptors);
                    }
                    Request::TakeOver => {
                        if self.hand_over(&mut control, caller).await? {
                            return Ok(End::TakenOver);
                        }
                    }
                    Request::Reload => {
                        let response = match self.reload().await {
                            Ok(change) => Response::Reloaded(change),
                            Err(error) => Response::Error(format!("{error:#}")),
                        };
                        drop(caller.answer(response));
                    }
                    Request::Drain { backend, service, drains } => {
                        let response = match self.drain(&backend, service.as_deref(), drains) {
                            Ok(done) => Response::Done(done),
                            Err(error) => Response::Error(format!("{error:#}")),
                        };
                        drop(caller.answer(response));
                    }
                    Request::Status => {
                        let response = match self.status() {
                            Ok(status) => Response::Status(Box::new(status)),
                            Err(error) => Response::Error(format!("{error:#}")),
                        };
                        drop(caller.answer(response));
                    }
                },
                () = watchdog.due() => manager::alive(),
                _ = sweep.tick() => {
                    self.look_after().await?;
                    self.move_sources().await?;
                    if self.tables.drain_is_due(now_s()?) {
                        self.apply(|_| ())?;
                    }
                    self.datapath.sweep()?;
                }
            }
        }
    }

    /// Hands everything over and waits. Returns whether another program has taken the
    /// place of ours; else this daemon goes on, and so do the maps.
    async fn hand_over(&self, control: &mut Control, caller: Caller) -> Result<bool> {
        tracing::info!("{}: another xdp-proxy takes over", self.interface.name);
        let mut descriptors = vec![control.pause()?, self.datapath.program_fd()?];
        descriptors.extend(self.datapath.descriptors()?);
        // Meanwhile nobody else writes to the maps.
        let _ = tokio::time::timeout(HAND_OVER_DEADLINE, caller.hand_over(descriptors)).await;
        if let Look::Other(_) = self.attachment.look() {
            return Ok(true);
        }
        tracing::warn!("{}: it did not, and this one goes on", self.interface.name);
        control.go_on()?;
        Ok(false)
    }

    /// The indexes of the backends of the service at a place of the configuration.
    fn backends_of(&self, number: usize) -> impl Iterator<Item = usize> + '_ {
        let is_it = move |service: &&ServiceTable| {
            service.tenure == Tenure::Configured && service.number == number
        };
        let members = self.tables.services.iter().filter(is_it);
        members.flat_map(|service| service.backends.iter().copied())
    }
}
