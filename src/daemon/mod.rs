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
mod succession;
mod troubles;
mod update;
mod world;

pub use start::{Manner, run};
use succession::{Counts, Successor};
use troubles::Troubles;
pub use update::now_s;
use update::{Subject, Unwritten};

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::attach::Attachment;
use crate::config::Input;
use crate::control::{Caller, Control, Request, Response};
use crate::datapath::Datapath;
use crate::health::Checks;
use crate::manager::{self, Watchdog};
use crate::neighbour::{Interface, Neighbours, Replies};
use crate::repeats::Repeats;
use crate::service::Config;
use crate::tables::{ServiceTable, Tables, Tenure};
use crate::vlan::Trunk;

/// How long a start or a reload waits for neighbours to answer.
const SETTLE_DEADLINE: Duration = Duration::from_millis(1300);
/// How long it waits for what checks say of backends first.
const CHECKS_DEADLINE: Duration = Duration::from_millis(500);
/// How long another daemon may take to take over.
const HAND_OVER_DEADLINE: Duration = Duration::from_secs(8);
/// How often it asks whether that one has, if it could not ask.
const LOOK_PAUSE: Duration = Duration::from_millis(100);
/// How often flows whose time is over are ended in silence, and all is looked after.
const TICK: Duration = Duration::from_secs(1);

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
    input: Input,
    config: Config,
    tables: Tables,
    attachment: Attachment,
    datapath: Datapath,
    interface: Interface,
    trunk: Trunk,
    neighbours: Neighbours,
    /// How answers get to clients, as the flows know it.
    replies: Arc<Replies>,
    checks: Checks,
    /// What the program before has counted.
    owed: Option<Counts>,
    /// What may have the program's place.
    undecided: Option<Box<Successor>>,
    unwritten: Unwritten,
    troubles: Troubles,
    /// Lines about one of them in the log.
    repeats: Repeats<Subject>,
    /// The interface is gone.
    absent: bool,
    /// The neighbours are not followed any more.
    deaf: bool,
    /// Another daemon has got all that it needs to take over.
    handed_over: bool,
    /// It has its program in the place of ours.
    taken_over: bool,
    /// Sources that the host has no more, since when.
    lost_sources: BTreeMap<IpAddr, Instant>,
    /// Sources that the routes name no more, but that the host still has.
    kept_sources: BTreeSet<IpAddr>,
}

impl Daemon {
    /// Serves until it is told to end: no error does that. Each is told, costs what it
    /// kept from being done, and that is tried again.
    async fn serve(&mut self, mut control: Control, mut signals: Signals) -> End {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut watchdog = Watchdog::as_asked();
        control.go_on();
        while !self.taken_over {
            let followed = control.follow(&self.interface.name);
            self.troubles.note("taking the interface's name", followed);
            tokio::select! {
                _ = signals.interrupt.recv() => return End::Signal,
                _ = signals.terminate.recv() => return End::Signal,
                _ = signals.hangup.recv() => drop(self.reload().await),
                changed = self.neighbours.changed(), if !self.absent && !self.deaf => {
                    self.deaf = changed.is_err();
                    self.look_after().await;
                    self.move_sources().await;
                    self.apply(|_| ());
                }
                () = self.checks.changed() => self.apply(|_| ()),
                Some((request, caller)) = control.call() => {
                    let answered = self.answer(&mut control, &mut signals, request, caller);
                    if let Some(end) = answered.await {
                        return end;
                    }
                }
                () = watchdog.due() => manager::alive(),
                _ = tick.tick() => self.keep_up().await,
            }
        }
        End::TakenOver
    }

    /// What is to be done again and again, that which failed among it.
    async fn keep_up(&mut self) {
        self.look_after().await;
        self.move_sources().await;
        let now_s = self.troubles.note("reading the clock", now_s());
        if !self.unwritten.is_empty() || now_s.is_some_and(|now| self.tables.drain_is_due(now)) {
            self.apply(|_| ());
        }
        self.pay();
        self.sweep();
        self.sum_up();
    }

    /// Ends the flows whose time is over.
    fn sweep(&mut self) {
        self.steer();
        let swept = self.datapath.sweep();
        self.troubles.note("sweeping the flow table", swept);
    }

    async fn answer(
        &mut self,
        control: &mut Control,
        signals: &mut Signals,
        request: Request,
        caller: Caller,
    ) -> Option<End> {
        let response = match request {
            Request::Stop => return Some(End::Stop(caller)),
            Request::Maps => match self.datapath.descriptors() {
                Ok(descriptors) => {
                    caller.answer_with(descriptors);
                    return None;
                }
                Err(error) => Err(error),
            },
            Request::TakeOver => match self.descriptors(control) {
                Ok(descriptors) => {
                    return self.hand_over(control, signals, caller, descriptors).await;
                }
                Err(error) => Err(error),
            },
            Request::Reload => self.reload().await.map(Response::Reloaded),
            Request::Drain {
                backend,
                service,
                drains,
            } => self
                .drain(&backend, service.as_deref(), drains)
                .map(Response::Done),
            Request::Status => self
                .status()
                .map(|status| Response::Status(Box::new(status))),
        };
        let response = response.unwrap_or_else(|error| Response::Error(format!("{error:#}")));
        drop(caller.answer(response));
        None
    }

    /// All that another daemon needs to take over.
    fn descriptors(&mut self, control: &Control) -> Result<Vec<OwnedFd>> {
        self.try_to_pay()?;
        let mut descriptors = vec![control.descriptor()?, self.datapath.program_fd()?];
        descriptors.extend(self.datapath.descriptors()?);
        Ok(descriptors)
    }

    /// Hands everything over and waits until the other one has taken the place of this
    /// one's program, has given up, or a signal comes. Returns why the daemon ends; else it
    /// goes on, and so do the maps.
    async fn hand_over(
        &mut self,
        control: &mut Control,
        signals: &mut Signals,
        caller: Caller,
        descriptors: Vec<OwnedFd>,
    ) -> Option<End> {
        tracing::info!("{}: another xdp-proxy takes over", self.interface.name);
        control.pause();
        self.handed_over = true;
        // Meanwhile nobody else writes to the maps.
        let is_to_end = tokio::select! {
            () = caller.hand_over(descriptors) => false,
            () = tokio::time::sleep(HAND_OVER_DEADLINE) => false,
            _ = signals.interrupt.recv() => true,
            _ = signals.terminate.recv() => true,
        };
        let asking = Instant::now();
        loop {
            self.look_after().await;
            // Which of the two serves, the interface alone knows.
            if !self.handed_over || self.absent || asking.elapsed() > HAND_OVER_DEADLINE {
                break;
            }
            tokio::time::sleep(LOOK_PAUSE).await;
        }
        if self.taken_over {
            return Some(End::TakenOver);
        }
        if is_to_end {
            return Some(End::Signal);
        }
        tracing::warn!("{}: it did not, and this one goes on", self.interface.name);
        control.go_on();
        None
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
