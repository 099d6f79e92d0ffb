// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! What `run` does: configuration x neighbours -> the datapath's maps, until
//! it is told to end.

mod drain;
mod reload;
mod report;
mod routes;
mod update;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::attach::{self, Attachment};
use crate::config::Input;
use crate::control::{Caller, Control, Request, Response};
use crate::datapath::{self, Datapath};
use crate::health::{self, Checks};
use crate::manager::{self, Watchdog};
use crate::neighbour::{Interface, Neighbours};
use crate::privilege;
use crate::service::{Config, Health};
use crate::tables::{Path, ServiceTable, Tables, Tenure};
use crate::vlan::Trunk;
use routes::{backend_addresses, choose_interface, held_vip, path_of, reach_of, vips};
use update::now_s;

/// How long the start waits for neighbours to answer.
const SETTLE_DEADLINE: Duration = Duration::from_millis(1300);
/// How long it waits for what checks say of backends first.
const CHECKS_DEADLINE: Duration = Duration::from_millis(500);
/// How often flows whose time is over are ended in silence.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Serves the configuration, which `input` describes, until SIGINT, SIGTERM or `stop`.
///
/// # Errors
/// What kept it from serving; nothing is left attached then.
pub async fn run(input: Input, config: Config) -> Result<()> {
    privilege::check()?;
    let interface = choose_interface(&config).await?;
    let control = Control::listen(&interface.name)?;
    let signals = Signals::new()?;
    let plan = health::Plan::new(&config)?;
    let mut neighbours =
        Neighbours::follow(&interface, backend_addresses(&config), vips(&config)).await?;
    let checks = Checks::begin(plan, |_| Health::Unknown);
    tokio::join!(
        neighbours.settle(SETTLE_DEADLINE),
        checks.settle(CHECKS_DEADLINE)
    );

    let trunk = Trunk::look(&interface).await?;
    let default_source = held_vip(&config, &interface).await?;
    let mut tables = Tables::new(&config, datapath::tick()?, |address| {
        let path = path_of(reach_of(&neighbours, &trunk, address));
        Path {
            source: path.source.or(default_source),
            ..path
        }
    })?;
    tables.set_held(&neighbours.held());
    tables.take_health(now_s()?, |target| checks.health(target));
    tables.drain(now_s()?);
    let (datapath, attachment) =
        attach::load_and_attach(&config, &tables, &interface, &trunk).await?;
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
    };
    daemon.report_foreign_sources().await?;
    daemon.report_unreachable();
    daemon.report_vlan_faults().await?;
    privilege::limit()?;
    daemon.report_unreadable();
    daemon.announce()?;
    let stopped = daemon.serve(control, signals).await?;
    manager::stopping();
    let detached = daemon.attachment.detach();
    if let Some(caller) = stopped {
        let response = match &detached {
            Ok(()) => Response::Stopped,
            Err(error) => Response::Error(format!("{error:#}")),
        };
        drop(daemon);
        caller.answer_and_wait(response).await;
    }
    detached
}

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
}

impl Daemon {
    /// Returns who asked for the end, if it was a client of the control socket.
    async fn serve(
        &mut self,
        mut control: Control,
        mut signals: Signals,
    ) -> Result<Option<Caller>> {
        let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
        sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut watchdog = Watchdog::as_asked();
        loop {
            tokio::select! {
                _ = signals.interrupt.recv() => return Ok(None),
                _ = signals.terminate.recv() => return Ok(None),
                _ = signals.hangup.recv() => drop(self.reload().await),
                changed = self.neighbours.changed() => {
                    changed.with_context(|| format!("serving on {}", self.interface.name))?;
                    self.apply(|_| ())?;
                }
                () = self.checks.changed() => self.apply(|_| ())?,
                Some((request, caller)) = control.call() => match request {
                    Request::Stop => return Ok(Some(caller)),
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
                    if !self.attachment.holds()? {
                        bail!(
                            "somebody detached the program (id {}) from {}: nothing is balanced \
                             any more; start again",
                            self.program_id,
                            self.interface.name
                        );
                    }
                    if self.tables.drain_is_due(now_s()?) {
                        self.apply(|_| ())?;
                    }
                    self.datapath.sweep()?;
                }
            }
        }
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
